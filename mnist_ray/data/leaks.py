"""What makes an accuracy mean less than it says: images or groups that are in two parts."""

import hashlib
import logging
from typing import NamedTuple

import numpy as np

from mnist_ray.data.images import Images
from mnist_ray.errors import SettingsError, shortened

log = logging.getLogger(__name__)

SMALL = (8, 9)  # rows and columns of the small picture whose slopes are compared
SLOPE = 8  # grey values by which neighbours in it must differ to count as a slope
BITS = 4  # slopes, of 64, by which two pictures that are alike may differ
ALIKE = 0.15  # difference of their pixels (RMS), as a share of the picture's standard deviation
COMPARED = 2_000_000_000  # pairs of images; near duplicates among more are not looked for
CHUNK = 64  # other images whose slopes are compared at a time
MANY = 64  # training images like one by their slopes: of more the small pictures are compared too
ROUNDED = 1e-4  # more than float32 is off: grey values, and the share of a sum of squares


class Shared(NamedTuple):
    """How many images of one part are in another: the same bytes, or nearly the same picture."""

    exact: int
    near: int


def check_test_part(train: Images, test: Images) -> None:
    """Refuses a test part that says nothing of a network trained on the training part.

    Of a data set of one's own the log tells how many test images and groups are training images
    and groups too.

    Raises:
        SettingsError: Shape or classes differ, or the training part has all of its images.
    """
    name = f"--dataset: {train.name}"
    if test.shape != train.shape:
        raise SettingsError(
            f"{name}: test images are {list(test.shape)} (channels, height, width), training "
            f"images {list(train.shape)}; expected the same"
        )
    if test.classes != train.classes:
        one, other = (shortened(", ".join(part.classes), 150) for part in (test, train))
        pairs = zip(test.classes, train.classes, strict=False)
        first = next((f" (first: {a!r} and {b!r})" for a, b in pairs if a != b), "")
        raise SettingsError(
            f"{name}: the test part's classes are {one}; the training part's are {other}"
            f"{first}; expected the same names in the same order"
        )
    if ":" not in train.name:  # published ones are as they are
        return
    found = shared_images(train.images, test.images)
    if found.exact == len(test.images):
        raise SettingsError(
            f"{name}: all {found.exact} test images are training images: an accuracy on them means "
            "nothing; expected a test part of other images"
        )
    _tell(train.name, found, len(test.images), "test images", "the test accuracy may be too high")
    groups = len(_groups(train) & _groups(test))
    if groups:
        log.warning("%s: %d groups are in the training and in the test part", train.name, groups)


def check_split(part: Images, train: np.ndarray, val: np.ndarray, *, brought: bool = False) -> None:
    """Logs what the training and the validation images of one's own data set have in common.

    Args:
        part: The training part.
        train: int64, places of the training images.
        val: int64, places of the validation images.
        brought: Whether the data set brings its validation images itself.

    Raises:
        SettingsError: It brings training images alone.
    """
    if ":" not in part.name:
        return
    found = shared_images(part.images[train], part.images[val])
    if brought and found.exact == len(val):
        raise SettingsError(
            f"--dataset: {part.name}: all {len(val)} validation images are training images; "
            "give others, or --val-by class"
        )
    _tell(
        part.name, found, len(val), "validation images", "the validation accuracy may be too high"
    )
    if part.groups is not None:
        groups = np.intersect1d(part.groups[train], part.groups[val])
        if len(groups):
            log.warning(
                "%s: %d groups have training and validation images; --val-by group parts them",
                part.name,
                len(groups),
            )


def _tell(name: str, found: Shared, n: int, what: str, so: str) -> None:
    for count, how in ((found.exact, ""), (found.near, "nearly ")):
        same = f"are {how}training images" if count > 1 else f"is {how}a training image"
        if count:
            log.warning("%s: %d of %d %s %s too: %s", name, count, n, what, same, so)


