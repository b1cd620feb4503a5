"""Optuna's samplers by name, each with a seed, and whether the grid has been walked to its end."""

import heapq
import inspect
import math
import warnings
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from typing import Any, cast

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from mnist_ray.errors import SettingsError
from mnist_ray.settings.text import arguments, load


class Grid(optuna.samplers.BruteForceSampler):
    """Every point of a finite define-by-run tree once, in random order."""

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if isinstance(param_distribution, FloatDistribution) and param_distribution.step is None:
            raise SettingsError(
                f"--sampler: grid cannot walk {param_name!r}, which is continuous; give its range a step"
            )
        return super().sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Nothing: Optuna's would call Study.stop, which raises where trials are asked for; `exhausted` says when to stop."""


class UpperEnd(optuna.samplers.RandomSampler):
    """The upper end of every range and the largest of choices that are numbers; any of other choices. A space's largest networks."""

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if isinstance(param_distribution, IntDistribution | FloatDistribution):
            return param_distribution.high
        if isinstance(param_distribution, CategoricalDistribution):
            choices = param_distribution.choices
            if all(isinstance(choice, int | float) for choice in choices):
                return max(cast(Sequence[float], choices))
        return super().sample_independent(study, trial, param_name, param_distribution)


class TPE(optuna.samplers.TPESampler):
    """Optuna's TPE, which looks at no more than KEPT finished trials: the cost of a suggestion would grow with the study without end.

    Kept are the best, which its model of good trials is made of, and of all others an even selection, old and new. Up to KEPT trials,
    and with several objectives, it suggests what Optuna's does. (benchmarks/tpe_ask.py: cost; benchmarks/replay.py: what is lost.)
    """

    KEPT = 1000
    _view: "tuple[int, optuna.Study] | None" = (
        None  # of the trial whose parameters are being suggested
    )

    # What is known of the study's trials, by their places in its list. Only those that had not ended are looked at again.
    _known = 0  # how many there were
    _whole = True  # whether they were all of the study's
    _open: Sequence[int] = ()  # those that had not ended
    _finished: Sequence[int] = ()  # those with a result, in ascending order
    _best: Sequence[int] = ()
    _unseen: Sequence[FrozenTrial] = ()  # with a result, but not in the search space's groups yet

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        self._view = None
        self._thinned(study, trial)
        # The groups only ever get finer: a trial that they have seen changes nothing.
        seen, self._unseen = self._unseen, ()
        return super().infer_relative_search_space(
            cast(optuna.Study, _Part(study, seen)) if self._group else study, trial
        )

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(self._thinned(study, trial), trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return super().sample_independent(
            self._thinned(study, trial), trial, param_name, param_distribution
        )

    def _thinned(self, study: optuna.Study, trial: FrozenTrial) -> optuna.Study:
        """The study, or what looks like one with fewer trials; the same for all parameters of a trial."""
        if self._view is None or self._view[0] != trial.number:
            trials = study.get_trials(deepcopy=False)
            self._update(study, trials)
            if len(self._finished) > self.KEPT and len(study.directions) == 1:
                running = [n for n in self._open if trials[n].state == TrialState.RUNNING]
                study = cast(
                    optuna.Study,
                    _Part(study, [trials[n] for n in sorted({*self._chosen(), *running})]),
                )
            self._view = (trial.number, study)
        return self._view[1]

    def _update(self, study: optuna.Study, trials: list[FrozenTrial]) -> None:
        """Takes note of the trials that have ended since the last suggestion."""
        # Optuna's Hyperband shows a sampler only the trials of one bracket, and the next time those of another.
        whole = not trials or trials[-1].number == len(trials) - 1
        if not (whole and self._whole) or len(trials) < self._known:
            self._known, self._open, self._finished, self._best, self._unseen = 0, (), (), (), ()
        self._whole = whole
        pending = [*self._open, *range(self._known, len(trials))]
        self._known, self._open = (
            len(trials),
            [n for n in pending if not trials[n].state.is_finished()],
        )
        ended = [n for n in pending if trials[n].state in (TrialState.COMPLETE, TrialState.PRUNED)]
        self._finished = sorted([*self._finished, *ended])
        self._unseen = [*self._unseen, *(trials[n] for n in ended)]
        if len(study.directions) == 1:
            # Results are final: the best are among the best so far and the new. In order, so that among equals the same are chosen after
            # a resume.
            candidates = sorted([*self._best, *ended])
            sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
            good = min(math.ceil(self.KEPT / 10), 25)  # TPE's own number
            self._best = heapq.nsmallest(good, candidates, key=lambda n: _place(sign, trials[n]))

    def _chosen(self) -> list[int]:
        """KEPT finished trials."""
        best = frozenset(self._best)
        others = [n for n in self._finished if n not in best]
        places = self.KEPT - len(best)
        return sorted(
            [*best, *(others[i * len(others) // places] for i in range(1, places)), others[-1]]
        )


def _place(sign: int, trial: FrozenTrial) -> tuple[int, int, float]:
    """TPE's order, the best first: complete trials by their value, then pruned ones by how far they came and by their last value there."""
    if trial.state == TrialState.COMPLETE:
        assert trial.value is not None
        return 0, 0, sign * trial.value
    if not trial.intermediate_values:
        return 2, 0, 0.0
    step, value = max(trial.intermediate_values.items())
    return 1, -step, math.inf if math.isnan(value) else sign * value


class _Part:
    """A study to TPE, with some of its trials."""

    def __init__(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        self._whole, self._some = study, trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        assert not deepcopy  # TPE reads only
        return [t for t in self._some if states is None or t.state in states]


# Our defaults, which --sampler-args override. group: each branch of a define-by-run space has its own model; constant_liar:
# running trials repel the next suggestion, or parallel ones would be near copies. (Optuna 5 has some of them on, 4.9 does not.)
TPE_OPTIONS: dict[str, Any] = {"multivariate": True, "group": True, "constant_liar": True}
SAMPLERS: dict[str, tuple[type[BaseSampler], dict[str, Any]]] = {
    "tpe": (TPE, TPE_OPTIONS),
    # Most trials are stopped early: without them it would learn from the few that were not.
    "cmaes": (optuna.samplers.CmaEsSampler, {"consider_pruned_trials": True}),
    "gp": (optuna.samplers.GPSampler, {}),
    # Without scrambling every seed gives the same sequence.
    "qmc": (optuna.samplers.QMCSampler, {"scramble": True}),
    "random": (optuna.samplers.RandomSampler, {}),
    "grid": (Grid, {}),
    "nsga2": (optuna.samplers.NSGAIISampler, {}),
}
PARTIAL = (
    "cmaes",
    "gp",
)  # have no model of parameters that only some trials have (cmaes: of categories); TPE suggests those


def make_sampler(name: str, seed: int, args: Mapping[str, str] | None = None) -> BaseSampler:
    """The sampler that --sampler names: one of SAMPLERS, or "module:Class" for a user's own, given the seed where it takes one.

    args: --sampler-args, options of the sampler's constructor as text.
    Raises SettingsError naming the flag. CMA-ES keeps its state in the study as a pickle and loads it from there: it is for
    studies that only trusted people write to.
    """
    if name in SAMPLERS:
        factory, options = SAMPLERS[name]
    else:
        factory, options = load(name, "--sampler", SAMPLERS), {}
    try:
        options = {
            **options,
            **arguments(
                factory, args or {}, "--sampler-args", f"sampler {name!r}", reserved=("seed",)
            ),
        }
        if "seed" in inspect.signature(factory).parameters:
            options["seed"] = seed % 2**32  # what NumPy's generators take
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if name in PARTIAL:
                options["independent_sampler"] = TPE(**TPE_OPTIONS, seed=options["seed"])
            sampler = factory(**options)
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"--sampler: {name!r} cannot be made with {dict(args or {})}: {error}"
        ) from error
    if not isinstance(sampler, BaseSampler):
        raise SettingsError(
            f"--sampler: {name!r} is a {type(sampler).__name__}; expected an optuna.samplers.BaseSampler"
        )
    return sampler


def exhausted(study: optuna.Study) -> bool:
    """Whether the study's grid has no point left that is neither done nor under way; of other samplers never.

    To be asked before each `study.ask()`: past the end of its grid the sampler would suggest points again.
    """
    if not isinstance(study.sampler, Grid):
        return False
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
    return _walked([t for t in study.get_trials(deepcopy=False, states=states) if t.params], 0)


def _walked(trials: list[FrozenTrial], depth: int) -> bool:
    """Whether trials that agree in their first `depth` parameters have taken every way on from there."""
    deeper = [t for t in trials if len(t.params) > depth]
    if not deeper:
        return bool(trials)  # a point of the tree, and somebody was there
    name, distribution = list(deeper[0].distributions.items())[depth]
    low, step, size = _grid(distribution)
    ways: dict[int, list[FrozenTrial]] = defaultdict(list)
    for t in deeper:
        if name in t.params:
            ways[round((distribution.to_internal_repr(t.params[name]) - low) / step)].append(t)
    return all(_walked(ways[i], depth + 1) for i in range(size))


def _grid(distribution: BaseDistribution) -> tuple[float, float, int]:
    """Lowest value, step and number of values, in Optuna's internal representation (of a category its index)."""
    if isinstance(distribution, CategoricalDistribution):
        return 0, 1, len(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    step = distribution.step
    assert step is not None  # Grid refuses it
    return distribution.low, step, round((distribution.high - distribution.low) / step) + 1
