"""Random changes of a whole batch of training images at once, on the batch's device (--augment).

Each function takes images uint8 [n, C, H, W] and returns them changed: [n, C, H, W], uint8 or
float32, values from 0 to 255. Pixels from outside the image are 0. The random numbers come from
torch's global generator, which the trainer seeds for each epoch: a resumed epoch sees the same
images.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 2  # pixels, at most
ROTATION = 10.0  # degrees, at most
SCALE = 0.1  # of the size, at most
# Pixels, for images of about 28x28. Simard et al. 2003 have the same sigma and an alpha of 34,
# which is too much here (docs/experiments.md).
ELASTIC_ALPHA, ELASTIC_SIGMA = 17.0, 4.0
PADDING = 4  # of crop_flip, in pixels


def _moved(images: Tensor, most: int, flip: bool) -> Tensor:
    """Moves each image by up to `most` whole pixels; mirrors half of them if `flip` is set."""
    n, _, height, width = images.shape
    device = images.device
    offsets = torch.randint(0, 2 * most + 1, (2, n, 1), device=device)
    rows = offsets[0] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(n, width)
    if flip:
        columns = torch.where(torch.rand(n, 1, device=device) < 0.5, columns, width - 1 - columns)
    columns = columns + offsets[1]
    padded = F.pad(images, (most,) * 4)
    which = torch.arange(n, device=device).view(n, 1, 1)
    # Three indices around a slice put the channels last: the result is channels_last in memory, as
    # the network wants it.
    return padded[which, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def crop_flip(images: Tensor) -> Tensor:
    """A random crop after 4 pixels of padding, and a horizontal flip (He et al. 2016, CIFAR-10)."""
    return _moved(images, PADDING, flip=True)


def shift(images: Tensor) -> Tensor:
    """A shift by up to 2 whole pixels in either direction."""
    return _moved(images, SHIFT, flip=False)


def affine(images: Tensor) -> Tensor:
    """A rotation by up to 10 degrees, a scaling by up to 10 % and a shift by up to 2 pixels."""
    return _sampled(images, _affine_grid(images))


def elastic(images: Tensor) -> Tensor:
    """A smooth random displacement of every pixel (Simard, Steinkraus & Platt 2003)."""
    return _sampled(images, _identity_grid(images) + _displacements(images))


def affine_elastic(images: Tensor) -> Tensor:
    """`affine` and `elastic`, with the pixels interpolated once."""
    return _sampled(images, _affine_grid(images) + _displacements(images))


def _affine_grid(images: Tensor) -> Tensor:
    """The source of each pixel: float32 [n, H, W, 2] (x, y); -1 and 1 are the image's borders."""
    n, _, height, width = images.shape
    turn, size, dx, dy = (2 * torch.rand(4, n, device=images.device) - 1).unbind()
    angle, factor = turn * math.radians(ROTATION), 1 / (1 + SCALE * size)
    cos, sin = factor * torch.cos(angle), factor * torch.sin(angle)
    # The borders are at 1 in both directions, so in an image that is not square a rotation has to
    # be measured in pixels.
    x = (cos, -sin * height / width, dx * 2 * SHIFT / width)
    y = (sin * width / height, cos, dy * 2 * SHIFT / height)
    theta = torch.stack([*x, *y], 1).view(n, 2, 3)
    return F.affine_grid(theta, [n, 1, height, width], align_corners=False)


def _identity_grid(images: Tensor) -> Tensor:
    n, _, height, width = images.shape
    unchanged = torch.eye(2, 3, device=images.device).expand(n, 2, 3)
    return F.affine_grid(unchanged, [n, 1, height, width], align_corners=False)


def _displacements(images: Tensor) -> Tensor:
    """Noise from -1 to 1, smoothed by a Gaussian and scaled: float32 [n, H, W, 2], grid's unit."""
    n, _, height, width = images.shape
    noise = 2 * torch.rand(n, 2, height, width, device=images.device) - 1
    # A Gaussian is separable, so smoothing is a matrix product from either side.
    smooth = _gaussian(height, images.device) @ noise @ _gaussian(width, images.device)
    unit = torch.tensor([2 / width, 2 / height], device=images.device)
    return ELASTIC_ALPHA * smooth.permute(0, 2, 3, 1) * unit


def _gaussian(size: int, device: torch.device) -> Tensor:
    """float32 [size, size]: row i has the weights of the places around i."""
    place = torch.arange(size, device=device)
    distance = (place.view(-1, 1) - place) / ELASTIC_SIGMA
    return torch.exp(-0.5 * distance**2) / (ELASTIC_SIGMA * math.sqrt(2 * math.pi))


def _sampled(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


# By the names of `hyperparameters.AUGMENTATIONS`; "none" is missing, as there is nothing to do.
AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "crop-flip": crop_flip,
    "shift": shift,
    "affine": affine,
    "elastic": elastic,
    "affine-elastic": affine_elastic,
}
