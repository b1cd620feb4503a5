"""Divide a training part into training and validation images: by class, or by writers (groups).

A data set may bring validation images of its own instead.
"""

import hashlib
import logging
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from mnist_ray.data import drawn, leaks, weights, writers
from mnist_ray.data.decoding import Reading
from mnist_ray.data.images import Images
from mnist_ray.data.sources import default_val_images, load
from mnist_ray.errors import SettingsError

Rule = Literal["class", "group", "own"]
log = logging.getLogger(__name__)

DRAWS = 50  # draws of groups, of which the one with the most usual class shares is taken
SURPLUS = (1, 1.25, 2, 4)  # drawn groups have so many times the images: more only if need be
SHARES_WITHIN = 0.01  # a larger deviation of a class's share from that of all images is logged
PAIRED = 400  # groups among which the last two of a draw are looked for


class Split(NamedTuple):
    """A training part, divided: what a function of `--train-data images` gets as `data`.

    Attributes:
        images: The training part, an `Images`.
        train: int64, the indices of the images to train on.
        val: int64, the indices of the validation images.
        val_by: The rule of the division: class, group or own.
        folds: With `--folds`: training and validation indices of each fold, the first of which are
            `train` and `val`.
    """

    images: Images
    train: np.ndarray
    val: np.ndarray
    val_by: Rule
    folds: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    def facts(self) -> dict[str, Any]:
        """What a run notes of it in `run.json`, under `data`."""
        validated = sum(len(val) for _, val in self.folds) or len(self.val)
        return {
            "name": self.images.name,
            "sha256": self.images.sha256,
            "split_sha256": self._digest(),
            "train": len(self.train),
            "val": validated,
            "classes": list(self.images.classes),
        }

    def _digest(self) -> str:
        """SHA-256 of what `Images.sha256` is not of: the division, and how much each counts.

        Groups and a validation part show in the division.
        """
        sha = hashlib.sha256()
        weights = () if self.images.weights is None else (self.images.weights,)
        for kind, arrays in (
            ("<i8", (self.train, self.val, *sum(self.folds, ()))),
            ("<f4", weights),
        ):
            for array in arrays:  # each with its length: no image may change sides unseen
                sha.update(f"{kind}{len(array)}:".encode())
                sha.update(np.ascontiguousarray(array, dtype=kind).data)
        return sha.hexdigest()


def load_split(  # noqa: PLR0913 (one a setting)
    dataset: str,
    data_dir: str | None = None,
    *,
    train_images: int | None = None,
    val_images: int | None = None,
    seed: int = 0,
    val_by: Rule | None = None,
    folds: int | None = None,
    reading: Reading | None = None,
    download: bool = True,
    each_class: bool = True,
) -> Split:
    """Load a training part and split it.

    Args:
        dataset: a name, see `load`.
        data_dir: see `load`.
        train_images: images to train on; None takes all that are left.
        val_images: images to validate on; None takes `default_val_images`.
        seed: of the draw.
        val_by: `class`; `group`; `own`, those that it brings; or None: the last that it has.
        folds: divide all images into so many parts, each of which validates once.
        download: see `load`.
        each_class: with `own`, whether either side keeps each class. Older runs did not ask for it.
        reading: see `load`; the weights of the result's images have those of the classes in.
    """
    part = load(dataset, "train", data_dir, reading=reading, download=download)
    missing = f", as {writers.FILE} is not in the data folder" if dataset == "mnist" else ""
    if val_by == "group" and part.groups is None:
        raise SettingsError(f"--val-by group: {dataset} has no groups (writers){missing}")
    if val_by is None and part.groups is None and missing:
        log.warning(
            "the writers are not known%s: validation images are drawn by class, so most are by "
            "writers who also wrote training images",
            missing,
        )
    if val_by is None:
        own = part.val is not None and not folds
        val_by = "own" if own else "class" if part.groups is None else "group"
    groups = part.groups if val_by == "group" else None
    parts = folded(part.labels, folds, seed, groups) if folds else ()
    if parts or val_by == "own":
        counts = train_images, val_images
        train, val = parts[0] if parts else _own(part, *counts, seed, each_class=each_class)
    else:
        train, val = split(
            part.labels,
            val_images=default_val_images(part) if val_images is None else val_images,
            train_images=train_images,
            seed=seed,
            groups=groups,
        )
    leaks.check_split(part, train, val, brought=val_by == "own")
    of_classes = reading.class_weights if reading else None
    part = replace(part, weights=weights.combined(part, train, of_classes))
    return Split(part, train, val, val_by, parts)


