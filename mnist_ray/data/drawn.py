"""Places that are drawn from images: in the classes' proportions, or by whole groups."""

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
    """The places of about a fifth of the images, whole groups, near the classes' proportions."""
    folds = max(2, min(FOLDS, len(np.unique(groups)), int(np.bincount(labels).max())))
    splitter = model_selection_of_sklearn().StratifiedGroupKFold(
        folds, shuffle=True, random_state=0
    )
    found: np.ndarray = next(iter(splitter.split(labels, labels, groups)))[1]
    return found


def model_selection_of_sklearn() -> Any:
    """scikit-learn's splitters, imported when they are used."""
    from sklearn import model_selection  # noqa: PLC0415 (seconds at start)

    return model_selection
