"""The training of a recipe's stages, one after the other, resumable after every epoch."""

import dataclasses
import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from mnist_ray.errors import WorkError
from mnist_ray.finetune_job.recipe import Recipe, Stage
from mnist_ray.run import checkpoint, layout, tables
from mnist_ray.run.records import EpochRow
from mnist_ray.storage import RunStorage
from mnist_ray.training.trainer import Trainer

SLOWER = 3  # a stage that diverges is begun again with the learning rate divided by this
HOT, ENOUGH_STEPS = 0.1, 600  # SGD reaches this learning rate safely in a one-cycle of those steps
WARM = 0.02  # the least that it is lowered to: a few steps at less would change nothing
HOPELESS = 20  # times the loss of guessing, with which the lowest rate is given up too
SLOWEST = 100  # and given up if that were more than this altogether

Weights = Mapping[str, Tensor]


class TrainingData(NamedTuple):
    """Images uint8 [n, C, H, W] and labels int64 [n] on the device; int64 indices of both parts."""

    images: Tensor
    labels: Tensor
    train: Tensor
    val: Tensor
    weights: Tensor | None = None
    """float32 [n]: how much each image counts in the loss; None: all alike."""


@dataclass(frozen=True)
class Identity:
    """What a stage's result depends on, beside its hyperparameters. Another's is not resumed.

    It is in the metadata of the stage's checkpoints.
    """

    stage: Stage
    train_on: str
    begins_with: str
    """The digest of the weights it begins with, or `random`."""


def train_stages(
    recipe: Recipe,
    hp: Mapping[str, Any],
    weights: Weights | None,
    storage: RunStorage,
    data: TrainingData,
    precision: str,
    member: int = 1,
) -> Iterator[str]:
    """Trains every stage that is not done, and yields a log line an epoch.

    A stage leaves its network and its curve in its folder. A stage that was interrupted is resumed
    after its last epoch, with the same result. A learning rate of the recipe may be too much for
    the network that a search found: a stage that diverges is begun again with a third of it.

    Args:
        recipe: the stages.
        hp: the network's hyperparameters.
        weights: the state dict that the first stage begins with; None: random weights.
        storage: the run's directory.
        data: the images and the split.
        precision: see Trainer.
        member: which network of a committee this is, from 1.

    Raises:
        WorkError: a stage diverges even with a hundredth of its learning rate.
    """
    for number, stage in recipe.numbered(member):
        begins_with = checkpoint.digest(weights) if weights else "random"
        training = _StageTraining(
            number,
            Identity(stage, recipe.train_on, begins_with),
            stage.hyperparameters(hp),
            weights,
            storage,
            layout.stage_folder(number, member, twin=recipe.twin),
            data,
            precision,
        )
        weights = yield from training.run()


