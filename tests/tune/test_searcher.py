"""The searcher without Ray: what it asks of a study, whose trials it counts, and what it tells at a
trial's end.
"""

import math
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.run.records import INTERRUPTED, Record, Records
from mnist_ray.run.tables import trials_table
from mnist_ray.study.optuna_private import started as ask
from mnist_ray.study.samplers import make_sampler
from mnist_ray.study.studies import open_study
from mnist_ray.study.trials import (
    POINT,
    RUN,
    SOURCE,
    SUMMARY,
    close_interrupted,
    read_trials,
    remaining_points,
    to_try_again,
)
from mnist_ray.tune import suggestions
from mnist_ray.tune.deterministic import OrderedSearch
from mnist_ray.tune.searcher import StudySearch
from mnist_ray.tune.trial import NUMBER
from tests.support.tune_loop import result

optuna.logging.set_verbosity(optuna.logging.ERROR)


def space(trial: optuna.Trial) -> dict[str, Any]:
    return {"x": trial.suggest_int("x", 0, 9)}


def a_study(metric: str = "val_accuracy", sampler: str = "random") -> optuna.Study:
    return open_study(optuna.storages.InMemoryStorage(), "s", metric, make_sampler(sampler, 0))


def searcher(
    study: optuna.Study,
    trials: int = 5,
    run: str = "r",
    metric: str = "val_accuracy",
    **options: Any,
) -> StudySearch:
    settled: list[int] = []
    search = StudySearch(
        study,
        space,
        Records(metric, trials),
        run=run,
        max_epochs=3,
        on_settled=settled.append,
        **options,
    )
    search.settled = settled  # type: ignore[attr-defined]
    return search


def finish(search: StudySearch, trial_id: str, epochs: int = 3) -> None:
    for epoch in range(1, epochs):
        search.on_trial_result(trial_id, result(epoch))
    search.on_trial_complete(trial_id, result(epochs))


def numbers(search: StudySearch, n: int, prefix: str = "t") -> list[int]:
    """The numbers of the next n suggestions, each finished at once; FINISHED ends them."""
    found = []
    for i in range(n):
        config = search.suggest(f"{prefix}{i}")
        if config == Searcher.FINISHED:
            break
        assert isinstance(config, dict)
        found.append(config[NUMBER])
        finish(search, f"{prefix}{i}")
    return found


def test_a_trial_of_all_its_epochs_is_complete_with_its_best_value() -> None:
    study = a_study()
    search = searcher(study)
    config = search.suggest("a")
    assert config == {NUMBER: 0, "x": study.trials[0].params["x"]}
    for epoch, accuracy in ((1, 0.5), (2, 0.9)):
        search.on_trial_result("a", result(epoch, accuracy))
    search.on_trial_complete("a", result(3, 0.7))
    trial = study.trials[0]
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.9)
    assert trial.intermediate_values == {1: 0.5, 2: 0.9, 3: 0.7}
    assert trial.user_attrs[RUN] == "r"
    assert [row["epoch"] for row in trial.user_attrs[SUMMARY]["rows"]] == [1, 2, 3]
    assert search.settled == [0]  # type: ignore[attr-defined]


def test_a_loss_is_minimised() -> None:
    study = a_study("val_loss")
    search = searcher(study, metric="val_loss")
    assert (search.mode, search.metric) == ("min", "val_loss")
    search.suggest("a")
    for epoch, loss in ((1, 0.5), (2, 0.1)):
        search.on_trial_result("a", result(epoch, val_loss=loss))
    search.on_trial_complete("a", result(3, val_loss=0.3))
    assert study.trials[0].value == 0.1


def test_a_stopped_trial_is_pruned_and_says_why() -> None:
    study = a_study()
    search = searcher(study)
    search.suggest("a")
    search.on_trial_result("a", result(1, 0.4))
    search.on_trial_complete("a", result(2, 0.3))
    assert (study.trials[0].state, study.trials[0].value) == (TrialState.PRUNED, 0.3)
    assert search.records.trials[0].reason == "stopped by the scheduler after epoch 2"
    search.suggest("b")
    search.ending = "stopped by --time-budget"
    search.on_trial_complete("b", result(1))
    assert search.records.trials[1].reason == "stopped by --time-budget after epoch 1"


