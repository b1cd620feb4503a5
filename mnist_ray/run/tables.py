"""A run's tables: `trials.parquet`, `history.parquet`, a stage's curve, and text for a terminal."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mnist_ray.errors import CorruptFileError, first_line
from mnist_ray.run import layout
from mnist_ray.run.records import COLUMNS as OF_EPOCH
from mnist_ray.run.records import EpochRow, Records, is_own, value_of
from mnist_ray.settings.checks import MOST
from mnist_ray.storage import RunStorage

MOST_VALUES = 100_000_000  # of a table
STATES = {"COMPLETE", "PRUNED", "FAIL"}  # of a settled trial

HISTORY: dict[str, pa.DataType] = {
    name: pa.int64() if kind is int else pa.float64() for name, kind in OF_EPOCH.items()
}
# The columns that every trials.parquet has; parameters and objectives have one each besides.
TRIALS: dict[str, pa.DataType] = {
    "number": pa.int64(), "state": pa.string(), "value": pa.float64(), "n_parameters": pa.int64(),
    "epochs": pa.int64(), "seconds": pa.float64(), "node": pa.string(), "reason": pa.string(),
}  # fmt: skip
COLUMNS = {layout.TRIALS: TRIALS, layout.HISTORY: {"number": pa.int64(), **HISTORY}}
FORMATS = {"accuracy": ".4f", "loss": ".4f", "parameters": ".0f", "latency": ".3f"}


def read(
    storage: RunStorage, name: str, columns: Mapping[str, pa.DataType] | None = None
) -> pa.Table:
    """A table of a run: trials.parquet, history.parquet, or a stage's curve.

    Columns are converted to the types that they should have, so that no text stands for a number.

    Args:
        storage: The run's directory.
        name: The file's.
        columns: Of another table: its columns.

    Raises:
        FileNotFoundError: It is not there yet.
        CorruptFileError: It is damaged.
    """
    content = storage.read_bytes(name)
    try:
        table = read_bounded(content)
        own = {each: pa.float64() for each in table.column_names if is_own(each)}
        for column, kind in {**(columns or COLUMNS.get(name, HISTORY)), **own}.items():
            place = table.schema.get_field_index(column)
            table = table.set_column(place, column, table[column].cast(kind))
        table.validate(full=True)
        _check(table)
    except (pa.ArrowException, OSError, KeyError, ValueError, OverflowError) as error:
        raise CorruptFileError(
            f"{storage.join(name)} is not a Parquet file or is damaged: {first_line(error)}"
        ) from error
    return table


def read_bounded(content: bytes) -> pa.Table:
    """A Parquet file's table. ValueError if it is too large: a few bytes may hold 10^9 rows."""
    file = pq.ParquetFile(pa.BufferReader(content))
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    values = sum(g.column(i).num_values for g in groups for i in range(g.num_columns))
    if values > MOST_VALUES:
        raise ValueError(f"it holds {values:,} values; at most {MOST_VALUES:,} are allowed")
    return file.read()


def _check(table: pa.Table) -> None:
    """Raises ValueError if a row cannot be one of ours."""
    for column, least in (("number", 0), ("epoch", 1), ("epochs", 0), ("n_parameters", 0)):
        if column not in table.column_names:
            continue
        values = table[column].to_pylist()
        may_lack = column == "n_parameters"
        if any(not may_lack if v is None else not least <= v <= 2**40 for v in values):
            raise ValueError(f"a value of the column {column} cannot be")
        if column != "n_parameters" and any(v > MOST for v in values):
            raise ValueError(f"a value of the column {column} is more than {MOST}")
    if "state" in table.column_names and set(table["state"].to_pylist()) - STATES:
        raise ValueError(f"a state is none of {', '.join(sorted(STATES))}")
    for field in table.schema:
        plain = pa.types.is_string(field.type) or pa.types.is_boolean(field.type)
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        if field.name.startswith(("params_", "values_")) and not (
            plain or number or pa.types.is_null(field.type)
        ):
            raise ValueError(f"the column {field.name} is of the type {field.type}")


def trials_table(run: Records) -> pa.Table:
    """One row a settled trial, by number; `params_*` in the order of their first appearance."""
    records = [r for _, r in sorted(run.trials.items()) if r.state != "RUNNING"]
    succeeded = [None if r.state == "FAIL" else r for r in records]
    best = [None if r is None else r.best(run.metric) for r in succeeded]
    columns: dict[str, pa.Array] = {
        "number": pa.array([r.number for r in records], pa.int64()),
        "state": pa.array([r.state for r in records], pa.string()),
        "value": pa.array(
            [value_of(row, run.metric) if row else None for row in best], pa.float64()
        ),
    }
    if run.objectives:
        values = [r.values(run.objectives, run.metric) if r else None for r in succeeded]
        for i, objective in enumerate(run.objectives):
            column = [None if v is None else v[i] for v in values]
            columns[f"values_{objective}"] = pa.array(column, pa.float64())
        front = run.front()
        columns["pareto"] = pa.array([r.number in front for r in records], pa.bool_())
    for name in dict.fromkeys(name for record in records for name in record.params):
        columns[f"params_{name}"] = _column([r.params.get(name) for r in records])
    columns |= {
        "n_parameters": pa.array([r.n_parameters for r in records], pa.int64()),
        "epochs": pa.array([len(r.rows) for r in records], pa.int64()),
        "seconds": pa.array([r.seconds for r in records], pa.float64()),
        "node": pa.array([r.node for r in records], pa.string()),
        "reason": pa.array([r.reason for r in records], pa.string()),
    }
    if any(row and "violation" in row for row in best):
        known = [row.get("violation") if row else None for row in best]
        columns["violation"] = pa.array(known, pa.float64())
    for name in ("latency_ms", "size"):
        if any(getattr(r, name) is not None for r in records):
            columns[name] = pa.array([getattr(r, name) for r in records], pa.float64())
    if any(r.exploits for r in records):
        columns["exploits"] = pa.array([json.dumps(r.exploits) for r in records], pa.string())
    return pa.table(columns)


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # one parameter with values of several types
        return pa.array([None if v is None else str(v) for v in values], pa.string())


def history_table(run: Records) -> pa.Table:
    """One row a trial and epoch, by number and epoch."""
    rows = [
        {"number": number, **row}
        for number, record in sorted(run.trials.items())
        for _, row in sorted(record.rows.items())
    ]
    schema = {"number": pa.int64(), **HISTORY, **_own_columns(rows)}
    return pa.Table.from_pylist(rows, schema=pa.schema(schema))


def curve_table(rows: Sequence[EpochRow]) -> pa.Table:
    """One row an epoch of a fine-tune stage."""
    return pa.Table.from_pylist(rows, schema=pa.schema({**HISTORY, **_own_columns(rows)}))


def _own_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.DataType]:
    """The columns that only some runs have."""
    return {key: pa.float64() for row in rows for key in row if is_own(key)}


def parquet(table: pa.Table) -> bytes:
    """The table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def objective_cells(objectives: Sequence[str], values: Sequence[float]) -> list[str]:
    """The values of objectives as a table for people shows them."""
    return [f"{value:{FORMATS[name]}}" for name, value in zip(objectives, values, strict=True)]


def table_text(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Plain text columns for a terminal or a log."""
    lines = [[str(cell) for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
