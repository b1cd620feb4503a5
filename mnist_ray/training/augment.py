"""Random changes of a whole batch of training images at once, on the device where it lies (--augment).

Each takes images uint8 [n, C, H, W] and returns them changed: [n, C, H, W], uint8 or float32, with values from 0 to 255; what comes in
from outside the image is 0. The random numbers are torch's global ones, which training.py seeds for each epoch, so that an epoch
that is gone on with sees the same images.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 2  # pixels, at most
ROTATION = 10.0  # degrees, at most
SCALE = 0.1  # of the size, at most
# Pixels, for images of about 28x28. Simard et al. 2003 have the same sigma and an alpha of 34, which is too much here: of 30,000 images by
# other hands than the 20,000 trained on, 28 epochs left 178 wrong with it and 124 with half of it (one network, one seed).
ELASTIC_ALPHA, ELASTIC_SIGMA = 17.0, 4.0
PADDING = 4  # of crop_flip, in pixels


def _moved(images: Tensor, most: int, flip: bool) -> Tensor:
    """Each image moved by up to `most` whole pixels in either direction and, where `flip`, mirrored with a probability of one half."""
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
    # Three indices around a slice put the channels last: the result is channels_last in memory, as the network wants it.
    return padded[which, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def crop_flip(images: Tensor) -> Tensor:
    """A random crop of the image with 4 pixels of padding, and a horizontal flip: customary for CIFAR-10 (He et al. 2016)."""
    return _moved(images, PADDING, flip=True)


def shift(images: Tensor) -> Tensor:
    """Whole pixels, up to 2 in either direction."""
    return _moved(images, SHIFT, flip=False)


def affine(images: Tensor) -> Tensor:
    """Rotated by up to 10 degrees, scaled by up to 10 % and shifted by up to 2 pixels, each uniformly."""
    return _sampled(images, _affine_grid(images))


def elastic(images: Tensor) -> Tensor:
    """A smooth random displacement of every pixel (Simard, Steinkraus, Platt: "Best Practices for Convolutional Neural Networks", 2003)."""
    return _sampled(images, _identity_grid(images) + _displacements(images))


def affine_elastic(images: Tensor) -> Tensor:
    """Both, with the pixels interpolated once."""
    return _sampled(images, _affine_grid(images) + _displacements(images))


def _affine_grid(images: Tensor) -> Tensor:
    """Where each pixel comes from: float32 [n, H, W, 2] (x, y), -1 and 1 being the image's borders."""
    n, _, height, width = images.shape
    turn, size, dx, dy = (2 * torch.rand(4, n, device=images.device) - 1).unbind()
    angle, factor = turn * math.radians(ROTATION), 1 / (1 + SCALE * size)
    cos, sin = factor * torch.cos(angle), factor * torch.sin(angle)
    # The borders are at 1 in both directions: in an image that is not square a turn has to be measured in pixels.
    theta = torch.stack(
        [
            cos,
            -sin * height / width,
            dx * 2 * SHIFT / width,
            sin * width / height,
            cos,
            dy * 2 * SHIFT / height,
        ],
        1,
    )
    return F.affine_grid(theta.view(n, 2, 3), [n, 1, height, width], align_corners=False)


def _identity_grid(images: Tensor) -> Tensor:
    n, _, height, width = images.shape
    unchanged = torch.eye(2, 3, device=images.device).expand(n, 2, 3)
    return F.affine_grid(unchanged, [n, 1, height, width], align_corners=False)


def _displacements(images: Tensor) -> Tensor:
    """Uniform noise of -1 to 1 a pixel, smoothed by a Gaussian and scaled: float32 [n, H, W, 2] in the grid's unit."""
    n, _, height, width = images.shape
    noise = 2 * torch.rand(n, 2, height, width, device=images.device) - 1
    # A Gaussian is separable, so smoothing is a matrix product from either side.
    smooth = _gaussian(height, images.device) @ noise @ _gaussian(width, images.device)
    unit = torch.tensor([2 / width, 2 / height], device=images.device)
    return ELASTIC_ALPHA * smooth.permute(0, 2, 3, 1) * unit


def _gaussian(size: int, device: torch.device) -> Tensor:
    """float32 [size, size]: row i weighs what lies around i; beyond the image there is nothing."""
    place = torch.arange(size, device=device)
    distance = (place.view(-1, 1) - place) / ELASTIC_SIGMA
    return torch.exp(-0.5 * distance**2) / (ELASTIC_SIGMA * math.sqrt(2 * math.pi))


def _sampled(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


# As --augment and a stage's `augment` name them (settings.AUGMENTATIONS); "none" is missing on purpose: the hot loop tests for None.
AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "crop-flip": crop_flip,
    "shift": shift,
    "affine": affine,
    "elastic": elastic,
    "affine-elastic": affine_elastic,
}
