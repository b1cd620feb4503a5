"""A flat dict of hyperparameters -> nn.Module: a pure function, so that the dict alone rebuilds the network anywhere.

Every network takes float images [batch, C, H, W] with pixels in [0, 1] and returns logits [batch, classes]; normalisation by the
data set's mean and standard deviation is its first layer. The dict names its family in `model` and carries what the data set
decides: `in_channels`, `image_size` (height, width), `classes`, `mean` and `std` (one value a channel).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_ray import hyperparameters
from mnist_ray.errors import SettingsError
from mnist_ray.settings.text import load

Hyperparameters = Mapping[str, Any]


class Normalize(nn.Module):
    """(x - mean) / std a channel, for images [batch, C, H, W]. Not trained; part of the exported graph."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Not saved with the weights: both come from the hyperparameters, so a checkpoint cannot disagree with them.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) * self.scale


def activation(hp: Hyperparameters) -> nn.Module:
    """The activation that hp["activation"] names."""
    kinds: dict[str, Callable[[], nn.Module]] = {
        "relu": lambda: nn.ReLU(inplace=True),
        "leaky_relu": lambda: nn.LeakyReLU(inplace=True),
        "gelu": nn.GELU,
        "silu": lambda: nn.SiLU(),
        "elu": lambda: nn.ELU(),
    }
    return kinds[hp["activation"]]()


def dropout(rate: float, kind: type[nn.Module] = nn.Dropout) -> nn.Module:
    """Dropout. A place without dropout keeps its place, so that the weights' names do not depend on the rate."""
    return kind(rate) if rate else nn.Identity()


class BlurPool(nn.Module):
    """The maximum at every place, then a low-pass filter at every second one, so that a shift of the image changes little (Zhang 2019).

    jitter: by how many pixels, at most, each row and each column at which the filter is read is moved in training, at random and anew for
    each image, after the idea of Zhai et al. 2017 (S3Pool): the feature maps are distorted a little, the images are not.

    The filter is the mean of 3x3 instead of the binomial: a step of 32-32-64-64-128-128 then costs 1.1 times that of maximum pooling
    instead of 2.2 times (five epochs in turn on one core), with 314 errors instead of 308 in 50,000 (one seed; maximum pooling 365).
    """

    def __init__(self, jitter: int = 0) -> None:
        super().__init__()
        self.jitter = jitter

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(x, 2, stride=1)
        if not (self.training and self.jitter):
            return F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        n, channels, height, width = x.shape
        rows, columns = self._filters(n, height, x), self._filters(n, width, x)
        x = x.permute(0, 2, 3, 1)  # the channels already are last in memory
        x = torch.bmm(rows, x.reshape(n, height, width * channels)).view(-1, width, channels)
        x = torch.bmm(columns.repeat_interleave(rows.shape[1], 0), x)
        return x.view(n, rows.shape[1], columns.shape[1], channels).permute(0, 3, 1, 2)

    def _filters(self, n: int, size: int, like: Tensor) -> Tensor:
        """[n, (size + 1) // 2, size]: for each image and each place of the result, how much it takes of each place of `size`."""
        centres = torch.arange(0, size, 2, device=like.device)
        moved = centres + torch.randint(
            -self.jitter, self.jitter + 1, (n, len(centres)), device=like.device
        )
        distance = torch.arange(size, device=like.device) - moved.clamp(0, size - 1).unsqueeze(2)
        filters = (distance.abs() <= 1).to(like.dtype)
        return filters / filters.sum(2, keepdim=True)


def pooling(hp: Hyperparameters, channels: int) -> nn.Module:
    """Halves height and width: hp["pooling"] is "max", "avg", "blur" (see BlurPool; its jitter is hp["pool_jitter"], none where that is
    missing) or "conv" (a learnt 3x3 of stride 2; Springenberg et al. 2015)."""
    kinds: dict[str, Callable[[], nn.Module]] = {
        "max": lambda: nn.MaxPool2d(2),
        "avg": lambda: nn.AvgPool2d(2),
        "blur": lambda: BlurPool(hp["pool_jitter"]),
        "conv": lambda: nn.Conv2d(channels, channels, 3, stride=2, padding=1),
    }
    return kinds[hp["pooling"]]()


