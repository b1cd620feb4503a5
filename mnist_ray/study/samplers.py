"""--sampler: Optuna's samplers by name, each with a seed, and whether the grid is exhausted."""

import contextlib
import heapq
import inspect
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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

from mnist_ray.errors import SettingsError, own_code
from mnist_ray.settings.text import arguments, load
from mnist_ray.study.near import ANY, near
from mnist_ray.study.optuna_private import (
    CmaEs,
    TranslatedOnce,
    is_grouped,
    part_of,
    rng_of,
    startup_trials,
)
from mnist_ray.study.trials import POINT


class Grid(optuna.samplers.BruteForceSampler):
    """Every point of a finite define-by-run tree once, in random order."""

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Refuses a continuous parameter."""
        if isinstance(param_distribution, FloatDistribution) and param_distribution.step is None:
            raise SettingsError(
                f"--sampler: grid cannot walk {param_name!r}, which is continuous; "
                "give its range a step"
            )
        return super().sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Does nothing: Optuna's calls Study.stop, which raises outside of Study.optimize.

        `exhausted` says when to stop.
        """


class UpperEnd(optuna.samplers.RandomSampler):
    """A space's largest networks: the upper end of every range, and the largest number of choices.

    Of other choices it takes any.
    """

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The largest value."""
        if isinstance(param_distribution, IntDistribution | FloatDistribution):
            return param_distribution.high
        if isinstance(param_distribution, CategoricalDistribution):
            choices = param_distribution.choices
            if all(isinstance(choice, int | float) for choice in choices):
                return max(cast(Sequence[float], choices))
        return super().sample_independent(study, trial, param_name, param_distribution)


class TPE(TranslatedOnce):
    """Optuna's TPE, which looks at no more than KEPT finished trials.

    The cost of a suggestion would otherwise grow with the study without end. Kept are the best, of
    which its model of good trials is made, and of all others an even selection, old and new. Up to
    KEPT trials, and with several objectives, it suggests the same as Optuna's.
    (benchmarks/tpe_ask.py: cost; benchmarks/replay.py: loss.)

    Optuna's begins with `n_startup_trials` random ones. After starting configurations these are
    near the best so far instead (see `near`; benchmarks/replay.py: gain).
    """

    KEPT = 1000
    # Number of the trial whose parameters are being suggested, and the study as it sees it.
    _view: "tuple[int, optuna.Study] | None" = None

    # The study's trials, by their places in its list. Only open ones are looked at again.
    _known = 0  # how many there were
    _whole = True  # whether they were all of the study's
    _open: Sequence[int] = ()  # those that had not ended; a paused one may go on
    _finished: Sequence[int] = ()  # those with a result, in ascending order
    _best: Sequence[int] = ()
    _grouped: frozenset[int] = frozenset()  # those that the search space's groups know, or will
    _unseen: Sequence[FrozenTrial] = ()  # with a result, but not in the groups yet
    _led = False  # whether a starting configuration has ended
    _centre: Mapping[str, Any] | None = None  # that the suggestion is to be near

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The parameters to suggest together, in their groups."""
        self._view = self._centre = None
        self._thinned(study, trial)
        # The groups only ever get finer: a trial that they have seen changes nothing.
        seen, self._unseen = self._unseen, ()
        return super().infer_relative_search_space(
            part_of(study, seen) if is_grouped(self) else study, trial
        )

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As Optuna's, on the part of the study; nothing where all is to be near the best."""
        if self._led and self._best and len(self._finished) < startup_trials(self):
            best = study.get_trials(deepcopy=False)[self._best[0]]
            if _place(1, best)[0] <= 1:  # it has a value, and keeps to the limits
                self._centre = best.params
                return {}
        return super().sample_relative(self._thinned(study, trial), trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """As Optuna's, on the part of the study, or near the best."""
        if self._centre is not None:
            value = near(self._centre, param_name, param_distribution, rng_of(self))
            if value is not ANY:
                return value
        return super().sample_independent(
            self._thinned(study, trial), trial, param_name, param_distribution
        )

    def _thinned(self, study: optuna.Study, trial: FrozenTrial) -> optuna.Study:
        """The study, or a part of it; the same for all parameters of a trial."""
        if self._view is None or self._view[0] != trial.number:
            trials = study.get_trials(deepcopy=False)
            self._update(study, trials)
            paused = [n for n in self._open if trials[n].state == TrialState.PRUNED]
            if len(self._finished) + len(paused) > self.KEPT and len(study.directions) == 1:
                running = [n for n in self._open if trials[n].state == TrialState.RUNNING]
                chosen = self._chosen(study, trials, paused)
                study = part_of(study, [trials[n] for n in sorted({*chosen, *running})])
            self._view = (trial.number, study)
        return self._view[1]

    def _update(self, study: optuna.Study, trials: list[FrozenTrial]) -> None:
        """Takes note of the trials that have ended since the last suggestion."""
        # Optuna's Hyperband shows a sampler the trials of one bracket, and next time of another.
        whole = not trials or trials[-1].number == len(trials) - 1
        if not (whole and self._whole) or len(trials) < self._known:
            self._known, self._open, self._finished, self._best, self._unseen = 0, (), (), (), ()
            self._grouped, self._led = frozenset(), False
        self._whole = whole
        pending = [*self._open, *range(self._known, len(trials))]
        self._known = len(trials)
        self._open = [n for n in pending if not _is_final(trials[n])]
        results = [
            n for n in pending if trials[n].state in (TrialState.COMPLETE, TrialState.PRUNED)
        ]
        ended = [n for n in results if _is_final(trials[n])]
        self._finished = sorted([*self._finished, *ended])
        self._led = self._led or any(POINT in trials[n].user_attrs for n in ended)
        new = [n for n in results if n not in self._grouped]
        self._grouped |= frozenset(new)
        self._unseen = [*self._unseen, *(trials[n] for n in new)]
        if len(study.directions) == 1:
            # Results are final: the best are among the best so far and the new ones.
            self._best = self._best_of(study, trials, [*self._best, *ended])

    def _best_of(
        self, study: optuna.Study, trials: list[FrozenTrial], candidates: Sequence[int]
    ) -> list[int]:
        """As many as TPE's model of good trials is made of."""
        sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
        good = min(math.ceil(self.KEPT / 10), 25)  # TPE's own number
        # Sorted, so that among equals the same are chosen after a resume.
        return heapq.nsmallest(good, sorted(candidates), key=lambda n: _place(sign, trials[n]))

    def _chosen(
        self, study: optuna.Study, trials: list[FrozenTrial], paused: Sequence[int]
    ) -> list[int]:
        """KEPT trials with a result."""
        best = frozenset(self._best_of(study, trials, [*self._best, *paused]))
        others = [n for n in sorted([*self._finished, *paused]) if n not in best]
        places = self.KEPT - len(best)
        return sorted(
            [*best, *(others[i * len(others) // places] for i in range(1, places)), others[-1]]
        )


def _is_final(trial: FrozenTrial) -> bool:
    """Whether it has ended. One that is seen as pruned because it is paused has not."""
    return trial.state.is_finished() and trial.datetime_complete is not None


def _place(sign: int, trial: FrozenTrial) -> tuple[int, int, float]:
    """TPE's order, the best first: complete trials by value, pruned ones, then infeasible ones.

    Pruned ones are ordered by their number of epochs and then by the last value.
    """
    beyond = sum(excess for excess in trial.constraints.values() if excess > 0)
    if beyond:
        return 3, 0, beyond
    if trial.state == TrialState.COMPLETE:
        assert trial.value is not None
        return 0, 0, sign * trial.value
    if not trial.intermediate_values:
        return 2, 0, 0.0
    step, value = max(trial.intermediate_values.items())
    return 1, -step, math.inf if math.isnan(value) else sign * value


# Our defaults, which --sampler-args override. group: each branch of a define-by-run space has its
# own model; constant_liar: running trials repel the next suggestion, or parallel ones would be near
# copies. (Optuna has some of them on by itself.)
TPE_OPTIONS: dict[str, Any] = {"multivariate": True, "group": True, "constant_liar": True}
SAMPLERS: dict[str, tuple[type[BaseSampler], dict[str, Any]]] = {
    "tpe": (TPE, TPE_OPTIONS),
    # Most trials are stopped early: without them it would learn from the few that were not.
    "cmaes": (CmaEs, {"consider_pruned_trials": True}),
    "gp": (optuna.samplers.GPSampler, {}),
    # Without scrambling every seed gives the same sequence.
    "qmc": (optuna.samplers.QMCSampler, {"scramble": True}),
    "random": (optuna.samplers.RandomSampler, {}),
    "grid": (Grid, {}),
    "nsga2": (optuna.samplers.NSGAIISampler, {}),
}
# Have no model of parameters that only some trials have (cmaes: of categories); TPE suggests those.
PARTIAL = ("cmaes", "gp")


@dataclass(frozen=True)
class Sampler:
    """--sampler and --sampler-args, read once.

    Attributes:
        name: one of SAMPLERS, or "module:Class" for a person's own optuna.samplers.BaseSampler.
        factory: its class.
        options: keyword arguments of its constructor, without the seed.
    """

    name: str
    factory: Callable[..., BaseSampler]
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self, seed: int) -> BaseSampler:
        """A new sampler, with the seed if it takes one.

        Raises:
            SettingsError: the options contradict each other, or it is no sampler.
        """
        options = dict(self.options)
        failed = f"--sampler: {self.name!r} cannot be made with {options}"
        own = seed % 2**32  # the largest that NumPy's generators take
        try:
            takes = inspect.signature(self.factory).parameters
            with warnings.catch_warnings(), own_code(failed):
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                if self.name in PARTIAL:
                    options["independent_sampler"] = TPE(**TPE_OPTIONS, seed=own)
                if "seed" in takes:
                    options["seed"] = own
                sampler = _seeded_by_base(self.factory, options, own) or self.factory(**options)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{failed}: {error}") from error
        if not isinstance(sampler, BaseSampler):
            raise SettingsError(
                f"--sampler: {self.name!r} is a {type(sampler).__name__}; "
                "expected an optuna.samplers.BaseSampler"
            )
        return sampler


def _seeded_by_base(
    factory: Callable[..., BaseSampler], options: Mapping[str, Any], seed: int
) -> BaseSampler | None:
    """A sampler of a class whose `**kwargs` hand the seed to a base class; None if they do not."""
    bases = inspect.getmro(factory)[:-1] if isinstance(factory, type) else ()
    made = [vars(base)["__init__"] for base in bases if "__init__" in vars(base)]
    takes = [inspect.signature(each).parameters for each in made]
    if not takes or "seed" in takes[0] or not any("seed" in each for each in takes):
        return None
    if not any(p.kind is p.VAR_KEYWORD for p in takes[0].values()):
        return None
    with contextlib.suppress(TypeError):  # it gives the base class another seed, or none
        return factory(**options, seed=seed)
    return None


def found(name: str) -> tuple[Callable[..., BaseSampler], dict[str, Any]]:
    """The class that --sampler names, and our defaults for its options.

    Raises:
        SettingsError: naming the flag; there is no such class.
    """
    if name in SAMPLERS:
        return SAMPLERS[name]
    return load(name, "--sampler", SAMPLERS), {}


def read_sampler(name: str, given: Mapping[str, str]) -> Sampler:
    """The sampler that --sampler names, with the texts of --sampler-args in its options' types.

    Raises:
        SettingsError: naming the flag.
    """
    factory, defaults = found(name)
    try:
        own = arguments(factory, given, "--sampler-args", f"sampler {name!r}", reserved=("seed",))
    except (TypeError, ValueError) as error:  # it has no signature
        raise SettingsError(f"--sampler: {name!r} cannot be made: {error}") from error
    sampler = Sampler(name, factory, {**defaults, **own})
    sampler.make(0)  # contradicting options are refused now
    return sampler


def check_state(sampler: BaseSampler, study: optuna.Study) -> None:
    """Raises CorruptFileError if the sampler keeps a state in the study, and that is damaged."""
    if isinstance(sampler, CmaEs):
        sampler.check(study)


def make_sampler(name: str, seed: int, args: Mapping[str, str] | None = None) -> BaseSampler:
    """A sampler by name, seed and options as text; see read_sampler."""
    return read_sampler(name, args or {}).make(seed)


def exhausted(study: optuna.Study) -> bool:
    """Whether no point of the study's grid is left that is neither done nor under way.

    To be asked before each `study.ask()`: past the end of its grid the sampler would suggest
    points again. Other samplers are never exhausted.
    """
    if not isinstance(study.sampler, Grid):
        return False
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
    return _walked([t for t in study.get_trials(deepcopy=False, states=states) if t.params], 0)


def _walked(trials: list[FrozenTrial], depth: int) -> bool:
    """Whether trials with the same first `depth` parameters have taken every way from there."""
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
    """Lowest value, step and number of values; of a category its index, as Optuna has it."""
    if isinstance(distribution, CategoricalDistribution):
        return 0, 1, len(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    step = distribution.step
    assert step is not None  # Grid refuses it
    return distribution.low, step, round((distribution.high - distribution.low) / step) + 1
