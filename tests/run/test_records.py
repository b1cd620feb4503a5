"""Records: the best over all epochs of all trials, the log line, objectives and their front."""

import dataclasses
import math
import random
from typing import Any, cast

import optuna
import pytest

from mnist_ray.run import tables
from mnist_ray.run.best import Confirmed, best_epoch, best_of
from mnist_ray.run.records import (
    COLUMNS,
    INTERRUPTED,
    EpochRow,
    Record,
    Records,
    clock,
    pareto_front,
    rank,
    rows_from,
    usable,
    value_of,
)
from mnist_ray.settings.objectives import DIRECTIONS
from tests.run.conftest import row


def test_the_best_is_over_all_epochs(three: Records) -> None:
    assert three.best is not None
    assert (three.best[0], three.best[1]["epoch"]) == (0, 2)


def test_a_pruned_trial_may_hold_the_best(three: Records) -> None:
    three.add(Record(3, {}, rows={1: row(1, 0.99, 0.3)}))
    assert three.best is not None
    assert three.best[0] == 3


def test_equal_accuracies_are_told_apart_by_the_loss() -> None:
    r = Records("val_accuracy", 2)
    r.add(Record(0, {}, rows={1: row(1, 0.9, 0.3), 2: row(2, 0.9, 0.2), 3: row(3, 0.9, 0.25)}))
    assert r.best is not None
    assert r.best[1]["epoch"] == 2


def test_the_loss_can_be_the_metric() -> None:
    r = Records("val_loss", 2)
    r.add(Record(0, {}, rows={1: row(1, 0.9, 0.3), 2: row(2, 0.8, 0.2)}))
    assert r.best is not None
    assert r.best[1]["epoch"] == 2


def test_nan_is_never_the_best() -> None:
    r = Records("val_accuracy", 1)
    r.add(Record(0, {}, rows={1: row(1, math.nan, math.nan)}))
    assert r.best is None
    assert r.trials[0].best("val_accuracy") is None


@pytest.mark.parametrize("loss", [math.inf, -math.inf, math.nan, None])
@pytest.mark.parametrize("metric", ["score@max", "score@min"])
def test_of_what_a_function_yields_the_metric_alone_decides(metric: str, loss: Any) -> None:
    yielded = cast(EpochRow, {**row(1, math.nan, math.nan), "val_loss": loss, "val_metric": 0.5})
    assert usable(yielded, metric)
    r = Records(metric, 1)
    r.add(Record(0, {}, rows={1: yielded}))
    assert r.best == (0, yielded)
    for value in (None, math.nan, math.inf):
        assert not usable({**yielded, "val_loss": 0.1, "val_metric": value}, metric)


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss", "macro_f1"])
def test_a_network_with_an_infinite_loss_is_never_the_best(metric: str) -> None:
    assert not usable({**row(1, 0.9, math.inf), "val_metric": 0.9}, metric)


def test_an_epoch_counts_once(three: Records) -> None:
    three.report(0, row(2, 0.999, 0.01))
    assert three.best is not None
    assert three.best[1]["val_accuracy"] == 0.95


def test_the_line_is_as_promised(three: Records) -> None:
    assert three.line(1).startswith(
        "trial 1 PRUNED val_accuracy=0.7000 epochs=1 best=0.9500 (trial 0) left=1 eta=00:00:"
    )
    assert three.line(2).endswith("reason: the loss is not finite at epoch 1")


def test_a_trial_that_is_tried_again_does_not_count(three: Records) -> None:
    three.add(Record(3, {}, state="FAIL", reason=INTERRUPTED))
    assert three.settled() == 3


def test_a_summary_gives_the_rows_back(three: Records) -> None:
    assert rows_from(three.trials[0].summary()) == three.trials[0].rows
    nan = Record(0, {}, rows={1: row(1, 0.5, math.nan)})
    assert math.isnan(rows_from(nan.summary())[1]["val_loss"])


def test_a_result_without_a_column_has_nan_there() -> None:
    r = Records("val_loss", 1)
    r.add(Record(0, {}))
    r.report(0, {"epoch": 1, "val_loss": 0.5, "node": "here"})
    assert r.trials[0].rows[1]["val_loss"] == 0.5
    assert math.isnan(r.trials[0].rows[1]["lr"])
    assert "node" not in r.trials[0].rows[1]


