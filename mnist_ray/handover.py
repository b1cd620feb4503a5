"""A published model handed on: a folder for the Hugging Face Hub, a model repository for Triton."""

import hashlib
import importlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper
from safetensors.numpy import save

from mnist_ray.errors import CorruptFileError, SettingsError, WorkError, first_line
from mnist_ray.export.read import load_verified
from mnist_ray.export.session import temperature_of
from mnist_ray.results import Model, load_model
from mnist_ray.run import layout
from mnist_ray.settings.secrets import masked
from mnist_ray.settings.text import load_json
from mnist_ray.storage import RunStorage
from mnist_ray.storage.folder import Folder

WEIGHTS, CONFIG = "model.safetensors", "config.json"
NETWORK, PICTURE = "mnist_ray_network", "mnist_ray_picture"  # models of Triton's repository
LABELS = "labels.txt"
# A folder that was written before may hold these; a model without them has them removed.
OF_SOME = (
    layout.PICTURE,
    *map(layout.smaller_model, layout.SMALLER),
    *(f"{PICTURE}/{name}" for name in ("config.pbtxt", LABELS, f"1/{layout.MODEL}")),
)
LARGEST_BATCH, WAIT_MICROSECONDS = 256, 1000


def export(run: str, to: str, folder: str) -> None:
    """Writes a published model as another program takes it.

    Args:
        run: The run's directory, local or s3://…; for Triton also an ONNX file.
        to: `huggingface` or `triton`.
        folder: A new or empty folder, or one that this wrote.

    Raises:
        SettingsError: There is no such model, or the folder holds other files or cannot be
            written.
        CorruptFileError: A file of the run is damaged, or is another than its manifest names.
    """
    files = huggingface(run) if to == "huggingface" else triton(load_model(run))
    _write(files, Path(folder))


def push(run: str, repo: str) -> str:
    """Uploads a published model to the Hugging Face Hub; the address of the commit.

    Args:
        run: The run's directory, local or s3://…
        repo: The repository, which must exist, as `me/digits`.

    Raises:
        SettingsError: There is no such run, the repository's name is none, or the package
            huggingface_hub is missing.
        CorruptFileError: A file of the run is damaged, or is another than its manifest names.
        WorkError: The upload failed.
    """
    try:
        hub = importlib.import_module("huggingface_hub")  # an optional package
        utils = importlib.import_module("huggingface_hub.utils")
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"push needs the package {error.name}: pip install 'mnist_ray[push]'"
        ) from error
    try:
        utils.validate_repo_id(repo)
    except ValueError:  # its text would repeat a password
        allowed = "expected a repository's name, as me/digits, of letters, digits, '-', '_' and '.'"
        raise SettingsError(f"REPO: {masked(repo)!r} is not allowed; {allowed}") from None

    files = huggingface(run)
    with tempfile.TemporaryDirectory() as folder:
        _write(files, Path(folder))
        try:
            done = hub.upload_folder(
                repo_id=repo, folder_path=folder, commit_message="Model found by mnist_ray"
            )
        except Exception as error:  # those of the Hub's client and its HTTP library are of any kind
            raise WorkError(f"{repo} takes no model: {first_line(error)}") from error
    return str(done)


def _write(files: dict[str, bytes], folder: Path) -> None:
    target = Folder(folder.absolute())
    try:
        found = set(target.names(""))
        hub = CONFIG in files
        written = CONFIG if hub else f"{NETWORK}/config.pbtxt"  # of each model
        # Else a person has put them there.
        before = {name for name in OF_SOME if hub != name.startswith(f"{PICTURE}/")}
        if others := sorted(found - files.keys() - (before if written in found else set())):
            raise SettingsError(
                f"--out: {folder} holds other files, as {others[0]}; "
                "expected a new or empty folder, or one that export wrote"
            )
        for name, content in files.items():
            target.write(name, content)  # whole, and through no link
        for name in found - files.keys():  # of a model before
            target.delete(name)
    except OSError as error:
        raise SettingsError(f"--out: {folder} cannot be written: {error.strerror}") from error