@pytest.mark.parametrize(
    ("last", "error", "reason"),
    [
        ({"val_accuracy": math.nan, "val_loss": math.nan, "epoch": 0, "reason": "no"}, False, "no"),
        (None, False, "ended before its first epoch (stopped)"),
        (None, True, "its worker died too often"),
        (result(1), True, "its worker died too often"),
    ],
)
def test_a_failed_trial_is_fail_and_says_why(
    last: dict[str, Any] | None, error: bool, reason: str
) -> None:
    study = a_study()
    search = searcher(study)
    search.suggest("a")
    search.on_trial_complete("a", last, error=error)
    assert (study.trials[0].state, study.trials[0].value) == (TrialState.FAIL, None)
    assert study.trials[0].user_attrs[SUMMARY]["reason"] == reason
    search.on_trial_complete("a", last, error=error)  # a second end changes nothing
    assert len(search.settled) == 1  # type: ignore[attr-defined]


def test_trials_counts_the_run_s_own() -> None:
    study = a_study()
    one, two = searcher(study, 3, "one"), searcher(study, 2, "two")
    assert numbers(one, 2, "a") == [0, 1]
    assert numbers(two, 9, "b") == [2, 3]
    assert numbers(one, 9, "c") == [4]
    assert [t.user_attrs[RUN] for t in study.trials] == ["one", "one", "two", "two", "one"]


def test_the_grid_ends_by_itself_also_when_it_is_shared() -> None:
    study = a_study(sampler="grid")
    one, two = searcher(study, 99, "one"), searcher(study, 99, "two")
    found = []
    for i in range(6):
        found += numbers(one, 1, f"a{i}") + numbers(two, 1, f"b{i}")
    assert found == list(range(10))
    assert sorted(t.params["x"] for t in study.trials) == list(range(10))


def test_points_come_first_and_once() -> None:
    study = a_study()
    points = [{"x": 9}, {"x": 8}, {"x": 7}]
    first = searcher(study, 5, points=remaining_points(study, "r", points))
    numbers(first, 2)
    # killed, and gone on with
    second = searcher(study, 5, points=remaining_points(study, "r", points))
    for frozen, record in read_trials(study, "r", "val_accuracy"):
        second.records.add(record)
        assert frozen.state.is_finished()
    assert len(numbers(second, 9)) == 3
    assert [t.params["x"] for t in study.trials[:3]] == [9, 8, 7]
    assert [t.user_attrs.get(POINT) for t in study.trials] == [
        ["r", 0],
        ["r", 1],
        ["r", 2],
        None,
        None,
    ]
    assert remaining_points(study, "r", points) == []
    # Another run of the study has no need to try them again, but those that failed.
    assert remaining_points(study, "another", [*points, {"x": 6}]) == [(3, {"x": 6})]
    ask(study, {RUN: "another", POINT: ["another", 3]}, {"x": 6})
    study.tell(study.trials[-1].number, state=TrialState.FAIL)
    assert remaining_points(study, "third", [{"x": 6}]) == [(0, {"x": 6})]


def test_a_point_that_an_older_trial_had_is_not_tried_again() -> None:
    study = a_study()
    distribution = optuna.distributions.IntDistribution(0, 9)
    study.add_trial(
        optuna.trial.create_trial(
            params={"x": 4}, distributions={"x": distribution}, value=0.5, user_attrs={SOURCE: [1]}
        )
    )
    assert remaining_points(study, "r", [{"x": 4}, {"x": 5}]) == [(1, {"x": 5})]


