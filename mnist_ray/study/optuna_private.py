"""Every private part of Optuna that this package touches, each with its reason, in one place.

Seen to work with Optuna 5.0. tests/study/test_optuna_private.py fails if a new version
has changed one of them, or no longer needs it.
"""

import functools
import io
import pickle
import traceback
from collections.abc import Container, Mapping, Sequence
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.storages import BaseStorage
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import FrozenTrial, TrialState

from mnist_ray.errors import CorruptFileError, first_line

# How Optuna keeps the values that `Study.enqueue_trial` fixes: a key of a trial's system
# attributes. Only a trial that waits can be enqueued, and `started` makes one that runs.
FIXED = "fixed_params"

# Lines of a journal that need not be on the disk at once (see journal.FileLog). Optuna names its
# operations in a private enumeration, and writes their numbers.
LATER = (
    JournalOperation.CREATE_TRIAL,
    JournalOperation.SET_TRIAL_PARAM,
    JournalOperation.SET_TRIAL_USER_ATTR,
    JournalOperation.SET_TRIAL_SYSTEM_ATTR,
)

_STUDY: dict[str, tuple[type, ...]] = {"study_id": (int,)}
_TRIAL: dict[str, tuple[type, ...]] = {"trial_id": (int,)}
_ATTRIBUTE = (dict,)
# The fields that each operation's line must have, and their types. (CREATE_TRIAL may have more.)
FIELDS: dict[int, dict[str, tuple[type, ...]]] = {
    JournalOperation.CREATE_STUDY: {"study_name": (str,), "directions": (list,)},
    JournalOperation.DELETE_STUDY: _STUDY,
    JournalOperation.SET_STUDY_USER_ATTR: {**_STUDY, "user_attr": _ATTRIBUTE},
    JournalOperation.SET_STUDY_SYSTEM_ATTR: {**_STUDY, "system_attr": _ATTRIBUTE},
    JournalOperation.CREATE_TRIAL: {**_STUDY, "datetime_start": (str, type(None))},
    JournalOperation.SET_TRIAL_PARAM: {
        **_TRIAL, "param_name": (str,), "param_value_internal": (int, float),
        "distribution": (str,),
    },
    JournalOperation.SET_TRIAL_STATE_VALUES: {
        **_TRIAL, "state": (int,), "values": (list, type(None)),
    },
    JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE: {
        **_TRIAL, "step": (int,), "intermediate_value": (int, float),
    },
    JournalOperation.SET_TRIAL_USER_ATTR: {**_TRIAL, "user_attr": _ATTRIBUTE},
    JournalOperation.SET_TRIAL_SYSTEM_ATTR: {**_TRIAL, "system_attr": _ATTRIBUTE},
}  # fmt: skip


def storage_of(study: optuna.Study) -> BaseStorage:
    """The study's storage. A study does not give it away, though all of its methods are public."""
    return study._storage


def trial_id_of(trial: optuna.Trial | FrozenTrial) -> int:
    """The trial's key in its storage, by which all of the storage's methods know it."""
    return trial._trial_id


def started(
    study: optuna.Study, attributes: Mapping[str, Any], values: Mapping[str, Any]
) -> optuna.Trial:
    """`Study.ask` for a trial that has attributes and fixed values from its first moment on.

    Optuna's own way is to enqueue the values and then to ask. In a shared study the next process
    that asks takes them, no matter who enqueued them (optuna issues 2925, 4621).
    """
    template = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        user_attrs=dict(attributes),
        system_attrs={FIXED: dict(values)} if values else {},
    )
    # As `Study.ask` does: the sampler must see the trials of other processes.
    study._thread_local.cached_all_trials = None
    key = storage_of(study).create_new_trial(study._study_id, template_trial=template)
    return optuna.Trial(study, key)


def reopened(study: optuna.Study, frozen: FrozenTrial) -> optuna.Trial:
    """A running trial of an earlier process, to report to; it suggests its stored values again.

    `Study.tell` ends such a trial, but Optuna has no public way to go on with one.
    """
    return optuna.Trial(study, trial_id_of(frozen))


def suggest_anew(trial: optuna.Trial) -> None:
    """Has a reopened trial suggest all its values again, and not only those that it lacks."""
    known = trial._cached_frozen_trial
    known.params, known.distributions = {}, {}


def is_lacking(error: BaseException | None) -> bool:
    """Whether a FixedTrial has raised this since it has no value for a parameter."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)] if error else []
    return bool(frames) and frames[-1].f_code is optuna.trial.FixedTrial._suggest.__code__


def set_note(study: optuna.Study, trial: optuna.Trial, key: str, value: Any) -> None:
    """Writes a system attribute, a pruner's note (Trial.set_system_attr is deprecated)."""
    storage_of(study).set_trial_system_attr(trial_id_of(trial), key, value)


