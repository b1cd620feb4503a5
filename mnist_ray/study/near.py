"""Values near those of a good configuration: how a search goes on from its starting points.

A prior on good configurations and steps around the best so far are how PriorBand begins (Mallik et
al. 2023, arXiv 2306.12370). Ours are simpler: the prior is the list of starting configurations.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

# Chances that a choice is drawn anew, and that a number takes a step.
CHANGED_CHOICES, CHANGED_NUMBERS = 0.25, 0.5
ANY = object()  # a value that is to be drawn anew
SPREAD = 0.2  # standard deviation of a number's step, in parts of its range


def near(
    centre: Mapping[str, Any], name: str, distribution: BaseDistribution, rng: np.random.RandomState
) -> Any:
    """A value for a parameter near the centre's; ANY if it is to be drawn anew.

    Args:
        centre: A configuration.
        name: The parameter's.
        distribution: What it may be. A number on a logarithmic scale moves on that scale.
        rng: Of the sampler.
    """
    value = centre.get(name, ANY)
    if isinstance(distribution, CategoricalDistribution):
        kept = value in distribution.choices and rng.random() >= CHANGED_CHOICES
        return value if kept else ANY
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high = distribution.low, distribution.high
    if not (isinstance(value, int | float) and low <= value <= high):
        return ANY
    if low == high or rng.random() >= CHANGED_NUMBERS:
        return value
    if distribution.log:
        step = rng.normal(0, SPREAD * math.log(high / low))
        moved = float(value * math.exp(step))
    else:
        moved = float(value + rng.normal(0, SPREAD * (high - low)))
    moved = min(max(moved, low), high)
    if distribution.step:
        moved = low + round((moved - low) / distribution.step) * distribution.step
        moved = min(moved, high)
    return round(moved) if isinstance(distribution, IntDistribution) else moved