def test_a_point_is_not_lost_where_the_search_dies_over_it() -> None:
    study = a_study()
    ask(study, {RUN: "r", POINT: ["r", 0]}, {"x": 9})  # and not yet suggested
    points = [{"x": 9}, {"x": 8}]
    assert remaining_points(study, "r", points) == [(1, {"x": 8})]
    [(frozen, record)] = read_trials(study, "r", "val_accuracy")
    close_interrupted(study, frozen, record)
    assert to_try_again(study, "r") == [(0, {"x": 9})]
    second = searcher(
        study, 3, retried=to_try_again(study, "r"), points=remaining_points(study, "r", points)
    )
    second.records.add(record)
    numbers(second, 2)
    assert [t.params for t in study.trials] == [{}, {"x": 9}, {"x": 8}]


def test_what_waits_in_the_study_is_left_to_whom_it_is_meant_for() -> None:
    study = a_study()
    study.enqueue_trial({"x": 9})
    assert numbers(searcher(study, 1), 5) == [1]
    assert study.trials[0].state == TrialState.WAITING


def test_a_cut_off_trial_goes_on_under_its_number() -> None:
    study = a_study()
    first = searcher(study)
    config = first.suggest("a")
    first.on_trial_result("a", result(1, 0.4))
    [(frozen, record)] = read_trials(study, "r", "val_accuracy")
    assert [row["val_accuracy"] for row in record.rows.values()] == [0.4]
    record.rows = {}
    second = searcher(study, continued=[frozen])
    second.records.add(record)
    assert second.suggest("b") == config
    second.on_trial_result("b", result(2, 0.5, rows=[result(1, 0.4)]))
    second.on_trial_complete("b", result(3, 0.6))
    assert len(study.trials) == 1
    assert study.trials[0].intermediate_values == {1: 0.4, 2: 0.5, 3: 0.6}
    assert second.records.trials[0].state == "COMPLETE"


def test_values_without_a_checkpoint_are_tried_again_and_count_once() -> None:
    study = a_study()
    searcher(study, 3).suggest("a")
    [(frozen, record)] = read_trials(study, "r", "val_accuracy")
    close_interrupted(study, frozen, record)
    second = searcher(study, 3, retried=to_try_again(study, "r"))
    second.records.add(record)
    assert numbers(second, 9) == [1, 2, 3]
    assert study.trials[1].params == study.trials[0].params
    assert study.trials[0].state == TrialState.FAIL
    assert second.records.trials[0].reason == INTERRUPTED
    assert second.records.settled() == 3


def test_a_grid_s_last_point_is_tried_again_too() -> None:
    study = a_study(sampler="grid")
    first = searcher(study, 99)
    assert numbers(first, 9) == list(range(9))
    first.suggest("last")
    frozen, record = read_trials(study, "r", "val_accuracy")[-1]
    close_interrupted(study, frozen, record)
    second = searcher(study, 99, retried=to_try_again(study, "r"))
    for _, known in read_trials(study, "r", "val_accuracy"):
        second.records.add(known)
    assert numbers(second, 9) == [10]
    assert study.trials[10].params == study.trials[9].params


def test_a_trial_cut_off_while_it_was_suggested_gets_its_values() -> None:
    """With --deterministic it goes on under its number."""
    study = a_study()
    ask(study, {RUN: "r"}, {})
    [(frozen, record)] = read_trials(study, "r", "val_accuracy")
    second = searcher(study, continued=[frozen])
    second.records.add(record)
    second.suggest("b")
    assert record.params == study.trials[0].params != {}


