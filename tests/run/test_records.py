"""Records: the best over all epochs of all trials, the log line, the tables."""

import io
import math

import pyarrow.parquet as pq
import pytest

from mnist_ray.run import records
from mnist_ray.run.records import INTERRUPTED, Record, Records


def row(epoch: int, accuracy: float, loss: float) -> dict:
    return {
        "epoch": epoch, "train_loss": 1.0, "train_accuracy": 0.5, "val_loss": loss, "val_accuracy": accuracy,
        "lr": 0.1, "images_per_second": 100.0, "seconds": 2.0,
    }  # fmt: skip


@pytest.fixture
def three() -> Records:
    """A trial that was best in its middle epoch, one that was pruned, one that failed."""
    result = Records("val_accuracy", total=4)
    result.add(Record(0, {"lr": 0.1, "kind": "a"}))
    for epoch, (accuracy, loss) in enumerate([(0.8, 0.5), (0.95, 0.2), (0.94, 0.1)], start=1):
        result.report(0, row(epoch, accuracy, loss))
    result.end(0, "COMPLETE")
    second = result.add(Record(1, {"lr": 0.2, "depth": 3}))
    result.report(1, row(1, 0.7, 0.6))
    result.end(1, "PRUNED")
    second.reason = "stopped by the scheduler after epoch 1"
    third = result.add(Record(2, {"lr": 0.3}))
    result.end(2, "FAIL")
    third.reason = "the loss is not finite at epoch 1"
    return result


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


def test_tables_have_the_promised_columns(three: Records) -> None:
    trials = pq.read_table(io.BytesIO(records.parquet(three.trials_table())))
    assert trials.column_names == [
        "number", "state", "value", "params_lr", "params_kind", "params_depth", "n_parameters", "epochs", "seconds", "node", "reason",
    ]  # fmt: skip
    assert trials["state"].to_pylist() == ["COMPLETE", "PRUNED", "FAIL"]
    assert trials["value"].to_pylist() == [0.95, 0.7, None]
    assert trials["epochs"].to_pylist() == [3, 1, 0]
    assert trials["seconds"].to_pylist() == [6.0, 2.0, 0.0]
    history = three.history_table()
    assert history.column_names == ["number", *records.HISTORY]
    assert history.select(["number", "epoch"]).to_pylist() == [
        {"number": n, "epoch": e} for n, e in ((0, 1), (0, 2), (0, 3), (1, 1))
    ]  # fmt: skip


def test_a_running_trial_is_not_in_the_table_of_trials(three: Records) -> None:
    three.add(Record(3, {"lr": 1.0}, rows={1: row(1, 0.5, 0.5)}))
    assert 3 not in three.trials_table()["number"].to_pylist()
    assert 3 in three.history_table()["number"].to_pylist()


def test_a_parameter_of_several_types_is_text() -> None:
    r = Records("val_accuracy", 2)
    r.add(Record(0, {"x": 1}, state="FAIL"))
    r.add(Record(1, {"x": "one"}, state="FAIL"))
    assert r.trials_table()["params_x"].to_pylist() == ["1", "one"]


def test_a_summary_gives_the_rows_back(three: Records) -> None:
    assert records.rows_from(three.trials[0].summary()) == three.trials[0].rows
    nan = Record(0, {}, rows={1: row(1, 0.5, math.nan)})
    assert math.isnan(records.rows_from(nan.summary())[1]["val_loss"])


def test_clock_and_columns() -> None:
    assert records.clock(3725.4) == "01:02:05"
    assert records.table_text(["a", "bb"], [[1, 2], [333, 4]]) == "a    bb\n1    2\n333  4"
