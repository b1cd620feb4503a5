"""run.json: the facts of a run. Claimed, read and validated here, and changed field by field.

Two jobs write it, the search and the fine-tuning. Each changes its own fields only: the file is
read again before every change.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mnist_ray.errors import CorruptFileError, SettingsError, WorkError
from mnist_ray.run import layout
from mnist_ray.settings import SearchSettings, check_search, is_stored
from mnist_ray.settings.checks import OF_STORED
from mnist_ray.storage import RunStorage

# Settings that are text, where a run has them, and those that may be null too.
NAMES = {"space", "sampler", "scheduler", "data_dir", "stages"}
PERHAPS = {"objectives", "study", "study_name", "train", "onnx", "warm_start", "class_weights"}
STATES = ("searching", "searched", "finetuning", "done", "interrupted", "failed")


@dataclass(frozen=True)
class Finished:
    """How a job ended: its exit code, and the run's directory."""

    exit_code: int
    uri: str


@dataclass(frozen=True)
class DataFacts:
    """The images of a run. train and val count images; classes are the labels' names."""

    name: str
    sha256: str
    train: int
    val: int
    classes: tuple[str, ...]
    split_sha256: str | None = None  # older runs do not record it

    def check_same(self, found: Mapping[str, Any], run: str, data_dir: str | None) -> None:
        """Refuses other images, or another division of them, than the run began with.

        Args:
            found: Of the images at hand, as `data.Split.facts` has them.
            run: Its URI, for the message.
            data_dir: Where built-in data sets lie, for the message.

        Raises:
            SettingsError: They differ.
        """
        own = ":" in found["name"]
        if found["sha256"] != self.sha256:
            what = f"--dataset: {found['name']}: its images" if own else "--data-dir: the images"
            where = f" in {data_dir}" if data_dir and not own else ""
            raise SettingsError(
                f"{what}{where} are not those that the run at {run} began with (SHA-256 differs)"
            )
        if self.split_sha256 not in (None, found["split_sha256"]):
            raise SettingsError(
                f"--dataset: {found['name']}: its groups, weights or validation part are not those "
                f"that the run at {run} began with"
            )


