"""Sources of one's own that need no code: `folder:`, `npz:`, `csv:`, `parquet:` and `hf:`."""

import dataclasses
import logging

import numpy as np

from mnist_ray.data import drawn
from mnist_ray.data.decoding import Decoded, Reading, decoded
from mnist_ray.data.images import Images, digest
from mnist_ray.data.listing import ORDER, Listing
from mnist_ray.errors import SettingsError, shortened
from mnist_ray.settings import text

log = logging.getLogger(__name__)

_noted: set[str] = set()  # notes of this process, which are logged once
_of_train: dict[str, Listing] = {}  # of the source whose training part was read last
_verified: set[tuple[str, str]] = set()  # sources that --verify-data has read in this process


def read(
    name: str, part: str, reading: Reading, trained_on: str | None = None, *, own: bool = False
) -> Images:
    """One part of a source; the training part holds its own validation images last.

    A source without a test part gives a fifth of its images for it, the same ones for every seed:
    by groups if it knows them, else in the classes' proportions.

    Args:
        name: The source.
        part: train or test.
        reading: How to read it.
        trained_on: SHA-256 of the training images of a model that is to be judged, "" if nobody
            knows. A source of other images needs no training part and no second class for that,
            and counts as a whole where it has no test part.
        own: Whether that model was made with a source of this name: the log warns of other images.

    Raises:
        SettingsError: names the source and the fault.
    """
    kind, _, where = name.partition(":")
    in_a_pair = trained_on is None
    listing = _of_train.pop(name, None) if part == "test" and in_a_pair else None
    listing = listing or text.load(text.STORED[kind], "--dataset", text.STORED)(name, where)
    if part == "train" and in_a_pair:  # the test part is read next, of the same pictures
        _of_train.clear()
        _of_train[name] = listing
    try:
        parts, notes = _parts(listing)
    except SettingsError:
        if trained_on is None:
            raise
        parts, notes = _whole(listing, part)
    order = np.concatenate([np.flatnonzero(parts == each) for each in ORDER])
    if (name, listing.fingerprint) in _verified:
        reading = dataclasses.replace(reading, verify_data=False)
    found = decoded(listing, reading, order)
    if reading.verify_data:
        _verified.add((name, listing.fingerprint))
    other = trained_on is not None and _digest_of_training(listing, found, parts) != trained_on
    if other:
        parts, notes = _whole(listing, part)
    if other and own:
        log.warning(
            "%s: these are not the images that the model was made with: it may have been trained "
            "on some of them",
            name,
        )
    for note in (*_held(listing, found), *listing.notes, *notes, *found.notes):
        if (line := f"{name}: {note}") not in _noted:
            _noted.add(line)
            log.info("%s", line)
    return _images(listing, found, parts[found.kept], part, reading.padding, other=other)


def _held(listing: Listing, found: Decoded) -> list[str]:
    """Notes on the pictures that can be read, and on the broken ones."""
    classes = shortened(", ".join(listing.classes), 150)
    notes = [f"{len(found.kept):,} images in {len(listing.classes)} classes: {classes}"]
    broken = len(listing.names) - len(found.kept)
    if broken:
        gone = np.setdiff1d(listing.labels, listing.labels[found.kept])
        also = f", all of class {listing.classes[gone[0]]!r} among them" if len(gone) else ""
        notes.append(f"{broken:,} broken pictures are left out{also}")
    return notes


def _digest_of_training(listing: Listing, found: Decoded, parts: np.ndarray) -> str:
    """That of the training part as `_images` makes it."""
    n = int((parts[found.kept] != "test").sum())
    return digest(found.images[:n], listing.labels[found.kept[:n]])


