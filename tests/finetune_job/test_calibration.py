"""The temperature: it finds the one that spoiled calibrated logits, and stays sober about few."""

import numpy as np
import pytest
from scipy.special import log_softmax

from mnist_ray.export.session import probabilities, reliability
from mnist_ray.finetune_job.calibration import LOWEST, rule, temperature


def calibrated(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the chance of each of four labels, and such labels."""
    rng = np.random.default_rng(seed)
    logits = log_softmax(3 * rng.normal(size=(n, 4)), axis=1)
    chances = np.cumsum(np.exp(logits), axis=1)
    labels = (rng.random((n, 1)) > chances).sum(1).clip(0, 3)
    return logits.astype(np.float32), labels


@pytest.mark.parametrize("spoiled", [0.5, 1.0, 3.0])
def test_it_finds_the_temperature_that_was_applied(spoiled: float) -> None:
    logits, labels = calibrated(20_000)
    found = temperature(logits * spoiled, labels)
    assert found == pytest.approx(spoiled, rel=0.05)
    error = reliability(labels, probabilities(logits * spoiled / found))[1]
    assert error < 0.01


def test_a_network_without_errors_is_not_called_certain() -> None:
    labels = np.arange(100) % 4
    logits = 2.0 * np.eye(4, dtype=np.float32)[labels]
    found = temperature(logits, labels)
    assert found > LOWEST
    assert probabilities(logits / found).max(1) == pytest.approx(101 / 102, abs=1e-3)


@pytest.mark.parametrize(
    ("calibrate", "train_on", "images", "expected"),
    [
        ("none", "train", 100, "none"), ("auto", "train", 60_000, "validation"),
        ("twin", "train", 100, "validation"), ("auto", "all", 10_000, "twin"),
        ("auto", "all", 10_001, "none"), ("twin", "all", 60_000, "twin"),
    ],
)  # fmt: skip
def test_the_rule(calibrate: str, train_on: str, images: int, expected: str) -> None:
    assert rule(calibrate, train_on, images) == expected
