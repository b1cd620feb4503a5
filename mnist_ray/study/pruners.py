"""--scheduler: all of its options, read once, and Optuna's pruners by name.

A pruner decides from the study alone whether a trial goes on, and so survives a resume.
`hyperband` and `median` are Optuna's and not Ray's: Ray's HyperBandScheduler pauses trials instead
of stopping them, and its MedianStoppingRule forgets at a resume all it has seen. Epochs count
from 1.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna import pruners
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner

from mnist_ray.errors import SettingsError, own_code
from mnist_ray.settings import SearchSettings, constraints, key_values
from mnist_ray.settings.text import arguments, load
from mnist_ray.study.front import FrontHalving
from mnist_ray.study.rungs import Rungs, rungs_of

FLAG = "--scheduler-args"


@dataclass(frozen=True)
class Scheduler:
    """A rule that stops trials early.

    Attributes:
        name: one of NAMES, or "module:Class" for a person's own optuna.pruners.BasePruner.
        max_epochs: the most epochs of a trial.
        grace_period: epochs before a trial can be stopped.
        reduction_factor: one in so many goes on at each rung.
        options: the scheduler's own, as keyword arguments.
        wrapped: the scheduler that `patient` wraps.
    """

    name: str
    max_epochs: int
    grace_period: int = 1
    reduction_factor: float = 3
    options: Mapping[str, Any] = field(default_factory=dict)
    wrapped: "Scheduler | None" = None

    def pruner(self) -> BasePruner | None:
        """A new pruner; None for the names of RAY.

        Raises:
            SettingsError: the options contradict each other.
        """
        if self.name in RAY:
            return None
        failed = f"--scheduler: {self.name!r} cannot be made with {dict(self.options)}"
        try:
            with warnings.catch_warnings(), own_code(failed):
                warnings.simplefilter("ignore", ExperimentalWarning)
                if self.wrapped:
                    return pruners.PatientPruner(self.wrapped.pruner(), **self.options)
                if self.name in PRUNERS:
                    return PRUNERS[self.name](self, **self.options)
                made = load(self.name, "--scheduler", NAMES)(**self.options)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{failed}: {error}") from error
        if not isinstance(made, BasePruner):
            raise SettingsError(
                f"--scheduler: {self.name!r} is a {type(made).__name__}; "
                "expected an optuna.pruners.BasePruner"
            )
        return made

    def front(self, objectives: Sequence[str]) -> FrontHalving | None:
        """The rule that stops trials with several objectives."""
        if self.name != "asha" or not objectives:
            return None
        return FrontHalving(objectives, self.max_epochs, self.grace_period, self.reduction_factor)

    def rungs(self, *, maximize: bool) -> Rungs:
        """Empty rungs, for trials that wait there."""
        epochs = rungs_of(self.max_epochs, self.grace_period, self.reduction_factor)
        return Rungs(epochs, self.reduction_factor, maximize=maximize)

    @property
    def whole_factor(self) -> int:
        """The reduction factor as Optuna's halving takes it; SettingsError if it is none."""
        if not float(self.reduction_factor).is_integer():
            raise SettingsError(
                f"--reduction-factor: {self.reduction_factor} is not allowed here; "
                "Optuna's halving takes whole numbers only"
            )
        return int(self.reduction_factor)


# ---- the pruners; parameters after the first are the options of --scheduler-args


def hyperband(s: Scheduler, bootstrap_count: int = 0) -> BasePruner:
    """Several successive halvings side by side, the last without pruning (Li et al. 2018).

    Args:
        s: The scheduler's common options.
        bootstrap_count: Trials that must end a rung before any may pass it.
    """
    return pruners.HyperbandPruner(s.grace_period, s.max_epochs, s.whole_factor, bootstrap_count)


def successive_halving(
    s: Scheduler, min_early_stopping_rate: int = 0, bootstrap_count: int = 0
) -> BasePruner:
    """At each rung the best of every `reduction_factor` go on, asynchronously (Li et al. 2020).

    Args:
        s: The scheduler's common options.
        min_early_stopping_rate: Rungs that are left out at the start.
        bootstrap_count: Trials that must end a rung before any may pass it.
    """
    return pruners.SuccessiveHalvingPruner(
        s.grace_period, s.whole_factor, min_early_stopping_rate, bootstrap_count
    )


