"""Optuna's private parts: still as they were, and still needed.

A test fails where a version of Optuna has changed one, or does by itself what it is needed for.
"""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import (
    BaseJournalBackend,
    JournalFileBackend,
    JournalRedisBackend,
)
from optuna.storages.journal._base import BaseJournalSnapshot
from optuna.trial import TrialState

from mnist_ray.errors import CorruptFileError
from mnist_ray.study import optuna_private as private
from mnist_ray.study.journal import journal_file
from mnist_ray.study.samplers import TPE_OPTIONS, check_state


def a_study(storage: Any = None, **options: Any) -> optuna.Study:
    options = {"sampler": optuna.samplers.RandomSampler(0), "study_name": "s", **options}
    return optuna.create_study(storage=storage or InMemoryStorage(), load_if_exists=True, **options)


def count_fsyncs(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> int:
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    work()
    monkeypatch.undo()
    return len(calls)


def test_stock_values_are_taken_by_whoever_asks_next() -> None:
    storage = InMemoryStorage()
    one, other = a_study(storage), a_study(storage)
    one.enqueue_trial({"x": 7})
    assert other.ask().suggest_int("x", 0, 9) == 7  # else `started` is not needed

    trial = private.started(one, {"mine": True}, {"x": 8})
    other.ask()
    assert trial.suggest_int("x", 0, 9) == 8
    frozen = storage.get_trial(private.trial_id_of(trial))
    assert (frozen.state, frozen.user_attrs) == (TrialState.RUNNING, {"mine": True})


def test_the_key_of_fixed_values_is_optunas() -> None:
    study = a_study()
    study.enqueue_trial({"x": 7})
    assert study.trials[0].system_attrs[private.FIXED] == {"x": 7}


def test_a_trial_sees_what_others_have_done() -> None:
    """`started` empties the study's cache of trials as Study.ask does."""
    storage = InMemoryStorage()
    seen: list[int] = []

    class Watching(optuna.samplers.TPESampler):
        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            seen.append(len(study._get_trials(deepcopy=False, use_cache=True)))
            return super().sample_independent(study, trial, name, distribution)

    one, other = a_study(storage, sampler=Watching(seed=0)), a_study(storage)
    for _ in range(2):
        trial = private.started(one, {}, {})
        trial.suggest_int("x", 0, 9)
        other.tell(other.ask(), 1.0)
    assert seen == [1, 3]


def test_a_running_trial_goes_on_and_stock_tell_can_only_end_it() -> None:
    study = a_study()
    first = study.ask()
    value = first.suggest_float("x", 0, 1)
    [frozen] = study.get_trials()
    again = private.reopened(study, frozen)
    assert again.suggest_float("x", 0, 1) == value
    again.report(0.5, 1)
    assert study.trials[0].intermediate_values == {1: 0.5}
    assert not hasattr(optuna.Study, "get_trial")  # else use that


def test_a_trial_that_lacks_a_value_suggests_all_of_them_again() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    first = study.ask()
    whole = [first.suggest_float("x", 0, 1), first.suggest_float("y", 0, 1)]
    cut = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    x = cut.ask().suggest_float("x", 0, 1)
    cut.sampler = optuna.samplers.RandomSampler(seed=3)
    trial = private.reopened(cut, cut.trials[0])
    with pytest.raises(ValueError, match="'y' is not found") as caught:
        optuna.trial.FixedTrial({"x": x}).suggest_float("y", 0, 1)
    assert private.is_lacking(caught.value)
    assert not private.is_lacking(ValueError("'y' is not found"))
    assert not private.is_lacking(None)
    private.suggest_anew(trial)
    assert [trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)] == whole
    assert cut.trials[0].params == first.params


def test_notes_reach_the_trial_and_the_storage_is_the_study_s() -> None:
    storage = InMemoryStorage()
    study = a_study(storage)
    assert private.storage_of(study) is storage
    trial = study.ask()
    private.set_note(study, trial, "key", 1)
    assert study.trials[0].system_attrs == {"key": 1}


def test_stock_waits_for_the_disk_after_each_parameter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def suggestion(storage: Any) -> Callable[[], object]:
        trial = a_study(storage).ask()
        return lambda: [trial.suggest_float(f"x{i}", 0, 1) for i in range(8)]

    stock = suggestion(JournalStorage(JournalFileBackend(str(tmp_path / "stock.journal"))))
    ours = suggestion(journal_file(tmp_path / "ours.journal"))
    assert count_fsyncs(monkeypatch, stock) == 8  # else FileLog.append_logs is not needed
    assert count_fsyncs(monkeypatch, ours) == 0


def test_the_numbers_of_operations_are_those_in_journals() -> None:
    """They are written to files, so they cannot change; new ones wait for the disk."""
    assert [int(operation) for operation in private.LATER] == [4, 5, 8, 9]


def test_stock_snapshots_are_pickles() -> None:
    class Backend(BaseJournalBackend, BaseJournalSnapshot):
        logs: list[dict[str, Any]] = []
        snapshot = b""

        def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
            return self.logs[log_number_from:]

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            self.logs.extend(logs)

        def save_snapshot(self, snapshot: bytes) -> None:
            self.snapshot = snapshot

        def load_snapshot(self) -> bytes | None:
            return None

    backend = Backend()
    study = a_study(JournalStorage(backend))
    for _ in range(102):
        study.tell(study.ask(), 1.0)
    assert pickle.loads(backend.snapshot)  # else servers._RedisLog is not needed
    assert issubclass(JournalRedisBackend, BaseJournalSnapshot)


