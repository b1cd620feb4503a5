"""For overhead.py: a training function of one's own that only sleeps."""

import random
import time
from collections.abc import Iterator, Mapping
from typing import Any

import noop_space

from mnist_ray.spaces import DataShape

DIGITS = DataShape(1, (8, 8), 10, (0.3053,), (0.3761,))  # the built-in trials' space gets the same


def space(trial: Any, seconds: float = 0.1, stamps: str = "", floats: int = 0) -> dict[str, Any]:
    """As noop_space.space."""
    return noop_space.space(trial, DIGITS, seconds, stamps, floats)


def train(hp: Mapping[str, Any]) -> Iterator[tuple[dict[str, float], bytes]]:
    """One epoch with a random accuracy, and a state, which the engine writes after the sleep."""
    noop_space.slept(hp, time.time())
    yield {"accuracy": random.random()}, b"nothing"
