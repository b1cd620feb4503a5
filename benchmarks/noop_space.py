"""For overhead.py: the default space for trials that only sleep. Imports nothing heavy: the driver
starts as fast as it always does.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

from mnist_ray.spaces import DataShape
from mnist_ray.spaces.convnet import convnet

TRAINABLE = "noop_trial:NoOpTrial"  # what our search trains the trials with


def space(
    trial: Any, data: DataShape, seconds: float = 0.1, stamps: str = "", floats: int = 0
) -> dict[str, Any]:
    """The default space, or so many real parameters. stamps: a folder where each process notes when
    its trials began and ended.
    """
    suggested = (
        # no network, as of LightGBM: a dict with keys of its own
        {
            "model": "lightgbm",
            **{f"x{i}": trial.suggest_float(f"x{i}", 0, 1) for i in range(floats)},
        }
        if floats
        else convnet(trial, data)
    )
    return {**suggested, "seconds": seconds, "stamps": stamps}


def slept(hp: Mapping[str, Any], start: float) -> None:
    """Sleeps until hp["seconds"] after `start`, and notes both times down."""
    time.sleep(max(0.0, start + hp["seconds"] - time.time()))
    with open(f"{hp['stamps']}/{os.getpid()}.stamps", "a") as file:
        file.write(f"{start} {time.time()}\n")
