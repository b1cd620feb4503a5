"""The best of a search, and `confirmed.parquet`: the best trials, trained again with fresh seeds.

Retrainings are no trials of the study, and have a table of their own: a row for each.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mnist_ray.errors import CorruptFileError
from mnist_ray.run import layout, tables
from mnist_ray.run.records import keeps_limits, rank, usable
from mnist_ray.settings.objectives import direction
from mnist_ray.storage import RunStorage


@dataclass(frozen=True)
class Confirmed:
    """A trial that `--confirm` has trained again.

    Attributes:
        number: The trial's number.
        found: The value by which the search found it.
        values: That of each retraining, one a seed; as `found` each of its best epoch.
    """

    number: int
    found: float
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean of `values`: the one by which the best is chosen."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """The standard deviation of `values`; 0 of one alone."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def difference(self) -> float:
        """`found` minus `mean`: by how much the search's value was chance."""
        return self.found - self.mean


@dataclass(frozen=True)
class Best:
    """The best epoch of a search, and its trial.

    Attributes:
        number: The trial's number.
        epoch: The epoch, from 1.
        value: The run's metric after it: an accuracy in [0, 1], or a loss.
        params: The sampler's suggestions for the trial.
        confirmed: With `--confirm`: its values with fresh seeds, by which it is the best.
    """

    number: int
    epoch: int
    value: float
    params: dict[str, Any]
    confirmed: Confirmed | None = None


def best_epoch(
    history: Sequence[Mapping[str, Any]],
    metric: str,
    chosen: Confirmed | None,
    trials: Sequence[Mapping[str, Any]] = (),
) -> Mapping[str, Any] | None:
    """The best epoch that keeps the limits; None if there is none.

    Args:
        history: Rows of `history.parquet`.
        metric: See `objectives.goal`.
        chosen: The trial that --confirm has chosen, whose epochs alone count then.
        trials: Rows of `trials.parquet`: some versions noted there alone what is beyond a limit.
    """
    beyond = {trial["number"] for trial in trials if not keeps_limits(trial)}
    rows = [row for row in history if usable(row, metric) and keeps_limits(row)]
    rows = [row for row in rows if row["number"] not in beyond]
    if chosen:
        rows = [row for row in rows if row["number"] == chosen.number]
    return max(rows, key=lambda row: rank(row, metric), default=None)


def best_of(trials: Sequence[Confirmed], metric: str) -> Confirmed | None:
    """The trial with the best mean; of equal ones the one that the search found better."""
    sign = 1 if direction(metric) == "maximize" else -1
    return max(trials, key=lambda each: (sign * each.mean, sign * each.found), default=None)


# ---- the table

# Of one retraining; `confirmed`: all those of its trial are complete and keep the limits.
RETRAINING = {
    "number": pa.int64(), "seed": pa.int64(), "state": pa.string(), "value": pa.float64(),
    "found": pa.float64(), "best_epoch": pa.int64(), "epochs": pa.int64(),
    "seconds": pa.float64(), "reason": pa.string(), "confirmed": pa.bool_(), "chosen": pa.bool_(),
}  # fmt: skip


def write(storage: RunStorage, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the table. rows: RETRAINING's columns."""
    table = pa.Table.from_pylist([*rows], schema=pa.schema(RETRAINING))
    storage.write_bytes(layout.CONFIRMED, tables.parquet(table))


def read(storage: RunStorage) -> tuple[Confirmed, ...]:
    """The confirmed trials of a run, the chosen one first; () if there are none.

    Raises:
        CorruptFileError: The table is damaged.
    """
    try:
        rows = tables.read(storage, layout.CONFIRMED, RETRAINING).to_pylist()
    except FileNotFoundError:
        return ()
    rows = [row for row in rows if row["confirmed"]]
    if not all(_finite(row["found"]) and _finite(row["value"]) for row in rows):
        raise CorruptFileError(f"{storage.join(layout.CONFIRMED)} is damaged: a value is missing")
    numbers = dict.fromkeys(
        row["number"] for row in sorted(rows, key=lambda row: not row["chosen"])
    )
    return tuple(of_rows([row for row in rows if row["number"] == number]) for number in numbers)


def of_rows(rows: Sequence[Mapping[str, Any]]) -> Confirmed:
    """The trial of these rows."""
    return Confirmed(rows[0]["number"], rows[0]["found"], tuple(row["value"] for row in rows))


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def params_of(trials: Sequence[Mapping[str, Any]], number: int) -> dict[str, Any]:
    """A trial's suggestions as the rows of trials.parquet have them; none if it has no row."""
    found: Mapping[str, Any] = next((t for t in trials if t["number"] == number), {})
    return {
        key.removeprefix("params_"): value
        for key, value in found.items()
        if key.startswith("params_") and value is not None
    }