@dataclass
class _StageTraining:
    """One stage of one network."""

    number: int
    identity: Identity
    hp: dict[str, Any]  # lr is lowered if the stage diverges
    weights: Weights | None  # that it begins with
    storage: RunStorage
    folder: str
    data: TrainingData
    precision: str

    def run(self) -> Generator[str, None, Weights]:
        """Yields log lines; returns the weights that the stage ends with."""
        done = self._read(layout.STAGE_NETWORK)
        if done is not None:
            yield f"stage {self.number}: done already"
            return checkpoint.unpack(done, self.storage.join(self.folder))[0]
        slowest = self.hp["lr"] / SLOWEST
        state = self._read(layout.STAGE_STATE)
        if state is None:
            yield from self._cooled()
        trainer = self._trainer() if state is None else self._resumed(state)
        if trainer.epoch:
            yield f"stage {self.number}: going on after epoch {trainer.epoch}"
        images, labels, train, val = self.data[:4]
        # With all images trained on, an accuracy on some of them would mean nothing: it stays NaN.
        parts = (None, None) if self.identity.train_on == "all" else (train, val)
        metadata, guessing = dataclasses.asdict(self.identity), math.log(self.hp["classes"])
        while trainer.epoch < self.identity.stage.epochs:
            row = trainer.run_epoch(images, labels, *parts)
            last = self.hp["lr"] / SLOWER < slowest
            # So written that NaN is caught too. A start that is as bad, as after a search on few
            # images, is trained on at the lowest rate: it would look so at any.
            if not row["train_loss"] < (HOPELESS if last else 2) * guessing:
                trainer = self._slower(slowest)
                yield (
                    f"stage {self.number} diverged in epoch {row['epoch']}: "
                    f"begun again with a learning rate of {self.hp['lr']:.3g}"
                )
                continue
            self._write(layout.STAGE_STATE, trainer.state_bytes(metadata))
            yield self._line(row)
        weights = {name: t.detach().cpu().clone() for name, t in trainer.weights().items()}
        curve = tables.parquet(tables.curve_table(trainer.rows))
        self._write(layout.STAGE_CURVE, curve)
        self._write(layout.STAGE_NETWORK, trainer.weights_bytes(metadata))
        self.storage.delete(f"{self.folder}/{layout.STAGE_STATE}")
        return weights

    def _cooled(self) -> Iterator[str]:
        """Lowers the learning rate of a one-cycle that has few steps: a fast one diverges.

        The recipes are made for tens of thousands of images.
        """
        stage = self.identity.stage
        n = len(self.data.labels if self.identity.train_on == "all" else self.data.train)
        steps = stage.epochs * math.ceil(n / self.hp["batch_size"])
        most = max(WARM, HOT * steps / ENOUGH_STEPS)
        hot = self.hp.get("schedule") == "one_cycle" and self.hp["optimizer"] == "sgd"
        if not hot or stage.lr is None or steps >= ENOUGH_STEPS or stage.lr <= most:
            return
        self.hp["lr"] = most
        yield (
            f"stage {self.number}: {steps} steps are few for a learning rate of {stage.lr:g}: "
            f"it is lowered to {self.hp['lr']:.3g}"
        )

    def _trainer(self) -> Trainer:
        trainer = Trainer(
            self.hp,
            epochs=self.identity.stage.epochs,
            seed=self.identity.stage.seed,
            device=self.data.images.device,
            precision=self.precision,
            weights=self.weights,
        )
        trainer.image_weights = self.data.weights
        return trainer

    def _resumed(self, state: bytes) -> Trainer:
        """The trainer after the last epoch that was saved."""
        source = self.storage.join(f"{self.folder}/{layout.STAGE_STATE}")
        with checkpoint.fitting(source):
            self.hp["lr"] = float(checkpoint.unpack(state, source)[1]["hyperparameters"]["lr"])
        trainer = self._trainer()
        trainer.load_state(state, source)
        return trainer

    def _slower(self, slowest: float) -> Trainer:
        """The stage's beginning with a lower learning rate. WorkError if it would be too low."""
        if self.hp["lr"] / SLOWER < slowest:
            raise WorkError(
                f"--stages: stage {self.number} diverges, "
                f"even with a learning rate of {self.hp['lr']:.2g}"
            )
        self.hp["lr"] /= SLOWER
        return self._trainer()

    def _read(self, file: str) -> bytes | None:
        """A checkpoint of this stage; None if there is none, or another stage's or network's."""
        name = f"{self.folder}/{file}"
        if not self.storage.exists(name):
            return None
        data = self.storage.read_bytes(name)
        found = checkpoint.unpack(data, self.storage.join(name))[1]
        same = dataclasses.asdict(self.identity).items() <= found.items()
        # "random" does not tell networks apart. The rate is the stage's own, and may be lowered.
        hp = found.get("hyperparameters")
        same = same and isinstance(hp, dict) and {**hp, "lr": self.hp["lr"]} == self.hp
        return data if same else None

    def _write(self, file: str, data: bytes) -> None:
        self.storage.write_bytes(f"{self.folder}/{file}", data)

    def _line(self, row: EpochRow) -> str:
        val = f" val_loss={row['val_loss']:.4f} val_accuracy={row['val_accuracy']:.4f}"
        return (
            f"stage {self.number} epoch {row['epoch']}/{self.identity.stage.epochs} "
            f"train_loss={row['train_loss']:.4f} train_accuracy={row['train_accuracy']:.4f}"
            f"{'' if math.isnan(row['val_loss']) else val} images/s={row['images_per_second']:.0f}"
        )
