"""Optuna's half of several objectives: directions, a trial's curve, limits of sampler and pruner.

With several objectives Optuna's studies take no intermediate values. A trial's curve is then kept
as one of its user attributes, so that the study alone has all results.
"""

import copy
import warnings
from collections.abc import Callable, Sequence

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    TPESampler,
)
from optuna.trial import FrozenTrial

from mnist_ray.errors import SettingsError, first_line, own_code
from mnist_ray.run.records import checked
from mnist_ray.settings.objectives import DIRECTIONS, OF_METRIC, Direction, direction

# User attribute of a trial: {epoch: value of the metric}, in place of intermediate values.
CURVE = "mnist_ray:curve"

CONSTRAINED = (TPESampler, GPSampler, NSGAIISampler, NSGAIIISampler)
"""Samplers that learn from trials beyond a limit; and classes derived from them."""


def directions(objectives: Sequence[str], metric: str = "val_accuracy") -> list[Direction]:
    """As optuna.create_study takes them; of the metric alone if there are no objectives."""
    return [DIRECTIONS[name] for name in objectives] or [direction(metric)]


def check_parts(
    objectives: Sequence[str],
    make_sampler: Callable[[], BaseSampler],
    pruner: BasePruner | None,
    *,
    sampler_name: str,
    scheduler_name: str,
    constrained: bool = False,
) -> None:
    """Whether sampler and scheduler can do several objectives, and the sampler keep to limits.

    The sampler is tried on three made-up trials, so that a person's own is refused now and not by
    a traceback in the search.

    Raises:
        SettingsError: naming the flag.
    """
    if constrained and not isinstance(make_sampler(), CONSTRAINED):
        raise SettingsError(
            f"--sampler: {sampler_name!r} ignores --constraint; give tpe, gp or nsga2"
        )
    if not objectives:
        return
    if pruner is not None:
        raise SettingsError(
            f"--scheduler: {scheduler_name!r} reads the values after each epoch from the study, "
            "which takes none with several --objectives; give asha or none"
        )
    study = optuna.create_study(directions=directions(objectives), sampler=make_sampler())
    failed = f"--sampler: {sampler_name!r} cannot do several --objectives"
    try:
        with warnings.catch_warnings(), own_code(failed):
            warnings.simplefilter("ignore")
            for i in range(3):
                trial = study.ask()
                trial.suggest_int("x", 0, 9)
                study.tell(trial, [float(i)] * len(objectives))
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        raise SettingsError(f"{failed}: {first_line(error)}") from error


def curve(trial: FrozenTrial) -> dict[int, float]:
    """Epoch -> the run's metric, from the study's place for it.

    Raises:
        ValueError: it is no curve.
    """
    values = checked(trial.user_attrs.get(CURVE, trial.intermediate_values), dict, CURVE)
    return {int(epoch): checked(value, (int, float), CURVE) for epoch, value in values.items()}


def single(trial: FrozenTrial, objectives: Sequence[str], metric: str) -> FrozenTrial:
    """The trial as a study with the metric as its only objective has it: for figures."""
    if not objectives:
        return trial
    result = copy.copy(trial)
    place = objectives.index(OF_METRIC[metric])
    result.values = None if trial.values is None else [trial.values[place]]
    result.intermediate_values = curve(trial)
    return result
