"""--objectives: the names, their directions, and what the settings alone can refuse."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mnist_ray.errors import SettingsError

if TYPE_CHECKING:
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


def names(text: str | None) -> tuple[str, ...]:
    """The names in --objectives, in order; () where it is not given: then there is --metric."""
    return tuple(part.strip() for part in text.split(",")) if text is not None else ()


def check(settings: "SearchSettings") -> None:
    """Raises SettingsError, naming --objectives, where the settings alone contradict it."""
    s, requested = settings, names(settings.objectives)
    if not requested:
        return
    unknown = [name for name in requested if name not in DIRECTIONS]
    if unknown or len(requested) < 2 or len(set(requested)) < len(requested):
        raise SettingsError(
            f"--objectives: {s.objectives!r} is not allowed; "
            f"expected two or more of {', '.join(DIRECTIONS)}, each once"
        )
    if OF_METRIC[s.metric] not in requested:
        raise SettingsError(
            f"--objectives: {s.objectives!r} lacks {OF_METRIC[s.metric]!r}, "
            f"by which --metric {s.metric} stops trials and chooses the best"
        )
    if s.deterministic and "latency" in requested:
        raise SettingsError(
            "--objectives: latency is measured, and never twice the same: "
            "--deterministic excludes it"
        )


def values(asked: Sequence[str], record: "Record", metric: str) -> list[float] | None:
    """A trial's values at its best epoch by the metric, latency in ms; None where it has none."""
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
    """The Pareto-optimal trials, of number -> values."""
    import optuna  # noqa: PLC0415 (seconds at start)

    study = optuna.create_study(
        directions=[DIRECTIONS[name] for name in asked], sampler=optuna.samplers.RandomSampler(0)
    )
    order = list(trials)
    study.add_trials([optuna.trial.create_trial(values=list(trials[number])) for number in order])
    return sorted(order[trial.number] for trial in study.best_trials)


def cells(asked: Sequence[str], found: Sequence[float]) -> list[Any]:
    """Values as a table shows them."""
    shapes = {"accuracy": "{:.4f}", "loss": "{:.4f}", "parameters": "{:.0f}", "latency": "{:.3f}"}
    return [shapes[name].format(value) for name, value in zip(asked, found, strict=True)]
