"""A person's own functions for training: which arguments they take, and a call for the data."""

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from mnist_ray.errors import SettingsError, described
from mnist_ray.settings.text import load

IMAGES = "images"  # of --train-data: those of --dataset
# Options for the fine-tuning of networks.
OF_CHAIN = ("stages", "committee", "calibrate", "gate", "quantize")
ARGUMENTS = ("seed", "device", "state", "data")  # that a training function may take, by name


def check_function(name: str, flag: str) -> None:
    """Raises SettingsError if `module:function` cannot be a training function."""
    function = load(name, flag, ())
    try:
        wanted = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{flag}: {name!r} is no function") from error
    by_name = [p for p in wanted if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = [p.name for p in by_name[1:] if p.name not in ARGUMENTS and p.default is p.empty]
    if not by_name or unknown:
        found = f"found {unknown[0]!r}" if unknown else "found no argument"
        raise SettingsError(
            f"{flag}: {name!r} is no training function: expected the hyperparameters first, then "
            f"any of {', '.join(ARGUMENTS)}; {found}"
        )


def own_data(name: str | None, images: Callable[[], Any]) -> Any:
    """What a training function gets as `data`.

    Args:
        name: As --train-data has it.
        images: Loads the images in their split.

    Raises:
        SettingsError: The function cannot be imported, or fails.
    """
    if name is None:
        return None
    if name == IMAGES:
        return images()
    make = load(name, "--train-data", (IMAGES,))
    try:
        return make()
    except SettingsError:
        raise
    except (Exception, SystemExit) as error:  # any error of a person's function
        raise SettingsError(f"--train-data: {name!r} failed: {described(error)}") from error


def started(function: Callable[..., Any], hp: dict[str, Any], **given: Any) -> Iterator[Any]:
    """The generator of a training function.

    Args:
        function: It takes `hp` and those of the others that it names.
        hp: The hyperparameters; the function gets a copy.
        given: A value for each of ARGUMENTS.
    """
    wanted = {name: value for name, value in given.items() if takes(function, name)}
    return iter(function(copy.deepcopy(hp), **wanted))


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a training function takes an argument of that name, perhaps by its `**kwargs`."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
