"""The Tune trainable around training.py: one step is one epoch.

A trial keeps its checkpoints itself, in its folder of the run: `latest.safetensors` to go on from and `best.safetensors` of its best epoch.
Whoever starts it again, Tune after a worker's death or `--resume` after the driver's, passes the same number and finds them there:
one way back for all of them. (Tune's own restore unpickles, and cannot continue a trial in a new experiment.)
"""

import math
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from ray import tune

from mnist_ray.errors import WorkError
from mnist_ray.run.records import rank
from mnist_ray.storage import RunStorage
from mnist_ray.trackers import tell

if TYPE_CHECKING:
    from mnist_ray.training.trainer import Trainer

TRACKER_WARNING = "tracker_warning"  # key of a result: why it could not be written for TensorBoard
STATE = "state.safetensors"  # a checkpoint of Tune's
NUMBER = "number"  # key of the trial's number in Tune's config; all other keys are hyperparameters


def checkpoint_folder(number: int) -> str:
    """A trial's folder below the run's directory."""
    return f"tune/checkpoints/{number:05d}"


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a run share, besides the data."""

    run: str
    metric: str
    max_epochs: int
    seed: int
    precision: str
    cpus: float
    gpus: float
    latency: bool = False  # whether it is an objective, and so measured
    augment: str = "none"  # for all trials; "none" leaves it to the space
    tensorboard: bool = False
    activations: bool = False


class TrainTrial(tune.Trainable):
    """Trains one network, reporting every epoch. An error of the network or its values ends the trial, not the search."""

    LATEST = "latest.safetensors"  # in the trial's folder: the file that it goes on from
    # In the trial's folder: the files of its best epoch, the last written last, and what they are called in the run's best/.
    BEST: ClassVar = {
        "optimizer.safetensors": "optimizer.safetensors",
        "best.safetensors": "model.safetensors",
    }

    def setup(
        self,
        config: dict[str, Any],
        context: TrialContext | None = None,
        images: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        train: np.ndarray | None = None,
        val: np.ndarray | None = None,
        start: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """images uint8 [n, C, H, W] and labels int64 [n] come zero-copy from the object store; train and val are indices into them.

        start: the weights, by their names in the state dict, that every trial begins with instead of random ones.
        """
        # Imported here: the driver, which only names this class, starts seconds earlier without torch.
        import torch

        from mnist_ray.training.machine import leave_out_the_compiler, use_threads

        leave_out_the_compiler()
        assert context is not None
        self.context = context
        self.storage = RunStorage(context.run)
        use_threads(context.cpus)
        self.device = torch.device("cuda" if context.gpus else "cpu")
        if 0 < context.gpus < 1:
            # A trial that outgrows its share fails alone, instead of taking the memory of those beside it.
            torch.cuda.set_per_process_memory_fraction(context.gpus)
        with warnings.catch_warnings():
            # The arrays are read-only views of shared memory, and nothing here writes to them.
            warnings.simplefilter("ignore", UserWarning)
            self.data = [torch.from_numpy(a).to(self.device) for a in (images, labels, train, val)]
            self.start = {name: torch.from_numpy(a) for name, a in start.items()} if start else None
        self._begin(config)

    def _begin(self, config: Mapping[str, Any]) -> None:
        self.number: int = config[NUMBER]
        self.hp = {key: value for key, value in config.items() if key != NUMBER}
        if self.context.augment != "none":
            self.hp["augment"] = self.context.augment
        self.trainer: Trainer | None = None
        self.latency: dict[str, float] = {}
        self.unreported = False

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Serves the next trial in the same process, which has torch and the data already."""
        self._begin(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The whole state, for the scheduler that pauses a trial or hands it to another (see pbt.py). All others ask for none."""
        assert self.trainer is not None
        Path(checkpoint_dir, STATE).write_bytes(self.trainer.state_bytes({"number": self.number}))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Goes on from such a state: weights and optimiser, another's too. The epochs behind it stay the trial's own."""
        from mnist_ray.run import checkpoint

        state = Path(checkpoint_dir, STATE).read_bytes()
        self._make_trainer()
        assert self.trainer is not None
        story = self.trainer.load_state(state, STATE)
        if story["number"] != self.number:
            name = f"{checkpoint_folder(self.number)}/{self.LATEST}"
            _, own = checkpoint.unpack(self.storage.read_bytes(name), self.storage.join(name))
            self.trainer.rows = [row for row in own["rows"] if row["epoch"] <= self.trainer.epoch]
        self.unreported = False

    def step(self) -> dict[str, Any]:
        """One epoch's row, plus `n_parameters`, `node`, and `done` after the last.

        Where the trial cannot go on the row is NaN and `reason` says why; `storage_error` where the fault is the storage's: then the
        whole search must stop, as no trial's checkpoint could be kept.
        """
        try:
            return self._epoch()
        except (WorkError, OSError) as error:
            return _ended(storage_error=str(error) or repr(error))
        except Exception as error:  # whatever a network or its values raise is this trial's result
            return _ended(
                reason=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[
                    :500
                ]
            )

    def _epoch(self) -> dict[str, Any]:
        from mnist_ray.models import n_parameters

        if self.trainer is None:
            self._load()
        trainer = self.trainer
        assert trainer is not None
        result: dict[str, Any] = {}
        if self.unreported:
            # The checkpoint's own epoch may have been lost on its way to the driver: report it again, and all before it.
            result["rows"] = trainer.rows
            row = trainer.rows[-1]
            self.unreported = False
        else:
            row = trainer.run_epoch(*self.data)
            if not (math.isfinite(row["train_loss"]) and math.isfinite(row["val_loss"])):
                return _ended(reason=f"the loss is not finite at epoch {row['epoch']}")
            self._save(row)
        if self.context.tensorboard:
            result |= self._summarise(
                row
            )  # of an epoch that is reported again too: it may not have been written
        return {
            **row,
            **result,
            **self.latency,
            "n_parameters": n_parameters(trainer.model),
            "node": platform.node(),
            "done": trainer.epoch >= trainer.epochs,
        }

    def _make_trainer(self) -> None:
        from mnist_ray.training.trainer import Trainer

        context = self.context
        options: dict[str, Any] = {
            "device": self.device,
            "precision": context.precision,
            "weights": self.start,
        }
        self.trainer = Trainer(self.hp, epochs=context.max_epochs, seed=context.seed, **options)
        if context.latency:
            self.latency = {"latency_ms": self._latency_ms(self.trainer)}

    def _load(self) -> None:
        self._make_trainer()
        assert self.trainer is not None
        name = f"{checkpoint_folder(self.number)}/{self.LATEST}"
        if self.storage.exists(name):
            self.trainer.load_state(self.storage.read_bytes(name), self.storage.join(name))
            self.unreported = True

    def _latency_ms(self, trainer: "Trainer") -> float:
        """Milliseconds of one image through the network as ONNX: on this CPU, one thread, the median. The weights do not matter for it."""
        from mnist_ray.export import session, write  # noqa: PLC0415 (seconds at start)

        file = write.export(trainer.model, self.hp, {})
        network = session.Session(file, "the trial's network", threads=1)
        return network.latency_ms(self.data[0][0].cpu().numpy())

    def _summarise(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Writes the epoch for TensorBoard. What prevents it, but for the run's storage, is said and ends nothing."""
        assert self.trainer is not None
        try:
            from mnist_ray.trackers import summaries

            images, _, _, val = self.data
            some = images[val[: summaries.ACTIVATION_IMAGES]]
            summaries.write(
                self.storage, self.number, self.trainer, row, some, self.context.activations
            )
        except WorkError:
            raise
        except Exception as error:
            return {
                TRACKER_WARNING: f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[
                    :300
                ]
            }
        return {}

    def _save(self, row: Mapping[str, Any]) -> None:
        """Keeps the state. All of it is on storage before the epoch is reported: whatever the driver knows of can be had.

        (Writing beside the training would save some 10 ms an epoch, and leave files of trials that the driver has cleaned up after.)
        """
        assert self.trainer is not None
        folder = checkpoint_folder(self.number)
        story = {"number": self.number, "row": dict(row)}
        state = self.trainer.state_bytes(story)
        if max(self.trainer.rows, key=lambda r: rank(r, self.context.metric)) is row:
            self.storage.write_bytes(f"{folder}/optimizer.safetensors", state)
            self.storage.write_bytes(
                f"{folder}/best.safetensors", self.trainer.weights_bytes(story)
            )
        self.storage.write_bytes(f"{folder}/{self.LATEST}", state)


class SummaryWarnings(tune.Callback):
    """Says once why trials could not be written for TensorBoard."""

    warned = False

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if TRACKER_WARNING in result and not self.warned:
            self.warned = True
            tell(f"warning: --tensorboard: {result[TRACKER_WARNING]}; the search goes on")


def _ended(**why: str) -> dict[str, Any]:
    """The last result of a trial that cannot go on."""
    return {"val_accuracy": math.nan, "val_loss": math.nan, "epoch": 0, "done": True, **why}