def huggingface(run: str) -> dict[str, bytes]:
    """The files of the Hub by name.

    `config.json` describes the network without code: `models.build` makes it of the
    `hyperparameters`, and `model.safetensors` holds its weights by the names that torch gives.

    Raises:
        SettingsError: It is no run that has published a model.
        CorruptFileError: A file of it is damaged, or is another than its manifest names.
    """
    model, storage = load_model(run), RunStorage(run)
    if not model.manifest or not storage.exists(layout.CARD):
        raise SettingsError(
            f"{run}: no card lies there; expected the directory of a run that has ended"
        )
    facts = model.session.metadata
    proto = load_verified(model.content, run)
    channels, height, width = model.session.image_shape
    hyperparameters = load_json(facts.get("hyperparameters", "null"))
    if not isinstance(hyperparameters, dict | list):
        raise SettingsError(f"{run}: the model's metadata have no hyperparameters")
    config = {
        "library_name": "mnist_ray",
        "hyperparameters": hyperparameters,
        "classes": list(model.classes),
        "input": {"channels": channels, "height": height, "width": width, "range": [0, 1]},
        "temperature": temperature_of(facts, run),
    }
    return {
        layout.CARD: storage.read_bytes(layout.CARD),
        layout.MANIFEST: _json(model.manifest),
        layout.MODEL: model.content,
        **({layout.PICTURE: model.picture} if _takes_pictures(model) else {}),
        **_smaller(storage, model.manifest),
        WEIGHTS: weights(proto),
        CONFIG: _json(config),
    }


def _takes_pictures(model: Model) -> bool:
    """Whether there is a `picture.onnx`: pictures are grey or in colour."""
    return model.session.image_shape[0] in (1, 3)


def _smaller(storage: RunStorage, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """The published int8 or fp16 file by its name; empty if there is none.

    Raises:
        CorruptFileError: It is missing, or is not the file that the manifest describes.
    """
    about = manifest.get("smaller")
    if not isinstance(about, dict) or about.get("refused"):
        return {}
    name, allowed = str(about.get("file")), [*map(layout.smaller_model, layout.SMALLER)]
    if name not in allowed:
        raise CorruptFileError(
            f"{storage.join(layout.MANIFEST)} names the smaller file {name!r}; expected one of "
            f"{', '.join(allowed)}"
        )
    data = storage.read_bytes(name) if storage.exists(name) else b""
    found = hashlib.sha256(data).hexdigest() if data else "missing"
    if found != about.get("sha256"):
        raise CorruptFileError(
            f"{storage.join(name)} is not the file that {layout.MANIFEST} describes: "
            f"SHA-256 {found}, expected {about.get('sha256')}"
        )
    return {name: data}


def weights(proto: onnx.ModelProto) -> bytes:
    """The network's weights in safetensors, under the names that torch gave them."""
    arrays = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    named = {name: array for name, array in arrays.items() if array.dtype.kind == "f"}
    data: bytes = save(named, {"format": "pt"})
    return data


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def triton(model: Model) -> dict[str, bytes]:
    """A model repository of Triton by file name: each ONNX file with its configuration.

    Triton names a model by its folder. Triton batches the network's images; pictures of any size
    come one at a time.
    """
    channels, height, width = model.session.image_shape
    classes = model.session.n_classes or len(model.classes)
    taken, given = map(_quoted, _names(load_verified(model.content, model.path)))
    network = f"""\
backend: "onnxruntime"
max_batch_size: {LARGEST_BATCH}
input [ {{ name: {taken} data_type: TYPE_FP32 dims: [ {channels}, {height}, {width} ] }} ]
output [ {{
  name: {given} data_type: TYPE_FP32 dims: [ {classes} ] label_filename: "{LABELS}"
}} ]
dynamic_batching {{ max_queue_delay_microseconds: {WAIT_MICROSECONDS} }}
"""
    labels = "".join(f"{name}\n" for name in model.classes or range(classes)).encode()
    files = {
        f"{NETWORK}/config.pbtxt": network.encode(),
        f"{NETWORK}/{LABELS}": labels,
        f"{NETWORK}/1/{layout.MODEL}": model.content,
    }
    if not _takes_pictures(model):
        return files
    # Triton takes no empty shape: a scalar is told by `reshape`.
    scalars = "\n".join(
        f'output [ {{ name: "{name}" data_type: {kind} dims: [ 1 ] reshape {{ shape: [ ] }} }} ]'
        for name, kind in (
            ("label", "TYPE_INT64"),
            ("probability", "TYPE_FP32"),
            ("known", "TYPE_BOOL"),
        )
    )
    picture = f"""\
backend: "onnxruntime"
max_batch_size: 0
input [ {{ name: "picture" data_type: TYPE_UINT8 dims: [ -1, -1, 4 ] }} ]
{scalars}
"""
    return {
        **files,
        f"{PICTURE}/config.pbtxt": picture.encode(),
        f"{PICTURE}/{LABELS}": labels,
        f"{PICTURE}/1/{layout.MODEL}": model.picture,
    }


def _names(proto: onnx.ModelProto) -> tuple[str, str]:
    """The names of a network's images and logits: a file of another program has its own."""
    weights = {each.name for each in proto.graph.initializer}
    taken = (each.name for each in proto.graph.input)
    return next(name for name in taken if name not in weights), proto.graph.output[0].name


def _quoted(name: str) -> str:
    """A name from a file as a text of a configuration, whatever it holds."""
    return json.dumps(name, ensure_ascii=False)
