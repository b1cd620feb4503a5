"""A flat dict of hyperparameters -> nn.Module: a pure function, so the dict rebuilds the network.

Every network takes float images [batch, C, H, W] with pixels in [0, 1] and returns logits
[batch, classes]; normalisation by the data set's mean and standard deviation is its first layer.
The dict names the family in `model`; `hyperparameters.NETWORK_KEYS` lists the keys of each family.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mnist_ray import hyperparameters
from mnist_ray.errors import SettingsError
from mnist_ray.models.families import FAMILIES, Hyperparameters
from mnist_ray.models.layers import BlurPool, Committee, Normalize
from mnist_ray.settings.text import load

__all__ = [
    "FAMILIES",
    "BlurPool",
    "Committee",
    "Hyperparameters",
    "Normalize",
    "build",
    "check_known",
    "check_size",
    "n_parameters",
    "resolve",
]

FAR = 4  # times the numbers that a file holds


def build(hp: Hyperparameters | Sequence[Hyperparameters]) -> nn.Module:
    """The network that the hyperparameters describe, with random weights from torch's generator.

    Args:
        hp: The dict; of a committee, a list with one for each network. `hp["model"]` is one of
            FAMILIES, or "module:function" for a function of your own, which gets a copy of the
            dict as it is.

    Raises:
        SettingsError: The family is unknown, or a value is missing or not allowed.

    Example:
        With this in `mine.py`, a search space returns ``"model": "mine:linear"``::

            def linear(hp):
                height, width = hp["image_size"]
                pixels = hp["in_channels"] * height * width
                return nn.Sequential(nn.Flatten(), nn.Linear(pixels, hp["classes"]))
    """
    if not isinstance(hp, Mapping):
        return Committee([build(each) for each in hp])
    builder = resolve(hp.get("model"))
    if hp["model"] in FAMILIES:
        return builder(hyperparameters.network(hp))
    # It may change a list in it, and the dict is built from again and written to files.
    return builder(copy.deepcopy(hp))


def check_size(hp: Mapping[str, Any], held: int, source: str) -> None:
    """Refuses a file whose hyperparameters describe a far larger network than its weights.

    A number in them could fill the memory. (A smaller difference is for those who load the
    weights: they name the first one that does not fit.)

    Args:
        hp: The file's hyperparameters.
        held: How many numbers its weights are.
        source: The file's name in errors.

    Raises:
        SettingsError: It is one, or a value is missing or not allowed.
    """
    if hp["model"] not in FAMILIES or hp["model"] == "foreign":  # whose graph is in the dict
        return
    with torch.device("meta"):
        wanted = n_parameters(build(hp))
    if wanted > FAR * held:
        raise SettingsError(
            f"{source} does not fit its hyperparameters: they describe {wanted:,} parameters, "
            f"and it holds {held:,} numbers"
        )


def resolve(name: Any) -> Callable[[Hyperparameters], nn.Module]:
    """The builder of a family by its name or dotted path."""
    if name in FAMILIES:
        return FAMILIES[name]
    found: Callable[[Hyperparameters], nn.Module] = load(str(name), "model", FAMILIES)
    return found


def check_known(hp: Hyperparameters, source: str, own: str | None = None) -> None:
    """Refuses hyperparameters from a file that name code of somebody's own.

    A dotted path calls the function that it names: a file from elsewhere must not choose it.

    Args:
        hp: The file's hyperparameters.
        source: The file's name in errors.
        own: A dotted path that the user has named, which the file may name too.

    Raises:
        SettingsError: The dict names neither a family nor `own`.
    """
    name = hp.get("model") if isinstance(hp, Mapping) else None
    if name not in (*FAMILIES, own):
        raise SettingsError(
            f"{source} names the network {name!r}; to run code of your own, name it too: "
            f"--network {name}"
        )


def n_parameters(model: nn.Module) -> int:
    """How many trainable numbers the network has."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
