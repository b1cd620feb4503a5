"""The fine-tune stages: what a recipe file says, and the training that follows it, resumable after every epoch."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.hyperparameters import AUGMENTATIONS, OF_ONE_OPTIMIZER, OPTIMIZERS, SCHEDULES
from mnist_ray.settings import packaged, read_yaml
from mnist_ray.storage import RunStorage

if TYPE_CHECKING:
    from torch import Tensor

    from mnist_ray.run.records import EpochRow

BUILT_IN = ("default", "seed")
TRIALS = "trial"  # in a recipe file, in place of a value of one of these keys: the best trial's
KEPT = ("batch_size", "lr", "weight_decay", "optimizer")
SEEDS_APART = 1000  # between the members of a committee


@dataclass(frozen=True)
class Stage:
    """One stage. What is given here replaces the trial's value, None keeps it; a stage begins with a fresh optimiser."""

    epochs: int
    batch_size: int | None
    lr: float | None
    weight_decay: float | None
    optimizer: str | None
    seed: int
    schedule: str = "constant"
    label_smoothing: float = 0.0
    ema: float = 0.0
    dropout: float | None = None  # None keeps the network's own
    augment: str | None = None  # None augments as the search did
    pool_jitter: int | None = (
        None  # pixels, for networks with blur pooling (see models.BlurPool); None keeps the network's own
    )

    def hyperparameters(self, hp: Mapping[str, Any]) -> dict[str, Any]:
        """The network's dict with this stage's training in it. What belongs to another optimiser than the stage's is left out."""
        own = {
            k: v
            for k, v in dataclasses.asdict(self).items()
            if k not in ("epochs", "seed") and v is not None
        }
        another = self.optimizer not in (None, hp.get("optimizer"))
        kept = {k: v for k, v in hp.items() if not (another and k in OF_ONE_OPTIMIZER)}
        return {**kept, "l1": 0.0, **own}

    def told(self, hp: Mapping[str, Any]) -> "Stage":
        """The stage with the values that it keeps of the trial, so that a log and a model's lineage show them."""
        defaults = {"weight_decay": 0.0, "augment": "none"}
        return dataclasses.replace(
            self,
            **{
                k: hp.get(k, defaults.get(k))
                for k in (*KEPT, "augment")
                if getattr(self, k) is None
            },
        )


@dataclass(frozen=True)
class Recipe:
    """Stages in their order. start: "best", the search's checkpoint, or "random"; train_on: "all" images or the "train" part."""

    name: str
    start: str
    train_on: str
    stages: tuple[Stage, ...]

    def told(self, hp: Mapping[str, Any]) -> "Recipe":
        """See Stage.told."""
        return dataclasses.replace(self, stages=tuple(stage.told(hp) for stage in self.stages))

    @property
    def first_number(self) -> int:
        """A first stage from random weights is the full training, not a fine-tuning: it is stage 0."""
        return 0 if self.start == "random" else 1


def read_stages(name: str) -> Recipe:
    """The recipe `default`, `seed`, or of a YAML file. Raises SettingsError naming file and key."""
    path = packaged(name, "stages-")
    if not Path(path).is_file():
        raise SettingsError(f"--stages: {name!r} is neither {' nor '.join(BUILT_IN)} nor a file")
    values = read_yaml(path)
    unknown = set(values) - {"start", "train_on", "stages"}
    if unknown:
        raise SettingsError(
            f"{path}: unknown key {sorted(unknown)[0]!r}; allowed are start, train_on, stages"
        )
    for key, allowed in (("start", ("best", "random")), ("train_on", ("all", "train"))):
        if values.get(key, allowed[0]) not in allowed:
            raise SettingsError(
                f"{path}: {key} is {values[key]!r}; allowed are {', '.join(allowed)}"
            )
    rows = values.get("stages")
    if not isinstance(rows, list) or not rows:
        raise SettingsError(f"{path}: `stages` must be a list of at least one stage")
    stages = tuple(_stage(row, f"{path}: stage {i}") for i, row in enumerate(rows, start=1))
    return Recipe(
        Path(name).stem, values.get("start", "best"), values.get("train_on", "all"), stages
    )


def _stage(row: Any, where: str) -> Stage:
    fields = {f.name: f for f in dataclasses.fields(Stage)}
    if not isinstance(row, dict):
        raise SettingsError(f"{where}: expected `key: value` pairs, found {type(row).__name__}")
    for key, value in row.items():
        if key not in fields:
            raise SettingsError(f"{where}: unknown key {key!r}; allowed are {', '.join(fields)}")
        if value == TRIALS and key in KEPT:
            continue
        choices = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "augment": AUGMENTATIONS}.get(
            key
        )
        if choices is not None:
            if value not in choices:
                raise SettingsError(
                    f"{where}: {key} is {value!r}; allowed are {', '.join(choices)}"
                )
            continue
        whole = key in ("epochs", "batch_size", "seed", "pool_jitter")
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise SettingsError(
                f"{where}: {key} is {value!r}; expected a{' whole' if whole else ''} number"
            )
        low = {"epochs": 1, "batch_size": 1}.get(key, 0)
        high = {"label_smoothing": 1, "ema": 1, "dropout": 1}.get(key, math.inf)
        if not (low <= value and (value < high)):
            raise SettingsError(
                f"{where}: {key} is {value!r}; expected at least {low}"
                + (f" and less than {high}" if high < math.inf else "")
            )
    missing = [
        f.name for f in fields.values() if f.default is dataclasses.MISSING and f.name not in row
    ]
    if missing:
        raise SettingsError(f"{where}: {missing[0]!r} is missing")
    values: dict[str, Any] = {key: None if value == TRIALS else value for key, value in row.items()}
    return Stage(**values)


