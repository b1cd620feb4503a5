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


def read(name: str, part: str, reading: Reading) -> Images:
    """One part of a source; the training part holds its own validation images last.

    A source without a test part gives a fifth of its images for it, the same ones for every seed:
    by groups if it knows them, else in the classes' proportions.

    Raises:
        SettingsError: names the source and the fault.
    """
    kind, _, where = name.partition(":")
    listing = _of_train.pop(name, None) if part == "test" else None
    listing = listing or text.load(text.STORED[kind], "--dataset", text.STORED)(name, where)
    if part == "train":  # the test part is read next, of the same pictures
        _of_train.clear()
        _of_train[name] = listing
    parts, notes = _parts(listing)
    order = np.concatenate([np.flatnonzero(parts == each) for each in ORDER])
    if (name, listing.fingerprint) in _verified:
        reading = dataclasses.replace(reading, verify_data=False)
    found = decoded(listing, reading, order)
    if reading.verify_data:
        _verified.add((name, listing.fingerprint))
    classes = shortened(", ".join(listing.classes), 150)
    held = f"{len(listing.names):,} images in {len(listing.classes)} classes: {classes}"
    for note in (held, *listing.notes, *notes, *found.notes):
        if (line := f"{name}: {note}") not in _noted:
            _noted.add(line)
            log.info("%s", line)
    return _images(listing, found, parts[found.kept], part, reading.padding)


def _images(listing: Listing, found: Decoded, parts: np.ndarray, part: str, padding: str) -> Images:
    kept = found.kept
    labels = listing.labels[kept]
    trained = int((parts == "train").sum())
    known = np.bincount(labels[:trained], minlength=len(listing.classes)) > 0
    unknown = [listing.classes[i] for i in np.unique(labels) if not known[i]]
    if unknown:
        raise SettingsError(
            f"--dataset: {listing.source} has no training picture of class {unknown[0]!r}"
        )
    tests = int((parts == "test").sum())
    chosen = slice(len(kept) - tests, None) if part == "test" else slice(len(kept) - tests)
    images, labels = found.images[chosen], np.ascontiguousarray(labels[chosen])
    if not len(labels):
        raise SettingsError(f"--dataset: {listing.source} has no picture in its {part} part")
    mean, std = _moments(found.images[:trained])
    if min(std) == 0:
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


def _parts(listing: Listing) -> tuple[np.ndarray, list[str]]:
    """train, val or test for each picture, and notes; a test part is split off if there is none."""
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
    parts[trained[chosen]] = "test"
    note = f"it has no test part: {len(chosen)} of {len(trained)} pictures are split off {by}"
    return parts, [note]
