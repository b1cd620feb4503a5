"""A person's own second function: it goes on with the best trial's state, and its best is kept.

It needs no Ray. Every yield is an epoch, as in the search; an interrupted work goes on from its
last state. The result is the state of its best epoch, named by `tuned.json`, which is written last.
"""

import hashlib
import json
import math
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from mnist_ray.cluster import check_sendable
from mnist_ray.errors import SettingsError, WorkError, raise_if_ended, reason
from mnist_ray.run import layout, lease, tables
from mnist_ray.run.about import About, now
from mnist_ray.run.records import EpochRow, epoch_row, rank, value_of
from mnist_ray.run.tuned import Tuned, publish
from mnist_ray.settings import FinetuneSettings, load, trust
from mnist_ray.settings.functions import (
    IMAGES,
    OF_CHAIN,
    check_function,
    own_data,
    started,
    takes,
)
from mnist_ray.settings.objectives import function_of, goal
from mnist_ray.storage import RunStorage
from mnist_ray.trials.steps import Step, pack, step, unpack

OPTIONS = ("finetune_with", "train_data", "finetune_epochs")  # of this alone
# Options that are for networks on images.
OF_NETWORKS = ("onnx", "dataset", "network", "augment", *OF_CHAIN, "test_steps")
# Settings of run.json that are used here, and their types if they are given.
USED = {"train": str, "train_data": str, "finetune_with": str, "finetune_epochs": int}


@dataclass(frozen=True)
class OwnTask:
    """A worker's task, without the data."""

    uri: str
    """The run's directory."""
    function: str
    """`module:function`."""
    trial: int
    """The number of the search's best trial."""
    row: EpochRow
    """Its best epoch."""
    hp: dict[str, Any]
    state: bytes
    """That it had yielded then; empty if none."""
    metric: str
    """See `objectives.goal`."""
    seed: int
    epochs: int
    """The most epochs."""
    cpus: float = 1.0
    gpus: float = 0.0
    owner: str = ""
    """The token of the run's lease (see `lease.owned`)."""

    @property
    def folder(self) -> str:
        """Another function, or another start, has another folder."""
        start = hashlib.sha256(self.state).hexdigest()
        key = json.dumps([self.function, self.trial, self.hp, start, self.seed], sort_keys=True)
        return layout.own_folder(hashlib.sha256(key.encode()).hexdigest()[:12])


# ---- before anything starts


def prepare(
    settings: FinetuneSettings, about: About, images: Callable[[], Any]
) -> tuple[OwnTask, Any]:
    """The task of --finetune-with, and its data.

    Args:
        settings: Of the job.
        about: A run of --train.
        images: Loads the run's images in their split.

    Raises:
        SettingsError: The run or an option cannot be used.
    """
    searched = about.settings
    for key, kind in USED.items():
        if not isinstance(searched.get(key), kind | None):
            raise SettingsError(f"--run: {about.storage.join(layout.RUN)} is damaged: {key}")
    source = settings.train_data or searched.get("train_data")
    for key in OF_NETWORKS:
        if getattr(settings, key) is not None and not (key == "dataset" and source == IMAGES):
            flag = f"--{key.replace('_', '-')}"
            raise SettingsError(
                f"{flag}: is for networks, and the run's --train {searched['train']} is a function "
                "of one's own"
            )
    given = {key for key in vars(settings) if getattr(settings, key) is not None}
    trust.check(searched, given, about.storage.join(layout.RUN), ("finetune_with", "train_data"))
    function = settings.finetune_with or searched.get("finetune_with")
    if function is None:
        raise SettingsError(
            f"--finetune-with: the run at {about.storage.uri} trains by a function of one's own; "
            "name a second one, as module:function"
        )
    check_function(function, "--finetune-with")
    epochs = settings.finetune_epochs
    if epochs is not None and epochs < 1:
        raise SettingsError(f"--finetune-epochs: {epochs} is not allowed; expected at least 1")
    described, state = _best(about.storage)
    task = OwnTask(
        uri=about.storage.uri,
        function=function,
        trial=described["number"],
        row=epoch_row(described["row"]),
        hp=described["hyperparameters"],
        state=state,
        metric=goal(searched),
        seed=searched["seed"],
        epochs=epochs or searched.get("finetune_epochs") or searched["max_epochs"],
    )
    made = own_data(source, images)
    check_sendable(made, f"--train-data: {source!r}")
    return task, made


def _best(storage: RunStorage) -> tuple[dict[str, Any], bytes]:
    """The description of the search's best epoch, and the state that came with it."""
    if not storage.exists(layout.BEST_STATE):
        raise SettingsError(
            f"--run: {storage.uri} has no best state yet; "
            "expected a run whose search has finished a trial"
        )
    described, state = (
        storage.read_json(layout.BEST_DESCRIBED),
        storage.read_bytes(layout.BEST_STATE),
    )
    known = {"number": int, "row": dict, "hyperparameters": dict, "sha256": str}
    whole = isinstance(described, dict) and all(
        isinstance(described.get(key), kind) for key, kind in known.items()
    )
    if not whole or hashlib.sha256(state).hexdigest() != described["sha256"]:
        raise SettingsError(f"--run: {storage.join(layout.BEST)} is damaged")
    return described, state


# ---- in a worker


