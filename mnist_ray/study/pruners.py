"""Optuna's pruners by name: each decides from the study alone whether a trial goes on, and so survives a resume.

`hyperband` and `median` are Optuna's and not Ray's: Ray's HyperBandScheduler pauses trials instead of stopping them, and its
MedianStoppingRule forgets at a resume what it has seen. Grace period, largest number of epochs and reduction factor come from the
settings; every other option from --scheduler-args. Epochs count from 1.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from optuna import pruners
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner

from mnist_ray.errors import SettingsError
from mnist_ray.settings import SearchSettings, key_values
from mnist_ray.settings.text import arguments, load


def hyperband(s: SearchSettings, bootstrap_count: int = 0) -> BasePruner:
    """Li et al. 2018: several successive halvings side by side, the first as harsh as --grace-period allows, the last without pruning."""
    return pruners.HyperbandPruner(s.grace_period, s.max_epochs, _whole_factor(s), bootstrap_count)


def successive_halving(
    s: SearchSettings, min_early_stopping_rate: int = 0, bootstrap_count: int = 0
) -> BasePruner:
    """Li et al. 2020, asynchronous: at each rung the best of every --reduction-factor go on."""
    return pruners.SuccessiveHalvingPruner(
        s.grace_period, _whole_factor(s), min_early_stopping_rate, bootstrap_count
    )


def percentile(
    s: SearchSettings,
    percentile: float = 25.0,
    n_startup_trials: int = 5,
    interval_steps: int = 1,
    n_min_trials: int = 1,
) -> BasePruner:
    """Stops what is not among the best `percentile` per cent of the complete trials at the same epoch."""
    return pruners.PercentilePruner(
        percentile, n_startup_trials, s.grace_period, interval_steps, n_min_trials=n_min_trials
    )


def median(
    s: SearchSettings, n_startup_trials: int = 5, interval_steps: int = 1, n_min_trials: int = 1
) -> BasePruner:
    """Stops what is below the median of the complete trials at the same epoch (Golovin et al. 2017)."""
    return percentile(s, 50.0, n_startup_trials, interval_steps, n_min_trials)


def threshold(
    s: SearchSettings,
    lower: float | None = None,
    upper: float | None = None,
    interval_steps: int = 1,
) -> BasePruner:
    """Stops what leaves the range from `lower` to `upper`; at least one of them must be given."""
    return pruners.ThresholdPruner(lower, upper, s.grace_period, interval_steps)


PRUNERS: dict[str, Callable[..., BasePruner]] = {
    "hyperband": hyperband,
    "median": median,
    "percentile": percentile,
    "successive-halving": successive_halving,
    "threshold": threshold,
}
RAY = ("asha", "pbt", "none")  # are no pruners; see schedulers.py
NAMES = (*RAY, *PRUNERS, "patient")


def make_pruner(settings: SearchSettings) -> BasePruner | None:
    """The pruner that --scheduler names: one of NAMES, or "module:Class" for a user's own; None for those of RAY, except that
    --deterministic turns asha into successive-halving.

    `patient` lets another one (wraps=NAME, else median; wraps=none stops whatever no longer improves) decide only after `patience`
    epochs without an improvement of more than `min_delta`; all its other options are those of the wrapped one.
    Raises SettingsError naming the flag.
    """
    pruner = _make(
        settings, settings.scheduler, key_values(settings.scheduler_args, "--scheduler-args")
    )
    if isinstance(pruner, pruners.HyperbandPruner) and settings.sampler == "grid":
        # Within a bracket the sampler sees that bracket's trials alone.
        raise SettingsError(
            "--scheduler: hyperband hides most trials from the sampler, and grid would repeat their points; give another"
        )
    return pruner


def _make(settings: SearchSettings, name: str, given: Mapping[str, str]) -> BasePruner | None:
    if name == "asha" and settings.deterministic:
        name = "successive-halving"  # the same idea, which can be asked what it would say of a given set of trials
    if name in RAY:
        if given and name != "pbt":  # see pbt.py
            raise SettingsError(
                f"--scheduler-args: scheduler {name!r} has no options, but {next(iter(given))!r} was given"
            )
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            if name == "patient":
                return _patient(settings, dict(given))
            if name in PRUNERS:
                return PRUNERS[name](
                    settings,
                    **arguments(PRUNERS[name], given, "--scheduler-args", f"scheduler {name!r}"),
                )
            own = load(name, "--scheduler", NAMES)
            pruner = own(**arguments(own, given, "--scheduler-args", f"scheduler {name!r}"))
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"--scheduler: {name!r} cannot be made with {dict(given)}: {error}"
        ) from error
    if not isinstance(pruner, BasePruner):
        raise SettingsError(
            f"--scheduler: {name!r} is a {type(pruner).__name__}; expected an optuna.pruners.BasePruner"
        )
    return pruner


def _patient(settings: SearchSettings, given: dict[str, str]) -> BasePruner:
    def options(patience: int = 2, min_delta: float = 0.0) -> dict[str, Any]:
        return {"patience": patience, "min_delta": min_delta}

    name = given.pop("wraps", "median")
    if name in ("asha", "pbt", "patient"):
        raise SettingsError(
            f"--scheduler-args: patient cannot wrap {name!r}; expected none, {', '.join(PRUNERS)} or module:Class"
        )
    own: dict[str, str] = {key: given.pop(key) for key in ("patience", "min_delta") if key in given}
    return pruners.PatientPruner(
        _make(settings, name, given),
        **options(**arguments(options, own, "--scheduler-args", "scheduler 'patient'")),
    )


def _whole_factor(settings: SearchSettings) -> int:
    if not float(settings.reduction_factor).is_integer():
        raise SettingsError(
            f"--reduction-factor: {settings.reduction_factor} is not allowed here; Optuna's halving takes whole numbers only"
        )
    return int(settings.reduction_factor)
