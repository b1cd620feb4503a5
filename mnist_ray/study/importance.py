"""How much each parameter decides: three of Optuna's measures, side by side, as they may disagree.

fANOVA (Hutter et al. 2014): the share of the values' variance that a parameter explains alone, by a
random forest. Mean decrease impurity: the parameter's share of the gain of a forest's splits.
PED-ANOVA (Watanabe et al. 2023): the parameters in which the best tenth of the trials differ.
All are of complete trials only: values after different numbers of epochs cannot be compared. The
forests know only parameters that all of these trials have; PED-ANOVA (since Optuna 5.0) also those
of a branch of the space.
"""

import random
import warnings
from collections.abc import Sequence

import optuna
from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    MeanDecreaseImpurityImportanceEvaluator,
    PedAnovaImportanceEvaluator,
)
from optuna.trial import FrozenTrial

from mnist_ray.run.tables import table_text
from mnist_ray.settings.objectives import Direction

FEWEST = 8  # complete trials; fewer of them show chance
# Complete trials that the forests are grown on: fANOVA takes 3 s for 300 of 8 parameters, and 18 s
# for 1,000.
MOST = 300
TREES = 32  # half of Optuna's: 0.6 s for 200 trials of 15 parameters
SEED = 0
FOREST = ("fANOVA", "impurity")


def evaluators() -> dict[str, BaseImportanceEvaluator]:
    """Measure -> evaluator, each with a fixed seed."""
    return {
        "fANOVA": FanovaImportanceEvaluator(n_trees=TREES, seed=SEED),
        "impurity": MeanDecreaseImpurityImportanceEvaluator(n_trees=TREES, seed=SEED),
        "PED-ANOVA": PedAnovaImportanceEvaluator(),
    }


def importances(trials: Sequence[FrozenTrial], direction: Direction) -> dict[str, dict[str, float]]:
    """Measure -> parameter -> share; each measure's shares add up to 1.

    Empty if there are fewer than FEWEST trials, or all have one value. Of more than MOST the
    forests see a random draw.

    Args:
        trials: complete ones, with one value each.
        direction: of the value.
    """
    if len(trials) < FEWEST or len({trial.value for trial in trials}) < 2:
        return {}
    drawn = random.Random(SEED).sample(list(trials), MOST) if len(trials) > MOST else trials
    result = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a parameter had one value only: its share is 0
        for name, evaluator in evaluators().items():
            study = optuna.create_study(
                direction=direction, sampler=optuna.samplers.RandomSampler(SEED)
            )
            study.add_trials(drawn if name in FOREST else trials)
            shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
            result[name] = {parameter: float(share) for parameter, share in shares.items()}
    return result


def rows(found: dict[str, dict[str, float]]) -> list[tuple[str, list[float | None]]]:
    """Parameter and its share by each measure, None if that does not know it; largest first."""
    parameters = list(dict.fromkeys(name for shares in found.values() for name in shares))
    table = [(name, [shares.get(name) for shares in found.values()]) for name in parameters]
    return sorted(table, key=lambda row: (-sum(share or 0.0 for share in row[1]), row[0]))


def text(trials: Sequence[FrozenTrial], direction: Direction) -> str:
    """The shares as a table for a terminal, or one line that says why there is none."""
    found = importances(trials, direction)
    if not found:
        why = f"it needs {FEWEST}" if len(trials) < FEWEST else "all have one value"
        return f"importance of each parameter: none from {len(trials)} complete trials, {why}"
    lines = [
        [name, *("-" if share is None else f"{share:.3f}" for share in shares)]
        for name, shares in rows(found)
    ]
    drawn = (
        f"; {', '.join(FOREST)}: from {MOST} of them, drawn at random" if len(trials) > MOST else ""
    )
    table = table_text(["parameter", *found], lines)
    return f"importance of each parameter, from {len(trials)} complete trials{drawn}:\n{table}"
