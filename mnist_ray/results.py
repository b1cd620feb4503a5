"""The results of a search: a run, read from its directory, and a published model."""

import hashlib
import os
from contextlib import ExitStack, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import numpy as np
import pyarrow as pa
from PIL.Image import Image

from mnist_ray import data
from mnist_ray.errors import MnistRayError, SettingsError, WorkError
from mnist_ray.export.read import read_model
from mnist_ray.export.session import Evaluation, Session, probabilities, temperature_of
from mnist_ray.run import best, layout, tables
from mnist_ray.run.about import About
from mnist_ray.run.best import Best
from mnist_ray.run.publication import read_picture
from mnist_ray.run.records import EpochRow, usable, value_of
from mnist_ray.run.tuned import Tuned
from mnist_ray.settings import is_stored, trust
from mnist_ray.settings.objectives import goal
from mnist_ray.settings.text import load_json
from mnist_ray.storage import RunStorage

if TYPE_CHECKING:
    import optuna
    import pandas


class Run:
    """A run on storage, as it is when an attribute is first read. See `mnist_ray.open_run`.

    Attributes:
        uri: The run's directory: a folder or s3://bucket/path/name.

    Example:
        >>> run = mnist_ray.open_run("runs/first")
        >>> run.best.params["lr"], run.best.value
        >>> run.model.predict("seven.png")
    """

    def __init__(self, uri: str, study: str | None = None) -> None:
        self.uri = uri
        self._storage = RunStorage(uri)
        self._place = study

    def __repr__(self) -> str:
        with suppress(MnistRayError):
            return f"Run({self.uri!r}, state={self.state!r})"
        return f"Run({self.uri!r}, no run there)"

    @cached_property
    def _about(self) -> About:
        return About.read(self._storage, "run")

    @property
    def name(self) -> str:
        """The run's name."""
        return self._about.name

    @property
    def state(self) -> str:
        """One of searching, searched, finetuning, done, interrupted and failed."""
        return self._about.state

    @property
    def settings(self) -> dict[str, Any]:
        """The options of the search, without passwords."""
        return dict(self._about.settings)

    @cached_property
    def trials(self) -> "pandas.DataFrame":
        """One row a trial that has ended: number, state, value, `params_*`, n_parameters."""
        return self._table(layout.TRIALS).to_pandas()

    @cached_property
    def history(self) -> "pandas.DataFrame":
        """One row a trial and epoch: number, epoch, losses, accuracies, learning rate, seconds."""
        return self._table(layout.HISTORY).to_pandas()

    @cached_property
    def best(self) -> Best:
        """The best epoch by the run's metric; with --confirm, of the trial that was chosen.

        Raises:
            WorkError: No epoch has ended yet.
        """
        metric = goal(self._about.settings)
        history = self._table(layout.HISTORY).to_pylist()
        if not any(usable(row, metric) for row in history):
            raise WorkError(f"the run at {self.uri} has no epoch that has ended yet")
        confirmed = best.read(self._storage)
        chosen = confirmed[0] if confirmed else None
        row = best.best_epoch(history, metric, chosen, self._table(layout.TRIALS).to_pylist())
        if row is None:
            raise WorkError(f"no trial of the run at {self.uri} keeps its --constraint")
        value = value_of(cast(EpochRow, row), metric)
        return Best(row["number"], row["epoch"], value, self._params(row["number"]), chosen)

    def _params(self, number: int) -> dict[str, Any]:
        """A trial's suggestions, from the run's study where it can be read; else from the table.

        The table lacks trials that have not ended, and cannot tell a choice None from no choice.
        """
        elsewhere = self._place not in (None, "memory")
        if elsewhere or (self._place is None and self._storage.exists(layout.JOURNAL)):
            with suppress(SettingsError, WorkError) if elsewhere else nullcontext():
                trials = self.study.trials
                if number < len(trials):
                    return dict(trials[number].params)
        return best.params_of(self._table(layout.TRIALS).to_pylist(), number)

    @cached_property
    def study(self) -> "optuna.Study":
        """The study in memory, a copy: for `optuna.visualization`, `study.best_trials` and others.

        Raises:
            SettingsError: The study lies elsewhere than in the run's directory. A run does not
                choose the host to connect to: `open_run(uri, study="postgresql://…")` names it.
        """
        import optuna  # noqa: PLC0415 (seconds at start)

        from mnist_ray.study import journal, storages  # noqa: PLC0415 (seconds at start)

        settings = self._about.settings
        name = settings.get("study_name") or self.name
        with ExitStack() as stack:
            if self._place is None and settings.get("study"):
                raise SettingsError(
                    f"study: that of the run at {self.uri} is kept at {settings['study']}; "
                    "name it: open_run(uri, study=…)"
                )
            source = self._place or self._storage.join(layout.JOURNAL)
            kept: optuna.storages.BaseStorage
            if self._place is None:
                kept = journal.read(self._storage, layout.JOURNAL)
            else:
                kept = stack.enter_context(storages.opened(self._place, "study", new=False))
            memory = optuna.storages.InMemoryStorage()
            try:
                optuna.copy_study(from_study_name=name, from_storage=kept, to_storage=memory)
            except KeyError as error:
                raise SettingsError(f"study: there is no study {name!r} at {source}") from error
        return optuna.load_study(study_name=name, storage=memory)

    @property
    def report_path(self) -> Path | None:
        """The page of the run; None if it does not lie on this machine."""
        path = (folder := self._storage.local_path) and folder / layout.REPORT
        return path if path and path.is_file() else None

    @property
    def tuned(self) -> Tuned:
        """The result of --finetune-with; WorkError if there is none."""
        return Tuned.read(self._storage)

    @cached_property
    def model(self) -> "Model":
        """The published model.

        Raises:
            SettingsError: The run has published none.
        """
        return load_model(self.uri)

    def _table(self, name: str) -> pa.Table:
        try:
            return tables.read(self._storage, name)
        except FileNotFoundError as error:
            raise WorkError(f"the run at {self.uri} has no {name} yet") from error