def percentile(
    s: Scheduler,
    percentile: float = 25.0,
    n_startup_trials: int = 5,
    interval_steps: int = 1,
    n_min_trials: int = 1,
) -> BasePruner:
    """Only the best `percentile` per cent of the complete trials at the same epoch go on.

    Args:
        s: The scheduler's common options.
        percentile: Per cent of the trials that go on.
        n_startup_trials: Complete trials before any is stopped.
        interval_steps: Epochs between two checks of a trial.
        n_min_trials: Complete trials at the same epoch before any is stopped there.
    """
    return pruners.PercentilePruner(
        percentile, n_startup_trials, s.grace_period, interval_steps, n_min_trials=n_min_trials
    )


def median(
    s: Scheduler, n_startup_trials: int = 5, interval_steps: int = 1, n_min_trials: int = 1
) -> BasePruner:
    """Only the better half of the complete trials at the same epoch go on (Golovin et al. 2017).

    Args:
        s: The scheduler's common options.
        n_startup_trials: Complete trials before any is stopped.
        interval_steps: Epochs between two checks of a trial.
        n_min_trials: Complete trials at the same epoch before any is stopped there.
    """
    return percentile(s, 50.0, n_startup_trials, interval_steps, n_min_trials)


def threshold(
    s: Scheduler, lower: float | None = None, upper: float | None = None, interval_steps: int = 1
) -> BasePruner:
    """Stops a trial whose metric leaves a range; `lower` or `upper` must be given.

    Args:
        s: The scheduler's common options.
        lower: Least value of the metric.
        upper: Largest value of the metric.
        interval_steps: Epochs between two checks of a trial.
    """
    return pruners.ThresholdPruner(lower, upper, s.grace_period, interval_steps)


PRUNERS: dict[str, Callable[..., BasePruner]] = {
    "hyperband": hyperband,
    "median": median,
    "percentile": percentile,
    "successive-halving": successive_halving,
    "threshold": threshold,
}
RAY = ("asha", "asha-promote", "pbt", "none")  # are no pruners: see tune/schedulers.py
HALVING = ("asha", "asha-promote", "successive-halving")
WITHOUT_OPTIONS = ("asha", "asha-promote", "none")
NAMES = (*RAY, *PRUNERS, "patient")


def _patient(patience: int = 2, min_delta: float = 0.0, wraps: str = "median") -> dict[str, Any]:
    """Pruning begins after `patience` epochs without an improvement.

    Args:
        patience: Epochs without an improvement before the wrapped scheduler may stop a trial.
        min_delta: Least change of the metric that counts as an improvement.
        wraps: The scheduler that decides then, or none to stop the trial at once. Its own options
            can be given too.
    """
    return {"patience": patience, "min_delta": min_delta}


def _no_options() -> dict[str, Any]:
    return {}


def _pbt(perturbation_interval: int = 1, quantile_fraction: float = 0.25) -> dict[str, Any]:
    """See tune/population.py.

    Args:
        perturbation_interval: Epochs between two exchanges of weights.
        quantile_fraction: Share of the trials that copy others, and that are copied from; at most
            0.5.

    Raises:
        SettingsError: A value is not allowed.
    """
    if perturbation_interval < 1:
        raise SettingsError(
            f"{FLAG}: perturbation_interval={perturbation_interval} is too small; "
            "expected at least 1"
        )
    if not 0 < quantile_fraction <= 0.5:
        raise SettingsError(
            f"{FLAG}: quantile_fraction={quantile_fraction} is not allowed; expected up to 0.5"
        )
    return {"perturbation_interval": perturbation_interval, "quantile_fraction": quantile_fraction}


def factory(name: str) -> Callable[..., Any]:
    """The function or class whose keywords are the options of a scheduler.

    Raises:
        SettingsError: naming --scheduler; there is none of that name.
    """
    known: dict[str, Callable[..., Any]] = {**PRUNERS, "patient": _patient, "pbt": _pbt}
    known |= dict.fromkeys(WITHOUT_OPTIONS, _no_options)
    return known[name] if name in known else load(name, "--scheduler", NAMES)


# ---- from the settings


def read_scheduler(settings: SearchSettings) -> Scheduler:
    """--scheduler and its options, read and tried once.

    `patient` lets another one decide only after some epochs without an improvement (wraps=NAME,
    else median; wraps=none stops any trial that no longer improves). Its other options are the
    wrapped one's. --deterministic turns asha into successive-halving: the same idea, which can be
    asked for its decision on a given set of trials. (With several objectives: see front.py.)

    Raises:
        SettingsError: naming the flag.
    """
    s = settings
    halving = s.scheduler == "asha" and s.deterministic and not s.objectives
    name = "successive-halving" if halving else s.scheduler
    if name == "asha-promote":
        _check_promotion(s)
    found = _read(s, name, key_values(s.scheduler_args, FLAG))
    unaware = ":" in name or (found.wrapped is not None and found.wrapped.name == "none")
    if unaware and (s.grace_period or 1) > 1 and not s.resume:
        raise SettingsError(
            f"--grace-period: {s.grace_period} was given, but the rule of --scheduler {name} "
            "does not know it; leave it out"
        )
    if isinstance(found.pruner(), pruners.HyperbandPruner) and s.sampler == "grid":
        # Within a bracket the sampler sees that bracket's trials alone.
        raise SettingsError(
            "--scheduler: hyperband hides most trials from the sampler, "
            "and grid would repeat their points; give another"
        )
    return found