def test_stock_tpe_reads_every_trial_through_the_private_method() -> None:
    study = a_study(sampler=optuna.samplers.TPESampler(**TPE_OPTIONS, seed=0))
    for _ in range(30):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", 0, 1))
    reads: list[int] = []

    class Counting(private.PartOfStudy):
        def _get_trials(self, *args: Any, **kwargs: Any) -> Any:
            found = super()._get_trials(*args, **kwargs)
            reads.append(len(found))
            return found

    assert isinstance(study.sampler, optuna.samplers.TPESampler)
    assert private.is_grouped(study.sampler)
    distribution = study.trials[0].distributions["x"]
    for trials, most in ((study.trials, 30), (study.trials[:12], 12)):
        reads.clear()
        part: Any = Counting(study, trials)
        study.sampler.sample_relative(part, study.ask()._cached_frozen_trial, {"x": distribution})
        assert max(reads) == most  # 30 of 30: else the cost is bounded, and TPE.KEPT not needed


def drawn(n: int, seed: int) -> optuna.Study:
    """A study of n random trials whose space has a branch."""
    study = a_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(n):
        study.tell(*asked(study))
    return study


def asked(study: optuna.Study) -> tuple[optuna.Trial, float]:
    trial = study.ask()
    x = trial.suggest_float("x", 1e-3, 1, log=True)
    if trial.suggest_categorical("more", [False, True]):
        x += trial.suggest_int("n", 1, 9)
    return trial, x


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_finished_trial_is_translated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    inner = FloatDistribution.to_internal_repr

    def counted(self: FloatDistribution, value: Any) -> float:
        calls.append(value)
        return inner(self, value)

    monkeypatch.setattr(FloatDistribution, "to_internal_repr", counted)

    def suggested(sampler: optuna.samplers.TPESampler) -> tuple[list[Any], int]:
        found = []
        for seed in (1, 2):  # the second study's numbers are the first one's
            study = drawn(40, seed)
            study.sampler = sampler
            calls.clear()
            for _ in range(10):
                trial, value = asked(study)
                found.append(trial.params)
                study.tell(trial, value)
        return found, len(calls)

    stock, many = suggested(optuna.samplers.TPESampler(**TPE_OPTIONS, seed=0))
    ours, few = suggested(private.TranslatedOnce(**TPE_OPTIONS, seed=0))
    assert ours == stock
    assert few < 100
    assert many > 400  # else Optuna does so itself, and TranslatedOnce is not needed


def test_categories_are_compared_by_value() -> None:
    """suggestions.check_space compares distributions, as they are and as a journal gives them."""
    one, same, other = (CategoricalDistribution(c) for c in (("a", 1), ("a", 1), ("a", 2)))
    assert len({one, same, other}) == 2


class Harmful:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def cmaes_study(**options: Any) -> optuna.Study:
    sampler = private.CmaEs(seed=0, popsize=4, consider_pruned_trials=False, **options)
    return a_study(sampler=sampler)


def with_state(study: optuna.Study, state: str) -> optuna.Study:
    """The study with a third trial that holds a state."""
    study.optimize(goal, 2)
    trial = study.ask()
    value = goal(trial)
    private.set_note(study, trial, "cma:optimizer:0", state)
    study.tell(trial, value)
    return study


def goal(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1) + trial.suggest_int("n", 1, 9)


@pytest.mark.parametrize("stock", [True, False])
def test_a_state_of_cmaes_runs_code_in_stock_optuna_alone(tmp_path: Path, stock: bool) -> None:
    made = tmp_path / "made"
    study = with_state(cmaes_study(), pickle.dumps(Harmful(made)).hex())
    if stock:
        study.sampler = optuna.samplers.CmaEsSampler(seed=0)
        study.optimize(goal, 1)
        assert made.exists()  # else CmaEs is not needed
        return
    for act in (lambda: study.optimize(goal, 1), lambda: check_state(study.sampler, study)):
        with pytest.raises(CorruptFileError, match=r"^--sampler: .* trial 2 .*it names pathlib"):
            act()
    assert not made.exists()


@pytest.mark.parametrize(
    "state", ["zz", "", "80", pickle.dumps(1).hex(), pickle.dumps({}).hex(), "80049529" + "00" * 9]
)
def test_a_damaged_state_of_cmaes_is_named(state: str) -> None:
    study = with_state(cmaes_study(), state)
    with pytest.raises(CorruptFileError, match=r"^--sampler: .* trial 2 "):
        check_state(study.sampler, study)


@pytest.mark.parametrize(
    "options", [{}, {"use_separable_cma": True}, {"with_margin": True}, {"lr_adapt": True}]
)
def test_an_own_state_of_cmaes_is_taken_up_as_stock_does(options: dict[str, Any]) -> None:
    def asked(factory: Any) -> list[dict[str, Any]]:
        made = factory(seed=0, popsize=4, consider_pruned_trials=False, **options)
        study = a_study(sampler=made)
        study.optimize(goal, 25)
        return [trial.params for trial in study.trials]

    assert asked(private.CmaEs) == asked(optuna.samplers.CmaEsSampler)
