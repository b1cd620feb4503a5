"""One part of a data set as arrays, its digest, and the checks of a person's own data set."""

import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mnist_ray.data.arrays import as_uint8
from mnist_ray.data.listing import as_text
from mnist_ray.data.pictures import PADDINGS
from mnist_ray.errors import SettingsError, described, shortened

log = logging.getLogger(__name__)

PARTS = ("train", "test")


@dataclass(frozen=True)
class Images:
    """One part of a data set, held in memory.

    A data set of one's own is a function `(part, data_dir) -> Images`:

        def stripes(part, data_dir):
            labels = np.arange(40) % 4
            images = np.zeros((40, 1, 8, 8), np.uint8)
            images[np.arange(40), :, labels] = 255
            return Images("stripes", part, images, labels, ("a", "b", "c", "d"), (0.1,), (0.3,))

    `load` fills an empty `sha256`.
    """

    name: str
    """Name of the data set, as given by --dataset."""
    part: str
    """`train` or `test`."""
    images: np.ndarray
    """uint8 `[n, C, H, W]`, bright on dark; may be read-only."""
    labels: np.ndarray
    """int64 `[n]`, each in `0 .. len(classes) - 1`."""
    classes: tuple[str, ...]
    """The name of each label."""
    mean: tuple[float, ...]
    """Per channel, of the training pixels scaled to [0, 1]."""
    std: tuple[float, ...]
    """Per channel, of the training pixels scaled to [0, 1]."""
    sha256: str = ""
    """`digest(images, labels)`."""
    groups: np.ndarray | None = None
    """int64 `[n]`: images of one writer, patient or camera share a number. None: not known."""
    group_names: tuple[str, ...] = ()
    """The name of each group's number, where the groups have names."""
    weights: np.ndarray | None = None
    """float64 `[n]`: how much each image counts in the training's loss. None: all alike."""
    val: np.ndarray | None = None
    """int64: indices of the data set's own validation images in its training part."""
    padding: str | None = None
    """How a picture of any size becomes an image, beside its own shape: black, white, edge or
    stretch. None: grey as MNIST's digits were prepared, colour stretched."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        return self.images.shape[1], self.images.shape[2], self.images.shape[3]


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256, in hexadecimal, of the images' bytes and then the labels' (little-endian int64)."""
    sha = hashlib.sha256(np.ascontiguousarray(images).data)
    sha.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return sha.hexdigest()


def by_names(part: Images, classes: tuple[str, ...], source: str) -> Images:
    """A part with the labels of a model: a folder that lacks a class numbers the others anew.

    Args:
        part: Its images, with labels of its own.
        classes: The model's names. If the part shares none of them, they are taken for other words
            for the same labels in the same order: the part stays as it is, and the log warns.
        source: The model, for messages.

    Raises:
        SettingsError: Only some of the part's classes are the model's, or it has more or fewer.
    """
    if not classes or part.classes == classes:
        return part
    foreign = [name for name in part.classes if name not in classes]
    if len(foreign) == len(part.classes) == len(classes):
        pairs = (f"{ours} = {theirs}" for ours, theirs in zip(part.classes, classes, strict=True))
        log.warning(
            "%s: its classes are taken for the model's in this order: %s",
            part.name,
            shortened(", ".join(pairs), 400),
        )
        return part
    if foreign:
        theirs = shortened(", ".join(classes), 150)
        raise SettingsError(
            f"--dataset: {part.name} has the class {foreign[0]!r}, and {source} has not; "
            f"expected some of {theirs}, or {len(classes)} other names for the same labels"
        )
    labels = np.array([classes.index(name) for name in part.classes], np.int64)[part.labels]
    return replace(part, labels=labels, classes=classes, sha256=digest(part.images, labels))


def centre_by_mass(images: np.ndarray, size: int = 28) -> np.ndarray:
    """Place images on black squares, their centre of mass at pixel (size / 2, size / 2).

    They move by whole pixels and stay inside, as MNIST's did: its centres of mass lie within 0.52
    pixels of (14, 14).

    Args:
        images: uint8 `[n, h, w]`, bright on black, `h` and `w` at most `size`.
        size: height and width of the result, in pixels.

    Returns:
        uint8 `[n, size, size]`.
    """
    n, h, w = images.shape
    rows, columns = np.arange(h), np.arange(w)
    mass = np.maximum(images.sum((1, 2), dtype=np.int64), 1)
    y = images.sum(2, dtype=np.int64) @ rows / mass
    x = images.sum(1, dtype=np.int64) @ columns / mass
    top = np.clip(np.rint(size / 2 - y), 0, size - h).astype(int)
    left = np.clip(np.rint(size / 2 - x), 0, size - w).astype(int)
    placed = np.zeros((n, size, size), np.uint8)
    index = np.arange(n)[:, None, None]
    placed[index, top[:, None, None] + rows[:, None], left[:, None, None] + columns] = images
    return placed


