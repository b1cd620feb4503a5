"""--objectives: the names, their directions, and the refusals that need the settings alone."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from mnist_ray.errors import SettingsError

if TYPE_CHECKING:
    from mnist_ray.settings import SearchSettings

Direction = Literal["minimize", "maximize"]

DIRECTIONS: dict[str, Direction] = {
    "accuracy": "maximize",
    "loss": "minimize",
    "parameters": "minimize",
    "latency": "minimize",
}
OF_METRIC = {"val_accuracy": "accuracy", "val_loss": "loss"}
METRICS = (*OF_METRIC, "balanced_accuracy", "macro_f1")
"""Of --metric; all but a loss are to be maximised."""
MINIMISED, MAXIMISED = "@min", "@max"
"""End a metric of one's own: that is to be minimised; that a training function of one's own yields
and that is to be maximised, whatever its name."""


def goal(settings: Mapping[str, Any]) -> str:
    """The metric with its direction, of settings as run.json holds them."""
    end = MAXIMISED if settings.get("train") else ""
    if settings.get("metric_mode") == "min":
        end = MINIMISED
    return f"{settings['metric']}{end}"


def function_of(metric: str) -> str:
    """A goal without its direction: as --metric has it."""
    return metric.removesuffix(MINIMISED).removesuffix(MAXIMISED)


def is_yielded(metric: str) -> bool:
    """Whether a training function of one's own yields it: then it alone is known of an epoch."""
    return ":" not in metric and metric.endswith((MINIMISED, MAXIMISED))


def column(metric: str) -> str:
    """The key of the metric's value in an epoch's row."""
    return metric if metric in OF_METRIC else "val_metric"


def direction(metric: str) -> Direction:
    """Whether more of the metric is better."""
    return "minimize" if metric == "val_loss" or metric.endswith(MINIMISED) else "maximize"


def names(text: str | None) -> tuple[str, ...]:
    """The names in --objectives, in order; () if it is not given: then there is --metric."""
    return tuple(part.strip() for part in text.split(",")) if text is not None else ()


def check(settings: "SearchSettings") -> None:
    """Raises SettingsError, naming --objectives, if the settings alone contradict it."""
    s, requested = settings, names(settings.objectives)
    if not requested:
        return
    unknown = [name for name in requested if name not in DIRECTIONS]
    if unknown or len(requested) < 2 or len(set(requested)) < len(requested):
        raise SettingsError(
            f"--objectives: {s.objectives!r} is not allowed; "
            f"expected two or more of {', '.join(DIRECTIONS)}, each once"
        )
    if s.metric not in OF_METRIC:
        raise SettingsError(
            f"--objectives: goes with --metric {' or '.join(OF_METRIC)}, found {s.metric!r}"
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