def test_values_are_those_of_the_best_epoch_by_the_metric() -> None:
    objectives = ("loss", "accuracy", "parameters", "latency")
    record = Record(0, {}, n_parameters=12, latency_ms=0.5)
    for epoch, (accuracy, loss) in enumerate([(0.9, 0.3), (0.95, 0.4), (0.8, 0.2)], start=1):
        record.rows[epoch] = row(epoch, accuracy, loss)
    assert record.values(objectives, "val_accuracy") == [0.4, 0.95, 12, 0.5]
    assert record.values(objectives, "val_loss") == [0.2, 0.8, 12, 0.5]
    assert dataclasses.replace(record, latency_ms=None).values(objectives, "val_loss") is None
    assert Record(0, {}).values(objectives, "val_loss") is None


def test_the_front() -> None:
    both = ("accuracy", "parameters")
    trials = {3: (0.9, 10), 5: (0.8, 5), 6: (0.8, 6), 9: (0.95, 100), 11: (0.9, 11)}
    assert pareto_front(both, trials) == [3, 5, 9]
    assert pareto_front(("loss", "parameters"), trials) == [5]
    assert pareto_front(both, {}) == []


@pytest.mark.parametrize("objectives", [("accuracy", "parameters"), tuple(DIRECTIONS)])
def test_the_front_is_optunas(objectives: tuple[str, ...]) -> None:
    """On a coarse grid, where many trials are equal in some objectives or in all."""
    generator = random.Random(0)
    for _ in range(20):
        trials = {3 * i: [float(generator.randrange(4)) for _ in objectives] for i in range(30)}
        study = optuna.create_study(directions=[DIRECTIONS[name] for name in objectives])
        study.add_trials([optuna.trial.create_trial(values=values) for values in trials.values()])
        best = sorted(3 * trial.number for trial in study.best_trials)
        assert pareto_front(objectives, trials) == best


def test_clock() -> None:
    assert clock(3725.4) == "01:02:05"


def test_an_epoch_beyond_a_limit_is_worse_than_every_other() -> None:
    run = Records("val_accuracy", 3, ("accuracy", "parameters"))
    for number, (accuracy, violation, size) in enumerate(
        [(0.99, 0.5, 900), (0.7, 0.0, 500), (0.98, 0.1, 600), (0.6, 0.0, 400)]
    ):
        run.add(Record(number, {}, n_parameters=size))
        for epoch in (1, 2):
            row = {"epoch": epoch, "val_accuracy": accuracy, "val_loss": 1 - accuracy}
            run.report(number, {**row, "violation": violation + (epoch == 2)})
        run.end(number, "COMPLETE")
    assert run.best is not None
    assert (run.best[0], run.best[1]["epoch"]) == (1, 1)
    assert [record.number for record, _ in run.top(9)] == [1, 3]
    assert list(run.front()) == [1, 3]
    nearest = run.trials[2].best("val_accuracy")
    assert nearest is not None
    assert nearest["violation"] == 0.1
    table = tables.trials_table(run).to_pylist()
    assert [row["violation"] for row in table] == [0.5, 0.0, 0.1, 0.0]
    assert [row["pareto"] for row in table] == [False, True, False, True]


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss", "balanced_accuracy"])
def test_an_epoch_without_a_value_is_behind_all_others(metric: str) -> None:
    """As in a table whose column was emptied."""
    whole: dict[str, Any] = dict.fromkeys(COLUMNS, 0.5)
    empty: dict[str, Any] = dict.fromkeys(COLUMNS)
    for values in (whole, empty):
        values["val_metric"] = values["val_accuracy"]
    assert math.isnan(value_of(cast(EpochRow, empty), metric))
    assert value_of(cast(EpochRow, whole), metric) == 0.5
    assert rank(empty, metric) < rank(whole, metric)


def test_an_epoch_beyond_a_limit_is_never_the_best() -> None:
    r = Records("val_accuracy", 2)
    beyond = cast(EpochRow, {**row(1, 0.9, 0.3), "violation": 0.5})
    r.add(Record(0, {}, rows={1: beyond}))
    assert r.best is None
    assert best_epoch([{**beyond, "number": 0}], "val_accuracy", None) is None
    r.add(Record(1, {}, rows={1: cast(EpochRow, {**row(1, 0.8, 0.3), "violation": 0.0})}))
    assert r.best is not None
    assert r.best[0] == 1


@pytest.mark.parametrize(("metric", "best"), [("val_accuracy", 1), ("val_loss", 2)])
def test_the_best_mean_of_retrainings_goes_by_the_metric_s_direction(
    metric: str, best: int
) -> None:
    found = best_of([Confirmed(1, 0.2, (0.5, 0.5)), Confirmed(2, 0.3, (0.4, 0.4))], metric)
    assert found is not None
    assert found.number == best
    tied = best_of([Confirmed(2, 0.2, (0.4, 0.4)), Confirmed(1, 0.3, (0.4, 0.4))], metric)
    assert tied is not None
    assert tied.number == best
