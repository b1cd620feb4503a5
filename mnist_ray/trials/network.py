"""Trials that train networks of this project. Light: the driver only names these classes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mnist_ray.run.header import story_of
from mnist_ray.tune.trainable import EpochTrial
from mnist_ray.tune.trial import LATEST, STATE, Result, TrialContext

if TYPE_CHECKING:
    from mnist_ray.trials.worker import Worker


class TrainTrial(EpochTrial):
    """Trains one network."""

    LATEST = LATEST
    BEST: ClassVar[dict[str, str]] = {
        "optimizer.safetensors": "optimizer.safetensors",
        "best.safetensors": "model.safetensors",
    }
    DESCRIBED = "best.safetensors"
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
        from mnist_ray.trials.worker import Worker  # noqa: PLC0415 (named trainable)

        self.take(context)
        arrays = (images, labels, train, val, *(part for fold in folds[1:] for part in fold))
        self.worker = Worker(self.context, self.storage, arrays, start, self.DETERMINISTIC)  # type: ignore[arg-type]
        self.begin_config(config)

    def begin(self, number: int, hp: dict[str, Any]) -> None:
        """Takes up a trial; --augment is added to its hyperparameters."""
        if self.context.augment != "none":
            hp["augment"] = self.context.augment
        super().begin(number, hp)
        self.worker.begin(number, hp, self.shown, self.context.seed)

    @staticmethod
    def description(data: bytes) -> Any:
        """See EpochTrial."""
        return json.loads(story_of(data)[0])

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
