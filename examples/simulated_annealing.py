"""A sampler of one's own: simulated annealing (Kirkpatrick et al. 1983), in one class that Optuna's
BaseSampler asks for.

python jobs/search.py --dataset digits --space mlp --sampler
examples.simulated_annealing:SimulatedAnnealing

Each trial lies near the current point; afterwards a better one becomes the current point, and a
worse one with a probability that falls with the temperature. It needs nothing of mnist_ray: any
Optuna study can use it.
"""

import math
import random
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

REACH = 0.1  # of a parameter's range, to either side


class SimulatedAnnealing(optuna.samplers.BaseSampler):
    """temperature: how much worse, in the metric's unit, a trial may be to be accepted one time in
    e at the start.
    """

    def __init__(self, seed: int | None = None, temperature: float = 0.05) -> None:
        self.random = random.Random(seed)
        self.temperature = temperature
        self.current: FrozenTrial | None = None
        self.height = -math.inf  # the current point's value, turned so that more is better

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        # every parameter is drawn on its own, so branches of a define-by-run space need no care
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        d = param_distribution
        point: dict[str, Any] = self.current.params if self.current else {}
        known = param_name in point
        if isinstance(d, CategoricalDistribution):
            stay = known and point[param_name] in d.choices and self.random.random() >= REACH
            return point[param_name] if stay else self.random.choice(d.choices)
        assert isinstance(d, IntDistribution | FloatDistribution)
        scale, unscale = (math.log, math.exp) if d.log else (float, float)
        low, high = scale(d.low), scale(d.high)
        if known:
            here = min(max(point[param_name], d.low), d.high)
            width = REACH * (high - low)
            if d.step:  # a tenth of few steps would be none
                width = max(width, scale(here + d.step) - scale(here))
            low, high = max(low, scale(here) - width), min(high, scale(here) + width)
        value = unscale(self.random.uniform(low, high))
        if d.step:
            value = d.low + d.step * round((value - d.low) / d.step)
        value = min(max(value, d.low), d.high)
        return int(value) if isinstance(d, IntDistribution) else value

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Moves to the trial's point, or not. One stopped early counts with its last epoch, one
        that failed not at all.
        """
        value = values[0] if values else trial.intermediate_values.get(trial.last_step or 0)
        if state == TrialState.FAIL or value is None:
            return
        height = value if study.direction == optuna.study.StudyDirection.MAXIMIZE else -value
        if height >= self.height or self.random.random() < math.exp(
            (height - self.height) / self.temperature
        ):
            self.current, self.height = trial, height
        self.temperature *= 0.9
