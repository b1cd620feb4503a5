"""A run's trials as plain data: epochs, the best of them, the log lines.

Nothing here knows Ray, Optuna or torch: a person reads the same of every run.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, TypeVar, cast

from mnist_ray.settings.checks import MOST
from mnist_ray.settings.objectives import DIRECTIONS, column, direction, function_of, is_yielded

T = TypeVar("T")

# The reason of a trial that a killed run left without a checkpoint. It is closed as FAIL, and its
# values are tried again under another number.
INTERRUPTED = "interrupted before its first checkpoint; tried again"


class EveryRow(TypedDict):
    """Every epoch: the columns of `history.parquet` and of a stage's curve.

    Losses and accuracies (shares of 1) of the validation are NaN if there is none. `seconds` is
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


class EpochRow(EveryRow, total=False):
    """One epoch."""

    val_metric: float
    """The run's metric, where it is neither accuracy nor loss."""
    violation: float
    """How far it is beyond the limits of --constraint, where there are any; 0 keeps them."""


OWN = ("val_metric", "violation")  # columns that only some runs have
METRIC_PREFIX = "metrics_"  # of the columns that hold metrics of a training function


def is_own(column: str) -> bool:
    """Whether only some runs have this column of an epoch's rows."""
    return column in OWN or column.startswith(METRIC_PREFIX)


def epoch_row(values: Mapping[str, Any]) -> EpochRow:
    """The row within a trial's result; a missing value is NaN."""
    own = {k: v for k, v in values.items() if v is not None and is_own(k)}
    return cast(EpochRow, {**{name: values.get(name, math.nan) for name in COLUMNS}, **own})


def value_of(row: EpochRow, metric: str) -> float:
    """The row's value of the run's metric; NaN where it has none."""
    value = row.get(column(metric))
    return math.nan if value is None else float(value)  # type: ignore[arg-type]


def keeps_limits(row: Mapping[str, Any]) -> bool:
    """Whether an epoch keeps the limits of --constraint; True where there are none."""
    return not row.get("violation")


def usable(row: Mapping[str, Any], metric: str) -> bool:
    """Whether an epoch can be the best: its loss is finite, or it has none but its own metric.

    Of what a training function yields the metric alone decides: `val_loss` may be any number there.
    """
    loss = row["val_loss"]
    if is_yielded(metric) or loss is None or math.isnan(loss):
        own = row.get(column(metric)) if column(metric) not in COLUMNS else None
        return own is not None and math.isfinite(own)
    return math.isfinite(loss)


def rank(row: Mapping[str, Any], metric: str) -> tuple[float, float, float]:
    """Sort key of an epoch, larger is better: first the limits, then the metric.

    Equal values, frequent on few images, are told apart by the loss.
    """
    limits = -(row.get("violation") or 0.0)
    known = row["val_loss"] is not None and math.isfinite(row["val_loss"])
    loss = -row["val_loss"] if known else -math.inf
    if metric == "val_loss":
        accuracy = row["val_accuracy"]
        return (limits, loss, -math.inf if accuracy is None else accuracy)
    value = row.get(column(metric))
    if value is None or math.isnan(value):
        return (limits, -math.inf, loss)
    return (limits, value if direction(metric) == "maximize" else -value, loss)


COLUMNS = EveryRow.__annotations__


