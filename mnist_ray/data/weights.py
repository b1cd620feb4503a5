"""How much each image counts in the training's loss: its own weight, and its class's."""

import json
from collections.abc import Mapping

import numpy as np

from mnist_ray.data.images import Images
from mnist_ray.errors import SettingsError, shortened
from mnist_ray.settings import text


def combined(part: Images, train: np.ndarray, class_weights: str | None) -> np.ndarray | None:
    """float32 [n], 1 on average over the training images; None where all count alike.

    Args:
        part: The training part; its own weights count too.
        train: int64, places of the training images.
        class_weights: As --class-weights: None, "balanced", or JSON {class's name: weight}.

    Raises:
        SettingsError: A class is unknown, or nothing would be left to train on.
    """
    if part.weights is None and class_weights is None:
        return None
    weights = np.ones(len(part.labels)) if part.weights is None else part.weights.astype(float)
    if class_weights is not None:
        weights = weights * of_classes(part, train, class_weights)[part.labels]
    with np.errstate(over="ignore"):
        mean = weights[train].mean()
    if not np.isfinite(mean):
        raise SettingsError("--dataset: the images' weights are too large: their sum is no number")
    if not mean > 0:
        raise SettingsError("--class-weights: every training image would count nothing")
    result: np.ndarray = (weights / mean).astype(np.float32)
    return result


def of_classes(part: Images, train: np.ndarray, class_weights: str) -> np.ndarray:
    """float64 [classes]: "balanced" as scikit-learn has it, n / (classes · n of the class)."""
    n = len(part.classes)
    if class_weights == "balanced":
        counts = np.bincount(part.labels[train], minlength=n)
        present = counts > 0
        return np.where(present, len(train) / (present.sum() * np.maximum(counts, 1)), 0.0)
    if not class_weights.startswith("{"):
        raise SettingsError(f"--class-weights: {class_weights!r} is not allowed here")
    given: Mapping[str, float] = json.loads(text.class_weights(class_weights))
    unknown = sorted(given.keys() - set(part.classes))
    if unknown:
        raise SettingsError(
            f"--class-weights: there is no class {unknown[0]!r}; "
            f"there are {shortened(', '.join(part.classes), 200)}"
        )
    return np.array([given.get(name, 1.0) for name in part.classes])
