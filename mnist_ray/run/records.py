"""What is known of a run's trials, as plain data: the best, the log lines, and the tables `trials.parquet` and `history.parquet`.

Nothing here knows Ray, Optuna (but for the Pareto front) or torch, so what a person reads of a run is the same whoever ran it.
"""

import io
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from mnist_ray.settings import objectives


class EpochRow(TypedDict):
    """What is known of one epoch of a trial; the columns of `history.parquet` and of a stage's curve.

    Losses and accuracies (shares of 1) of the validation are NaN where there is none. `seconds` is
    of training and validation, `images_per_second` of the training alone, `lr` of the last step.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    images_per_second: float
    seconds: float


HISTORY = {
    name: pa.int64() if kind is int else pa.float64()
    for name, kind in EpochRow.__annotations__.items()
}

Row = dict[str, Any]


def rank(row: Mapping[str, Any], metric: str) -> tuple[float, float]:
    """Sort key of an epoch, larger is better. Equal accuracies, frequent on few images, are told apart by the loss."""
    loss = -row["val_loss"] if math.isfinite(row["val_loss"]) else -math.inf
    return (row["val_accuracy"], loss) if metric == "val_accuracy" else (loss, row["val_accuracy"])


@dataclass
class Record:
    """One trial: its number, the suggested values, and one row an epoch."""

    number: int
    params: dict[str, Any]
    state: str = "RUNNING"
    reason: str = ""
    n_parameters: int | None = None
    node: str = ""
    rows: dict[int, Row] = field(default_factory=dict)
    latency_ms: float | None = None
    exploits: list[dict[str, Any]] = field(
        default_factory=list
    )  # see pbt.py: when it went on with whose weights, and its new values

    def best(self, metric: str) -> Row | None:
        """The best of its epochs; None where no epoch ended with a finite loss."""
        finite = [row for row in self.rows.values() if math.isfinite(row["val_loss"])]
        return max(finite, key=lambda row: rank(row, metric), default=None)

    def summary(self) -> dict[str, Any]:
        """All of it but number, state and params, as JSON can hold it: what the study keeps of the trial."""
        return {
            "reason": self.reason,
            "n_parameters": self.n_parameters,
            **({} if self.latency_ms is None else {"latency_ms": self.latency_ms}),
            "node": self.node,
            **({"exploits": self.exploits} if self.exploits else {}),
            "rows": [
                {
                    k: v
                    for k, v in row.items()
                    if not (isinstance(v, float) and not math.isfinite(v))
                }
                for row in self.rows.values()
            ],
        }


class Records:
    """All trials of a run. `metric` is val_accuracy or val_loss; `total` is how many trials the run has in all; `objectives` are the names
    of objectives.py, none where the metric is the only one."""

    def __init__(self, metric: str, total: int, objectives: Sequence[str] = ()) -> None:
        self.metric, self.total, self.objectives = metric, total, tuple(objectives)
        self.trials: dict[int, Record] = {}
        self.best: tuple[int, Row] | None = None  # over all epochs of all trials
        self.tried_again = 0  # trials that were cut off and whose values get another number
        # Counted, not looked for: every trial asks, and a search may have ten thousand.
        self._running: set[int] = set()
        self._started, self._settled_before = time.monotonic(), 0

    def add(self, record: Record) -> Record:
        """Takes a trial in, with whatever rows it has already."""
        self.trials[record.number] = record
        if record.state == "RUNNING":
            self._running.add(record.number)
        self.tried_again += record.reason == INTERRUPTED
        for row in record.rows.values():
            self._consider(record, row)
        return record

    def end(self, number: int, state: str) -> None:
        """Notes how a trial ended: COMPLETE, PRUNED or FAIL."""
        self.trials[number].state = state
        self._running.discard(number)

    def resumed(self) -> None:
        """What is settled by now took no time of this process: it does not count for the time left."""
        self._settled_before = self.settled()

    def report(self, number: int, row: Row) -> None:
        """Takes an epoch's row; an epoch that was reported before a restart counts once, with its first row."""
        record = self.trials[number]
        if row["epoch"] not in record.rows:
            record.rows[row["epoch"]] = row
            self._consider(record, row)

    def _consider(self, record: Record, row: Row) -> None:
        if math.isfinite(row["val_loss"]) and (
            self.best is None or rank(row, self.metric) > rank(self.best[1], self.metric)
        ):
            self.best = (record.number, row)

    def settled(self) -> int:
        """How many of the run's trials have ended. One that was cut off and is tried again under another number does not count."""
        return len(self.trials) - len(self._running) - self.tried_again

    def line(self, number: int) -> str:
        """The log line of a finished trial."""
        record = self.trials[number]
        row = record.best(self.metric)
        value = "nan" if row is None else f"{row[self.metric]:.4f}"
        best = (
            "none"
            if self.best is None
            else f"{self.best[1][self.metric]:.4f} (trial {self.best[0]})"
        )
        done = self.settled()
        left = max(0, self.total - done)
        pace = (time.monotonic() - self._started) / max(1, done - self._settled_before)
        text = (
            f"trial {number} {record.state} {self.metric}={value} epochs={len(record.rows)} "
            f"best={best} left={left} eta={clock(pace * left)}"
        )
        return text + (f" reason: {record.reason}" if record.state == "FAIL" else "")

    def top(self, n: int) -> list[tuple[Record, Row]]:
        """The n best trials with their best epochs, best first."""
        pairs = [
            (record, row)
            for record in self.trials.values()
            if (row := record.best(self.metric)) is not None
        ]
        return sorted(pairs, key=lambda pair: rank(pair[1], self.metric), reverse=True)[:n]

    def front(self) -> dict[int, list[float]]:
        """Number and values of the run's complete trials on its Pareto front."""
        complete = [
            (r, objectives.values(self.objectives, r, self.metric))
            for r in self.trials.values()
            if r.state == "COMPLETE"
        ]
        found = {record.number: value for record, value in complete if value is not None}
        return {number: found[number] for number in objectives.front(self.objectives, found)}

    # ---- tables

    def trials_table(self) -> pa.Table:
        """One row a settled trial; the columns that DESIGN names, `params_*` in the order of their first appearance."""
        records = [
            r for r in sorted(self.trials.values(), key=lambda r: r.number) if r.state != "RUNNING"
        ]
        names = list(dict.fromkeys(name for record in records for name in record.params))
        columns: dict[str, pa.Array] = {
            "number": pa.array([r.number for r in records], pa.int64()),
            "state": pa.array([r.state for r in records], pa.string()),
            "value": pa.array([_value(r, self.metric) for r in records], pa.float64()),
        }
        if self.objectives:
            found = [
                objectives.values(self.objectives, r, self.metric) if r.state != "FAIL" else None
                for r in records
            ]
            for i, objective in enumerate(self.objectives):
                columns[f"values_{objective}"] = pa.array(
                    [None if v is None else v[i] for v in found], pa.float64()
                )
            front = self.front()
            columns["pareto"] = pa.array([r.number in front for r in records], pa.bool_())
        for name in names:
            columns[f"params_{name}"] = _column([r.params.get(name) for r in records])
        columns |= {
            "n_parameters": pa.array([r.n_parameters for r in records], pa.int64()),
            "epochs": pa.array([len(r.rows) for r in records], pa.int64()),
            "seconds": pa.array(
                [sum(row.get("seconds") or 0.0 for row in r.rows.values()) for r in records],
                pa.float64(),
            ),
            "node": pa.array([r.node for r in records], pa.string()),
            "reason": pa.array([r.reason for r in records], pa.string()),
        }
        if any(r.exploits for r in records):
            columns["exploits"] = pa.array([json.dumps(r.exploits) for r in records], pa.string())
        return pa.table(columns)

    def history_table(self) -> pa.Table:
        """One row a trial and epoch, in the order of number and epoch."""
        pairs = [
            (record.number, record.rows[epoch])
            for record in sorted(self.trials.values(), key=lambda r: r.number)
            for epoch in sorted(record.rows)
        ]
        columns = {"number": pa.array([number for number, _ in pairs], pa.int64())}
        for name, kind in HISTORY.items():
            columns[name] = pa.array([row.get(name) for _, row in pairs], kind)
        return pa.table(columns)


# The reason of a trial that a killed run left without a checkpoint: closed as FAIL, its values tried again under another number.
INTERRUPTED = "interrupted before its first checkpoint; tried again"


def _value(record: Record, metric: str) -> float | None:
    row = record.best(metric) if record.state != "FAIL" else None
    return None if row is None else row[metric]


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # one parameter with values of several types
        return pa.array([None if v is None else str(v) for v in values], pa.string())


def curve_table(rows: Sequence[EpochRow]) -> pa.Table:
    """One row an epoch."""
    return pa.Table.from_pylist(rows, schema=pa.schema(HISTORY))


def parquet(table: pa.Table) -> bytes:
    """The table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def rows_from(summary: Mapping[str, Any]) -> dict[int, Row]:
    """The rows that Record.summary kept, by epoch; what was not finite is NaN again."""
    return {
        row["epoch"]: {name: row.get(name, math.nan) for name in HISTORY}
        for row in summary.get("rows", [])
    }


def table_text(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Plain text columns for a terminal or a log."""
    lines = [[str(cell) for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def clock(seconds: float) -> str:
    """Seconds as hh:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
