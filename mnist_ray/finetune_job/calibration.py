"""The temperature of a published file, fitted on images that its network never trained on.

Temperature scaling (Guo et al. 2017) divides the logits by one number; no answer changes. Where the
stages train on all images there is nothing left to fit it on, and test images may not serve. Then
a twin is trained by the same stages and seeds on the training part alone, and the validation images
are judged by the twin.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from mnist_ray.data import Split
from mnist_ray.export.session import probabilities
from mnist_ray.export.write import logits_of
from mnist_ray.models import Committee

SMALL = 10_000  # training images up to which `auto` trains a twin: there it takes about a minute
LOWEST, HIGHEST = 0.05, 20.0


@dataclass(frozen=True)
class Calibration:
    """What the manifest says of the temperature."""

    by: str
    """`validation`: of the network itself; `twin`: of its twin; `none`: not calibrated."""
    temperature: float
    images: int
    """Validation images that it was fitted on."""
    seconds: float
    """That the twin's training took, if it was trained now."""


NONE = Calibration("none", 1.0, 0, 0.0)


@dataclass(frozen=True)
class Fitted:
    """A calibration, and the answers that it was fitted on."""

    calibration: Calibration
    sure: np.ndarray | None = None
    """float64 [n]: the calibrated probability of the answer to each validation image; None if the
    network was not calibrated."""
    accuracy: float | None = None
    """Of these answers. A twin's are not those of the network that is published."""


def rule(calibrate: str, train_on: str, images: int) -> str:
    """How a chain is calibrated: `validation`, `twin` or `none`.

    Args:
        calibrate: `auto`, `twin` or `none`.
        train_on: The recipe's, `all` or `train`.
        images: Of the data set's training part.
    """
    if calibrate == "none":
        return "none"
    if train_on == "train":
        return "validation"
    return "twin" if calibrate == "twin" or images <= SMALL else "none"


def fitted(by: str, networks: Sequence[nn.Module], split: Split, began: float) -> Fitted:
    """Fits the temperature on the validation images.

    Args:
        by: `validation` or `twin`.
        networks: One, or the members of a committee; none has trained on these images.
        split: The images.
        began: `time.monotonic()` before a twin was trained.
    """
    seconds = time.monotonic() - began if by == "twin" else 0.0
    network = networks[0] if len(networks) == 1 else Committee(networks)
    logits = logits_of(network, split.images.images[split.val])
    labels = split.images.labels[split.val]
    found = temperature(logits, labels)
    sure = probabilities(logits.astype(np.float64) / found).max(1)
    right = float((logits.argmax(1) == labels).mean())
    return Fitted(Calibration(by, found, len(split.val), round(seconds, 1)), sure, right)


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of the smallest log loss.

    A network that is right on all n images would be called certain. So each label counts for
    (n + 1) / (n + 2) of an image, as in Platt (1999), and the rest goes to the other classes.

    Args:
        logits: float32 [n, classes].
        labels: int64 [n].
    """
    n, classes = logits.shape
    targets = np.full((n, classes), 1 / (n + 2) / (classes - 1))
    targets[np.arange(n), labels] = (n + 1) / (n + 2)
    values = torch.from_numpy(logits.astype(np.float64))
    wanted = torch.from_numpy(targets)

    def loss(log_temperature: float) -> float:
        shares = (values / math.exp(log_temperature)).log_softmax(1)
        return float(-(wanted * shares).sum(1).mean())

    bounds = (math.log(LOWEST), math.log(HIGHEST))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return round(math.exp(float(found.x)), 4)
