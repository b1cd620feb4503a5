"""--objectives: the names, their directions, and the refusals that need the settings alone."""

from typing import TYPE_CHECKING, Literal

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
