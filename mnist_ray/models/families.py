"""The families of networks: each a function of the checked dict of hyperparameters.

`hyperparameters.NETWORK_KEYS` has the keys of each family, their limits and defaults. The names of
the weights and the order in which random numbers are drawn stay as they are: checkpoints depend on
them.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from mnist_ray.models.compiled import MaxPool2d
from mnist_ray.models.layers import ACTIVATIONS, POOLINGS, dropout, with_linear

Hyperparameters = Mapping[str, Any]

# The place of dropout among the two modules of a layer, normalisation and activation; None: the
# layer has no dropout.
LAYER_DROPOUT = {"head": None, "block": None, "layer_first": 0, "layer_between": 1, "layer": 2}


def convnet(hp: Hyperparameters) -> nn.Module:
    """Blocks of "same" convolutions, each block ending in a pooling; then linear layers.

    The width doubles from block to block, or grows as `width_growth` says. Of the first block's
    convolutions the kernel size can be chosen. After it 5 costs most and brings least, so it is 3.
    With `pool_position` "conv" the pooling comes straight after the block's last convolution: the
    rest of that layer then costs a quarter. With "first" it comes straight after the block's first
    convolution, and the block's other convolutions cost a quarter too.
    """
    # BatchNorm has its own shift, so the convolution needs a bias only if the activation comes
    # between them.
    norm_first, pool_at_end = (
        hp["activation_position"] == "after_norm",
        hp["pool_position"] == "end",
    )
    place, rate = LAYER_DROPOUT[hp["dropout_place"]], hp["dropout"]

    def finish(norm: nn.Module, drop: type[nn.Module]) -> list[nn.Module]:
        """The modules of a layer behind its convolution or linear map."""
        activation = ACTIVATIONS[hp["activation"]]()
        modules = [norm, activation] if norm_first else [activation, norm]
        if place is not None:
            modules.insert(place, dropout(rate, drop))
        return modules

    def before_linear() -> list[nn.Module]:
        return [dropout(rate)] if hp["dropout_place"] == "head" else []

    layers: list[nn.Module] = []
    channels = hp["in_channels"]
    for block in range(hp["blocks"]):
        width = round(hp["width"] * hp["width_growth"] ** block)
        kernel = hp["kernel_size"] if block == 0 else 3
        for layer in range(hp["layers_per_block"]):
            layers.append(nn.Conv2d(channels, width, kernel, padding="same", bias=not norm_first))
            pools = layer == (0 if hp["pool_position"] == "first" else hp["layers_per_block"] - 1)
            pool = [POOLINGS[hp["pooling"]](width, hp["pool_jitter"])] if pools else []
            layers += [] if pool_at_end else pool
            layers += finish(nn.BatchNorm2d(width), nn.Dropout2d)
            layers += pool if pool_at_end else []
            channels = width
        if hp["dropout_place"] == "block":
            layers.append(dropout(rate, nn.Dropout2d))
    layers += [nn.Flatten(), *before_linear()]

    def after(i: int, width: int) -> list[nn.Module]:
        return [*finish(nn.BatchNorm1d(width), nn.Dropout), *before_linear()]

    return with_linear(hp, layers, hp["fc"], after)


def optunanet(hp: Hyperparameters) -> nn.Module:
    """Layers of convolution, LeakyReLU, pooling (every second) and BatchNorm; then linear layers.

    The network of the original experiments' model search. `dropout` stands after each hidden
    linear layer.
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
            layers.append(MaxPool2d())
        layers.append(nn.BatchNorm2d(width))
        channels = width
    layers.append(nn.Flatten())
    return with_linear(
        hp, layers, hp["fc"], lambda i, width: [nn.LeakyReLU(inplace=True), dropout(hp["dropout"])]
    )


def vgg(hp: Hyperparameters) -> nn.Module:
    """A small VGG (Simonyan & Zisserman 2015) with BatchNorm.

    The first block has 64 channels; each further block doubles them, to at most 512.
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
        layers.append(MaxPool2d())
    return with_linear(
        hp,
        [*layers, nn.Flatten()],
        hp["fc"],
        lambda i, width: [nn.BatchNorm1d(width), nn.ReLU(inplace=True)],
    )


def mlp(hp: Hyperparameters) -> nn.Module:
    """Linear layers with ReLU and dropout."""
    return with_linear(
        hp,
        [nn.Flatten()],
        hp["units"],
        lambda i, width: [nn.ReLU(inplace=True), dropout(hp["dropouts"][i])],
    )


def cnn(hp: Hyperparameters) -> nn.Module:
    """Two 3x3 convolutions of 32 and 64 channels, each with ReLU and pooling; two linear layers."""
    layers: list[nn.Module] = []
    for channels, width in ((hp["in_channels"], 32), (32, 64)):
        layers += [
            nn.Conv2d(channels, width, 3, padding="same"),
            nn.ReLU(inplace=True),
            MaxPool2d(),
        ]
    layers += [dropout(hp["conv_dropout"], nn.Dropout2d), nn.Flatten()]
    return with_linear(
        hp,
        layers,
        [hp["fc_units"]],
        lambda i, width: [nn.ReLU(inplace=True), dropout(hp["fc_dropout"])],
    )


def foreign(hp: Hyperparameters) -> nn.Module:
    """The network of an ONNX file from elsewhere."""
    from mnist_ray.models.foreign import network  # noqa: PLC0415 (seconds at start: ONNX)

    return network(hp)


FAMILIES: dict[str, Callable[[Hyperparameters], nn.Module]] = {
    "convnet": convnet,
    "optunanet": optunanet,
    "vgg": vgg,
    "mlp": mlp,
    "cnn": cnn,
    "foreign": foreign,
}
