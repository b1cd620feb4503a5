"""Search spaces: one file each, a define-by-run function of an Optuna trial.

A space is `space(trial, data, **options) -> dict`: it asks the trial for values and returns the flat dict of hyperparameters that
`models.build` and `training.Trainer` read. `data` says what the data set decides (see DataShape). A user's own is "module:function".
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mnist_ray.errors import SettingsError

Space = Callable[..., dict[str, Any]]

# name -> "module:function"; imported when asked for
SPACES = {
    "convnet": "mnist_ray.spaces.convnet:convnet",
}


@dataclass(frozen=True)
class DataShape:
    """What a network must know of its data set; `mean` and `std` are of pixels in [0, 1], one value a channel."""

    in_channels: int
    image_size: tuple[int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def hyperparameters(self) -> dict[str, Any]:
        """As the keys that every network's dict carries."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def find(name: str) -> Space:
    """The space of that name or dotted path; SettingsError naming --space otherwise."""
    path = SPACES.get(name, name)
    module, _, attribute = path.partition(":")
    if not attribute:
        raise SettingsError(f"--space: {name!r} is unknown; expected one of {', '.join(SPACES)} or module:function")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"--space: {name!r} cannot be imported: {error}") from error


def options(space: Space, name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """--space-args as the space's keyword arguments, each converted to the type of its default."""
    known = {
        p.name: p.default for p in inspect.signature(space).parameters.values() if p.default is not inspect.Parameter.empty
    }
    result: dict[str, Any] = {}
    for key, text in given.items():
        if key not in known:
            raise SettingsError(
                f"--space-args: space {name!r} has no option {key!r}; it has {', '.join(known) if known else 'none'}"
            )
        kind = type(known[key])
        try:
            if kind is bool:
                result[key] = {"true": True, "false": False}[text.lower()]
            else:
                result[key] = text if known[key] is None else kind(text)
        except (ValueError, KeyError) as error:
            raise SettingsError(f"--space-args: {key}={text!r} is not a {kind.__name__}") from error
    return result
