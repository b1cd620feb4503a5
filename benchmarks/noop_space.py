"""For overhead.py: the default space for trials that only sleep. Imports nothing heavy: the driver starts as fast as it always does."""

from typing import Any

from mnist_ray.spaces import DataShape
from mnist_ray.spaces.convnet import convnet

TRAINABLE = "noop_trial:NoOpTrial"  # what our search trains the trials with


def space(trial: Any, data: DataShape, seconds: float = 0.1, stamps: str = "") -> dict[str, Any]:
    """The default space's suggestions. stamps: a folder where every process notes down when its trials began and ended."""
    return {**convnet(trial, data), "seconds": seconds, "stamps": stamps}