def test_a_trial_without_its_objectives_has_failed() -> None:
    """A checkpoint of an older version does not know the number of parameters."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    search = searcher(study)
    search.records.objectives = ("accuracy", "parameters")
    search.suggest("a")
    finish(search, "a")
    search.records.trials[0].n_parameters = None
    search.suggest("b")
    for epoch in range(1, 4):
        last = {**result(epoch), "n_parameters": None}
        search.on_trial_result("b", last)
    search.on_trial_complete("b", last)
    assert study.trials[1].state == TrialState.FAIL
    assert "lacks a value of --objectives" in study.trials[1].user_attrs[SUMMARY]["reason"]


def test_a_contradicting_study_is_a_settings_error() -> None:
    study = a_study()
    study.enqueue_trial({"x": 3})
    study.ask().suggest_categorical("x", [3, 4])
    search = searcher(study, continued=study.get_trials())
    with pytest.raises(SettingsError, match="contradicts the space"):
        search.suggest("a")


def test_a_failing_storage_ends_the_search_and_leaves_the_trial_to_be_continued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = a_study()
    search = searcher(study)
    search.suggest("a")

    def away(*args: Any, **kwargs: Any) -> None:
        raise WorkError("the server is away")

    monkeypatch.setattr(study._storage, "set_trial_intermediate_value", away)
    search.on_trial_result("a", result(1))
    assert search.storage_error == "the server is away"
    search.on_trial_complete("a", result(1))
    assert study.trials[0].state == TrialState.RUNNING
    assert search.suggest("b") is None
    assert len(study.trials) == 1

    other = searcher(study)
    monkeypatch.setattr(study._storage, "create_new_trial", away)
    assert other.suggest("a") is None
    assert other.storage_error == "the server is away"

    third = searcher(study)
    third.records.add(Record(0, {}))
    third.trials["a"] = optuna.Trial(study, 0)
    third.on_trial_result("a", {**result(1), "storage_error": "the disk is full"})
    assert third.storage_error == "the disk is full"


class Slip(optuna.pruners.BasePruner):
    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.nothing  # type: ignore[attr-defined,no-any-return]


class SlipAt(optuna.samplers.RandomSampler):
    """A person's own sampler that fails in the method that it is given."""

    def __init__(self, method: str, error: BaseException) -> None:
        super().__init__(seed=0)

        def fails(*args: Any) -> Any:
            raise error

        setattr(self, method, fails)


def test_an_error_in_ones_own_pruner_ends_the_search_in_one_line() -> None:
    search = searcher(a_study())
    search.study.pruner = Slip()
    search.suggest("a")
    assert not search.should_stop("a", result(1))
    assert search.own_error is not None
    part, why = search.own_error
    assert part == "scheduler"
    assert re.search(r"test_searcher\.py:\d+: AttributeError: .*'nothing'$", why)
    assert search.silent
    assert search.storage_error is None
    search.on_trial_complete("a", result(2))
    assert search.study.trials[0].state == TrialState.RUNNING


@pytest.mark.parametrize(
    "method", ["before_trial", "infer_relative_search_space", "sample_independent", "after_trial"]
)
@pytest.mark.parametrize("error", [KeyError("x"), OSError("its file"), SystemExit(3)])
def test_an_error_in_ones_own_sampler_ends_the_search_in_one_line(
    method: str, error: BaseException
) -> None:
    search = searcher(a_study())
    search.study.sampler = SlipAt(method, error)
    assert bool(search.suggest("a")) is (method == "after_trial")
    if method == "after_trial":
        finish(search, "a")
    assert search.own_error is not None
    assert search.own_error[0] == "sampler"
    assert "test_searcher.py:" in search.own_error[1]
    assert search.suggest("b") is None


def test_so_does_one_with_deterministic() -> None:
    search = OrderedSearch(
        a_study(),
        space,
        Records("val_accuracy", 5),
        run="r",
        max_epochs=3,
        on_settled=lambda number: None,
        window=1,
        sampler=lambda place: make_sampler("random", place),
    )
    search.study.pruner = Slip()
    search.suggest("a")
    assert not search.should_stop("a", result(1))
    assert search.own_error is not None
    assert search.own_error[0] == "scheduler"


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    search = searcher(a_study())
    monkeypatch.setattr(search.suggestions, "retried", 3)
    with pytest.raises((TypeError, AttributeError)):
        search.suggest("a")