def _images(
    listing: Listing,
    found: Decoded,
    parts: np.ndarray,
    part: str,
    padding: str,
    *,
    other: bool,
) -> Images:
    """One part; `other`: none that anything is trained on, so it may lack what training needs."""
    kept = found.kept
    labels = listing.labels[kept]
    trained = int((parts == "train").sum())
    if not other:
        _check_trained(listing, labels, trained)
    tests = int((parts == "test").sum())
    chosen = slice(len(kept) - tests, None) if part == "test" else slice(len(kept) - tests)
    images, labels = found.images[chosen], np.ascontiguousarray(labels[chosen])
    if not len(labels):
        raise SettingsError(f"--dataset: {listing.source} has no picture in its {part} part")
    mean, std = _moments(images if other else found.images[:trained])
    if min(std) == 0 and not other:
        raise SettingsError(
            f"--dataset: {listing.source}: all training pixels of a channel are equal"
        )
    own = np.arange(trained, len(labels)) if part == "train" and trained < len(labels) else None
    return Images(
        name=listing.source,
        part=part,
        images=images,
        labels=labels,
        classes=listing.classes,
        mean=mean,
        std=std,
        sha256=digest(images, labels),
        groups=None if listing.groups is None else listing.groups[kept][chosen],
        weights=None if listing.weights is None else listing.weights[kept][chosen],
        val=own,
        padding=padding,
    )


def _check_trained(listing: Listing, labels: np.ndarray, trained: int) -> None:
    """SettingsError if the training images, the first of them, lack a class."""
    known = np.bincount(labels[:trained], minlength=len(listing.classes)) > 0
    unknown = [listing.classes[i] for i in np.unique(labels) if not known[i]]
    if unknown:
        raise SettingsError(
            f"--dataset: {listing.source} has no training picture of class {unknown[0]!r}"
        )


def _moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel's pixels in [0, 1], exact."""
    values = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256, np.int64)
        for start in range(0, len(images), 1024):
            part = np.ascontiguousarray(images[start : start + 1024, channel])
            counts += np.bincount(part.reshape(-1), minlength=256)
        mean = float(counts @ values / counts.sum())
        means.append(mean)
        stds.append(float(np.sqrt(counts @ (values - mean) ** 2 / counts.sum())))
    return tuple(means), tuple(stds)


# ---- parts


def _whole(listing: Listing, part: str) -> tuple[np.ndarray, list[str]]:
    """The parts as a model is judged by them, and notes: all is `part` if there is no test part."""
    if listing.parts is not None and (listing.parts == "test").any():
        return listing.parts, []
    n = len(listing.names)
    return np.full(n, part), [f"it has no test part: all of {n:,} pictures are judged"]


def _parts(listing: Listing) -> tuple[np.ndarray, list[str]]:
    """train, val or test for each picture, and notes; a test part is split off if there is none."""
    if len(listing.classes) < 2:
        raise SettingsError(
            f"--dataset: {listing.source} has one class, {listing.classes[0]!r}; "
            "expected at least two"
        )
    parts = listing.parts
    parts = np.full(len(listing.names), "train") if parts is None else parts.copy()
    if not (parts == "train").any():
        raise SettingsError(f"--dataset: {listing.source} has no training part")
    if (parts == "test").any():
        return parts, []
    trained = np.flatnonzero(parts == "train")
    labels = listing.labels[trained]
    groups = None if listing.groups is None else listing.groups[trained]
    by = "in the classes' proportions"
    if groups is not None and len(np.unique(groups)) > 1:
        chosen, by = drawn.test_part_of_groups(labels, groups), "by groups"
    else:
        chosen = drawn.test_part(labels)
    if not len(chosen):
        raise SettingsError(
            f"--dataset: {listing.source} has no test part, and too few pictures to split one off; "
            f"expected at least {drawn.FEW} of some class"
        )
    lost = drawn.lost_classes(labels, chosen)
    if len(lost):
        raise SettingsError(
            f"--dataset: {listing.source} has no test part, and with one split off its groups "
            f"leave no training picture of class {listing.classes[lost[0]]!r}; give it a test part "
            "(as in a column split), or leave the groups out"
        )
    parts[trained[chosen]] = "test"
    note = f"it has no test part: {len(chosen)} of {len(trained)} pictures are split off {by}"
    return parts, [note]
