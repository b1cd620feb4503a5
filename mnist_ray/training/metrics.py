"""What a search optimises beside accuracy and loss: functions of labels and probabilities."""

import math
from collections.abc import Callable

import numpy as np

from mnist_ray.errors import SettingsError, described
from mnist_ray.settings import text
from mnist_ray.settings.objectives import METRICS, OF_METRIC, function_of

Score = Callable[[np.ndarray, np.ndarray], float]
"""Labels int64 [n] and probabilities float64 [n, classes] -> a number."""


def confusion(labels: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """Images of each class (rows) taken for each (columns): int64 [classes, classes]."""
    return np.bincount(labels * classes + found, minlength=classes**2).reshape(classes, classes)


def balanced_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean, over the classes that have images, of the share of right answers."""
    matrix = confusion(labels, probabilities.argmax(1), probabilities.shape[1])
    n = matrix.sum(1)
    return float((matrix.diagonal()[n > 0] / n[n > 0]).mean())


def macro_f1(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean of the classes' F1, over those that are a label or an answer; 0 of 0 is 0."""
    matrix = confusion(labels, probabilities.argmax(1), probabilities.shape[1])
    both = matrix.sum(0) + matrix.sum(1)
    return float((2 * matrix.diagonal()[both > 0] / both[both > 0]).mean())


BUILT_IN: dict[str, Score] = {"balanced_accuracy": balanced_accuracy, "macro_f1": macro_f1}


def score_of(metric: str) -> Score | None:
    """The function of a metric; None for accuracy and loss, which every epoch has anyway.

    Raises:
        SettingsError: a person's own cannot be imported, or is no function.
    """
    if metric in OF_METRIC:
        return None
    name = function_of(metric)
    if name in BUILT_IN:
        return BUILT_IN[name]
    own = text.load(name, "--metric", METRICS)
    if not callable(own):
        raise SettingsError(
            f"--metric: {name} is of type {type(own).__name__}, "
            "expected a function (labels, probabilities)"
        )

    def score(labels: np.ndarray, probabilities: np.ndarray) -> float:
        # It may sort them in place, and the labels judge the next epoch too.
        return float(own(labels.copy(), probabilities.copy()))

    return score


def check(metric: str, labels: np.ndarray, classes: int) -> None:
    """Tries a metric on the validation labels.

    Raises:
        SettingsError: it fails, or gives no finite number.
    """
    score = score_of(metric)
    if score is None or function_of(metric) in BUILT_IN:
        return
    random = np.random.default_rng(0).random((len(labels), classes)) + 0.01
    try:
        value = score(labels, random / random.sum(1, keepdims=True))
    except (Exception, SystemExit) as error:  # a person's own code fails in any way
        raise SettingsError(
            f"--metric: {function_of(metric)} failed: {described(error)}"
        ) from error
    if not math.isfinite(value):
        raise SettingsError(
            f"--metric: {function_of(metric)} gives {value} for random answers; "
            "expected a finite number"
        )