def test_no_more_are_handed_out_than_there_are_slots() -> None:
    slots = [2]
    search = searcher(a_study(), slots=lambda: slots[0])
    assert [isinstance(search.suggest(name), dict) for name in "abc"] == [True, True, False]
    slots[0] = 3  # a node has joined
    assert [isinstance(search.suggest(name), dict) for name in "cd"] == [True, False]
    slots[0] = 1  # two have left
    finish(search, "a")
    assert search.suggest("d") is None
    finish(search, "b")
    finish(search, "c")
    assert search.suggest("d") == {NUMBER: 3, "x": search.records.trials[3].params["x"]}


def begin(search: StudySearch, trial_id: str) -> int:
    config = search.suggest(trial_id)
    assert isinstance(config, dict)
    search.begun(trial_id)
    return config[NUMBER]


def end(search: StudySearch, trial_id: str, seconds: float) -> None:
    for epoch in (1, 2):
        search.on_trial_result(trial_id, result(epoch, seconds=seconds))
    search.on_trial_complete(trial_id, result(3, seconds=seconds))


Space = Callable[[optuna.Trial], dict[str, Any]]


@pytest.fixture
def slow_space(monkeypatch: pytest.MonkeyPatch) -> Space:
    """A space whose suggestions take 20 ms by the searcher's clock, and nothing else does."""
    now = 0.0

    def slow(trial: optuna.Trial) -> dict[str, Any]:
        nonlocal now
        now += 0.02
        return space(trial)

    monkeypatch.setattr(suggestions, "time", SimpleNamespace(perf_counter=lambda: now))
    return slow


def test_where_trials_are_short_the_next_are_suggested_before_a_slot_is_free(
    slow_space: Space,
) -> None:
    study = a_study()
    search = searcher(study, trials=5, slots=lambda: 2)
    search.suggestions.space = slow_space
    begin(search, "a")
    begin(search, "b")
    assert search.suggest("c") is None
    assert len(study.trials) == 2  # nothing is known yet of how long a trial takes
    end(search, "a", seconds=0.1)
    search.suggest("c")
    assert search.suggest("d") is None
    assert len(study.trials) == 3  # first the one that was handed out begins
    search.begun("c")
    assert search.suggest("d") is search.suggest("d") is None
    assert [trial.state for trial in study.trials] == [
        TrialState.COMPLETE,
        *[TrialState.RUNNING] * 4,
    ]
    end(search, "b", seconds=0.1)
    end(search, "c", seconds=0.1)
    assert [begin(search, "d"), begin(search, "e")] == [3, 4]
    assert search.suggest("f") is None
    end(search, "d", seconds=0.1)
    end(search, "e", seconds=0.1)
    assert search.suggest("f") == Searcher.FINISHED
    search.close()
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 5


@pytest.mark.parametrize("seconds", [1e-6, 1000])
def test_where_it_would_gain_nothing_a_suggestion_knows_all_that_have_ended(seconds: float) -> None:
    study = a_study()
    search = searcher(study, slots=lambda: 1)
    begin(search, "a")
    end(search, "a", seconds)
    begin(search, "b")
    assert search.suggest("c") is None
    assert len(study.trials) == 2


@pytest.mark.parametrize(("slots", "ahead"), [(2, 0), (16, 16), (64, 0)])
def test_many_slots_are_suggested_for_ahead(slots: int, ahead: int) -> None:
    """Trials of 1 s, suggestions of 30 ms: those of 16 slots fill half of the time, of 64 more."""
    suggestions = searcher(a_study(), trials=100).suggestions
    suggestions._seconds = 0.03
    suggestions.ask_ahead(slots, 1.0)
    assert len(suggestions.ahead) == ahead


def test_what_was_suggested_ahead_and_never_began_has_failed(slow_space: Space) -> None:
    study = a_study()
    search = searcher(study, slots=lambda: 1)
    search.suggestions.space = slow_space
    begin(search, "a")
    end(search, "a", seconds=0.1)
    begin(search, "b")
    assert search.suggest("c") is None
    search.ending = "stopped by --time-budget"
    search.on_trial_complete("b", result(1))
    search.close()
    search.close()
    assert [trial.state for trial in study.trials] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
    ]
    assert (
        search.records.trials[2].reason == "ended before its first epoch (stopped by --time-budget)"
    )
    assert search.settled == [0, 1, 2]  # type: ignore[attr-defined]


