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

import contextlib
import hashlib
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from typing import Any, ClassVar, cast

from mnist_ray import hyperparameters
from mnist_ray.errors import WorkError, raise_if_ended
from mnist_ray.run import layout
from mnist_ray.run.records import EpochRow, rank, value_of
from mnist_ray.settings import constraints
from mnist_ray.settings.functions import started, takes
from mnist_ray.settings.objectives import function_of
from mnist_ray.settings.text import load
from mnist_ray.trials.steps import pack, step, unpack
from mnist_ray.tune.trainable import EpochTrial, breaks_process
from mnist_ray.tune.trial import Result, TrialContext, ended, reported

Train = Callable[..., Iterator[Any]]

CLOSING = 30.0  # seconds that a function has when its trial is stopped, as for its `finally`


class FunctionTrial(EpochTrial):
    """Runs a training function, an epoch a step."""

    LATEST = "latest.state"
    BEST: ClassVar[dict[str, str]] = {"best.json": "state.json", "best.state": "state"}
    DESCRIBED = "best.json"

    function: Train
    data: Any
    steps: Generator[Any, None, None] | None = None

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
        self.rows: list[EpochRow] = []
        self.state: bytes | None = None  # the last that was yielded
        self.n_parameters: int | None = None
        self.best_parameters: int | None = None  # of the best epoch

    def cleanup(self) -> None:
        """Ends the function, so that its `finally` runs. An error there changes no result."""
        steps, self.steps = self.steps, None
        if steps is None:
            return
        # Another thread only watches: what the function closes may belong to this one, as torch's
        # autocast or a run of MLflow.
        watchdog = threading.Timer(CLOSING, self._end_process, (threading.get_ident(),))
        watchdog.daemon = True
        watchdog.start()
        failed: BaseException | None = None
        try:
            steps.close()
        except (Exception, SystemExit) as error:
            raise_if_ended(error)
            failed = error
        finally:
            watchdog.cancel()
        if failed is not None:
            self._note("".join(traceback.format_exception(failed)))
            self.broken = self.broken or breaks_process(failed)

    def _end_process(self, thread: int) -> None:
        """Ends this process, as the function does not end; Tune starts another one."""
        try:
            stack = "".join(traceback.format_stack(sys._current_frames()[thread]))
            self._note(f"The function did not end within {CLOSING:g} s:\n{stack}")
        finally:
            os._exit(1)

    def _note(self, text: str) -> None:
        """Adds to the trial's file of errors. If the storage fails, the next epoch will see it."""
        name = layout.error_file(self.number)
        with contextlib.suppress(WorkError, OSError):
            before = self.storage.read_bytes(name) if self.storage.exists(name) else b""
            self.storage.write_bytes(name, before + text.encode())

    def epoch(self) -> Result:
        """Runs the function to its next yield, or reports the last epoch of the checkpoint."""
        if self.steps is None:
            # An error here is the trial's, and in `begin` would be its worker's.
            self.kept_hp = hyperparameters.plain(self.hp, "the dict of the space")
            loaded = self._load()
            self.steps = self._started()
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
        except (Exception, SystemExit) as error:  # the function's, of whatever type
            return self._failed(error)
        row, state = self._row(yielded, time.perf_counter() - began)
        if not math.isfinite(value_of(row, self.context.metric)):
            name = function_of(self.context.metric)
            return ended(reason=f"{name} is not finite at epoch {row['epoch']}")
        self.rows.append(row)
        self._save(row, state)
        return self._report(row, None)

    def _started(self) -> Generator[Any, None, None]:
        """The function's yields; it gets those arguments that it takes."""
        yield from started(
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
        """Takes up the checkpoint; whether there is one with a state that the function takes."""
        name = f"{layout.trial_folder(self.number)}/{self.LATEST}"
        if not self.storage.exists(name):
            return False
        rows, state, kept = unpack(self.storage.read_bytes(name), self.storage.join(name))
        if state is None or not takes(self.function, "state"):
            return False  # it begins anew, and so do its epochs
        self.rows, self.state = rows, state
        self.n_parameters = self.best_parameters = kept
        return True

    def _save(self, row: EpochRow, state: bytes | None) -> None:
        """Keeps the best epoch. The checkpoint stays that of the last epoch with a state."""
        folder, content = layout.trial_folder(self.number), state or b""
        if max(self.rows, key=lambda r: rank(r, self.context.metric)) is row:
            metadata = {
                "number": self.shown,
                "row": {k: v for k, v in row.items() if math.isfinite(cast(float, v))},  # for JSON
                "hyperparameters": self.kept_hp,
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