class _Pair(NamedTuple):
    label: str
    probability: float


class Prediction(_Pair):
    """The class of a picture. It unpacks to its label and probability.

    Attributes:
        label: The class's name; "" if nothing is drawn.
        probability: Of that class, in [0, 1].
        known: Whether the picture is one of the classes at all. Where nothing is drawn it is
            False, but not for models of fashion-mnist, colour images or one's own files.
        reason: Why it is not: `nothing drawn`; `several` digits; `unsure`, as it may be one or
            another of the classes; or `foreign`, as nothing like it is among them. "" if it is.
    """

    known: bool
    reason: str

    def __new__(cls, label: str, probability: float, known: bool = True, reason: str = "") -> Self:
        """Makes the pair and notes the others beside it."""
        self = super().__new__(cls, label, probability)
        self.known, self.reason = known, reason
        return self


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


class Model:
    """A published model, run by onnxruntime on the CPU. Made by `mnist_ray.load_model`.

    Pictures go through `picture.onnx`, as on the page: the run's, or one made of the model's file.

    Attributes:
        path: The file, or the run's directory that holds it.
        manifest: `model.json` as a dict: test accuracy, lineage and more; empty for a file alone.

    Example:
        >>> model = mnist_ray.load_model("runs/first")
        >>> label, probability = model.predict("seven.png")
    """

    def __init__(
        self, content: bytes, path: str, manifest: dict[str, Any], picture: bytes | None = None
    ) -> None:
        self.path, self.manifest = path, manifest
        self.content, self._picture = content, picture
        self.session = Session(content, path)

    def __repr__(self) -> str:
        return f"Model({self.path!r}, images of {self.session.image_shape})"

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        text = self.session.metadata.get("classes")
        if text is None:
            return ()
        names = load_json(text)
        n = self.session.n_classes
        if (
            not isinstance(names, list)
            or not all(map(_is_name, names))
            or len(names) != (n or len(names))
        ):
            raise SettingsError(
                f"{self.path}: its metadata's classes are no list of {n or 'printable'} names"
            )
        return tuple(names)

    def predict(self, picture: str | os.PathLike[str] | np.ndarray | Image) -> Prediction:
        """The class of a picture.

        Args:
            picture: A file; or a picture of Pillow's or uint8 [height, width] or [height, width,
                3 or 4] of any size, dark on light or light on dark; or an image as the data set
                has it, uint8 [C, H, W], which counts as known.

        Raises:
            SettingsError: The file cannot be read, or the array is no picture.
        """
        if isinstance(picture, np.ndarray) and picture.shape == self.session.image_shape:
            if picture.dtype != np.uint8:
                raise SettingsError(f"picture: an array of {picture.dtype}; expected uint8")
            each = self.probabilities(picture[None])[0]
            number, probability, known, reason = int(each.argmax()), float(each.max()), True, ""
        else:
            shape = self.session.image_shape
            number, probability, known, reason = self._pictures.of(picture, shape)
        if not probability:
            return Prediction("", 0.0, False, reason)
        label = dict(enumerate(self.classes)).get(number, str(number))
        return Prediction(label, probability, known, reason)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Float32 [n, classes] for images of a data set, uint8 [n, C, H, W]."""
        logits = self._numbers(self.session.logits(images))
        return probabilities(logits / np.float32(self._temperature))

    def evaluate(
        self, dataset: str | None = None, part: str = "test", data_dir: str | None = None
    ) -> Evaluation:
        """How many images of a data set the model classifies rightly.

        Args:
            dataset: As the command's --dataset (default: the one that the model was made for).
            part: `test` or `train`.
            data_dir: torchvision's root (default: from MNIST_RAY_DATA).

        Raises:
            SettingsError: The model names none, or none of the built-in ones: a file does not
                choose the code that runs.
        """
        return self.judge(self.images(dataset, part, data_dir))

    def judge(self, images: data.Images) -> Evaluation:
        """As `evaluate`, for images that are loaded already."""
        found = self.session.evaluate(images.images, images.labels)
        self._numbers(found.logits)
        return found

    def _numbers(self, logits: np.ndarray) -> np.ndarray:
        """The logits. SettingsError if one is NaN, which would count as the first class."""
        if np.isnan(logits).any():
            raise SettingsError(f"{self.path} gives logits that are no numbers (NaN)")
        return logits

    def images(
        self, dataset: str | None = None, part: str = "test", data_dir: str | None = None
    ) -> data.Images:
        """The part of a data set that `evaluate` looks at, with the labels that the model has."""
        if part not in ("train", "test"):
            raise SettingsError(f"part: {part!r} is not allowed; expected train or test")
        name = trust.dataset(dataset, self.session.metadata.get("dataset"), self.path)
        images = self._load(name, dataset is None, part, data_dir)
        if name == self.session.metadata.get("dataset") and ":" not in name:
            return images  # labels of a built-in data set never change, though names may
        return data.by_names(images, self.classes, self.path)

    def _load(self, name: str, by_model: bool, part: str, data_dir: str | None) -> data.Images:
        """A part of a data set, read as the model's own was; `by_model`: the model names it."""
        if not is_stored(name):
            return data.load(name, part, data_dir)
        metadata = self.session.metadata
        sha256, how = metadata.get("data_sha256"), metadata.get("reading")
        if by_model:
            reading = data.Reading.from_json(how or "{}", self.path)
            trained = data.load(name, "train", reading=reading)
            trust.same_data(trained.sha256, sha256, self.path, name)
            return data.load(name, part, reading=reading)
        own = name == metadata.get("dataset")
        shape, padding = self.session.image_shape, self.session.padding
        reading = data.Reading.of_model(shape, padding, how if own else None, self.path)
        if own and sha256 is None:  # a file of before, of a data set on a hub
            return data.load(name, part, reading=reading)
        # Another name may hold the same images, elsewhere; its own name others, by now.
        return data.load(name, part, reading=reading, trained_on=sha256 or "", own=own)

    @cached_property
    def _temperature(self) -> float:
        return temperature_of(self.session.metadata, self.path)

    @cached_property
    def picture(self) -> bytes:
        """The bytes of `picture.onnx`: the run's, or made of the model's file."""
        made: bytes = self._picture or self._room.picture_file(self.content, self.path)
        return made

    @cached_property
    def _pictures(self) -> Any:
        return self._room.PictureSession(self.picture, layout.PICTURE)

    @property
    def _room(self) -> Any:
        from mnist_ray.export import picture_model  # noqa: PLC0415 (seconds at start)

        return picture_model