def run_own(task: OwnTask, data: Any) -> Iterator[str | Tuned]:
    """Runs the function and publishes its best state: yields log lines and, last, the result.

    Raises:
        WorkError: The function fails, or yields what cannot be used.
    """
    storage = lease.owned(task.uri, "fine-tuning", task.owner)
    work = _Work(task, storage)
    if work.rows:
        yield f"{task.function} goes on after epoch {len(work.rows)}"
    name = function_of(task.metric)
    limit = f"{task.function} has at most {task.epochs} epochs (--finetune-epochs)"
    yield f"trial {task.trial} has {name} {value_of(task.row, task.metric):.4g}; {limit}"
    complete, steps = False, _steps(task, work, data)
    while not work.done:
        begun = time.monotonic()
        try:
            yielded = next(steps)
            took = time.monotonic() - begun
            found = step(yielded, len(work.rows) + 1, took, task.metric)
        except StopIteration:
            complete = True
            break
        except (Exception, SystemExit) as error:  # any error of a person's function
            raise work.failed(error) from error
        work.take(found)
        value = value_of(found.row, task.metric)
        yield f"epoch {found.row['epoch']}: {name} {value:.4g}, {took:.1f} s"
    warning: BaseException | None = None
    try:
        steps.close()  # so that the function's `finally` runs
    except (Exception, SystemExit) as error:  # its epochs are whole
        raise_if_ended(error)
        warning = error
    result = work.published(complete)
    if warning is not None:
        place = work.keep_error(warning)
        yield (
            f"warning: {task.function} failed after its last epoch: {reason(warning)}; "
            f"its traceback: {place}"
        )
    yield result


def _steps(task: OwnTask, work: "_Work", data: Any) -> Generator[Any, None, None]:
    """The function's yields, from its last state on, or from the best trial's."""
    yield from started(
        load(task.function, "--finetune-with", ()),
        task.hp,
        seed=task.seed,
        device="cuda" if task.gpus else "cpu",
        state=work.state if work.rows else task.state or None,
        data=data,
    )


class _Work:
    """The epochs so far, and their files in the task's folder."""

    def __init__(self, task: OwnTask, storage: RunStorage) -> None:
        self.task, self.storage = task, storage
        self.rows: list[EpochRow] = []
        self.state: bytes | None = None  # the last that was yielded
        self.best: tuple[EpochRow, bytes | None] | None = None
        if storage.exists(self._file(layout.OWN_LATEST)):
            rows, state = self._read(layout.OWN_LATEST)
            if state is not None and (len(rows) >= task.epochs or self._takes_state()):
                self.rows, self.state = rows, state
        if storage.exists(self._file(layout.OWN_BEST)):
            rows, state = self._read(layout.OWN_BEST)
            self.best = (rows[0], state)

    def _takes_state(self) -> bool:
        """Whether the function can go on; else it begins anew, and so do its epochs."""
        return takes(load(self.task.function, "--finetune-with", ()), "state")

    def _file(self, name: str) -> str:
        return f"{self.task.folder}/{name}"

    def _read(self, name: str) -> tuple[list[EpochRow], bytes | None]:
        file = self._file(name)
        rows, state, _ = unpack(self.storage.read_bytes(file), self.storage.join(file))
        return rows, state

    @property
    def done(self) -> bool:
        """Whether it has as many epochs as it may have."""
        return len(self.rows) >= self.task.epochs

    def take(self, found: Step) -> None:
        """Keeps an epoch. The checkpoint stays that of the last epoch with a state."""
        metric = self.task.metric
        if not math.isfinite(value_of(found.row, metric)):
            epoch = found.row["epoch"]
            raise WorkError(
                f"--finetune-with: {function_of(metric)} is not finite at epoch {epoch}"
            )
        self.rows.append(found.row)
        if self.best is None or rank(found.row, metric) > rank(self.best[0], metric):
            self.best = (found.row, found.state)
            self.storage.write_bytes(self._file(layout.OWN_BEST), pack([found.row], found.state))
        if found.state is not None or self.state is None:
            self.state = found.state
            self.storage.write_bytes(self._file(layout.OWN_LATEST), pack(self.rows, found.state))

    def failed(self, error: BaseException) -> WorkError:
        """The error as one line, its traceback in a file."""
        raise_if_ended(error)
        place = self.keep_error(error)
        return WorkError(
            f"--finetune-with: {self.task.function} failed in epoch {len(self.rows) + 1}: "
            f"{reason(error)}; its traceback: {place}"
        )

    def keep_error(self, error: BaseException) -> str:
        """Writes the error's traceback; the URI of its file."""
        text = "".join(traceback.format_exception(error))
        self.storage.write_bytes(self._file(layout.OWN_ERROR), text.encode())
        return self.storage.join(self._file(layout.OWN_ERROR))

    def published(self, complete: bool) -> Tuned:
        """Writes the result. WorkError if there is no epoch."""
        task = self.task
        if self.best is None:
            raise WorkError(f"--finetune-with: {task.function} ended without a yield")
        curve = tables.parquet(tables.curve_table(self.rows))
        self.storage.write_bytes(self._file(layout.STAGE_CURVE), curve)
        self.storage.delete(self._file(layout.OWN_ERROR))
        row, state = self.best
        finite = {k: v for k, v in row.items() if isinstance(v, int | float) and math.isfinite(v)}
        return publish(
            self.storage,
            state or b"",
            {
                "function": task.function,
                "complete": complete,  # whether the function ended by itself
                "epochs": len(self.rows),
                "epoch": row["epoch"],
                "metric": function_of(task.metric),
                "value": value_of(row, task.metric),
                "value_before": value_of(task.row, task.metric),
                "row": finite,
                "trial": task.trial,
                "hyperparameters": task.hp,
                "start_sha256": hashlib.sha256(task.state).hexdigest(),
                "end": now(),
            },
        )