@dataclass
class Record:
    """One trial.

    Args:
        number: The trial's.
        params: The values that were suggested.
        state: RUNNING, COMPLETE, PRUNED or FAIL.
        reason: Why it failed or was stopped.
        n_parameters: Trainable numbers of the network of its best epoch.
        node: The machine's name.
        rows: One row an epoch, by epoch.
        latency_ms: Of one image in onnxruntime, if it is an objective or limited.
        size: Bytes of its ONNX file, if that is limited.
        complete: Whether it ended by itself, perhaps before the most epochs.
        exploits: With `--scheduler pbt`, each time that it went on with another's weights: after
            which epoch, from which trial, and its new values.
    """

    number: int
    params: dict[str, Any]
    state: str = "RUNNING"
    reason: str = ""
    n_parameters: int | None = None
    node: str = ""
    rows: dict[int, EpochRow] = field(default_factory=dict)
    latency_ms: float | None = None
    size: int | None = None
    complete: bool = False
    exploits: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of the training and validation of all its epochs."""
        return sum(row.get("seconds") or 0.0 for row in self.rows.values())

    def best(self, metric: str) -> EpochRow | None:
        """The best of its epochs; None if no epoch ended with a finite loss."""
        finite = [row for row in self.rows.values() if usable(row, metric)]
        return max(finite, key=lambda row: rank(row, metric), default=None)

    def measured(self, metric: str) -> dict[str, float | None]:
        """The values that --constraint may limit, at its best epoch."""
        row = self.best(metric)
        return {
            "parameters": self.n_parameters,
            "latency": self.latency_ms,
            "size": self.size,
            "accuracy": row["val_accuracy"] if row else None,
        }

    def values(self, objectives: Sequence[str], metric: str) -> list[float] | None:
        """The values of objectives at its best epoch by the metric; None if it lacks one."""
        row = self.best(metric)
        return None if row is None else self.values_at(row, objectives)

    def values_at(self, row: EpochRow, objectives: Sequence[str]) -> list[float] | None:
        """The values of objectives at an epoch; None if it lacks one."""
        if self.n_parameters is None:
            return None
        known = {
            "accuracy": row["val_accuracy"],
            "loss": row["val_loss"],
            "parameters": float(self.n_parameters),
            "latency": self.latency_ms,
        }
        values = [value for name in objectives if (value := known[name]) is not None]
        return values if len(values) == len(objectives) else None

    def summary(self) -> dict[str, Any]:
        """All of it but number, state and params, as JSON can hold it, for the study to keep."""
        rows = [
            {k: v for k, v in row.items() if not isinstance(v, float) or math.isfinite(v)}
            for row in self.rows.values()
        ]
        return {
            "reason": self.reason,
            "n_parameters": self.n_parameters,
            **({} if self.latency_ms is None else {"latency_ms": self.latency_ms}),
            **({} if self.size is None else {"size": self.size}),
            "node": self.node,
            **({"exploits": self.exploits} if self.exploits else {}),
            "rows": rows,
        }


def rows_from(summary: Mapping[str, Any]) -> dict[int, EpochRow]:
    """The rows that `Record.summary` kept, by epoch; values that were not finite are NaN again.

    Raises:
        ValueError: they are not as they were kept.
    """
    rows = [checked_row(row) for row in checked(summary.get("rows", []), list, "rows")]
    return {row["epoch"]: row for row in rows}


def checked_row(values: Any) -> EpochRow:
    """The row within a stored one. Raises ValueError if it is none."""
    row = epoch_row(checked(values, dict, "a row"))
    epoch = checked(row["epoch"], int, "epoch")
    if not 1 <= epoch <= MOST:
        raise ValueError(f"epoch is {epoch}")
    for name, value in row.items():
        checked(value, (int, float), name)
    return row


def checked(value: Any, kind: type[T] | tuple[type[T], ...], name: str) -> T:
    """The value, which is of that type. Raises ValueError; no bool is a number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} is {value!r:.60}")
    return value


