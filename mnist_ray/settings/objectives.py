"""Several objectives at once: what they are, a trial's values, and the Pareto front. Knows nothing of Ray and torch.

Optuna's studies take no intermediate values with several objectives; a trial's curve is then kept as one of its user attributes (CURVE),
so that the study alone still says what has been done.
"""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mnist_ray.errors import SettingsError, first_line

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

    from mnist_ray.run.records import Record
    from mnist_ray.settings import SearchSettings

Direction = Literal["minimize", "maximize"]

DIRECTIONS: dict[str, Direction] = {
    "accuracy": "maximize",
    "loss": "minimize",
    "parameters": "minimize",
    "latency": "minimize",
}
OF_METRIC = {"val_accuracy": "accuracy", "val_loss": "loss"}
CURVE = "mnist_ray:curve"  # user attribute of a trial: {epoch: value of the run's metric}, in place of intermediate values


def names(text: str | None) -> tuple[str, ...]:
    """What --objectives names, in its order; () where it is not given, as one objective is --metric's business."""
    return tuple(part.strip() for part in text.split(",")) if text is not None else ()


def check(settings: "SearchSettings") -> None:
    """What can be refused by the settings alone. Raises SettingsError naming --objectives."""
    s, asked = settings, names(settings.objectives)
    if not asked:
        return
    unknown = [name for name in asked if name not in DIRECTIONS]
    if unknown or len(asked) < 2 or len(set(asked)) < len(asked):
        raise SettingsError(
            f"--objectives: {s.objectives!r} is not allowed; expected two or more of {', '.join(DIRECTIONS)}, each once"
        )
    if OF_METRIC[s.metric] not in asked:
        raise SettingsError(
            f"--objectives: {s.objectives!r} lacks {OF_METRIC[s.metric]!r}, by which --metric {s.metric} stops trials and chooses the best"
        )
    if s.deterministic and "latency" in asked:
        raise SettingsError(
            "--objectives: latency is measured, and never twice the same: --deterministic excludes it"
        )


def check_parts(
    settings: "SearchSettings",
    make_sampler: "Callable[[], BaseSampler]",
    pruner: "BasePruner | None",
) -> None:
    """Whether sampler and scheduler can do several objectives. Raises SettingsError naming the flag.

    The sampler is tried on three made-up trials, so that one's own is refused now and not by a traceback in the search.
    """
    import optuna

    asked = names(settings.objectives)
    if not asked:
        return
    if pruner is not None:
        scheduler = (
            f"{settings.scheduler!r} with --deterministic"
            if settings.deterministic
            else f"{settings.scheduler!r}"
        )
        others = "none" if settings.deterministic else "asha or none"
        raise SettingsError(
            f"--scheduler: {scheduler} reads the values after each epoch from the study, which takes none with several --objectives; "
            f"give {others}"
        )
    study = optuna.create_study(directions=directions(asked), sampler=make_sampler())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for i in range(3):
                trial = study.ask()
                trial.suggest_int("x", 0, 9)
                study.tell(trial, [float(i)] * len(asked))
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        raise SettingsError(
            f"--sampler: {settings.sampler!r} cannot do several --objectives: {first_line(error)}"
        ) from error


def directions(asked: Sequence[str]) -> list[Direction]:
    """As optuna.create_study takes them."""
    return [DIRECTIONS[name] for name in asked]


def values(asked: Sequence[str], record: "Record", metric: str) -> list[float] | None:
    """A trial's values: those of its best epoch by the run's metric. latency in milliseconds. None where it has none."""
    row = record.best(metric)
    if row is None or record.n_parameters is None:
        return None
    known = {
        "accuracy": row["val_accuracy"],
        "loss": row["val_loss"],
        "parameters": float(record.n_parameters),
        "latency": record.latency_ms,
    }
    found = [known[name] for name in asked]
    return None if None in found else found


def front(asked: Sequence[str], trials: Mapping[int, Sequence[float]]) -> list[int]:
    """Those of the trials, number -> values, than which none is better in one objective and no worse in all others."""
    import optuna

    study = optuna.create_study(
        directions=directions(asked), sampler=optuna.samplers.RandomSampler(0)
    )
    order = list(trials)
    study.add_trials([optuna.trial.create_trial(values=list(trials[number])) for number in order])
    return sorted(order[trial.number] for trial in study.best_trials)


def curve(trial: "FrozenTrial") -> dict[int, float]:
    """Epoch -> the run's metric, from wherever the study keeps it."""
    return {
        int(epoch): value
        for epoch, value in trial.user_attrs.get(CURVE, trial.intermediate_values).items()
    }


def single(trial: "FrozenTrial", asked: Sequence[str], metric: str) -> "FrozenTrial":
    """The trial as a study with the run's metric as its only objective would have it: for figures and importances."""
    if not asked:
        return trial
    result = copy.copy(trial)
    result.values = None if trial.values is None else [trial.values[asked.index(OF_METRIC[metric])]]
    result.intermediate_values = curve(trial)
    return result


def cells(asked: Sequence[str], found: Sequence[float]) -> list[Any]:
    """Values as a table shows them."""
    shapes = {"accuracy": "{:.4f}", "loss": "{:.4f}", "parameters": "{:.0f}", "latency": "{:.3f}"}
    return [shapes[name].format(value) for name, value in zip(asked, found, strict=True)]
