"""The tables of a run, as Parquet and as text."""

import io
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.errors import CorruptFileError
from mnist_ray.run import layout, predictions, tables
from mnist_ray.run.best import best_epoch
from mnist_ray.run.records import EpochRow, Record, Records
from mnist_ray.run.tables import (
    HISTORY,
    history_table,
    objective_cells,
    parquet,
    table_text,
    trials_table,
)
from mnist_ray.storage import RunStorage
from tests.run.conftest import row


def test_tables_have_the_promised_columns(three: Records) -> None:
    trials = pq.read_table(io.BytesIO(parquet(trials_table(three))))
    assert trials.column_names == [
        "number",
        "state",
        "value",
        "params_lr",
        "params_kind",
        "params_depth",
        "n_parameters",
        "epochs",
        "seconds",
        "node",
        "reason",
    ]
    assert trials["state"].to_pylist() == ["COMPLETE", "PRUNED", "FAIL"]
    assert trials["value"].to_pylist() == [0.95, 0.7, None]
    assert trials["epochs"].to_pylist() == [3, 1, 0]
    assert trials["seconds"].to_pylist() == [6.0, 2.0, 0.0]
    history = history_table(three)
    assert history.column_names == ["number", *HISTORY]
    assert history.select(["number", "epoch"]).to_pylist() == [
        {"number": n, "epoch": e} for n, e in ((0, 1), (0, 2), (0, 3), (1, 1))
    ]


def test_a_running_trial_is_not_in_the_table_of_trials(three: Records) -> None:
    three.add(Record(3, {"lr": 1.0}, rows={1: row(1, 0.5, 0.5)}))
    assert 3 not in trials_table(three)["number"].to_pylist()
    assert 3 in history_table(three)["number"].to_pylist()


def test_a_parameter_of_several_types_is_text() -> None:
    r = Records("val_accuracy", 2)
    r.add(Record(0, {"x": 1}, state="FAIL"))
    r.add(Record(1, {"x": "one"}, state="FAIL"))
    assert trials_table(r)["params_x"].to_pylist() == ["1", "one"]


def test_text_columns() -> None:
    assert table_text(["a", "bb"], [[1, 2], [333, 4]]) == "a    bb\n1    2\n333  4"
    values = (0.98765, 1234.0, 0.12345)
    assert objective_cells(("accuracy", "parameters", "latency"), values) == [
        "0.9877",
        "1234",
        "0.123",
    ]


def test_a_small_file_of_very_many_values_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 10^9 equal numbers are: they take a few kilobytes in the file, and 8 GB when read."""
    monkeypatch.setattr(tables, "MOST_VALUES", 1_000_000)
    storage = RunStorage(str(tmp_path))
    bomb = parquet(pa.table({name: np.ones(300_000) for name in HISTORY}))
    assert len(bomb) < 20_000
    storage.write_bytes(layout.HISTORY, bomb)
    with pytest.raises(CorruptFileError, match="history.parquet is .* damaged: it holds 2,400,000"):
        tables.read(storage, layout.HISTORY)
    storage.write_bytes(
        layout.PREDICTIONS, predictions.pack(np.zeros(10, int), np.zeros((10, 200_000)), "a")
    )
    with pytest.raises(
        CorruptFileError, match="predictions.parquet is damaged: it holds 2,000,020"
    ):
        predictions.read(storage, "a")


def test_the_best_of_the_tables_is_the_search_s_also_where_a_better_one_breaks_a_limit(
    tmp_path: Path,
) -> None:
    records = Records("val_accuracy", 2)
    for number, (accuracy, violation) in enumerate([(0.99, 0.5), (0.8, 0.0)]):
        records.add(Record(number, {}))
        beyond = cast(EpochRow, {**row(1, accuracy, 0.1), "violation": violation})
        records.report(number, beyond)
        records.end(number, "COMPLETE")
    storage = RunStorage(str(tmp_path))
    storage.write_bytes(layout.HISTORY, parquet(history_table(records)))
    history = tables.read(storage, layout.HISTORY)
    assert history["violation"].to_pylist() == [0.5, 0.0]
    older = history.drop_columns(["violation"])  # as some versions wrote it
    assert records.best is not None
    for rows, trials in ((history, []), (older, trials_table(records).to_pylist())):
        found = best_epoch(rows.to_pylist(), "val_accuracy", None, trials)
        assert found is not None
        assert found["number"] == records.best[0] == 1
