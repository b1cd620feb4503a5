"""Trials that wait for their promotion (see tune/promotion.py), as Optuna's samplers see them."""

import copy
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from mnist_ray.study.optuna_private import part_of
from mnist_ray.study.trials import PAUSED


def pruned_if_paused(trial: FrozenTrial) -> FrozenTrial:
    """The trial, or a paused one as if it had been pruned at its rung (see tune/promotion.py)."""
    if trial.state != TrialState.RUNNING or not trial.user_attrs.get(PAUSED):
        return trial
    seen = copy.copy(trial)
    seen.state = TrialState.PRUNED
    return seen


class SeesPaused(BaseSampler):
    """A sampler to which paused trials are pruned ones, with the values that they have reached.

    Optuna knows no paused trials. As running ones they would count as bad in the constant liar.

    Args:
        sampler: TPE or GP.
    """

    def __init__(self, sampler: BaseSampler) -> None:
        self.sampler = sampler
        self._view: tuple[int, optuna.Study] | None = None  # of the trial of that number

    @classmethod
    def over(cls, sampler: BaseSampler) -> BaseSampler:
        """The sampler itself if running trials tell it nothing."""
        known = isinstance(sampler, optuna.samplers.TPESampler | optuna.samplers.GPSampler)
        return cls(sampler) if known else sampler

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """As the sampler's."""
        self._view = None
        return self.sampler.infer_relative_search_space(self._seen(study, trial), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler's."""
        return self.sampler.sample_relative(self._seen(study, trial), trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """As the sampler's."""
        return self.sampler.sample_independent(
            self._seen(study, trial), trial, param_name, param_distribution
        )

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """As the sampler's."""
        self.sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """As the sampler's."""
        self.sampler.after_trial(study, trial, state, values)

    def _seen(self, study: optuna.Study, trial: FrozenTrial) -> optuna.Study:
        if self._view is None or self._view[0] != trial.number:
            trials = study.get_trials(deepcopy=False)
            self._view = trial.number, part_of(study, [pruned_if_paused(t) for t in trials])
        return self._view[1]