# Where a layer has dropout among [normalisation, activation] (or the other way round); None: it has none.
LAYER_DROPOUT = {"head": None, "block": None, "layer_first": 0, "layer_between": 1, "layer": 2}


def convnet(hp: Hyperparameters) -> nn.Module:
    """Blocks of "same" convolutions, the width doubling from block to block, each block ending in a pooling; then linear layers.

    Keys: `blocks`, `layers_per_block`, `width` (of the first block), `kernel_size` (of the first block; 3 after it, where 5 costs
    most and brings least), `activation`, `activation_position` ("after_norm" or "before_norm"),
    `pooling` ("max", "avg", "blur", "conv"), `pool_position` ("end": after the block's last activation; "conv": straight after
    its last convolution, where the rest of the layer then costs a quarter), `dropout`, `dropout_place` ("head": before each
    linear layer; "block": after each block; or in every layer: "layer_first", straight after the convolution, "layer_between",
    between normalisation and activation, "layer", after both), and optionally `fc` (the widths of hidden linear layers) and `pool_jitter`
    (pixels, a whole number: see BlurPool).
    """
    # BatchNorm has its own shift, so the convolution needs a bias only where the activation comes between them.
    norm_first = hp["activation_position"] == "after_norm"
    pool_at_end = hp["pool_position"] == "end"
    place, rate = LAYER_DROPOUT[hp["dropout_place"]], hp["dropout"]

    def finish(norm: nn.Module, drop: type[nn.Module]) -> list[nn.Module]:
        """What comes after the convolution or the linear map of a layer."""
        modules = [norm, activation(hp)] if norm_first else [activation(hp), norm]
        if place is not None:
            modules.insert(place, dropout(rate, drop))
        return modules

    def before_linear() -> list[nn.Module]:
        return [dropout(rate)] if hp["dropout_place"] == "head" else []

    layers: list[nn.Module] = []
    channels = hp["in_channels"]
    for block in range(hp["blocks"]):
        width, kernel = hp["width"] * 2**block, hp["kernel_size"] if block == 0 else 3
        for layer in range(hp["layers_per_block"]):
            last = layer == hp["layers_per_block"] - 1
            layers.append(nn.Conv2d(channels, width, kernel, padding="same", bias=not norm_first))
            if last and not pool_at_end:
                layers.append(pooling(hp, width))
            layers += finish(nn.BatchNorm2d(width), nn.Dropout2d)
            if last and pool_at_end:
                layers.append(pooling(hp, width))
            channels = width
        if hp["dropout_place"] == "block":
            layers.append(dropout(rate, nn.Dropout2d))
    layers += [nn.Flatten(), *before_linear()]
    return with_linear(
        hp,
        layers,
        hp["fc"],
        lambda i, width: [*finish(nn.BatchNorm1d(width), nn.Dropout), *before_linear()],
    )


def optunanet(hp: Hyperparameters) -> nn.Module:
    """The seed documents' skeleton (systems S1 to S3): layers of convolution, LeakyReLU, pooling (every second) and BatchNorm.

    Keys: `filters`, `kernels` and `slopes` (LeakyReLU's below zero), one value for each convolution; `fc`: the widths of the
    hidden linear layers; `dropout` after each of those.
    """
    layers: list[nn.Module] = []
    channels = hp["in_channels"]
    for i, (width, kernel, slope) in enumerate(
        zip(hp["filters"], hp["kernels"], hp["slopes"], strict=True), start=1
    ):
        layers += [
            nn.Conv2d(channels, width, kernel, padding="same"),
            nn.LeakyReLU(slope, inplace=True),
        ]
        if i % 2 == 0:
            layers.append(nn.MaxPool2d(2))
        layers.append(nn.BatchNorm2d(width))
        channels = width
    layers.append(nn.Flatten())
    return with_linear(
        hp, layers, hp["fc"], lambda i, width: [nn.LeakyReLU(inplace=True), dropout(hp["dropout"])]
    )


