"""Networks in a trial's worker process: data on the device, epochs, checkpoints on storage.

Imported by the workers alone: the driver does without torch.
"""

import math
import os
import platform
import warnings
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch

from mnist_ray.errors import WorkError, first_line, shortened
from mnist_ray.models import n_parameters
from mnist_ray.run import checkpoint, layout
from mnist_ray.run.records import EpochRow, rank
from mnist_ray.settings import constraints
from mnist_ray.settings.constraints import Measured
from mnist_ray.storage import RunStorage
from mnist_ray.training.folds import FoldTrainer
from mnist_ray.training.machine import leave_out_the_compiler, use_threads
from mnist_ray.training.metrics import score_of
from mnist_ray.training.trainer import Trainer
from mnist_ray.tune.trial import LATEST, STATE, Result, TrialContext, ended, reported

# Bytes that a published file may be larger: the hyperparameters of a stage are longer.
SIZE_MARGIN = 1024


class Worker:
    """Trains the networks of one trial after the other.

    Args:
        context: common to all trials.
        storage: the run's directory.
        arrays: images uint8 [n, C, H, W], labels int64 [n], and train and val, int64 indices; with
            --folds, train and val of each further fold.
        start: weights by their names in the state dict, for every trial; None: random ones.
        deterministic: whether torch's deterministic kernels are used. On a CPU all kernels in use
            are deterministic, for a fixed number of threads.
    """

    def __init__(
        self,
        context: TrialContext,
        storage: RunStorage,
        arrays: tuple[np.ndarray, ...],
        start: Mapping[str, np.ndarray] | None,
        deterministic: bool = False,
    ) -> None:
        if not context.tensorboard:  # its graph is traced, which needs the compiler from the start
            leave_out_the_compiler()
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
            # A warning only: the backward pass of pooling is on torch's list, though windows that
            # do not overlap are summed in no order.
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.benchmark = False
        self.context, self.storage = context, storage
        use_threads(context.cpus)
        self.device = torch.device("cuda" if context.gpus else "cpu")
        if 0 < context.gpus < 1:
            # A trial that outgrows its share fails alone, and takes no memory of those beside it.
            torch.cuda.set_per_process_memory_fraction(context.gpus)
        with warnings.catch_warnings():
            # The arrays are read-only views of shared memory, and nothing here writes to them.
            warnings.simplefilter("ignore", UserWarning)
            self.data = [torch.from_numpy(array).to(self.device) for array in arrays]
            self.start = {name: torch.from_numpy(a) for name, a in start.items()} if start else None

        weights = context.weights
        self.weights = None if weights is None else torch.tensor(weights, device=self.device)
        self.score = score_of(context.metric)

    def begin(self, number: int, hp: Mapping[str, Any], shown: int, seed: int) -> None:
        """Takes up a trial; its network is made with its first epoch."""
        self.number, self.hp, self.shown, self.seed = number, hp, shown, seed
        self.made: Trainer | None = None
        self.network: Measured = {}  # the values that are known before its first epoch
        self.unreported = False

    @property
    def trainer(self) -> Trainer:
        """The trial's network in training."""
        if self.made is None:
            options: dict[str, Any] = {
                "epochs": self.context.max_epochs,
                "seed": self.seed,
                "device": self.device,
                "precision": self.context.precision,
                "weights": self.start,
            }
            folds = len(self.data) // 2 - 1
            if folds == 1:
                self.made = Trainer(self.hp, **options)
            else:
                self.made = FoldTrainer(self.hp, folds=folds, **options)
            self.made.score = self.score
            self.made.image_weights = self.weights
            self.network = self._measured(self.made)
        return self.made

    def epoch(self) -> Result:
        """Trains an epoch and keeps its state, or reports the last one of the checkpoint."""
        if self.made is None:
            self._load()
        trainer = self.trainer
        unfit = constraints.unfit(self.context.constraints, self.network)
        if unfit and not (trainer.rows or self.context.train_unfit):
            return {**self._known(), "unfit": unfit, **ended()}
        rows = None
        if self.unreported:
            # The checkpoint's epochs may have been lost on their way to the driver.
            rows, row = trainer.rows, trainer.rows[-1]
            self.unreported = False
        else:
            row = trainer.run_epoch(*self.data)
            if not (math.isfinite(row["train_loss"]) and math.isfinite(row["val_loss"])):
                return ended(reason=f"the loss is not finite at epoch {row['epoch']}")
            if not math.isfinite(row.get("val_metric", 0.0)):
                return ended(reason=f"the metric is not finite at epoch {row['epoch']}")
            if limits := self.context.constraints:
                measured = {**self.network, "accuracy": row["val_accuracy"]}
                row["violation"] = constraints.violation(limits, measured)
            self._save(row)
        result = reported(self.context, row, n_parameters(trainer.model), rows)
        result.update(self._known())
        if unfit:
            result["unfit"] = unfit
        # Of an epoch that is reported again too: it may not have been written.
        if self.context.tensorboard and (warning := self._summarise(row)):
            result["tracker_warning"] = warning
        return result

    # ---- states

    @property
    def _latest(self) -> str:
        return f"{layout.trial_folder(self.number)}/{LATEST}"

    def _load(self) -> None:
        if self.storage.exists(self._latest):
            data = self.storage.read_bytes(self._latest)
            self.trainer.load_state(data, self.storage.join(self._latest))
            self.unreported = True

    def _save(self, row: EpochRow) -> None:
        """Keeps the state, all of it before the epoch is reported: the driver knows no more.

        (Writing beside the training would save some 10 ms an epoch, and leave files of trials
        that the driver has cleaned up after.)
        """
        folder = layout.trial_folder(self.number)
        metadata = {"number": self.shown, "row": dict(row)}
        state = self.trainer.state_bytes(metadata)
        if max(self.trainer.rows, key=lambda r: rank(r, self.context.metric)) is row:
            weights = self.trainer.weights_bytes(metadata)
            self.storage.write_bytes(f"{folder}/optimizer.safetensors", state)
            self.storage.write_bytes(f"{folder}/best.safetensors", weights)
        self.storage.write_bytes(self._latest, state)

    def state(self) -> bytes:
        """The whole state, for a scheduler that pauses the trial or hands it to another."""
        return self.trainer.state_bytes({"number": self.number})

    def take_state(self, state: bytes) -> None:
        """Goes on from such a state: weights and optimiser, perhaps another trial's."""
        self.made = None
        trainer = self.trainer
        if trainer.load_state(state, STATE)["number"] != self.number:
            data = self.storage.read_bytes(self._latest)
            _, own = checkpoint.unpack(data, self.storage.join(self._latest))
            trainer.rows = [row for row in own["rows"] if row["epoch"] <= trainer.epoch]
        self.unreported = False

    # ---- beside the training

    def _measured(self, trainer: Trainer) -> Measured:
        """The network's parameters and, where wanted, size and latency of its ONNX file.

        The latency is of one image on one thread, in milliseconds, the median. The weights do not
        matter for it.
        """
        context = self.context
        found: dict[str, float | None] = {"parameters": n_parameters(trainer.model)}
        if context.latency or context.facts is not None:
            from mnist_ray.export import session, write  # noqa: PLC0415 (seconds at start)

            file = write.export(trainer.model, self.hp, context.facts or {})
            if context.facts is not None:
                found["size"] = len(file) + SIZE_MARGIN
            if context.latency:
                network = session.Session(file, "the trial's network", threads=1)
                found["latency"] = network.latency_ms(self.data[0][0].cpu().numpy())
        return found

    def _known(self) -> Result:
        """The values that are known before the first epoch, as a result has them."""
        names = {"parameters": "n_parameters", "latency": "latency_ms", "size": "size"}
        known = {names[name]: value for name, value in self.network.items()}
        return cast(Result, {**known, "node": platform.node()})

    def _summarise(self, row: EpochRow) -> str | None:
        """Writes the epoch for TensorBoard; why that failed. It ends nothing.

        Raises:
            WorkError: the run's storage failed.
        """
        try:
            from mnist_ray.trackers import summaries  # noqa: PLC0415 (optional package)

            images, _, _, val = self.data[:4]
            # Evenly from all: the first may be of one class.
            n = min(len(val), summaries.ACTIVATION_IMAGES)
            some = images[val[torch.linspace(0, len(val) - 1, n).round().long()]]
            summaries.write(
                self.storage, self.number, self.trainer, row, some, self.context.activations
            )
        except WorkError:
            raise
        except Exception as error:
            return shortened(f"{type(error).__name__}: {first_line(error)}", 300)
        return None