class Records:
    """All trials of a run.

    Args:
        metric: See `objectives.goal`.
        total: How many trials the run has in all.
        objectives: Names of `settings.objectives`; none if the metric is the only one.
    """

    def __init__(self, metric: str, total: int, objectives: Sequence[str] = ()) -> None:
        self.metric, self.total, self.objectives = metric, total, tuple(objectives)
        self.trials: dict[int, Record] = {}
        # Over all epochs of all trials that keep the limits.
        self.best: tuple[int, EpochRow] | None = None
        self.tried_again = 0  # trials that were cut off and whose values get another number
        # Counted, not looked for: every trial asks, and a search may have ten thousand.
        self._running: set[int] = set()
        self.paused: Collection[int] = ()  # numbers of trials that wait (see tune/promotion.py)
        self._started, self._settled_before = time.monotonic(), 0

    def add(self, record: Record) -> Record:
        """Takes a trial in, with the rows that it has already."""
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
        """Trials that were settled before this process do not count towards the ETA."""
        self._settled_before = self.judged()

    def report(self, number: int, row: Mapping[str, Any]) -> None:
        """Takes an epoch's row; one that was reported before a restart keeps its first row."""
        record = self.trials[number]
        if row["epoch"] not in record.rows:
            record.rows[row["epoch"]] = epoch_row(row)
            self._consider(record, record.rows[row["epoch"]])

    def _consider(self, record: Record, row: EpochRow) -> None:
        if (
            usable(row, self.metric)
            and keeps_limits(row)
            and (self.best is None or rank(row, self.metric) > rank(self.best[1], self.metric))
        ):
            self.best = (record.number, row)

    def running(self) -> list[Record]:
        """The trials that have not ended and are not paused, by number."""
        return [self.trials[n] for n in sorted(self._running) if n not in self.paused]

    def settled(self) -> int:
        """How many of the run's trials have ended, without those that are tried again."""
        return len(self.trials) - len(self._running) - self.tried_again

    def judged(self) -> int:
        """How many have ended or are paused."""
        return self.settled() + len(self.paused)

    def line(self, number: int) -> str:
        """The log line of a finished trial."""
        record = self.trials[number]
        row = record.best(self.metric)
        value = "nan" if row is None else f"{value_of(row, self.metric):.4f}"
        best = "none"
        if self.best is not None:
            best = f"{value_of(self.best[1], self.metric):.4f} (trial {self.best[0]})"
        done = self.judged()
        left = max(0, self.total - done)
        pace = (time.monotonic() - self._started) / max(1, done - self._settled_before)
        measured = f"{function_of(self.metric)}={value} epochs={len(record.rows)}"
        text = (
            f"trial {number} {record.state} {measured} "
            f"best={best} left={left} eta={clock(pace * left)}"
        )
        return text + (f" reason: {record.reason}" if record.state == "FAIL" else "")

    def top(self, n: int) -> list[tuple[Record, EpochRow]]:
        """The n best trials that keep the limits, with their best epochs, best first."""
        pairs = [
            (r, row)
            for r in self.trials.values()
            if (row := r.best(self.metric)) is not None and keeps_limits(row)
        ]
        return sorted(pairs, key=lambda pair: rank(pair[1], self.metric), reverse=True)[:n]

    def front(self) -> dict[int, list[float]]:
        """Number and values of the Pareto-optimal trials: complete ones that keep the limits."""
        complete = [
            r
            for r in self.trials.values()
            if r.state == "COMPLETE" and (row := r.best(self.metric)) and keeps_limits(row)
        ]
        values = {r.number: r.values(self.objectives, self.metric) for r in complete}
        known = {number: found for number, found in values.items() if found is not None}
        return {number: known[number] for number in pareto_front(self.objectives, known)}


def pareto_front(objectives: Sequence[str], trials: Mapping[int, Sequence[float]]) -> list[int]:
    """The Pareto-optimal trials of number -> values; equal ones are all among them."""
    signs = [-1 if DIRECTIONS[name] == "maximize" else 1 for name in objectives]
    costs = {n: [s * v for s, v in zip(signs, values, strict=True)] for n, values in trials.items()}
    front: list[int] = []
    for number in sorted(costs, key=costs.__getitem__):  # only an earlier one can be better
        mine = costs[number]
        better = (
            costs[n] != mine and all(a <= b for a, b in zip(costs[n], mine, strict=True))
            for n in front
        )
        if not any(better):
            front.append(number)
    return sorted(front)


def clock(seconds: float) -> str:
    """Seconds as hh:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
