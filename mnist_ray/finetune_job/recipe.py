"""A recipe of fine-tune stages, read from a YAML file; and the task that a worker is given."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_ray.data import Images, Reading
from mnist_ray.errors import SettingsError
from mnist_ray.hyperparameters import BY_NAME, OF_ONE_OPTIMIZER, Hyperparameter, own_function
from mnist_ray.settings import packaged, read_yaml
from mnist_ray.settings.text import recipes

INHERIT = "trial"  # in a file: the value that the search's best trial had
INHERITABLE = ("batch_size", "lr", "weight_decay", "optimizer")
SEEDS_APART = 1000  # between the members of a committee
_OWN = {  # keys of a stage that are no hyperparameters
    "epochs": Hyperparameter("epochs", int, "passes over the images", low=1),
    "seed": Hyperparameter("seed", int, "of the order of the images and of dropout"),
}


@dataclass(frozen=True)
class Stage:
    """One stage of training, with a fresh optimiser. None: as the search's best trial had it."""

    epochs: int
    batch_size: int | None
    lr: float | None
    weight_decay: float | None
    optimizer: str | None
    seed: int
    schedule: str = "constant"
    label_smoothing: float = 0.0
    ema: float = 0.0
    dropout: float | None = None
    augment: str | None = None
    pool_jitter: int | None = None  # pixels, for networks with blur pooling (see models.BlurPool)

    def hyperparameters(self, hp: Mapping[str, Any]) -> dict[str, Any]:
        """The network's hyperparameters with this stage's training.

        Those of one optimiser (betas, momentum) are left out if the stage has another.
        """
        own = {
            key: value
            for key, value in dataclasses.asdict(self).items()
            if key not in ("epochs", "seed") and value is not None
        }
        another = self.optimizer not in (None, hp.get("optimizer"))
        inherited = {k: v for k, v in hp.items() if not (another and k in OF_ONE_OPTIMIZER)}
        return {**inherited, "l1": 0.0, **own}

    def resolved(self, hp: Mapping[str, Any]) -> "Stage":
        """The stage with the inherited values filled in, for logs and a model's lineage."""
        keys = [key for key in (*INHERITABLE, "augment") if getattr(self, key) is None]
        inherited: dict[str, Any] = {key: _of_trial(hp, key) for key in keys}
        return dataclasses.replace(self, **inherited)


def _of_trial(hp: Mapping[str, Any], key: str) -> Any:
    """A value that the search's best trial had."""
    return {"weight_decay": 0.0, "augment": "none", **hp}.get(key)


@dataclass(frozen=True)
class Recipe:
    """Stages in their order."""

    name: str
    start: str
    """`best`: from the search's checkpoint; `random`: from random weights."""
    train_on: str
    """`all` images, or the `train` part, which keeps validation images."""
    stages: tuple[Stage, ...]
    members: tuple[Mapping[str, Any], ...] = ()
    """Of a committee: the values in which the stages of its networks differ, in turn."""
    twin: bool = False
    """Whether this trains a twin, to calibrate: see calibration.py."""

    def resolved(self, hp: Mapping[str, Any]) -> "Recipe":
        """See Stage.resolved."""
        stages = tuple(stage.resolved(hp) for stage in self.stages)
        members = tuple(
            {key: _of_trial(hp, key) if value is None else value for key, value in own.items()}
            for own in self.members
        )
        return dataclasses.replace(self, stages=stages, members=members)

    def of_member(self, member: int) -> Mapping[str, Any]:
        """What a committee's member (from 1) has in place of the stages' values."""
        return self.members[(member - 1) % len(self.members)] if self.members else {}

    def numbered(self, member: int = 1) -> list[tuple[int, Stage]]:
        """Each stage with its number, for a committee's member (from 1), which has its own seeds.

        A first stage from random weights is the full training, not a fine-tuning: stage 0.
        """
        apart, own = SEEDS_APART * (member - 1), self.of_member(member)
        stages = [
            dataclasses.replace(stage, seed=stage.seed + apart, **own) for stage in self.stages
        ]
        return list(enumerate(stages, start=0 if self.start == "random" else 1))


