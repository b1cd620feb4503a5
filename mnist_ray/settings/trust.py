"""A stored file may choose built-in names. All else is a person's choice.

A run.json, the metadata of an ONNX file or a study may come from elsewhere. Its content is data:
names of this package are believed; all else must be given again on the command line. Images of
one's own that lie in files may be read as data, where their SHA-256 is the one that the file says.
"""

import os
import re
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from mnist_ray import hyperparameters
from mnist_ray.errors import SettingsError
from mnist_ray.settings import text
from mnist_ray.settings.options import TRACKERS, default_data_dir
from mnist_ray.settings.secrets import masked

# Settings that may name code as module:attribute, and settings that name a host or a path.
CODE = (
    "dataset", "space", "sampler", "scheduler", "metric", "augment", "train", "train_data",
    "finetune_with",
)  # fmt: skip
PLACES = ("study", "class_weights", "warm_start", *TRACKERS, "stages", "onnx")
BUILT_IN = {"study": ("memory",), "class_weights": ("balanced",)}
# Any other value is a file.
ALWAYS = ("class_weights", "warm_start", "onnx")


def is_code(value: Any) -> bool:
    """Whether a setting's value names code outside this package."""
    return isinstance(value, str) and ":" in value


def is_data(value: Any) -> bool:
    """Whether a data set's name means files of this machine, which are read as data."""
    if not isinstance(value, str) or not text.is_stored(value):
        return False
    kind, _, path = value.partition(":")
    return kind != "hf" or os.path.isabs(path)


def is_place(key: str, value: Any) -> bool:
    """Whether a setting's value is more than a built-in name: a path, an address, a ${VARIABLE}.

    Args:
        key: One of PLACES.
        value: As a stored file has it.
    """
    if key in TRACKERS:  # also a project's name: data leave this machine
        return bool(value)
    if not isinstance(value, str) or value in BUILT_IN.get(key, ()):
        return False
    packaged = re.fullmatch(r"(?:.*/)?jobs/recipes/(?:points/)?[\w-]+\.yaml|[\w-]+", value)
    # A file of a recipe's name would be read in the recipe's place, and may lie in the run itself.
    return key in ALWAYS or packaged is None or os.path.isfile(value)


def names(settings: Mapping[str, Any], keys: Collection[str] = (*CODE, *PLACES)) -> dict[str, str]:
    """Those settings that a stored file may not choose, with their values."""
    found: dict[str, str] = {}
    for key in keys:
        value = settings.get(key)
        if key == "dataset" and is_data(value):
            continue
        if key == "class_weights" and str(value).startswith("{"):
            continue  # the file's content, not its name
        if key == "augment":
            found |= {key: str(value)} if hyperparameters.own_function(value) else {}
        elif is_code(value) if key in CODE else is_place(key, value):
            found[key] = str(value)
    return found


def check(
    settings: Mapping[str, Any],
    given: Collection[str],
    source: str,
    keys: Collection[str] = (*CODE, *PLACES),
) -> None:
    """Refuses choices of a stored file that a person did not give.

    Args:
        settings: As the file has them.
        given: Names of the settings that the person gave.
        source: The file, for the message.
        keys: Settings that are about to be used.

    Raises:
        SettingsError: Names the flag that makes it the person's own choice.
    """
    for key, value in sorted(names(settings, keys).items()):
        if key not in given:
            flag, shown = f"--{key.replace('_', '-')}", masked(value)
            raise SettingsError(
                f"{flag}: {source} names {shown!r}; a file does not choose code, hosts or paths: "
                f"give it yourself, as {flag} {shlex.quote(shown)}"
            )


def check_augmentation(hp: Mapping[str, Any], source: str, given: str | None) -> None:
    """Refuses a file's hyperparameters that augment by code of somebody's own.

    Args:
        hp: The file's hyperparameters.
        source: The file, for the message.
        given: `module:function` that the person named, perhaps with options.

    Raises:
        SettingsError: The dict names another function.
    """
    own = hyperparameters.own_function(hp.get("augment"))
    if own and own != hyperparameters.own_function(given):
        raise SettingsError(
            f"{source} augments by {own!r}; to run code of your own, name it too: --augment {own}"
        )


def dataset(given: str | None, stored: str | None, source: str) -> str:
    """The data set's name: as a person gave it, else as a file has it.

    Raises:
        SettingsError: Nobody names one, or only the file does and it is no built-in name.
    """
    if given is None and stored is None:
        raise SettingsError(
            f"--dataset: {source} does not say which data set it was made for; name one"
        )
    check({"dataset": stored}, {"dataset"} if given else (), source, ("dataset",))
    return given or str(stored)


def same_data(found: str, expected: str | None, source: str, dataset: str) -> None:
    """Refuses images that a stored file names, where they are not those that it was made with.

    Args:
        found: SHA-256 of the training part at hand.
        expected: As the file says.
        source: The file, for the message.
        dataset: The data set's name, for the message.

    Raises:
        SettingsError: They differ, or the file does not say.
    """
    if found != expected:
        raise SettingsError(
            f"--dataset: the images of {dataset} are not those that {source} was made with "
            f"(SHA-256 differs); to take them anyway give --dataset {shlex.quote(dataset)}"
        )


def same_place(one: str | None, other: str | None) -> bool:
    """Whether two URLs differ at most in how the password is given: literally or as ${VAR}."""
    shown = [url and re.sub(r":\$\{\w+\}@", ":***@", url) for url in (one, other)]
    return one is not None and shown[0] == shown[1]


def may_download(data_dir: str | None, given: Collection[str]) -> bool:
    """Whether missing images may be downloaded into a folder: not if only a stored file names it.

    Args:
        data_dir: The folder that is about to be read.
        given: Names of the settings that the person gave.
    """
    own = os.path.abspath(os.path.expanduser(default_data_dir()))
    return "data_dir" in given or data_dir is None or os.path.abspath(data_dir) == own


def flags(settings: Mapping[str, Any], keys: Collection[str] = (*CODE, *PLACES)) -> list[str]:
    """The flags that give those settings again, as words of a command."""
    found = names(settings, keys).items()
    return [word for key, value in found for word in (f"--{key.replace('_', '-')}", value)]
