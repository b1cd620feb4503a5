"""Search spaces: one file each, a define-by-run function of an Optuna trial.

A space is ``space(trial, data, **options) -> dict``. It asks the trial for values and returns the
flat dict of hyperparameters of network and training (see `hyperparameters`). `data` is the
`DataShape` of the data set. A space of your own is named "module:function"::

    def space(trial, data, max_width=32):
        return {
            "model": "mlp",
            **data.hyperparameters(),
            "units": [trial.suggest_int("width", 8, max_width)],
            "dropouts": [0.2],
            "optimizer": "adam",
            "lr": trial.suggest_float("lr", 1e-4, 1e-2, log=True),
            "batch_size": 64,
        }

A space with a parameter `start` gets the hyperparameters of the network that --onnx names.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mnist_ray import hyperparameters
from mnist_ray.errors import SettingsError
from mnist_ray.settings.text import arguments, load

__all__ = [
    "SPACES",
    "DataShape",
    "Space",
    "find",
    "of_networks",
    "options",
    "starts_from_onnx",
    "trainable",
]

Space = Callable[..., dict[str, Any]]

# name -> "module:function", which is imported when the space is asked for
SPACES = {
    "convnet": "mnist_ray.spaces.convnet:convnet",
    "optunanet": "mnist_ray.spaces.optunanet:optunanet",
    "optunanet-depth": "mnist_ray.spaces.optunanet:optunanet_depth",
    "vgg": "mnist_ray.spaces.vgg:vgg",
    "mlp": "mnist_ray.spaces.mlp:mlp",
    "cnn": "mnist_ray.spaces.cnn:cnn",
    "optimizer": "mnist_ray.spaces.optimizer:optimizer",
    "lightgbm": "mnist_ray.spaces.lightgbm:lightgbm",
}


@dataclass(frozen=True)
class DataShape:
    """The shape of a data set, as a network needs it.

    Args:
        in_channels: Channels of an image.
        image_size: Height and width in pixels.
        classes: Number of classes.
        mean: Of pixels in [0, 1], one value a channel.
        std: Their standard deviation, one value a channel.
    """

    in_channels: int
    image_size: tuple[int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def hyperparameters(self) -> dict[str, Any]:
        """As the keys that every network's dict carries."""
        plain = hyperparameters.plain
        return {key: plain(value, f"data set: {key}") for key, value in asdict(self).items()}

    def most_halvings(self) -> int:
        """How often the image can be halved before nothing is left of it."""
        return min(self.image_size).bit_length() - 1

    def check_side(self, least: int, space: str) -> None:
        """Refuses images of which a space's poolings would leave nothing.

        Args:
            least: Pixels that height and width need.
            space: The space's name.

        Raises:
            SettingsError: One of them is less.
        """
        height, width = self.image_size
        if min(height, width) < least:
            raise SettingsError(
                f"--space: {space!r} needs images at least {least} pixels high and wide; these "
                f"are {height} x {width}; --space mlp takes any"
            )


def find(name: str, of_images: bool = True) -> Space:
    """The space of that name or dotted path.

    Args:
        name: As --space has it.
        of_images: Whether it gets a DataShape; a space for a training function of one's own gets
            the trial alone.

    Raises:
        SettingsError: naming --space; there is none, or it cannot take those arguments.
    """
    if not of_images and name in SPACES:
        raise SettingsError(
            f"--space: {name!r} is for images; with --train give your own, as module:function"
        )
    space: Space = load(SPACES.get(name, name), "--space", SPACES)
    try:
        inspect.signature(space).bind_partial(None, **({"data": None} if of_images else {}))
    except (TypeError, ValueError) as error:  # no callable, or one for other arguments
        wanted = "(trial, data, **options)" if of_images else "(trial, **options)"
        raise SettingsError(
            f"--space: {name!r} is no space: expected a function of {wanted}"
        ) from error
    return space


def starts_from_onnx(space: Space) -> bool:
    """Whether --onnx gives the space a network's hyperparameters, and its trials the weights."""
    return "start" in inspect.signature(space).parameters


def of_networks(space: Space) -> bool:
    """Whether its trials are networks, which can be fine-tuned and exported."""
    return not hasattr(sys.modules[space.__module__], "TRAINABLE")


def trainable(space: Space, deterministic: bool = False) -> Any:
    """The class of Tune's that trains the space's trials. Imports Ray.

    It is TrainTrial or DeterministicTrial, unless the space's module names another as TRAINABLE.
    Such a class derives from tune.trainable.EpochTrial; see trials/boosting.py.
    """
    default = f"mnist_ray.trials.network:{'DeterministicTrial' if deterministic else 'TrainTrial'}"
    path = getattr(sys.modules[space.__module__], "TRAINABLE", default)
    return load(path, "--space", SPACES)


def options(space: Space, name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """--space-args as the space's keyword arguments, each of its type; SettingsError otherwise."""
    return arguments(space, given, "--space-args", f"space {name!r}")