def _check_promotion(s: SearchSettings) -> None:
    """Refuses settings that contradict asha-promote."""
    whose = "with --scheduler asha-promote"
    refusals = (
        (s.objectives is not None, f"--objectives: {whose} one value is compared"),
        (
            any(limit.name == "accuracy" for limit in constraints.read(s.constraint)),
            f"--constraint: {whose} the sampler cannot know which trials will keep to an accuracy",
        ),
        (
            s.sampler == "cmaes",
            f"--sampler: cmaes learns from ended trials, and {whose} most are paused until the end",
        ),
        (
            s.train is not None,
            f"--train: {whose} a trial goes on from its checkpoint, which a function may not give",
        ),
        (
            bool(s.wandb or s.mlflow),
            f"--{'wandb' if s.wandb else 'mlflow'}: {whose} every trial stays open until the end",
        ),
    )
    for refused, why in refusals:
        if refused:
            raise SettingsError(f"{why}; give asha")


def _read(s: SearchSettings, name: str, given: Mapping[str, str]) -> Scheduler:
    wrapped, own = None, dict(given)
    if name == "patient":
        inner = own.pop("wraps", "median")
        if inner in (*RAY[:-1], "patient"):
            raise SettingsError(
                f"{FLAG}: patient cannot wrap {inner!r}; "
                f"expected none, {', '.join(PRUNERS)} or module:Class"
            )
        mine = ("patience", "min_delta")
        wrapped = _read(s, inner, {k: v for k, v in own.items() if k not in mine})
        own = {k: v for k, v in own.items() if k in mine}
    if name in WITHOUT_OPTIONS and own:
        raise SettingsError(
            f"{FLAG}: scheduler {name!r} has no options, but {next(iter(own))!r} was given"
        )
    options: dict[str, Any] = {}
    if name not in WITHOUT_OPTIONS:
        function = factory(name)
        try:
            options = arguments(function, own, FLAG, f"scheduler {name!r}")
        except (TypeError, ValueError) as error:  # it has no signature
            raise SettingsError(f"--scheduler: {name!r} cannot be made: {error}") from error
        if name in ("patient", "pbt"):
            options = function(**options)
    grace_period = s.grace_period or (_honest_rung(s.max_epochs) if name in HALVING else 1)
    return Scheduler(name, s.max_epochs, grace_period, s.reduction_factor, options, wrapped)


def _honest_rung(max_epochs: int) -> int:
    """The first epoch whose values are worth a comparison: see docs/decisions/first-rung.md.

    There the rank correlation with the last epoch's values is about 0.8, on recorded curves of 8
    and of 52 epochs.
    """
    return max(2 if max_epochs >= 6 else 1, (max_epochs + 5) // 10)


def check_population(settings: SearchSettings) -> None:
    """Refuses settings that contradict pbt.

    Raises:
        SettingsError: naming the flag.
    """
    s = settings
    refusals = (
        (
            s.resume,
            "--resume: a PBT run cannot be resumed: who exploits whom depends on all its trials",
        ),
        (
            s.trials < 2,
            f"--trials: {s.trials} is too few for --scheduler pbt, whose trials learn from each "
            "other; expected at least 2",
        ),
        (
            s.deterministic,
            "--deterministic: --scheduler pbt draws from random numbers of Ray's own; "
            "give another scheduler",
        ),
        (
            s.objectives is not None,
            "--objectives: with --scheduler pbt a trial's network changes, and its size with it; "
            "give asha or none",
        ),
        (
            "sampler" in s.given and s.sampler != "random",
            f"--sampler: {s.sampler!r} cannot learn from trials that --scheduler pbt changes; "
            "give random, or none at all",
        ),
        (
            s.max_concurrent is not None,
            "--max-concurrent: --scheduler pbt trains all trials in turns, as many at a time as "
            "there are resources",
        ),
    )
    for refused, why in refusals:
        if refused:
            raise SettingsError(why)
