"""A flat dict of hyperparameters -> nn.Module: a pure function, so that the dict alone rebuilds the network anywhere.

Every network takes float images [batch, C, H, W] with pixels in [0, 1] and returns logits [batch, classes]; normalisation by the data
set's mean and standard deviation is its first layer. The dict names its family in `model` and carries what the data set decides:
`in_channels`, `image_size` (height, width), `classes`, `mean` and `std` (one value a channel).
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mnist_ray.errors import SettingsError

Hyperparameters = Mapping[str, Any]


class Normalize(nn.Module):
    """(x - mean) / std a channel, for images [batch, C, H, W]. Not trained; part of the exported graph."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Not saved with the weights: both come from the hyperparameters, so a checkpoint cannot disagree with them.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) * self.scale


def activation(hp: Hyperparameters, slope: float = 0.01) -> nn.Module:
    """The activation that hp["activation"] names; `slope` is LeakyReLU's below zero."""
    kinds: dict[str, Callable[[], nn.Module]] = {
        "relu": lambda: nn.ReLU(inplace=True),
        "leaky_relu": lambda: nn.LeakyReLU(slope, inplace=True),
        "gelu": nn.GELU,
        "silu": lambda: nn.SiLU(),
        "elu": lambda: nn.ELU(),
    }
    return kinds[hp["activation"]]()


def dropout(hp: Hyperparameters, kind: type[nn.Module]) -> nn.Module:
    """Dropout of hp["dropout"]. A place without dropout keeps its place, so that the weights' names do not depend on the rate."""
    return kind(hp["dropout"]) if hp["dropout"] else nn.Identity()


def pooling(kind: str, channels: int) -> nn.Module:
    """Halves height and width: "max", "avg", or "conv" (a learnt 3x3 convolution of stride 2; Springenberg et al. 2015)."""
    if kind == "conv":
        return nn.Conv2d(channels, channels, 3, stride=2, padding=1)
    return nn.MaxPool2d(2) if kind == "max" else nn.AvgPool2d(2)


def convnet(hp: Hyperparameters) -> nn.Module:
    """Blocks of "same" convolutions, the width doubling from block to block, each block ending in a pooling; one linear layer on top.

    Keys: `blocks`, `layers_per_block`, `width` (of the first block), `kernel_size` (of the first block; 3 after it, where 5 costs
    most and brings least), `activation`, `activation_position` ("after_norm" or "before_norm"),
    `pooling` ("max", "avg", "conv"), `pool_position` ("end": after the block's last activation; "conv": straight after
    its last convolution, where the rest of the layer then costs a quarter), `dropout`, `dropout_place` ("head", "block", "layer").
    """
    layers: list[nn.Module] = []
    channels = hp["in_channels"]
    for block in range(hp["blocks"]):
        width, kernel = hp["width"] * 2**block, hp["kernel_size"] if block == 0 else 3
        for layer in range(hp["layers_per_block"]):
            last = layer == hp["layers_per_block"] - 1
            # BatchNorm has its own shift, so the convolution needs a bias only where the activation comes between them.
            norm_first = hp["activation_position"] == "after_norm"
            layers.append(nn.Conv2d(channels, width, kernel, padding="same", bias=not norm_first))
            if last and hp["pool_position"] == "conv":
                layers.append(pooling(hp["pooling"], width))
            pair = [nn.BatchNorm2d(width), activation(hp)]
            layers += pair if norm_first else pair[::-1]
            if hp["dropout_place"] == "layer":
                layers.append(dropout(hp, nn.Dropout2d))
            if last and hp["pool_position"] == "end":
                layers.append(pooling(hp["pooling"], width))
            channels = width
        if hp["dropout_place"] == "block":
            layers.append(dropout(hp, nn.Dropout2d))
    layers.append(nn.Flatten())
    if hp["dropout_place"] == "head":
        layers.append(dropout(hp, nn.Dropout))
    return with_classifier(hp, layers)


def with_classifier(hp: Hyperparameters, layers: list[nn.Module]) -> nn.Module:
    """Normalize, `layers` (ending flat), and a linear layer whose input size is measured by one forward pass without gradients."""
    body = nn.Sequential(Normalize(hp["mean"], hp["std"]), *layers)
    height, width = hp["image_size"]
    training, body = body.training, body.eval()
    with torch.no_grad():
        features = body(torch.zeros(1, hp["in_channels"], height, width)).shape[1]
    body.train(training)
    body.append(nn.Linear(features, hp["classes"]))
    return body


FAMILIES: dict[str, Callable[[Hyperparameters], nn.Module]] = {"convnet": convnet}


def build(hp: Hyperparameters) -> nn.Module:
    """The network that the hyperparameters describe, with fresh random weights from torch's global generator.

    `hp["model"]` is one of FAMILIES or "module:function" for a user's own function of the dict.
    Raises SettingsError where the family is unknown or the dict lacks one of its keys.
    """
    name = hp.get("model")
    try:
        return resolve(name)(hp)
    except KeyError as error:
        raise SettingsError(f"hyperparameters of model {name!r} lack the key {error}") from error


def resolve(name: Any) -> Callable[[Hyperparameters], nn.Module]:
    """The builder of a family by its name or dotted path."""
    if name in FAMILIES:
        return FAMILIES[name]
    module, _, attribute = str(name).partition(":")
    if not attribute:
        raise SettingsError(f"model {name!r} is unknown: expected one of {', '.join(FAMILIES)} or module:function")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"model {name!r} cannot be imported: {error}") from error


def n_parameters(model: nn.Module) -> int:
    """How many trainable numbers the network has."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
