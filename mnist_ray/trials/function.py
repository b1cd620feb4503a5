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
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from mnist_ray.run import layout
from mnist_ray.run.records import EpochRow, rank, value_of
from mnist_ray.settings import constraints
from mnist_ray.settings.functions import started
from mnist_ray.settings.objectives import function_of
from mnist_ray.settings.text import load
from mnist_ray.trials.steps import pack, step, unpack
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
        self.best_parameters: int | None = None  # of the best epoch

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
        return started(
            self.function,
            self.hp,
            seed=self.context.seed,
            device="cuda" if self.context.gpus else "cpu",
            state=self.state,
            data=self.data,
        )

    def _row(self, yielded: Any, seconds: float) -> tuple[EpochRow, bytes | None]:
        """The epoch's row, and the state that came with it."""
        row, state, self.n_parameters = step(
            yielded, len(self.rows) + 1, seconds, self.context.metric
        )
        if limits := self.context.constraints:
            measured = {"parameters": self.n_parameters, "accuracy": row["val_accuracy"]}
            row["violation"] = constraints.violation(limits, measured)
        return row, state

    def _report(self, row: EpochRow, rows: list[EpochRow] | None) -> Result:
        return reported(self.context, row, self.n_parameters, rows)

    # ---- files

    def _load(self) -> bool:
        """Takes up the checkpoint; whether there is one with a state."""
        name = f"{layout.trial_folder(self.number)}/{self.LATEST}"
        if not self.storage.exists(name):
            return False
        rows, self.state, kept = unpack(self.storage.read_bytes(name), self.storage.join(name))
        if self.state is not None:
            self.rows, self.n_parameters, self.best_parameters = rows, kept, kept
        return self.state is not None

    def _save(self, row: EpochRow, state: bytes | None) -> None:
        """Keeps the best epoch. The checkpoint stays that of the last epoch with a state."""
        folder, content = layout.trial_folder(self.number), state or b""
        if max(self.rows, key=lambda r: rank(r, self.context.metric)) is row:
            metadata = {
                "number": self.shown,
                "row": {k: v for k, v in row.items() if v == v},  # JSON has no NaN
                "hyperparameters": self.hp,
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            self.best_parameters = self.n_parameters
            described, kept = self.BEST
            self.storage.write_json(f"{folder}/{described}", metadata)
            self.storage.write_bytes(f"{folder}/{kept}", content)
        if state is not None or self.state is None:
            self.state = state
            content = pack(self.rows, state, self.best_parameters)
            self.storage.write_bytes(f"{folder}/{self.LATEST}", content)