@dataclass(frozen=True)
class ChainTask:
    """A worker's task, without the images."""

    uri: str
    """The run's directory."""
    run: str
    """The run's name."""
    dataset: str
    recipe: Recipe
    committee: int
    """Networks to train, each with its own seeds."""
    onnx: bytes | None
    """The model to start from; None: the search's best checkpoint."""
    network: str | None
    """`module:function` of a network of the user's own that a checkpoint may name."""
    precision: str
    augment: str | None = None
    """`module:function` of an augmentation of the user's own that start network may name."""
    calibrate: str = "none"
    """`auto`, `twin` or `none`."""
    test_steps: bool = False
    """Whether every step is evaluated on the test set, or the published file alone."""
    gate: str = "none"
    """`auto` or `none`."""
    quantize: str = "none"
    """`none`, `int8` or `fp16`."""
    cpus: float = 1.0
    gpus: float = 0.0
    reading: Reading | None = None
    """How the images of one's own were read."""
    metric: str = "val_accuracy"
    """What the search optimised (see `objectives.goal`)."""
    began_with_file: bool = False
    """Whether the search began with an ONNX file, whose network may have seen all images."""
    owner: str = ""
    """The token of the run's lease (see `lease.owned`)."""


def read_stages(name: str) -> Recipe:
    """Reads a recipe.

    Args:
        name: `default`, `seed`, the name of another packaged recipe, or a YAML file.

    Raises:
        SettingsError: one line that names the file and the key.
    """
    path = packaged(name, "stages-")
    if not os.path.isfile(path):
        raise SettingsError(
            f"--stages: {name!r} is neither a recipe nor a file; "
            f"recipes are {', '.join(recipes(of_stages=True))}"
        )
    values = read_yaml(path)
    unknown = set(values) - {"start", "train_on", "stages", "members"}
    if unknown:
        raise SettingsError(
            f"{path}: unknown key {sorted(unknown)[0]!r}; "
            "allowed are start, train_on, stages, members"
        )
    for key, allowed in (("start", ("best", "random")), ("train_on", ("all", "train"))):
        if values.setdefault(key, allowed[0]) not in allowed:
            raise SettingsError(
                f"{path}: {key} is {values[key]!r}; allowed are {', '.join(allowed)}"
            )
    rows, members = values.get("stages"), values.get("members", [])
    if not isinstance(rows, list) or not rows:
        raise SettingsError(f"{path}: `stages` must be a list of at least one stage")
    if not isinstance(members, list):
        raise SettingsError(f"{path}: `members` must be a list, found {type(members).__name__}")
    stages = tuple(_stage(row, f"{path}: stage {i}") for i, row in enumerate(rows, start=1))
    differ = tuple(_member(row, f"{path}: member {i}") for i, row in enumerate(members, start=1))
    return Recipe(Path(name).stem, values["start"], values["train_on"], stages, differ)


_KEYS = tuple(field.name for field in dataclasses.fields(Stage))


def _stage(row: Any, source: str) -> Stage:
    values = _values(row, source, _KEYS)
    for field in dataclasses.fields(Stage):
        if field.default is dataclasses.MISSING and field.name not in row:
            raise SettingsError(f"{source}: {field.name!r} is missing")
    return Stage(**values)


def _member(row: Any, source: str) -> dict[str, Any]:
    # Each member has seeds of its own without being told.
    return _values(row, source, tuple(key for key in _KEYS if key != "seed"))


def _values(row: Any, source: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    """The values of a stage or a member, checked."""
    if not isinstance(row, dict):
        raise SettingsError(f"{source}: expected `key: value` pairs, found {type(row).__name__}")
    values: dict[str, Any] = {}
    for key, value in row.items():
        if key not in allowed:
            raise SettingsError(f"{source}: unknown key {key!r}; allowed are {', '.join(allowed)}")
        inherits = value == INHERIT and key in INHERITABLE
        values[key] = None if inherits else {**BY_NAME, **_OWN}[key].check(value, f"{source}:")
    return values


def check_augmentations(augment: str, recipe: str | None, images: Images) -> None:
    """Tries functions of one's own that augment, before anything starts.

    Args:
        augment: The value of --augment.
        recipe: The value of --stages; None: nothing is fine-tuned.
        images: The training part.

    Raises:
        SettingsError: One cannot augment, or the recipe cannot be read.
    """
    chosen = [("--augment", augment)]
    read = read_stages(recipe) if recipe else None
    named = [stage.augment for stage in read.stages] if read else []
    named += [each.get("augment") for each in read.members] if read else []
    chosen += [(f"--stages: {recipe}", text or "none") for text in named]
    own = [(flag, text) for flag, text in chosen if own_function(text)]
    if own:
        from mnist_ray.training import augment as augmentation  # noqa: PLC0415 (seconds at start)

        for flag, text in own:
            augmentation.check(text, images.images[:8], flag)
