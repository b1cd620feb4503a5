"""Places that are drawn from images: in the classes' proportions, by whole groups, or evenly."""

from typing import Any

import numpy as np

FEW = 3  # a class with fewer images has none in a test part that is split off
FOLDS = 5  # one of so many is such a test part


def stratified(
    indices: np.ndarray, count: int, labels: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """`count` of the indices, in the classes' proportions if possible, and the others."""
    left = len(indices) - count
    if not left:
        return indices, indices[:0]
    # scikit-learn can divide neither fewer images than classes, nor the single image of a class.
    counts = np.unique(labels[indices], return_counts=True)[1]
    exact = min(left, count) >= len(counts) and counts.min() > 1
    others, chosen = model_selection_of_sklearn().train_test_split(
        indices, test_size=count, stratify=labels[indices] if exact else None, random_state=seed
    )
    return chosen, others


def with_each_class(
    indices: np.ndarray, count: int, labels: np.ndarray, seed: int, *, left: int
) -> tuple[np.ndarray, np.ndarray]:
    """`count` of the indices, at least one of each class, and the others with at least `left`.

    The rest is drawn in proportion to what is free in each class. `stratified` rounds a rare class
    down to none.

    Args:
        indices: int64, places of the images to draw from; each class has more than `left`.
        count: At least the number of classes, and few enough to leave so many.
        labels: int, of all images.
        seed: of the draw.
        left: Images of each class that are not drawn.
    """
    generator = np.random.default_rng(seed)
    found = labels[indices]
    of_class = [generator.permutation(indices[found == each]) for each in np.unique(found)]
    free = np.array([len(places) - 1 - left for places in of_class])
    # Whole numbers: a share that is rounded up by a float may be more than a class has.
    more, rest = np.divmod(free * (count - len(of_class)), max(1, free.sum()))
    more[np.argsort(-rest, kind="stable")[: count - len(of_class) - more.sum()]] += 1
    chosen = np.concatenate([p[: 1 + n] for p, n in zip(of_class, more, strict=True)])
    return chosen, np.setdiff1d(indices, chosen)


def test_part(labels: np.ndarray) -> np.ndarray:
    """The places of a fifth of each class, at least one where it has `FEW`; always the same."""
    generator = np.random.default_rng(0)
    chosen = [np.zeros(0, np.int64)]
    for label in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == label))
        count = max(1, round(len(places) / FOLDS)) if len(places) >= FEW else 0
        chosen.append(places[:count])
    return np.sort(np.concatenate(chosen))


def test_part_of_groups(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The places of about a fifth of the images, whole groups, near the classes' proportions.

    None where no class has two images. The training part lacks a class only if it does with each
    choice.
    """
    if np.bincount(labels).max() < 2:  # scikit-learn divides no such labels
        return np.zeros(0, np.int64)
    folds = max(2, min(FOLDS, len(np.unique(groups)), int(np.bincount(labels).max())))
    splitter = model_selection_of_sklearn().StratifiedGroupKFold(
        folds, shuffle=True, random_state=0
    )
    parts: list[np.ndarray] = [part for _, part in splitter.split(labels, labels, groups)]
    parts = [part for part in parts if len(part)]
    fifth = len(labels) / FOLDS

    def off(part: np.ndarray) -> tuple[int, float]:
        return len(lost_classes(labels, part)), abs(len(part) - fifth)

    # The first one has the least even group, which may be nearly all images.
    usable = len(parts[0]) <= 2 * fifth and not off(parts[0])[0]
    return parts[0] if usable else min(parts, key=off)


def lost_classes(labels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The labels of which no image is left without those at the chosen places."""
    return np.setdiff1d(labels, np.delete(labels, chosen))


def spread(n: int, most: int) -> np.ndarray:
    """int64: at most so many places of `n` images, evenly spread; all where they are no more.

    The first ones would be of one class where the images are sorted, as those of a folder are.
    """
    return np.linspace(0, n - 1, min(n, most)).round().astype(np.int64)


def model_selection_of_sklearn() -> Any:
    """scikit-learn's splitters, imported when they are used."""
    from sklearn import model_selection  # noqa: PLC0415 (seconds at start)

    return model_selection
