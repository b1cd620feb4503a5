"""Search spaces: one file each, a define-by-run function of an Optuna trial.

A space is `space(trial, data, **options) -> dict`: it asks the trial for values and returns the flat dict of hyperparameters
that `models.build` and `training.Trainer` read. `data` says what the data set decides (see DataShape). A user's own is
"module:function". A space with a parameter `start` is given the hyperparameters of the network that --onnx names.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mnist_ray.errors import SettingsError
from mnist_ray.settings.text import arguments, load

Space = Callable[..., dict[str, Any]]

# name -> "module:function"; imported when asked for
SPACES = {
    "convnet": "mnist_ray.spaces.convnet:convnet",
    "optunanet": "mnist_ray.spaces.optunanet:optunanet",
    "optunanet-depth": "mnist_ray.spaces.optunanet_depth:optunanet_depth",
    "vgg": "mnist_ray.spaces.vgg:vgg",
    "mlp": "mnist_ray.spaces.mlp:mlp",
    "cnn": "mnist_ray.spaces.cnn:cnn",
    "optimizer": "mnist_ray.spaces.optimizer:optimizer",
    "lightgbm": "mnist_ray.spaces.lightgbm:lightgbm",
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
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    def most_halvings(self) -> int:
        """How often the image can be halved before nothing is left of it."""
        return min(self.image_size).bit_length() - 1


def find(name: str) -> Space:
    """The space of that name or dotted path.

    Raises:
        SettingsError: naming --space; there is none, or it cannot take a trial and a DataShape.
    """
    space: Space = load(SPACES.get(name, name), "--space", SPACES)
    try:
        inspect.signature(space).bind_partial(None, data=None)
    except (TypeError, ValueError) as error:  # no callable, or one for other arguments
        raise SettingsError(
            f"--space: {name!r} is no space: expected a function of (trial, data, **options)"
        ) from error
    return space


def starts_from_onnx(space: Space) -> bool:
    """Whether the space has a parameter `start`: then --onnx gives it a trained network's hyperparameters, and its trials the weights."""
    return "start" in inspect.signature(space).parameters


def of_networks(space: Space) -> bool:
    """Whether its trials are networks, which can be fine-tuned and exported: those of TrainTrial are, those of another class are not."""
    return not hasattr(sys.modules[space.__module__], "TRAINABLE")


def trainable(space: Space) -> Any:
    """The class of Tune's that trains the space's trials: TrainTrial, unless the space's module names another as TRAINABLE.

    Such a class derives from tune.trainable.EpochTrial; see lightgbm_trial.py. Imports Ray.
    """
    return load(
        getattr(sys.modules[space.__module__], "TRAINABLE", "mnist_ray.tune.trainable:TrainTrial"),
        "--space",
        SPACES,
    )


def options(space: Space, name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """--space-args as the space's keyword arguments, each converted to its type; SettingsError otherwise."""
    return arguments(space, given, "--space-args", f"space {name!r}")
