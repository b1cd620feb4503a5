"""The trials' work: networks and trees on images, or a training function of one's own.

Both know the class of Tune's that trains, the values that every trial gets, and the facts that a
run records of them.
"""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mnist_ray import data, spaces
from mnist_ray.cluster import check_sendable
from mnist_ray.data import Split  # in OwnWork `data` is an attribute
from mnist_ray.run.about import About
from mnist_ray.search_job.start import Start
from mnist_ray.settings import SearchSettings, constraints, is_stored, resolved, trust
from mnist_ray.settings.functions import check_function, own_data
from mnist_ray.settings.text import load
from mnist_ray.training import metrics


@dataclass(frozen=True)
class ImageWork:
    """Training on images by this package."""

    split: data.Split
    start: Start | None
    space: spaces.Space

    @property
    def networks(self) -> bool:
        """Whether its trials are networks, which can be exported."""
        return spaces.of_networks(self.space)

    def trainable(self, deterministic: bool) -> Any:
        """The class of Tune's that trains a trial. Imports Ray."""
        return spaces.trainable(self.space, deterministic)

    def parameters(self) -> dict[str, Any]:
        """The arrays that every trial gets from the object store."""
        split = self.split
        return {
            "images": split.images.images,
            "labels": split.images.labels,
            "train": split.train,
            "val": split.val,
            "start": self.start.weights if self.start else None,
            **({"folds": split.folds} if split.folds else {}),
        }

    def facts(self) -> dict[str, Any]:
        """For run.json, under `data`."""
        return self.split.facts()

    def purpose(self, settings: SearchSettings) -> dict[str, Any]:
        """The facts in which searches with one study must agree, or values cannot be compared."""
        s = settings
        return {
            **_purpose(s.dataset, self.split),
            **({"folds": s.folds} if s.folds else {}),
            **({"augment": s.augment} if s.augment != "none" else {}),
            **({"class_weights": s.class_weights} if s.class_weights else {}),
            **({"onnx_sha256": self.start.sha256} if self.start else {}),
        }


@dataclass(frozen=True)
class OwnWork:
    """A training function of one's own."""

    function: str
    """`module:function`."""
    data: Any
    """What it gets as `data`."""
    networks = False

    @property
    def split(self) -> Split | None:
        """The images, if it trains on them."""
        return self.data if isinstance(self.data, Split) else None

    def trainable(self, deterministic: bool) -> Any:
        """The class of Tune's that trains a trial. Imports Ray."""
        return load("mnist_ray.trials.function:FunctionTrial", "--train", ())

    def parameters(self) -> dict[str, Any]:
        """The values that every trial gets from the object store."""
        return {"function": self.function, "data": self.data}

    def facts(self) -> dict[str, Any]:
        """For run.json, under `data`."""
        if self.split is not None:
            return self.split.facts()
        return {"name": self.function, "sha256": "", "train": 0, "val": 0, "classes": []}

    def purpose(self, settings: SearchSettings) -> dict[str, Any]:
        """The facts in which searches with one study must agree, or values cannot be compared."""
        return {
            "train": self.function,
            "train_data": settings.train_data,
            **(_purpose(settings.dataset, self.split) if self.split is not None else {}),
        }


Work = ImageWork | OwnWork


def _purpose(dataset: str, split: data.Split) -> dict[str, Any]:
    """The facts of images in which searches with one study must agree."""
    return {
        "dataset": dataset,
        "train_images": len(split.train),
        "val_images": len(split.val),
        "val_by": split.val_by,
        "images_sha256": split.images.sha256,
    }


def own_work(settings: SearchSettings, resumed: About | None, given: Collection[str]) -> OwnWork:
    """The work of --train and --train-data, whose function is called; arguments as in load_split.

    Raises:
        SettingsError: One of them, or --finetune-with, cannot be imported or used.
    """
    assert settings.train is not None
    check_function(settings.train, "--train")
    if settings.finetune_with is not None:
        check_function(settings.finetune_with, "--finetune-with")
    images = functools.partial(load_split, settings, resumed, given)
    made = own_data(settings.train_data, images)
    check_sendable(made, f"--train-data: {settings.train_data!r}")
    return OwnWork(settings.train, made)


def load_split(
    settings: SearchSettings, resumed: About | None, given: Collection[str] = ()
) -> data.Split:
    """The images; with --resume those that the run began with. Tries a metric of one's own.

    Args:
        settings: of the search.
        resumed: the run that goes on.
        given: names of the options that the person gave to the command that resumes it.

    Raises:
        SettingsError: they cannot be used, are others than those of the run that goes on, or a
            function gives others each time.
    """
    reading = data.Reading.of(resolved(settings))
    split = data.load_split(
        settings.dataset,
        settings.data_dir,
        train_images=settings.train_images,
        val_images=settings.val_images,
        seed=settings.seed,
        val_by=settings.val_by,
        folds=settings.folds,
        reading=reading,
        download=not resumed or trust.may_download(settings.data_dir, given),
        each_class=not resumed or resumed.data.split_sha256 is not None,
    )
    if settings.train is None:
        labels = split.images.labels[split.val]
        metrics.check(settings.goal, labels, len(split.images.classes))
    if resumed:
        resumed.data.check_same(split.facts(), resumed.storage.uri, settings.data_dir)
    elif trust.is_code(settings.dataset) and not is_stored(settings.dataset):
        data.check_repeats(split, settings.data_dir, reading.class_weights)
    return split


def data_shape(images: data.Images) -> spaces.DataShape:
    """A data set's shape, for a space."""
    channels, height, width = images.shape
    return spaces.DataShape(channels, (height, width), len(images.classes), images.mean, images.std)


def purpose(settings: SearchSettings, work: Work, names: tuple[str, ...]) -> Mapping[str, Any]:
    """Equal for searches that may share a study."""
    return {
        "space": settings.space,
        "space_args": sorted(settings.space_args),
        "metric": settings.goal,
        "max_epochs": settings.max_epochs,
        **({"objectives": list(names)} if names else {}),
        **constraints.purpose(settings.constraint),
        **work.purpose(settings),
    }