def _groups(part: Images) -> set[str]:
    """The groups that another part may have too, by their names where these are known."""
    if part.groups is None:
        return set()
    names = part.group_names
    return {names[i] if names else str(i) for i in np.unique(part.groups).tolist()}


def shared_images(train: np.ndarray, other: np.ndarray) -> Shared:
    """How many of the other images are among the training images; uint8 [n, C, H, W] both."""
    known = {_digest(image) for image in train}
    rest = np.array([i for i in range(len(other)) if _digest(other[i]) not in known], np.int64)
    exact = len(other) - len(rest)
    few = min(train.shape[2:]) < max(SMALL)
    if few or len(train) * len(rest) > COMPARED:
        why = f"a side below {max(SMALL)} pixels" if few else f"{len(train)} x {len(rest)} pairs"
        log.info("only exact copies were looked for: the images have %s", why)
        return Shared(exact, 0)
    small, of_rest = _small(train), _small(other[rest])
    slopes, slopes_of_rest = _slopes(small), _slopes(of_rest)
    near = 0
    for start in range(0, len(rest), CHUNK):
        part = slice(start, start + CHUNK)
        limits = np.array([ALIKE * float(image.std()) for image in other[rest[part]]])
        alike = np.bitwise_count(slopes_of_rest[part, None] ^ slopes) <= BITS
        if alike.sum() > MANY * len(alike):  # of little contrast: hardly one has a slope
            alike &= _within(small, of_rest[part], limits)
        for i, (row, limit) in enumerate(zip(alike, limits, strict=True), start):
            near += _any_alike(other[rest[i]], train, np.flatnonzero(row), limit)
    return Shared(exact, near)


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def _small(images: np.ndarray) -> np.ndarray:
    """float32 [n, *SMALL]: a small grey copy of each, each value the mean of its part."""
    rows, columns = (_means(size, n) for size, n in zip(images.shape[2:], SMALL, strict=True))
    small = np.empty((len(images), *SMALL), np.float32)
    for start in range(0, len(images), 1024):
        grey = images[start : start + 1024].mean(1, dtype=np.float32)
        small[start : start + 1024] = rows @ grey @ columns.T
    return small


def _slopes(small: np.ndarray) -> np.ndarray:
    """uint64 [n]: where the small copies of pictures get brighter from left to right."""
    slope = np.diff(small, axis=2) > SLOPE
    bits = slope.reshape(len(small), slope.shape[1] * slope.shape[2])
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _means(size: int, parts: int) -> np.ndarray:
    """float32 [parts, size]: a row for each part, which takes the mean of its pixels."""
    edges = np.linspace(0, size, parts + 1)
    pixels = np.arange(size)
    overlap = np.minimum(pixels + 1, edges[1:, None]) - np.maximum(pixels, edges[:-1, None])
    weights = np.maximum(overlap, 0).astype(np.float32)
    result: np.ndarray = weights / weights.sum(1, keepdims=True)
    return result


def _within(small: np.ndarray, others: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """False, of bool [m, n], where the small copies and so the pictures differ by more (RMS).

    A mean is never further off than what it is the mean of. The matrix product takes seconds for a
    billion pairs; its rounding lets through a few more.

    Args:
        small: float32 [n, *SMALL].
        others: float32 [m, *SMALL].
        limits: float64 [m].
    """
    middle = small.mean(0)
    a, b = ((copies - middle).reshape(len(copies), middle.size) for copies in (others, small))
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)
    most = middle.size * (limits[:, None] + ROUNDED) ** 2
    within: np.ndarray = squares * (1 - ROUNDED) - 2 * a @ b.T <= most
    return within


def _any_alike(image: np.ndarray, train: np.ndarray, candidates: np.ndarray, limit: float) -> bool:
    """Whether one of the candidates, places in `train`, is nearly the same picture."""
    for start in range(0, len(candidates), MANY):
        others = train[candidates[start : start + MANY]].astype(np.float32)
        squares = (others - image.astype(np.float32)) ** 2
        if np.sqrt(squares.mean((1, 2, 3)).min()) <= limit:
            return True
    return False