def open_run(uri: str | os.PathLike[str], study: str | None = None) -> Run:
    """A run that was made before, finished or not.

    Args:
        uri: Its directory: a folder or s3://bucket/path/name.
        study: The place of its study, if --study kept it elsewhere.

    Raises:
        SettingsError: There is no run.

    Example:
        >>> run = mnist_ray.open_run("runs/first")
        >>> run.history.groupby("number")["val_accuracy"].max()
    """
    run = Run(os.fsdecode(uri), study)
    run._about  # noqa: B018 (is there one?)
    return run


def load_model(path: str | os.PathLike[str]) -> Model:
    """A published model.

    Args:
        path: An ONNX file or a run's directory, local or s3://…

    Raises:
        SettingsError: There is none, or it is damaged.

    Example:
        >>> mnist_ray.load_model("model.onnx").predict("seven.png").label
        '7'
    """
    where = os.fsdecode(path)
    content = read_model(where)
    plain, mark, query = where.partition("?") if "://" in where else (where, "", "")
    folder = os.path.dirname(plain) or "." if plain.endswith(".onnx") else plain
    storage = RunStorage(folder + mark + query)
    manifest = storage.read_json(layout.MANIFEST) if storage.exists(layout.MANIFEST) else {}
    sha256 = hashlib.sha256(content).hexdigest()
    if not isinstance(manifest, dict) or manifest.get("sha256") != sha256:
        return Model(content, where, {})
    return Model(content, where, manifest, read_picture(storage, manifest))