@dataclass(frozen=True)
class About:
    """The content of a run.json, and the run's directory."""

    storage: RunStorage
    name: str
    state: str
    settings: Mapping[str, Any]  # of the search, as settings.resolved gives them
    data: DataFacts
    start: str  # ISO 8601, UTC
    end: str | None = None
    points: tuple[dict[str, Any], ...] = ()
    onnx_sha256: str | None = None  # of the file that --onnx named
    warm_started: bool = False
    # flag -> the value that finds the run again
    trackers: Mapping[str, str] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)  # the whole file

    @classmethod
    def read(cls, storage: RunStorage, flag: str) -> "About":
        """The run at `storage`.

        Raises:
            SettingsError: begins with `flag`; there is no run, or its run.json is damaged.
        """
        if not storage.exists(layout.RUN):
            raise SettingsError(f"{flag}: there is no run at {storage.uri}")
        try:
            return cls.of(storage, storage.read_json(layout.RUN))
        except CorruptFileError as error:
            raise SettingsError(f"{flag}: {error}") from error

    @classmethod
    def of(cls, storage: RunStorage, raw: Any) -> "About":
        """A run.json's value. Raises CorruptFileError if a field is missing or of another type."""

        def get(value: Any, key: str, *kinds: type, default: Any = ...) -> Any:
            found = value.get(key, default) if isinstance(value, dict) else ...
            if found is ... or not isinstance(found, kinds):
                what = "missing" if found is ... else f"{found!r}"[:80]
                wanted = " or ".join(kind.__name__ for kind in kinds)
                raise CorruptFileError(
                    f"{storage.join(layout.RUN)} is damaged: {key} is {what}; expected {wanted}"
                )
            return found

        data, settings = get(raw, "data", dict), get(raw, "settings", dict)
        for key in ("dataset", "metric"):
            get(settings, key, str)
        for key in ("max_epochs", "trials", "seed"):
            get(settings, key, int)
        for key in NAMES & settings.keys():
            get(settings, key, str)
        for key in PERHAPS & settings.keys():
            get(settings, key, str, type(None))
        points = get(raw, "points", list, default=[])
        for point in points:
            get({"points": point}, "points", dict)
        return cls(
            storage,
            get(raw, "name", str),
            get(raw, "state", str),
            settings,
            DataFacts(
                get(data, "name", str),
                get(data, "sha256", str),
                get(data, "train", int),
                get(data, "val", int),
                tuple(map(str, get(data, "classes", list))),
                get(data, "split_sha256", str, type(None), default=None),
            ),
            get(raw, "start", str),
            get(raw, "end", str, type(None), default=None),
            tuple(points),
            get(raw, "onnx_sha256", str, type(None), default=None),
            get(raw, "warm_started", bool, default=False),
            get(raw, "trackers", dict, default={}),
            raw,
        )

    @classmethod
    def claim(cls, storage: RunStorage, raw: Mapping[str, Any], message: str) -> "About":
        """Writes a new run.json. Of two that claim a name at one moment, one gets it.

        Raises:
            SettingsError: `message`, if a run is there already.
        """
        about = cls.of(storage, dict(raw))
        if not storage.create_exclusive(layout.RUN, json.dumps(raw, indent=1).encode()):
            raise SettingsError(message)
        return about

    @staticmethod
    def check_replaceable(storage: RunStorage, flag: str) -> None:
        """Raises SettingsError naming the flag if a directory with other files is no run.

        A run.json alone makes none: other programs write files of that name too.
        """
        try:
            About.read(storage, flag)
        except SettingsError:
            strange = [name for name in storage.list() if not layout.is_ours(name)]
            if strange:
                raise SettingsError(
                    f"{flag}: {storage.uri} is no run: it holds {strange[0]}; "
                    "give another name, or remove it yourself"
                ) from None

    @staticmethod
    def check_new(storage: RunStorage, instead: str) -> None:
        """Refuses the place of a new run if files of an old one lie there, and no run.json.

        The new run would go on with the old one's trials and checkpoints.

        Args:
            storage: The new run's directory.
            instead: What the person may give, for the message.

        Raises:
            SettingsError: Names --name.
        """
        found = storage.list()
        remnants = [name for name in found if layout.is_remnant(name)]
        if remnants and layout.RUN not in found:
            raise SettingsError(
                f"--name: files of a run without its {layout.RUN} lie at {storage.uri}, "
                f"as {remnants[0]}; give {instead}"
            )

    def typed(self, keys: Collection[str], flag: str) -> SearchSettings:
        """Those settings of the search as a command has them: of their types, and allowed.

        Args:
            keys: Their names. What the run does not record has its default, as all others.
            flag: Begins the error.

        Raises:
            SettingsError: One of them is of another type, or not allowed.
        """
        known = {key: value for key in keys if (value := self.settings.get(key)) is not None}
        # `finetune --onnx --dataset digits` notes how the model's own images were read, too.
        skipped = () if is_stored(self.settings["dataset"]) else OF_STORED
        used = {key: value for key, value in known.items() if key not in skipped}
        try:
            typed = SearchSettings(**known)
            check_search(SearchSettings(**used, storage="/"))  # the place is not the run's
        except SettingsError as error:
            place = self.storage.join(layout.RUN)
            raise SettingsError(f"{flag}: {place} is damaged: {error}") from error
        return typed

    def patch(self, **fields: Any) -> "About":
        """Changes these fields of the file, as it is now, and no others.

        Raises:
            WorkError: The run was deleted or moved meanwhile.
        """
        try:
            raw = self.storage.change_json(layout.RUN, lambda now: {**now, **fields})
        except FileNotFoundError as error:
            raise WorkError(
                f"the run at {self.storage.uri} is gone: it was deleted or moved"
            ) from error
        return self.of(self.storage, raw)

    def ended(self, state: str) -> "About":
        """Notes how the job ended, and when."""
        return self.patch(state=state, end=now())


def now() -> str:
    """The time as run.json holds it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
