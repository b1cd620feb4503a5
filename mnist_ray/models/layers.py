"""Layers that torch has not, and those that hyperparameters choose by name."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_ray.models.compiled import Layers, MaxPool2d, max_pool, mean_pool, wanted


class Normalize(nn.Module):
    """(x - mean) / std of each channel of images [batch, C, H, W]; not trained."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Not saved with the weights: both come from the hyperparameters, so a checkpoint cannot
        # disagree with them.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Float [batch, C, H, W] -> the same shape."""
        return (images - self.mean) * self.scale


class BlurPool(nn.Module):
    """Maximum pooling of stride 1, then a low-pass filter of stride 2.

    A shift of the image changes the result little (Zhang 2019). The filter is the mean of 3x3
    instead of the binomial: a step of 32-32-64-64-128-128 then costs 1.1 times that of maximum
    pooling instead of 2.2 times (five epochs in turn on one core), with 314 errors instead of 308
    in 50,000 (one seed; maximum pooling 365).

    Args:
        jitter: During training, the filter's windows are shifted by up to this many pixels: each
            row and each column at random, anew for each image. The feature maps are distorted a
            little, the images are not (after the idea of Zhai et al. 2017, S3Pool).
    """

    def __init__(self, jitter: int = 0) -> None:
        super().__init__()
        self.jitter = jitter

    def forward(self, x: Tensor) -> Tensor:
        """Float [batch, C, H, W] -> [batch, C, H // 2, W // 2]."""
        if not wanted(self):
            x = F.max_pool2d(x, 2, stride=1)
            return F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        x = max_pool(x, 1)
        if not (self.jitter and self.training):
            return mean_pool(x)
        n, channels, height, width = x.shape
        rows, columns = self._filters(n, height, x), self._filters(n, width, x)
        x = x.permute(0, 2, 3, 1)  # the channels already are last in memory
        x = torch.bmm(rows, x.reshape(n, height, width * channels)).view(-1, width, channels)
        x = torch.bmm(columns.repeat_interleave(rows.shape[1], 0), x)
        return x.view(n, rows.shape[1], columns.shape[1], channels).permute(0, 3, 1, 2)

    def _filters(self, n: int, size: int, like: Tensor) -> Tensor:
        """[n, (size + 1) // 2, size]: for each place of the result, the weight of each place."""
        centres = torch.arange(0, size, 2, device=like.device)
        moved = centres + torch.randint(
            -self.jitter, self.jitter + 1, (n, len(centres)), device=like.device
        )
        distance = torch.arange(size, device=like.device) - moved.clamp(0, size - 1).unsqueeze(2)
        filters = (distance.abs() <= 1).to(like.dtype)
        return filters / filters.sum(2, keepdim=True)


class Committee(nn.Module):
    """Several networks that answer as one.

    Images float32 [batch, C, H, W] -> log of the networks' mean probability, [batch, classes].
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """The log of the mean probability, which softmax turns into that probability."""
        answers = torch.stack([network(images).log_softmax(1) for network in self.networks])
        return answers.logsumexp(0) - math.log(len(self.networks))


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(inplace=True),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
}
# Each halves height and width: takes the number of channels and the jitter of BlurPool. "conv" is
# a learnt 3x3 of stride 2 (Springenberg et al. 2015).
POOLINGS: dict[str, Callable[[int, int], nn.Module]] = {
    "max": lambda channels, jitter: MaxPool2d(),
    "avg": lambda channels, jitter: nn.AvgPool2d(2),
    "blur": lambda channels, jitter: BlurPool(jitter),
    "conv": lambda channels, jitter: nn.Conv2d(channels, channels, 3, stride=2, padding=1),
}


def dropout(rate: float, kind: type[nn.Module] = nn.Dropout) -> nn.Module:
    """Dropout; a rate of 0 keeps its place, as the weights' names must not depend on the rate."""
    return kind(rate) if rate else nn.Identity()


def with_linear(
    hp: Mapping[str, Any],
    layers: list[nn.Module],
    widths: Sequence[int],
    after: Callable[[int, int], list[nn.Module]],
) -> nn.Module:
    """A whole network: Normalize, `layers`, the hidden linear layers and one for the logits.

    Args:
        hp: The hyperparameters.
        layers: Modules whose output is flat. Its size is measured by one forward pass without
            gradients.
        widths: Of the hidden linear layers.
        after: The modules behind the hidden layer of that index and width.
    """
    body = Layers(Normalize(hp["mean"], hp["std"]), *layers)
    with torch.no_grad():
        features = body.eval()(torch.zeros(1, hp["in_channels"], *hp["image_size"])).shape[1]
    for i, width in enumerate(widths):
        body.extend([nn.Linear(features, width), *after(i, width)])
        features = width
    return body.append(nn.Linear(features, hp["classes"])).train()