def is_contradiction(error: BaseException) -> bool:
    """Whether Optuna refuses a suggestion since the study has another distribution of that name.

    It raises a plain ValueError, and the message does not tell which of several.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_code is check_distribution_compatibility.__code__


def is_grouped(sampler: optuna.samplers.TPESampler) -> bool:
    """Whether each branch of a define-by-run space has a model of its own."""
    return sampler._group


def startup_trials(sampler: optuna.samplers.TPESampler) -> int:
    """`n_startup_trials`: with fewer results its suggestions are random."""
    return sampler._n_startup_trials


def rng_of(sampler: optuna.samplers.TPESampler) -> np.random.RandomState:
    """Its random numbers."""
    return sampler._rng.rng


class TranslatedOnce(optuna.samplers.TPESampler):
    """Optuna's TPE, which translates the parameters of a finished trial once.

    Optuna does it again for every suggestion (benchmarks/tpe_ask.py: cost). The suggestions are the
    same.
    """

    @functools.cached_property
    def _rows(self) -> dict[tuple[str, ...], dict[int, tuple[Any, tuple[Any, ...]]]]:
        """Names of parameters -> trial's number -> its parameters, and the row made of them."""
        return {}

    def _get_internal_repr(
        self,
        trials: list[FrozenTrial],
        search_space: dict[str, BaseDistribution],
        study: optuna.Study,
    ) -> dict[str, np.ndarray]:
        names = tuple(search_space)
        known = self._rows.setdefault(names, {})
        rows = []
        for trial in trials:
            params, row = known.get(trial.number, (None, ()))
            if params is not trial.params:  # new, or of another study
                params = self._get_params(trial, study)
                if not search_space.keys() <= params.keys():
                    continue
                row = tuple(d.to_internal_repr(params[name]) for name, d in search_space.items())
                if trial.state.is_finished():
                    known[trial.number] = trial.params, row
            rows.append(row)
        columns = zip(*rows, strict=True) if rows else ((),) * len(names)
        return {name: np.asarray(column) for name, column in zip(names, columns, strict=True)}


class PartOfStudy:
    """Looks like a study to TPE and GP, with some of its trials or with others.

    TPE reads every finished trial for each suggestion, so a study of n trials costs n² (optuna
    issue 2172; Ray warns of it, pull request 22545). Both read by the private `_get_trials`.
    """

    def __init__(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        self._study, self._trials = study, trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        assert not deepcopy  # TPE reads only
        return [t for t in self._trials if states is None or t.state in states]

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """As of a study."""
        return self._get_trials(deepcopy, states)


def part_of(study: optuna.Study, trials: Sequence[FrozenTrial]) -> optuna.Study:
    """See PartOfStudy."""
    return cast(optuna.Study, PartOfStudy(study, trials))


# All that a state of cmaes is made of; numpy.core is NumPy 1.
_OF_CMAES = {
    ("cmaes._cma", "CMA"), ("cmaes._sepcma", "SepCMA"), ("cmaes._cmawm", "CMAwM"),
    ("numpy", "dtype"), ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", name) for core in ("_core", "core")
      for name in ("scalar", "_reconstruct")),
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    """Makes nothing but the numbers and the class of a state of cmaes."""

    def find_class(self, module: str, name: str) -> Any:
        """A class that a state may name."""
        if (module, name) not in _OF_CMAES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


class CmaEs(optuna.samplers.CmaEsSampler):
    """Optuna's, but a state in the study runs no code when it is loaded.

    Optuna pickles the state into attributes of trials. A study may come from elsewhere: a run that
    was downloaded, or a database that others write to.
    """

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        key = f"{self._attr_key_optimizer}:"
        for trial in reversed(completed_trials):
            parts = {k: v for k, v in trial.system_attrs.items() if k.startswith(key)}
            if not parts:
                continue
            try:
                text = "".join(parts[f"{key}{i}"] for i in range(len(parts)))
                found = _Unpickler(io.BytesIO(bytes.fromhex(text))).load()
                if not hasattr(found, "ask") or not hasattr(found, "_rng"):
                    raise pickle.UnpicklingError(f"it is a {type(found).__name__}")
            except Exception as error:  # a pickle raises anything
                raise CorruptFileError(
                    f"--sampler: the study's state of cmaes in trial {trial.number} is damaged, or "
                    f"somebody else's: {first_line(error)}"
                ) from error
            return found
        return None

    def check(self, study: optuna.Study) -> None:
        """Raises CorruptFileError if it cannot go on from the study."""
        self._restore_optimizer(study.get_trials(deepcopy=False))
