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
CHUNK = 64


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


def check_split(part: Images, train: np.ndarray, val: np.ndarray) -> None:
    """Logs what the training and the validation images of one's own data set have in common."""
    if ":" not in part.name:
        return
    found = shared_images(part.images[train], part.images[val])
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
    if min(train.shape[2:]) < max(SMALL) or len(train) * len(rest) > COMPARED:
        return Shared(exact, 0)
    slopes, near = _slopes(train), 0
    of_rest = _slopes(other[rest]) if len(rest) else np.zeros(0, np.uint64)
    for start in range(0, len(rest), CHUNK):
        unlike = np.bitwise_count(of_rest[start : start + CHUNK, None] ^ slopes)
        for i, row in enumerate(unlike):
            candidates = np.flatnonzero(row <= BITS)[:CHUNK]
            near += bool(len(candidates)) and _alike(other[rest[start + i]], train[candidates])
    return Shared(exact, int(near))


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def _slopes(images: np.ndarray) -> np.ndarray:
    """uint64 [n]: where a small grey copy of the picture gets brighter from left to right."""
    rows, columns = (_means(size, n) for size, n in zip(images.shape[2:], SMALL, strict=True))
    bits = np.empty((len(images), 8), np.uint8)
    for start in range(0, len(images), 1024):
        grey = images[start : start + 1024].mean(1, dtype=np.float32)
        small = rows @ grey @ columns.T
        slope = np.diff(small, axis=2) > SLOPE
        bits[start : start + 1024] = np.packbits(slope.reshape(len(small), -1), axis=1)
    return bits.view(np.uint64)[:, 0]


def _means(size: int, parts: int) -> np.ndarray:
    """float32 [parts, size]: a row for each part, which takes the mean of its pixels."""
    edges = np.linspace(0, size, parts + 1)
    pixels = np.arange(size)
    overlap = np.minimum(pixels + 1, edges[1:, None]) - np.maximum(pixels, edges[:-1, None])
    weights = np.maximum(overlap, 0).astype(np.float32)
    result: np.ndarray = weights / weights.sum(1, keepdims=True)
    return result


def _alike(image: np.ndarray, others: np.ndarray) -> bool:
    squares = (others.astype(np.float32) - image.astype(np.float32)) ** 2
    return bool(np.sqrt(squares.mean((1, 2, 3)).min()) <= ALIKE * image.std())