def stage_folder(number: int, member: int = 1) -> str:
    """A stage's folder below the run's directory. member: which network of a committee, from 1."""
    return f"finetune/stage-{number}" if member == 1 else f"finetune/member-{member}/stage-{number}"


def train_stages(
    recipe: Recipe,
    hp: Mapping[str, Any],
    weights: "Mapping[str, Tensor] | None",
    storage: RunStorage,
    data: "Sequence[Tensor]",
    precision: str,
    member: int = 1,
) -> Iterator[str]:
    """Trains the stages one after the other, yielding a log line an epoch; each leaves its `model.safetensors` and its curve.

    data: images uint8 [n, C, H, W], labels int64 [n], and the int64 indices of the training and validation part. A stage that is done
    (the same stage from the same weights) is not done again; one that was interrupted goes on after its last epoch with the same result.
    member: which network of a committee this is, from 1: each has seeds of its own.
    A recipe's learning rate may be too much for the network that a search found: a stage that diverges is begun again with a third of it.
    Raises WorkError where a hundredth is still too much.
    """
    from mnist_ray.run import checkpoint, records
    from mnist_ray.training.trainer import Trainer

    def trainer_of(stage: Stage, hyperparameters: Mapping[str, Any]) -> Trainer:
        return Trainer(
            hyperparameters,
            epochs=stage.epochs,
            seed=stage.seed,
            device=images.device,
            precision=precision,
            weights=weights,
        )

    images, labels, train, val = data
    everything = recipe.train_on == "all"
    for number, stage in enumerate(recipe.stages, start=recipe.first_number):
        folder = stage_folder(number, member)
        stage = dataclasses.replace(stage, seed=stage.seed + SEEDS_APART * (member - 1))
        begins_with = checkpoint.digest(weights) if weights else "random"
        # What the result depends on: a checkpoint of another story is not gone on with.
        story = {
            "stage": dataclasses.asdict(stage),
            "train_on": recipe.train_on,
            "begins_with": begins_with,
        }
        done = _read(storage, f"{folder}/model.safetensors", story)
        if done is not None:
            weights = checkpoint.unpack(done, storage.join(folder))[0]
            yield f"stage {number}: done already"
            continue
        state, hyperparameters = (
            _read(storage, f"{folder}/training.safetensors", story),
            stage.hyperparameters(hp),
        )
        if state is not None:
            hyperparameters["lr"] = checkpoint.unpack(state, storage.join(folder))[1][
                "hyperparameters"
            ]["lr"]
        trainer = trainer_of(stage, hyperparameters)
        if state is not None:
            trainer.load_state(state, storage.join(folder))
            yield f"stage {number}: going on after epoch {trainer.epoch}"
        while trainer.epoch < stage.epochs:
            # With all images trained on, an accuracy on some of them would mean nothing: it stays NaN.
            row = trainer.run_epoch(
                images, labels, None if everything else train, None if everything else val
            )
            if not row["train_loss"] < 2 * math.log(
                hp["classes"]
            ):  # twice that of guessing, or not finite
                lr, told = hyperparameters["lr"], stage.hyperparameters(hp)["lr"]
                if lr / 3 < told / 100:
                    raise WorkError(
                        f"--stages: stage {number} diverges, even with a learning rate of {lr:.2g}"
                    )
                hyperparameters["lr"] = lr / 3
                trainer = trainer_of(stage, hyperparameters)
                yield f"stage {number} diverged in epoch {row['epoch']}: begun again with a learning rate of {lr / 3:.3g}"
                continue
            storage.write_bytes(f"{folder}/training.safetensors", trainer.state_bytes(story))
            yield _line(number, stage, row)
        weights = {
            name: tensor.detach().cpu().clone() for name, tensor in trainer.weights().items()
        }
        table = records.curve_table(trainer.rows)
        storage.write_bytes(f"{folder}/curve.parquet", records.parquet(table))
        storage.write_bytes(f"{folder}/model.safetensors", trainer.weights_bytes(story))
        storage.delete(f"{folder}/training.safetensors")


def _read(storage: RunStorage, name: str, story: Mapping[str, Any]) -> bytes | None:
    """The checkpoint of that name if it is there and tells that story."""
    from mnist_ray.run import checkpoint

    if not storage.exists(name):
        return None
    data = storage.read_bytes(name)
    found = checkpoint.unpack(data, storage.join(name))[1]
    return data if all(found.get(key) == value for key, value in story.items()) else None


def _line(number: int, stage: Stage, row: "EpochRow") -> str:
    val = (
        ""
        if math.isnan(row["val_loss"])
        else f" val_loss={row['val_loss']:.4f} val_accuracy={row['val_accuracy']:.4f}"
    )
    return (
        f"stage {number} epoch {row['epoch']}/{stage.epochs} train_loss={row['train_loss']:.4f} "
        f"train_accuracy={row['train_accuracy']:.4f}{val} images/s={row['images_per_second']:.0f}"
    )
