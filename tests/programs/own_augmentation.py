"""Augmentations of one's own: a good one by torchvision, and some that cannot work."""

import sys

import torch
from torch import Tensor
from torchvision.transforms import v2

NUMBER = 3


def turned(images: Tensor, degrees: float = 10.0) -> Tensor:
    """Turns each image on its own; torchvision alone would turn the whole batch alike."""
    turn = v2.RandomRotation(degrees)
    return torch.stack([turn(image) for image in images])


def fails(images: Tensor) -> Tensor:
    """Raises an error."""
    raise ValueError("out of luck")


def leaves(images: Tensor) -> Tensor:
    """Ends the process."""
    sys.exit("no library")


def cropped(images: Tensor) -> Tensor:
    """Loses a row."""
    return images[:, :, 1:]


def listed(images: Tensor) -> list[Tensor]:
    """Returns no batch."""
    return list(images)


def scaled(images: Tensor) -> Tensor:
    """Returns pixels from 0 to 1."""
    return images / 255


def normalised(images: Tensor) -> Tensor:
    """Returns pixels as torchvision's Normalize makes them of those from 0 to 1: some negative."""
    return v2.functional.normalize(images / 255, [0.1307] * 3, [0.3081] * 3)


def brighter(images: Tensor) -> Tensor:
    """Returns pixels above 255."""
    return images * 1.3


def smooth(images: Tensor) -> Tensor:
    """Returns pixels above 255 by a rounding error."""
    return images * 1.000001


def whole(images: Tensor) -> Tensor:
    """Returns whole numbers that are no bytes."""
    return images.long()


def lost(images: Tensor) -> Tensor:
    """Returns NaN."""
    return images.float() * float("nan")