def test_a_trial_whose_worker_could_not_begin_keeps_the_traceback() -> None:
    kept: dict[int, str] = {}
    search = searcher(a_study(), 2, keep_error=kept.__setitem__)
    for trial_id, how, text in (("a", "it could not begin: E", "Traceback"), ("b", "killed", "")):
        search.suggest(trial_id)
        search.worker_lost(trial_id, how, text)
        search.on_trial_complete(trial_id, error=True)
    reasons = [record.reason for record in search.records.trials.values()]
    assert reasons == [
        f"its worker died too often: {how}" for how in ("it could not begin: E", "killed")
    ]
    assert kept == {0: "Traceback"}


def refusing(trial: optuna.Trial) -> dict[str, Any]:
    """Prunes odd numbers, and has a slip where x is 4."""
    x = trial.suggest_int("x", 0, 9)
    if x % 2:
        raise optuna.TrialPruned("odd")
    if x == 4:
        return {"typo": trial.params["y"]}
    return {"x": x}


def test_a_space_may_prune_and_fail_and_the_search_goes_on() -> None:
    study = a_study()
    kept: dict[int, str] = {}
    points = list(enumerate({"x": x} for x in (1, 2, 4, 3, 6)))
    search = searcher(study, 5, points=points, keep_error=kept.__setitem__)
    search.suggestions.space = refusing
    assert search.suggest("a") == {NUMBER: 1, "x": 2}  # the first was pruned on the way
    assert search.suggest("b") == {NUMBER: 4, "x": 6}
    finish(search, "a")
    finish(search, "b")
    assert search.suggest("c") == Searcher.FINISHED
    states = [trial.state.name for trial in study.trials]
    assert states == ["PRUNED", "COMPLETE", "FAIL", "PRUNED", "COMPLETE"]
    assert search.settled == [0, 2, 3, 1, 4]  # type: ignore[attr-defined]
    reasons = [search.records.trials[n].reason for n in range(4)]
    assert reasons[0] == "pruned by the space: odd"
    assert reasons[2].startswith("KeyError: 'y' (tune/test_searcher.py:")
    assert list(kept) == [2]
    assert kept[2].startswith("Traceback")
    # and the tables and a resume take them as they are
    assert [row["state"] for row in trials_table(search.records).to_pylist()] == states
    assert [record.reason for _, record in read_trials(study, "r", "val_accuracy")][:3] == reasons[
        :3
    ]


def test_a_space_that_refuses_everything_ends_the_search_by_itself() -> None:
    nothing: dict[str, Any] = {}
    search = searcher(a_study(), 50)
    search.suggestions.space = lambda trial: refusing(trial) and nothing["x"]
    given = [search.suggest(str(i)) for i in range(4)]
    assert given == [None, None, Searcher.FINISHED, Searcher.FINISHED]
    assert len(search.records.trials) == 50
    assert {trial.state for trial in search.study.trials} == {TrialState.PRUNED, TrialState.FAIL}


def test_a_refused_trial_that_was_cut_off_is_refused_again() -> None:
    study = a_study()
    ask(study, {RUN: "r"}, {"x": 1}).suggest_int("x", 0, 9)
    search = searcher(study, 1, continued=study.get_trials())
    search.records.add(Record(0, {"x": 1}))
    search.suggestions.space = refusing
    assert search.suggest("a") == Searcher.FINISHED
    assert study.trials[0].state == TrialState.PRUNED


def test_a_trial_that_ends_by_itself_is_complete() -> None:
    """As a training function of one's own does, before the most epochs."""
    study = a_study()
    search = searcher(study)
    search.suggest("a")
    search.on_trial_complete("a", result(1, complete=True, done=True))
    assert study.trials[0].state == TrialState.COMPLETE