def check_repeats(split: Split, data_dir: str | None, class_weights: str | None) -> None:
    """Calls a data set's own function again, as the fine-tuning and --resume will.

    Args:
        split: of its first answer.
        data_dir: as in `load_split`.
        class_weights: as in its `reading`.

    Raises:
        SettingsError: it gives others than before.
    """
    first, again = split.images, load(split.images.name, "train", data_dir)
    what = "images"
    if again.sha256 == first.sha256:
        what = "groups, weights or validation images"
        again = replace(again, weights=weights.combined(again, split.train, class_weights))
        keys = ("groups", "weights", "val")
        pairs = [(getattr(first, key), getattr(again, key)) for key in keys]
        if all(np.array_equal(one, other) for one, other in pairs):  # also two of None
            return
    raise SettingsError(
        f"--dataset: {first.name} gives other {what} each time that it is called; fix its random "
        "numbers: the fine-tuning and --resume call it again"
    )


def folded(
    labels: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Training and validation images of each fold, int64 indices, in the classes' proportions.

    Every image validates once. With groups, none is on both sides of a fold.

    Args:
        labels: int `[n]`.
        folds: at least 2.
        seed: of the draw.
        groups: `[n]`, or None to divide by class alone.

    Raises:
        SettingsError: a class, or the groups, cannot be divided so often.
    """
    least = int(np.unique(labels, return_counts=True)[1].min())
    if least < folds:
        raise SettingsError(f"--folds {folds}: the rarest class has {least} images; take fewer")
    splitters = drawn.model_selection_of_sklearn()
    kind = splitters.StratifiedKFold if groups is None else splitters.StratifiedGroupKFold
    if groups is not None and len(np.unique(groups)) < folds:
        raise SettingsError(f"--folds {folds}: there are {len(np.unique(groups))} groups")
    parts = list(kind(folds, shuffle=True, random_state=seed).split(labels, labels, groups))
    classes = len(np.unique(labels))
    if any(len(np.unique(labels[side])) < classes for part in parts for side in part):
        raise SettingsError(
            f"--folds {folds}: the groups cannot be divided with each class on either side; "
            "take fewer, or --val-by class"
        )
    return tuple((train.astype(np.int64), val.astype(np.int64)) for train, val in parts)


def _own(
    part: Images,
    train_images: int | None,
    val_images: int | None,
    seed: int,
    *,
    each_class: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """The split that the data set brings, or as many images of either side as are requested.

    each_class: whether either side must have each class that it could have.
    """
    if part.val is None:
        raise SettingsError(f"--val-by own: {part.name} has no validation images of its own")
    rest = np.setdiff1d(np.arange(len(part.labels)), part.val)
    sides = []
    for flag, indices, count in (
        ("--train-images", rest, train_images),
        ("--val-images", part.val, val_images),
    ):
        classes = len(np.unique(part.labels[indices])) if each_class else 1
        wanted = len(indices) if count is None else count
        if not classes <= wanted <= len(indices):
            raise SettingsError(
                f"{flag} {count}: allowed are {classes} to {len(indices)} ({part.name} has "
                f"{len(indices)} of its own, at least one of each of {classes} classes)"
            )
        chosen, _ = drawn.stratified(indices, wanted, part.labels, seed)
        if len(np.unique(part.labels[chosen])) < classes:
            chosen, _ = drawn.with_each_class(indices, wanted, part.labels, seed, left=0)
        sides.append(np.sort(chosen).astype(np.int64))
    return sides[0], sides[1]


def split(
    labels: np.ndarray,
    *,
    val_images: int,
    train_images: int | None = None,
    seed: int,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Divide a training part into training and validation images, in the classes' proportions.

    The validation images depend on `labels`, `groups`, `val_images` and `seed` alone, so runs on
    subsets share them. With groups, whole groups are drawn first, then the validation images from
    them. No group is in both parts: images of a drawn group beyond `val_images` are in neither.

    Args:
        labels: int `[n]`.
        val_images: images held out.
        train_images: take this many of the rest; None takes all.
        seed: of the draw.
        groups: int `[n]`, or None to divide by class alone.

    Returns:
        Indices of the training and of the validation images, int64, sorted, disjoint.

    Raises:
        SettingsError: more images asked for than there are, or fewer than one of each class.
    """
    counts = np.unique(labels, return_counts=True)[1]
    n, classes = len(labels), len(counts)
    if counts.min() < 2:
        raise SettingsError(
            "--dataset: a class has a single training image, a split needs two of each class"
        )
    if not classes <= val_images <= n - classes:
        raise SettingsError(
            f"--val-images {val_images}: allowed are {classes} to {n - classes} "
            f"({n} training images, at least one of each of {classes} classes on either side)"
        )
    if groups is None:
        val, rest = drawn.stratified(np.arange(n), val_images, labels, seed)
        if min(len(np.unique(labels[side])) for side in (val, rest)) < classes:
            val, rest = drawn.with_each_class(np.arange(n), val_images, labels, seed, left=1)
    else:
        val, rest = _by_group(labels, groups, val_images, seed)
    train = rest
    if train_images is not None and train_images != len(rest):
        if not classes <= train_images <= len(rest):
            raise SettingsError(
                f"--train-images {train_images}: allowed are {classes} to {len(rest)} "
                f"({n} images less {n - len(rest)} for validation, "
                f"at least one of each of {classes} classes)"
            )
        _, train = drawn.stratified(rest, len(rest) - train_images, labels, seed)
        if len(np.unique(labels[train])) < classes:
            train, _ = drawn.with_each_class(rest, train_images, labels, seed, left=0)
    return np.sort(train).astype(np.int64), np.sort(val).astype(np.int64)


def _by_group(
    labels: np.ndarray, groups: np.ndarray, val_images: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The validation images, and the images of all groups that were not drawn for validation."""
    which = np.unique(groups, return_inverse=True)[1]
    classes = np.unique(labels, return_inverse=True)[1]
    table = np.zeros((which.max() + 1, classes.max() + 1), np.int64)  # images of a group, by class
    np.add.at(table, (which, classes), 1)
    sizes, total = table.sum(1), table.sum(0)
    shares = total / total.sum()
    generator = np.random.default_rng(seed)
    draws: list[tuple[tuple[bool, bool, int, float], np.ndarray, np.ndarray]] = []
    for at_least in np.repeat(val_images * np.array(SURPLUS), DRAWS):
        if len(draws) % DRAWS == 0 and draws and min(draw[0] for draw in draws) < (False, True):
            break  # even without more images to choose from
        order = generator.permutation(len(sizes))
        drawn = order[_enough(sizes[order], int(at_least))]
        available = table[drawn].sum(0)
        quota = _quotas(shares * val_images, available, val_images)
        missing = bool((quota == 0).any() or (available == total).any())
        off = float(np.abs(quota / val_images - shares).max())
        uneven = off > max(SHARES_WITHIN, 1 / val_images)
        draws.append(((missing, uneven, int(available.sum()), off), drawn, quota))
    (missing, uneven, _, off), drawn, quota = min(draws, key=lambda draw: draw[0])
    if missing:
        raise SettingsError(
            f"--val-by group: {len(sizes)} groups cannot be divided with each class on either side "
            f"of --val-images {val_images}; take another number, or --val-by class"
        )
    if uneven:
        log.warning(
            "--val-by group: a class's share in the validation images is off by %.1f points",
            100 * off,
        )
    held = np.isin(which, drawn)
    val = [
        generator.choice(np.flatnonzero(held & (classes == number)), count, replace=False)
        for number, count in enumerate(quota)
    ]
    return np.concatenate(val), np.flatnonzero(~held)


def _quotas(wanted: np.ndarray, available: np.ndarray, count: int) -> np.ndarray:
    """Whole numbers that sum up to `count`, near `wanted` and nowhere above `available`."""
    quota: np.ndarray = np.minimum(wanted.astype(np.int64), available)
    for _ in range(count - int(quota.sum())):
        quota[np.where(quota < available, wanted - quota, -np.inf).argmax()] += 1
    return quota


def _enough(sizes: np.ndarray, count: int) -> np.ndarray:
    """Positions of groups, from the first on, with `count` images; the last two leave few over."""
    first = int(np.searchsorted(np.cumsum(sizes), count - 2 * sizes.mean(), side="right"))
    for taken in range(first, len(sizes)):
        missing = count - sizes[:taken].sum()
        if missing <= 0:
            return np.arange(taken)
        rest = sizes[taken : taken + PAIRED]
        pairs = rest[:, None] + rest
        np.fill_diagonal(pairs, rest)  # one group alone
        over = np.where(pairs >= missing, pairs - missing, sizes.sum() + 1)
        if over.min() <= sizes.sum():
            last = np.unravel_index(over.argmin(), over.shape)
            return np.append(np.arange(taken), np.unique(last) + taken)
    return np.arange(len(sizes))
