"""Tune's trainables: one step is one epoch. Light: the driver only names these classes.

A trial keeps its checkpoints itself, in its folder of the run: `latest…` to go on from, and the
files of its best epoch. A restart, by Tune after a worker's death or `--resume` after
the driver's, passes the same number and finds them there: one way back for all of them. (Tune's
own restore unpickles, and cannot continue a trial in a new experiment.)
"""

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from ray import tune

from mnist_ray.errors import WorkError, reason
from mnist_ray.run import layout
from mnist_ray.storage import RunStorage
from mnist_ray.trackers import tell
from mnist_ray.tune.trial import LATEST, NUMBER, STATE, Result, TrialContext, ended

if TYPE_CHECKING:
    from mnist_ray.tune.worker import Worker


class EpochTrial(tune.Trainable):
    """A trial whose step is an epoch. An error in it ends the trial, not the search.

    A class derived from it names its files, sets `context` and `storage` in `setup`, calls `begin`
    there, and has an `epoch`.
    """

    # In the trial's folder: the file that it goes on from.
    LATEST: ClassVar[str]
    # In the trial's folder: the files of its best epoch, the last of them written last, and their
    # names in the run's best/.
    BEST: ClassVar[dict[str, str]]

    context: TrialContext
    storage: RunStorage
    number: int
    hp: dict[str, Any]

    def begin(self, number: int, hp: dict[str, Any]) -> None:
        """Takes up a trial."""
        self.number, self.hp = number, hp

    def epoch(self) -> Result:
        """Trains one epoch, or reports the last one of the trial's checkpoint."""
        raise NotImplementedError

    def begin_config(self, config: Mapping[str, Any]) -> None:
        """Takes up the trial of Tune's config."""
        self.begin(config[NUMBER], {key: v for key, v in config.items() if key != NUMBER})

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Serves the next trial in the same process, which has the data already."""
        self.begin_config(new_config)
        return True

    def step(self) -> Result:
        """One epoch's result. Its row is NaN if the trial cannot go on."""
        try:
            return self.epoch()
        except (WorkError, OSError) as error:
            # The whole search must stop: no trial's checkpoint could be kept.
            return ended(storage_error=str(error) or repr(error))
        except Exception as error:  # any error of a network or its values is the trial's result
            try:
                text = traceback.format_exc().encode()
                self.storage.write_bytes(layout.error_file(self.number), text)
            except (WorkError, OSError) as failure:
                return ended(storage_error=str(failure) or repr(failure))
            return ended(reason=reason(error))


class TrainTrial(EpochTrial):
    """Trains one network."""

    LATEST = LATEST
    BEST: ClassVar[dict[str, str]] = {
        "optimizer.safetensors": "optimizer.safetensors",
        "best.safetensors": "model.safetensors",
    }
    DETERMINISTIC: ClassVar[bool] = False
    worker: "Worker"

    def setup(  # noqa: PLR0913 (one an object of the store)
        self,
        config: dict[str, Any],
        context: TrialContext | None = None,
        images: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        train: np.ndarray | None = None,
        val: np.ndarray | None = None,
        start: Mapping[str, np.ndarray] | None = None,
        folds: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    ) -> None:
        """Takes the data, which come zero-copy from the object store, and begins the first trial.

        Args:
            config: hyperparameters and the trial's number.
            context: common to all trials.
            images: uint8 [n, C, H, W].
            labels: int64 [n].
            train: int64, indices into them.
            val: int64, indices into them.
            start: weights by their names in the state dict, with which every trial begins instead
                of random ones.
            folds: in place of train and val, those of each fold.
        """
        # The driver, which only names this class, starts seconds earlier without torch.
        from mnist_ray.tune.worker import Worker  # noqa: PLC0415 (named trainable)

        assert context is not None
        self.context, self.storage = context, RunStorage.existing(context.run)
        arrays = (images, labels, train, val, *(part for fold in folds[1:] for part in fold))
        self.worker = Worker(context, self.storage, arrays, start, self.DETERMINISTIC)  # type: ignore[arg-type]
        self.begin_config(config)

    def begin(self, number: int, hp: dict[str, Any]) -> None:
        """Takes up a trial; --augment is added to its hyperparameters."""
        if self.context.augment != "none":
            hp["augment"] = self.context.augment
        super().begin(number, hp)
        self.worker.begin(number, hp)

    def epoch(self) -> Result:
        """Trains one epoch, or reports the last one of the trial's checkpoint."""
        return self.worker.epoch()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The whole state, for a scheduler that pauses a trial or hands it to another (pbt)."""
        Path(checkpoint_dir, STATE).write_bytes(self.worker.state())

    def load_checkpoint(self, checkpoint_dir: str | None) -> None:
        """Goes on from such a state, perhaps another trial's. The epochs stay the trial's own."""
        assert checkpoint_dir is not None
        self.worker.take_state(Path(checkpoint_dir, STATE).read_bytes())


class DeterministicTrial(TrainTrial):
    """TrainTrial with torch's deterministic kernels."""

    DETERMINISTIC = True


class SummaryWarnings(tune.Callback):
    """Says once why trials could not be written for TensorBoard."""

    warned = False

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Looks for a warning in the result."""
        if "tracker_warning" in result and not self.warned:
            self.warned = True
            tell(f"warning: --tensorboard: {result['tracker_warning']}; the search goes on")
