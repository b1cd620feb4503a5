"""Trials of a function of one's own: each of its yields is an epoch, and may bring a state.

    def train(hp, seed, device, state, data):
        model = pickle.loads(state) if state else Model(hp["lr"], seed)
        while True:
            model.fit(data)
            yield {"accuracy": model.score(data)}, pickle.dumps(model)

Only `hp` must be there; of the others a function takes those that it needs. After an interruption
it goes on from the last state that it yielded, or begins anew if there is none. One that ends by
itself makes its trial complete.
"""

import hashlib
import inspect
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any, ClassVar

from mnist_ray.errors import CorruptFileError
from mnist_ray.run import layout
from mnist_ray.run.records import COLUMNS, METRIC_PREFIX, EpochRow, checked_row, rank, value_of
from mnist_ray.settings import constraints
from mnist_ray.settings.objectives import column, function_of
from mnist_ray.settings.text import load
from mnist_ray.tune.trainable import EpochTrial
from mnist_ray.tune.trial import Result, TrialContext, ended, reported

Train = Callable[..., Iterator[Any]]


class FunctionTrial(EpochTrial):
    """Runs a training function, an epoch a step."""

    LATEST = "latest.state"
    BEST: ClassVar[dict[str, str]] = {"best.json": "state.json", "best.state": "state"}

    function: Train
    data: Any
    steps: Iterator[Any] | None = None

    def setup(
        self,
        config: dict[str, Any],
        context: TrialContext | None = None,
        function: str = "",
        data: Any = None,
    ) -> None:
        """Takes the data, which come from the object store, and begins the first trial.

        Args:
            config: The hyperparameters and the trial's number.
            context: Common to all trials.
            function: `module:function`.
            data: Whatever the function wants as `data`.
        """
        self.take(context)
        self.function, self.data = load(function, "--train", ()), data
        self.begin_config(config)

    def begin(self, number: int, hp: dict[str, Any]) -> None:
        """Takes up a trial."""
        super().begin(number, hp)
        self._close()
        self.rows: list[EpochRow] = []
        self.state: bytes | None = None  # the last that was yielded
        self.n_parameters: int | None = None

    def cleanup(self) -> None:
        """Ends the function, so that its `finally` runs."""
        self._close()

    def _close(self) -> None:
        close, self.steps = getattr(self.steps, "close", None), None
        if close is not None:
            close()

    def epoch(self) -> Result:
        """Runs the function to its next yield, or reports the last epoch of the checkpoint."""
        if self.steps is None:
            loaded = self._load()
            self.steps = iter(self._started())
            if loaded:
                return self._report(self.rows[-1], self.rows)
        began = time.perf_counter()
        try:
            yielded = next(self.steps)
        except StopIteration:
            if not self.rows:
                return ended(reason="the training function ended without a yield")
            result = self._report(self.rows[-1], None)
            return {**result, "complete": True, "done": True}
        row, state = self._row(yielded, time.perf_counter() - began)
        if not math.isfinite(value_of(row, self.context.metric)):
            name = function_of(self.context.metric)
            return ended(reason=f"{name} is not finite at epoch {row['epoch']}")
        self.rows.append(row)
        self._save(row, state)
        return self._report(row, None)

    def _started(self) -> Iterator[Any]:
        """The generator, given those arguments that the function takes."""
        parameters = inspect.signature(self.function).parameters
        everything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        given = {
            "seed": self.context.seed,
            "device": "cuda" if self.context.gpus else "cpu",
            "state": self.state,
            "data": self.data,
        }
        wanted = {k: v for k, v in given.items() if everything or k in parameters}
        return self.function(dict(self.hp), **wanted)

    def _row(self, yielded: Any, seconds: float) -> tuple[EpochRow, bytes | None]:
        """The epoch's row, and the state that came with it."""
        metrics, state = yielded if isinstance(yielded, tuple) else (yielded, None)
        if not isinstance(metrics, Mapping) or not (state is None or isinstance(state, bytes)):
            raise TypeError(
                "the training function must yield a dict of metrics, or that and its state as "
                f"bytes; found {type(metrics).__name__} and {type(state).__name__}"
            )
        values = {str(key): _number(key, value) for key, value in metrics.items()}
        parameters = values.pop("n_parameters", None)
        self.n_parameters = None if parameters is None else int(parameters)
        row: dict[str, Any] = {name: values.get(name, math.nan) for name in COLUMNS}
        row |= {"epoch": len(self.rows) + 1, "seconds": seconds}
        own = {k: v for k, v in values.items() if k not in COLUMNS and k != "val_metric"}
        row |= {f"{METRIC_PREFIX}{key}": value for key, value in own.items()}
        if column(self.context.metric) == "val_metric":
            name = function_of(self.context.metric)
            if name not in values and "val_metric" not in values:
                names = ", ".join(values) or "none"
                raise KeyError(f"--metric {name} is not among the metrics yielded: {names}")
            row["val_metric"] = values.get("val_metric", values.get(name))
        if limits := self.context.constraints:
            measured = {"parameters": parameters, "accuracy": row["val_accuracy"]}
            row["violation"] = constraints.violation(limits, measured)
        return checked_row(row), state

    def _report(self, row: EpochRow, rows: list[EpochRow] | None) -> Result:
        return reported(self.context, row, self.n_parameters, rows)

    # ---- files

    def _load(self) -> bool:
        """Takes up the checkpoint; whether there is one with a state."""
        name = f"{layout.trial_folder(self.number)}/{self.LATEST}"
        if not self.storage.exists(name):
            return False
        rows, self.state = unpack(self.storage.read_bytes(name), self.storage.join(name))
        self.rows = rows if self.state is not None else []
        return self.state is not None

    def _save(self, row: EpochRow, state: bytes | None) -> None:
        """Keeps the best epoch. The checkpoint stays that of the last epoch with a state."""
        folder, content = layout.trial_folder(self.number), state or b""
        if max(self.rows, key=lambda r: rank(r, self.context.metric)) is row:
            metadata = {
                "number": self.number,
                "row": {k: v for k, v in row.items() if v == v},  # JSON has no NaN
                "hyperparameters": self.hp,
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            described, kept = self.BEST
            self.storage.write_json(f"{folder}/{described}", metadata)
            self.storage.write_bytes(f"{folder}/{kept}", content)
        if state is not None or self.state is None:
            self.state = state
            self.storage.write_bytes(f"{folder}/{self.LATEST}", pack(self.rows, state))


def _number(name: Any, value: Any) -> float:
    """A metric's value, also NumPy's or a tensor's of one element, as a Python number."""
    plain = value.item() if hasattr(value, "item") else value
    if not isinstance(plain, Real):
        raise TypeError(f"the metric {name!r} is {value!r:.60}; expected a number")
    return float(plain)


def pack(rows: list[EpochRow], state: bytes | None) -> bytes:
    """A line of JSON, with the rows and the SHA-256 of rows and state; then the state."""
    body = state or b""
    digest = hashlib.sha256(json.dumps(rows).encode() + body).hexdigest()
    header = {"rows": rows, "sha256": digest, "state": state is not None}
    return json.dumps(header).encode() + b"\n" + body


def unpack(data: bytes, source: str) -> tuple[list[EpochRow], bytes | None]:
    """The arguments of `pack`. Raises CorruptFileError naming `source` if a byte differs."""
    head, _, body = data.partition(b"\n")
    try:
        header = json.loads(head)
        rows, expected = header["rows"], header["sha256"]
        checked = [checked_row(row) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(
            f"{source} is not a checkpoint of this project or is damaged: {error!r}"
        ) from error
    if hashlib.sha256(json.dumps(rows).encode() + body).hexdigest() != expected:
        raise CorruptFileError(
            f"{source} is damaged: its content does not match the SHA-256 that it carries"
        )
    return checked, body if header.get("state", True) else None
