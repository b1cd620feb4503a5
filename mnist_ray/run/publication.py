"""A published model: `model.json`, and the file that it names with its SHA-256.

If a publication is cut off, a reader finds the old model or the new one, never a mixture.
"""

import dataclasses
import hashlib
import math
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mnist_ray.errors import CorruptFileError
from mnist_ray.run import layout
from mnist_ray.run.records import checked
from mnist_ray.storage import RunStorage

READ_AGAIN = (0.1, 0.2, 0.4, 0.8, 1.6)  # seconds between looks at a model that is being replaced


@dataclass(frozen=True)
class Known:
    """When `picture.onnx` declines a picture, and how often."""

    rate: float
    """Share of a data set's own unseen images that is declined, at most."""
    unsure_below: float
    """The probability; 0 where the network was not calibrated."""
    foreign_above: float
    """The gate's score."""
    images: int
    """Validation images that set both."""
    declined: float
    """Their share."""
    parameters: int
    seconds: float
    """Of the gate, and of its training."""
    kinds: dict[str, float]
    """The declined share of each kind of foreign pictures, made of validation images."""
    own_declined: float
    own_foreign: float
    """The declined share of the test images, and that declined as foreign."""
    errors_declined: int
    """Test errors among the declined."""
    errors_left: dict[str, int]
    """Test errors that are left if this share, the least sure, is handed to a person."""

    @classmethod
    def of(cls, value: Any) -> "Known | None":
        """What `model.json` holds. Raises TypeError, KeyError or ValueError for anything else."""
        if value is None:
            return None
        found = checked(value, dict, "known")
        kinds, left = (checked(found[name], dict, name) for name in ("kinds", "errors_left"))
        return cls(
            **{f.name: f.type(checked(found[f.name], (int, float), f.name))
               for f in dataclasses.fields(cls) if f.type in (int, float)},
            kinds={str(k): float(checked(v, (int, float), k)) for k, v in kinds.items()},
            errors_left={f"{float(k):g}": checked(v, int, k) for k, v in left.items()},
        )  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """The content of `model.json`; accuracies are fractions."""

    file: str
    sha256: str
    n_parameters: int
    val_accuracy: float | None
    """The last that was measured: the search's, where the stages trained on all images."""
    test_accuracy: float
    test_images: int
    test_errors: int
    test_accuracy_interval: tuple[float, float]
    """95 %, Wilson."""
    max_difference_from_torch: float
    """Of the logits, on `verified_on_images` images."""
    verified_on_images: int
    latency_ms: float
    """Median time of one image in onnxruntime on one thread."""
    dataset: str
    classes: tuple[str, ...]
    run: str
    recipe: str
    train_on: str
    """`all` images or the `train` part."""
    lineage: tuple[dict[str, Any], ...]
    """A JSON object for each step of the chain: its settings and its test accuracy."""
    calibration: dict[str, Any] | None = None
    """`by` (validation, twin, none), `temperature`, `images` it was fitted on, `seconds` it took,
    and the expected calibration error on the test images before and after. None in older runs."""
    picture: dict[str, Any] | None = None
    """`picture.onnx`: its `file`, `sha256` and how far its probabilities are from those of
    `model.onnx`. None where the network takes neither 1 nor 3 channels, and in older runs."""
    known: Known | None = None
    """None without a gate, and in older runs."""
    smaller: dict[str, Any] | None = None
    """The model in int8 or fp16 against this one: agreement, size, latency, errors, and why it is
    not published, if it is not (`refused`). None if it was not asked for."""
    files: tuple[dict[str, Any], ...] = ()
    """Of each published ONNX file `file`, `bytes` and `latency_ms`, the median time of one image
    on one thread; of `picture.onnx` from a picture of the image's size."""
    metric: str = "val_accuracy"
    """What the search optimised."""
    val_metric: float | None = None
    """The metric of the search's best network on the validation images."""
    test_metric: float | None = None
    """Balanced accuracy or macro-F1 of the model on the test images, where that is the metric."""

    @classmethod
    def of(cls, storage: RunStorage, described: Mapping[str, Any]) -> "Manifest":
        """The manifest that `model.json` holds.

        Raises:
            CorruptFileError: A value is missing, of another type, or contradicts another.
        """
        try:
            values = {
                each.name: described[each.name]
                for each in dataclasses.fields(cls)
                if each.name in described or each.default is dataclasses.MISSING
            }  # older runs lack those that have a default
            for name in ("calibration", "picture", "smaller"):
                checked(values.get(name), (dict, type(None)), name)
            values["known"] = Known.of(values.get("known"))
            for name in ("n_parameters", "test_images", "test_errors", "verified_on_images"):
                checked(values[name], int, name)
            for name in ("test_accuracy", "latency_ms", "max_difference_from_torch"):
                checked(values[name], (int, float), name)
            for name in ("dataset", "run", "recipe", "train_on"):
                checked(values[name], str, name)
            checked(values["val_accuracy"], (int, float, type(None)), "val_accuracy")
            low, high = checked(values["test_accuracy_interval"], list, "test_accuracy_interval")
            values["test_accuracy_interval"] = (float(low), float(high))
            for name in ("val_metric", "test_metric"):
                checked(values.get(name), (int, float, type(None)), name)
            checked(values.get("metric", ""), str, "metric")
            values["classes"] = tuple(checked(values["classes"], list, "classes"))
            values["files"] = tuple(checked(values.get("files", []), list, "files"))
            values["lineage"] = tuple(checked(values["lineage"], list, "lineage"))
            found = cls(**values)
            found._check()
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorruptFileError(
                f"{storage.join(layout.MANIFEST)} is damaged: {type(error).__name__}: {error}"
            ) from error
        return found

    def _check(self) -> None:
        """Raises ValueError if values contradict each other."""
        n, errors = self.test_images, self.test_errors
        if not (n > 0 and 0 <= errors <= n and self.n_parameters >= 0):
            raise ValueError(f"test_errors is {errors} of {n} images")
        if abs(self.test_accuracy - (n - errors) / n) > 1e-9:
            raise ValueError(
                f"test_accuracy is {self.test_accuracy}, but {errors} of {n} are wrong"
            )
        low, high = self.test_accuracy_interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"test_accuracy_interval is {low} to {high}")
        for name in self.classes:
            checked(name, str, "a class")
        for entry in self.lineage:
            checked(checked(entry, dict, "an entry of the lineage").get("step"), str, "step")
        temperature = checked((self.calibration or {}).get("temperature", 1.0), (int, float), "it")
        if not 0 < temperature < math.inf:
            raise ValueError(f"the temperature of the calibration is {temperature}")
        if not self.lineage:
            raise ValueError("the lineage is empty")

    def to_json(self) -> dict[str, Any]:
        """The object that `model.json` holds."""
        return dataclasses.asdict(self)


