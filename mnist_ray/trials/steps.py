"""What a training function yields, as an epoch's row; its state as bytes with a digest.

The search's trials and the second job of a function of one's own both go by this.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, NamedTuple

from mnist_ray.errors import CorruptFileError
from mnist_ray.run.records import COLUMNS, METRIC_PREFIX, EpochRow, checked, checked_row
from mnist_ray.settings.objectives import column, function_of


class Step(NamedTuple):
    """One yield of a training function."""

    row: EpochRow
    state: bytes | None
    n_parameters: int | None


def step(yielded: Any, epoch: int, seconds: float, metric: str) -> Step:
    """Takes a yield apart.

    Args:
        yielded: A mapping of metrics, or that and a state as bytes.
        epoch: Its number, from 1.
        seconds: That it took.
        metric: See `objectives.goal`.

    Raises:
        TypeError: It is something else.
        KeyError: The metric that is optimised is not there.
    """
    metrics, state = yielded if isinstance(yielded, tuple) else (yielded, None)
    if not isinstance(metrics, Mapping) or not (state is None or isinstance(state, bytes)):
        raise TypeError(
            "the training function must yield a dict of metrics, or that and its state as "
            f"bytes; found {type(metrics).__name__} and {type(state).__name__}"
        )
    values = {str(key): _number(key, value) for key, value in metrics.items()}
    parameters = values.pop("n_parameters", None)
    row: dict[str, Any] = {name: values.get(name, math.nan) for name in COLUMNS}
    row |= {"epoch": epoch, "seconds": seconds}
    own = {k: v for k, v in values.items() if k not in COLUMNS and k != "val_metric"}
    row |= {f"{METRIC_PREFIX}{key}": value for key, value in own.items()}
    if column(metric) == "val_metric":
        name = function_of(metric)
        if name not in values and "val_metric" not in values:
            names = ", ".join(values) or "none"
            raise KeyError(f"--metric {name} is not among the metrics yielded: {names}")
        row["val_metric"] = values.get("val_metric", values.get(name))
    return Step(checked_row(row), state, None if parameters is None else int(parameters))


def _number(name: Any, value: Any) -> float:
    """A metric's value, also NumPy's or a tensor's of one element, as a Python number."""
    plain = value.item() if hasattr(value, "item") else value
    if not isinstance(plain, Real):
        raise TypeError(f"the metric {name!r} is {value!r:.60}; expected a number")
    return float(plain)


def pack(rows: list[EpochRow], state: bytes | None, n_parameters: int | None = None) -> bytes:
    """A line of JSON with rows, the best epoch's n_parameters and a SHA-256; then the state."""
    body = state or b""
    digest = _digest(rows, body, n_parameters)
    header = {"rows": rows, "sha256": digest, "state": state is not None}
    header["n_parameters"] = n_parameters
    return json.dumps(header).encode() + b"\n" + body


def _digest(rows: list[EpochRow], body: bytes, n_parameters: int | None) -> str:
    number = b"" if n_parameters is None else str(n_parameters).encode()
    return hashlib.sha256(json.dumps(rows).encode() + number + body).hexdigest()


def unpack(data: bytes, source: str) -> tuple[list[EpochRow], bytes | None, int | None]:
    """The arguments of `pack`. Raises CorruptFileError naming `source` if a byte differs."""
    head, _, body = data.partition(b"\n")
    try:
        header = json.loads(head)
        rows, expected = header["rows"], header["sha256"]
        n_parameters = header.get("n_parameters")
        if n_parameters is not None:
            checked(n_parameters, int, "n_parameters")
        read = [checked_row(row) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(
            f"{source} is not a checkpoint of this project or is damaged: {error!r}"
        ) from error
    if _digest(rows, body, n_parameters) != expected:
        raise CorruptFileError(
            f"{source} is damaged: its content does not match the SHA-256 that it carries"
        )
    return read, body if header.get("state", True) else None, n_parameters