def from_function(
    function: Callable[[str, str | None], Any], name: str, part: str, data_dir: str | None
) -> Images:
    """Call a person's own function, and check and convert its result.

    Integer labels of any width, lists, torch tensors and NumPy scalars are converted. So are images
    without a channel axis, images with the channels last where the length of `mean` says so, and
    numbers that are certainly of [0, 1] or [0, 255]; the log tells of these three.

    Raises:
        SettingsError: names `--dataset`, the function and the fault, in one line.
    """
    try:
        found = function(part, data_dir)
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(f"--dataset: {name} failed for {part!r}: {described(error)}") from error
    if not isinstance(found, Images):
        raise SettingsError(
            f"--dataset: {name} must return mnist_ray.Images, returned {type(found).__name__}"
        )
    try:
        return _checked(replace(found, name=name, part=part))
    except (ValueError, TypeError, OverflowError) as error:
        raise SettingsError(f"--dataset: {name}, part {part!r}: {error}") from error


def _checked(data: Images) -> Images:
    """The same with the documented types; ValueError or TypeError if that is impossible."""
    classes = tuple(as_text(each) for each in data.classes)
    if not classes or not all(each.isprintable() for each in classes):
        raise ValueError("classes must be printable names, at least one")
    if len(set(classes)) < len(classes):
        twice = next(each for each in classes if classes.count(each) > 1)
        raise ValueError(f"two classes are named {twice!r}")
    mean, std = _per_channel(data.mean, "mean"), _per_channel(data.std, "std")
    if min(std) <= 0:
        raise ValueError(f"std must be above 0, found {std}")
    labels = _whole_numbers(data.labels, "labels")
    images = _pixels(data.images, len(mean))
    n, channels = len(images), images.shape[1]
    if n != len(labels) or not n:
        raise ValueError(
            f"found {n} images and {len(labels)} labels; allowed is one label an image"
        )
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(
            f"labels lie in {labels.min()}..{labels.max()}, allowed are 0..{len(classes) - 1}"
        )
    if not len(mean) == len(std) == channels:
        raise ValueError(
            f"mean and std need one figure for each of {channels} channel(s), "
            f"found {len(mean)} and {len(std)}; images are [n, channels, height, width]"
        )
    groups, group_names = None, data.group_names
    if data.groups is not None:
        groups, group_names = _group_numbers(data.groups, group_names)
    if groups is not None and len(groups) != n:
        raise ValueError(
            f"found {n} images and {len(groups)} groups; allowed is one group an image"
        )
    return Images(
        name=data.name,
        part=data.part,
        images=images,
        labels=labels,
        classes=classes,
        mean=mean,
        std=std,
        sha256=digest(images, labels),
        groups=groups,
        group_names=group_names,
        weights=None if data.weights is None else _weights(data.weights, n),
        val=None if data.val is None or data.part != "train" else _own_val(data.val, n),
        padding=_padding(data.padding),
    )


def _per_channel(values: Any, field: str) -> tuple[float, ...]:
    figures = tuple(float(each) for each in np.asarray(values, float).reshape(-1))
    if not figures or not all(math.isfinite(each) for each in figures):
        raise ValueError(f"{field} must hold finite numbers, one a channel, found {values!r}")
    return figures


def _whole_numbers(values: Any, field: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{field} must be whole numbers [n], found {array.dtype} {array.shape}")
    return array.astype(np.int64, copy=False)


def _pixels(values: Any, channels: int) -> np.ndarray:
    images = np.asarray(values)
    if images.ndim not in (3, 4) or 0 in images.shape[1:]:
        raise ValueError(
            "images must be uint8 [n, channels, height, width] with at least one pixel, "
            f"found {images.dtype} {images.shape}"
        )
    images, note = as_uint8(images)
    if note:
        log.info("%s", note)
    if images.ndim == 3:
        log.info("images %s have no channel axis: read as grey", images.shape)
        images = images[:, None]
    elif images.shape[1] != channels and images.shape[3] == channels:
        log.info("images %s are read as [n, height, width, channels]", images.shape)
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return images


def _weights(values: Any, n: int) -> np.ndarray:
    weights = np.asarray(values, np.float64)
    if weights.shape != (n,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(f"weights must be {n} finite numbers of at least 0, one an image")
    if not weights.any():
        raise ValueError("weights are all 0")
    return weights


def _own_val(values: Any, n: int) -> np.ndarray:
    places = np.unique(_whole_numbers(values, "val"))
    if not len(places) or len(places) == n or places[0] < 0 or places[-1] >= n:
        raise ValueError(f"val must hold indices of some of the {n} training images")
    return places


def _padding(value: Any) -> str | None:
    if value is not None and value not in PADDINGS:
        raise ValueError(f"padding is {value!r}; allowed are {', '.join(PADDINGS)} or None")
    return None if value is None else str(value)


def _group_numbers(values: Any, names: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers as they are; names (strings) numbered in alphabetical order."""
    array = np.asarray(values)
    if array.dtype.kind in "US" and array.ndim == 1:
        found, numbers = np.unique(array, return_inverse=True)
        return numbers.astype(np.int64), tuple(map(as_text, found))
    return _whole_numbers(array, "groups"), names