def publish(storage: RunStorage, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
    """Writes a model's files, then its manifest.

    Args:
        storage: the run's directory.
        files: content by name; one of them is the model.
        manifest: JSON object that names the model (`file`). A missing `sha256` is filled in.

    Raises:
        ValueError: `sha256` is not that of the model.
    """
    name = manifest["file"]
    sha256 = hashlib.sha256(files[name]).hexdigest()
    if manifest.get("sha256", sha256) != sha256:
        raise ValueError(f"the manifest's sha256 is not that of {name}")
    final = {**manifest, "sha256": sha256}
    # Of publications that were cut off. Looked for now: later, another's may be among them.
    there = storage.list()
    left = [f for f in there if re.fullmatch(rf"[0-9a-f]{{16}}-{re.escape(name)}", f)]
    smaller = set(map(layout.smaller_model, layout.SMALLER))  # of the model before
    left += sorted(smaller.intersection(there) - files.keys())
    if storage.exists(layout.MANIFEST) or storage.exists(name):
        # Named until the name that both models have holds the new one.
        aside = f"{secrets.token_hex(8)}-{name}"
        left.append(aside)
        storage.write_bytes(aside, files[name])
        # Of the pictures' file nothing is said meanwhile: readers make it of the model.
        storage.write_json(layout.MANIFEST, {**final, "file": aside, "picture": None})
    for file, data in files.items():
        storage.write_bytes(file, data)
    storage.write_json(layout.MANIFEST, final)
    for file in left:
        storage.delete(file)


def read_verified(
    storage: RunStorage, manifest: str = layout.MANIFEST
) -> tuple[dict[str, Any], bytes]:
    """A published model: its manifest, and the bytes of its file, checked against the digest.

    A model that is being replaced is looked at again for about three seconds.

    Raises:
        FileNotFoundError: there is no manifest, so nothing is published.
        CorruptFileError: the manifest is damaged, or the file is not the one it describes.
    """
    for pause in (*READ_AGAIN, 0.0):
        described = storage.read_json(manifest)
        if not isinstance(described, dict):
            described = {}
        name, sha256 = described.get("file"), described.get("sha256")
        if not isinstance(name, str) or not isinstance(sha256, str):
            raise CorruptFileError(f"{storage.join(manifest)} does not name a file and its sha256")
        if not name.isprintable() or name in ("", ".", "..") or "/" in name or "\\" in name:
            raise CorruptFileError(
                f"{storage.join(manifest)} names the file {name!r}: it must lie beside it"
            )
        try:
            data = storage.read_bytes(name)
            found = hashlib.sha256(data).hexdigest()
        except FileNotFoundError:
            data, found = b"", "missing"
        if found == sha256:
            return described, data
        problem = (
            f"{storage.join(name)} is not the file that {manifest} describes: "
            f"SHA-256 {found}, expected {sha256}"
        )
        time.sleep(pause)
    raise CorruptFileError(problem)


def read_picture(storage: RunStorage, described: Mapping[str, Any]) -> bytes | None:
    """The pictures' file that a model's manifest names, checked; None if it names none.

    Raises:
        CorruptFileError: it is missing, or is not the file that the manifest describes.
    """
    about = described.get("picture")
    if about is None:
        return None
    expected = about.get("sha256") if isinstance(about, dict) else None
    data = storage.read_bytes(layout.PICTURE) if storage.exists(layout.PICTURE) else b""
    found = hashlib.sha256(data).hexdigest() if data else "missing"
    if found != expected:
        raise CorruptFileError(
            f"{storage.join(layout.PICTURE)} is not the file that {layout.MANIFEST} describes: "
            f"SHA-256 {found}, expected {expected}"
        )
    return data