def vgg(hp: Hyperparameters) -> nn.Module:
    """A small VGG (Simonyan & Zisserman 2015) with BatchNorm: 64 channels, doubling a block to at most 512 (system S5).

    Keys: `block_layers`: how many 3x3 convolutions each block has; `fc`: the widths of the hidden linear layers.
    """
    layers: list[nn.Module] = []
    channels = hp["in_channels"]
    for block, convolutions in enumerate(hp["block_layers"]):
        width = min(64 * 2**block, 512)
        for _ in range(convolutions):
            layers += [
                nn.Conv2d(channels, width, 3, padding="same", bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return with_linear(
        hp,
        [*layers, nn.Flatten()],
        hp["fc"],
        lambda i, width: [nn.BatchNorm1d(width), nn.ReLU(inplace=True)],
    )


def mlp(hp: Hyperparameters) -> nn.Module:
    """Linear layers with ReLU and dropout (system S7). Keys: `units` and `dropouts`, one value for each hidden layer."""
    return with_linear(
        hp,
        [nn.Flatten()],
        hp["units"],
        lambda i, width: [nn.ReLU(inplace=True), dropout(hp["dropouts"][i])],
    )


def cnn(hp: Hyperparameters) -> nn.Module:
    """Two 3x3 convolutions of 32 and 64 channels, each with ReLU and pooling, and two linear layers (system S9).

    Keys: `conv_dropout` (whole channels, after the second convolution), `fc_units`, `fc_dropout` (after the first linear layer).
    """
    layers: list[nn.Module] = []
    for channels, width in ((hp["in_channels"], 32), (32, 64)):
        layers += [
            nn.Conv2d(channels, width, 3, padding="same"),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        ]
    layers += [dropout(hp["conv_dropout"], nn.Dropout2d), nn.Flatten()]
    return with_linear(
        hp,
        layers,
        [hp["fc_units"]],
        lambda i, width: [nn.ReLU(inplace=True), dropout(hp["fc_dropout"])],
    )


def with_linear(
    hp: Hyperparameters,
    layers: list[nn.Module],
    widths: Sequence[int],
    after: Callable[[int, int], list[nn.Module]],
) -> nn.Module:
    """Normalize, `layers` (ending flat), a linear layer of each width followed by `after(index, width)`, and one for the logits.

    The flat size is measured by one forward pass without gradients.
    """
    body = nn.Sequential(Normalize(hp["mean"], hp["std"]), *layers)
    with torch.no_grad():
        features = body.eval()(torch.zeros(1, hp["in_channels"], *hp["image_size"])).shape[1]
    for i, width in enumerate(widths):
        body.extend([nn.Linear(features, width), *after(i, width)])
        features = width
    return body.append(nn.Linear(features, hp["classes"])).train()


def foreign(hp: Hyperparameters) -> nn.Module:
    """The network of an ONNX file that is not ours (see foreign.py). Key: `graph`."""
    from mnist_ray.export.foreign import network  # needs an extra

    return network(hp)


FAMILIES: dict[str, Callable[[Hyperparameters], nn.Module]] = {
    "convnet": convnet,
    "optunanet": optunanet,
    "vgg": vgg,
    "mlp": mlp,
    "cnn": cnn,
    "foreign": foreign,
}


def build(hp: Hyperparameters) -> nn.Module:
    """The network that the hyperparameters describe, with fresh random weights from torch's global generator.

    `hp["model"]` is one of FAMILIES or "module:function" for a user's own function of the dict.
    Raises SettingsError where the family is unknown, or a value of the dict is missing or not allowed.
    """
    builder = resolve(hp.get("model"))
    return builder(hyperparameters.network(hp) if hp["model"] in FAMILIES else hp)


def resolve(name: Any) -> Callable[[Hyperparameters], nn.Module]:
    """The builder of a family by its name or dotted path."""
    return FAMILIES[name] if name in FAMILIES else load(str(name), "model", FAMILIES)


def check_known(hp: Hyperparameters, source: str, own: str | None = None) -> None:
    """SettingsError where hyperparameters that were read from a file name other code than a family or `own`, which a person named.

    A dotted path is a call of whatever function it names: a file from elsewhere must not choose it.
    """
    if hp.get("model") not in (*FAMILIES, own):
        raise SettingsError(
            f"{source} names the network {hp.get('model')!r}; to run code of your own, name it too: --network {hp.get('model')}"
        )


def n_parameters(model: nn.Module) -> int:
    """How many trainable numbers the network has."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
