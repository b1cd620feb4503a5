"""Random changes of a whole batch of training images at once, on the batch's device (--augment).

Each function takes images uint8 [n, C, H, W] and returns them changed: [n, C, H, W], uint8 or
float32, values from 0 to 255. Pixels from outside the image are 0. The random numbers come from
torch's global generator, which the trainer seeds for each epoch: a resumed epoch sees the same
images. The strengths' defaults, and the limits of each, stand in `hyperparameters.AUGMENTATIONS`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_ray import hyperparameters
from mnist_ray.errors import SettingsError, described
from mnist_ray.settings.text import arguments, load

Change = Callable[[Tensor], Tensor]
ROUNDING = 0.01  # beyond 0 and 255: an interpolation's weights may sum to a little more than 1


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


def crop_flip(images: Tensor, padding: int) -> Tensor:
    """A random crop after padding, and a horizontal flip (He et al. 2016, CIFAR-10: 4 pixels)."""
    return _moved(images, padding, flip=True)


def shift(images: Tensor, pixels: int) -> Tensor:
    """A shift by up to so many whole pixels in either direction."""
    return _moved(images, pixels, flip=False)


def affine(images: Tensor, **strengths: float) -> Tensor:
    """A rotation, a scaling and a shift; strengths as `_affine_grid` takes them."""
    return _sampled(images, _affine_grid(images, **strengths))


def elastic(images: Tensor, **strengths: float) -> Tensor:
    """A smooth random displacement of every pixel (Simard, Steinkraus & Platt 2003).

    Strengths as `_displacements` takes them. The paper has the default sigma and an alpha of 34,
    which is too much for images of about 28x28 (docs/experiments.md).
    """
    return _sampled(images, _identity_grid(images) + _displacements(images, **strengths))


def affine_elastic(
    images: Tensor, degrees: float, scale: float, shift: float, alpha: float, sigma: float
) -> Tensor:
    """`affine` and `elastic`, with the pixels interpolated once."""
    grid = _affine_grid(images, degrees, scale, shift)
    return _sampled(images, grid + _displacements(images, alpha, sigma))


def _affine_grid(images: Tensor, degrees: float, scale: float, shift: float) -> Tensor:
    """The source of each pixel: float32 [n, H, W, 2] (x, y); -1 and 1 are the image's borders."""
    n, _, height, width = images.shape
    turn, size, dx, dy = (2 * torch.rand(4, n, device=images.device) - 1).unbind()
    angle, factor = turn * math.radians(degrees), 1 / (1 + scale * size)
    cos, sin = factor * torch.cos(angle), factor * torch.sin(angle)
    # The borders are at 1 in both directions, so in an image that is not square a rotation has to
    # be measured in pixels.
    x = (cos, -sin * height / width, dx * 2 * shift / width)
    y = (sin * width / height, cos, dy * 2 * shift / height)
    theta = torch.stack([*x, *y], 1).view(n, 2, 3)
    return F.affine_grid(theta, [n, 1, height, width], align_corners=False)


def _identity_grid(images: Tensor) -> Tensor:
    n, _, height, width = images.shape
    unchanged = torch.eye(2, 3, device=images.device).expand(n, 2, 3)
    return F.affine_grid(unchanged, [n, 1, height, width], align_corners=False)


def _displacements(images: Tensor, alpha: float, sigma: float) -> Tensor:
    """Noise from -1 to 1, smoothed by a Gaussian and scaled: float32 [n, H, W, 2], grid's unit."""
    n, _, height, width = images.shape
    noise = 2 * torch.rand(n, 2, height, width, device=images.device) - 1
    # A Gaussian is separable, so smoothing is a matrix product from either side.
    smooth = _gaussian(height, sigma, images.device) @ noise
    smooth = smooth @ _gaussian(width, sigma, images.device)
    # Numbers of Python's, and no tensor of them: a CUDA graph takes no copy from the CPU.
    across, down = (alpha * smooth).unbind(1)
    return torch.stack([across * (2 / width), down * (2 / height)], 3)


def _gaussian(size: int, sigma: float, device: torch.device) -> Tensor:
    """float32 [size, size]: row i has the weights of the places around i."""
    place = torch.arange(size, device=device)
    distance = (place.view(-1, 1) - place) / sigma
    return torch.exp(-0.5 * distance**2) / (sigma * math.sqrt(2 * math.pi))


def _sampled(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


# By the names of `hyperparameters.AUGMENTATIONS`; "none" is missing, as there is nothing to do.
AUGMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "crop-flip": crop_flip,
    "shift": shift,
    "affine": affine,
    "elastic": elastic,
    "affine-elastic": affine_elastic,
}


def change_of(text: str, flag: str = "--augment") -> Change | None:
    """The function of a value of `augment`, with its strengths; None for `none`.

    Args:
        text: The value.
        flag: The option or file that holds it, for the error.

    Raises:
        SettingsError: A person's own cannot be imported, or has no such option.
    """
    name, given = hyperparameters.augmentation(text, flag)
    if name == "none":
        return None
    if name in AUGMENTATIONS:
        defaults = {each.name: each.default for each in hyperparameters.AUGMENTATIONS[name]}
        return functools.partial(AUGMENTATIONS[name], **{**defaults, **given})
    own = load(name, flag, hyperparameters.AUGMENTATIONS)
    if not callable(own):
        raise SettingsError(
            f"{flag}: {name} is of type {type(own).__name__}; expected a function of a batch"
        )
    options: dict[str, Any] = arguments(own, given, flag, name) if given else {}
    return functools.partial(own, **options)


def check(text: str, images: np.ndarray, flag: str = "--augment") -> None:
    """Tries an augmentation on some images.

    Args:
        text: As `change_of` takes it.
        images: uint8 [n, C, H, W].
        flag: As `change_of` takes it.

    Raises:
        SettingsError: It fails, or returns no batch of the same shape with values from 0 to 255.
    """
    change, batch = change_of(text, flag), torch.from_numpy(images.copy())
    if change is None:
        return
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        try:
            found = change(batch)
        except (Exception, SystemExit) as error:  # a person's own code fails in any way
            raise SettingsError(f"{flag}: {text} failed: {described(error)}") from error
    if not isinstance(found, Tensor) or found.shape != batch.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise SettingsError(
            f"{flag}: {text} returns {shape}; expected a tensor {tuple(batch.shape)}"
        )
    least, most = (float(value) for value in found.float().aminmax())  # NaN, if any is
    bytes_or_floats = found.dtype == torch.uint8 or found.is_floating_point()
    if not (bytes_or_floats and -ROUNDING <= least <= most <= 255 + ROUNDING):
        raise SettingsError(
            f"{flag}: {text} returns {found.dtype} values from {least:g} to {most:g}; "
            "expected uint8 or finite floats from 0 to 255"
        )
    if most <= 1 < float(images.max()):
        raise SettingsError(
            f"{flag}: {text} returns values up to {most:g}; expected pixels from 0 to 255, "
            "as it was given"
        )
