"""--onnx: a search whose trials all begin with one trained network, read from an ONNX file of ours."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnist_ray import spaces
from mnist_ray.errors import SettingsError
from mnist_ray.settings import SearchSettings
from mnist_ray.storage import RunStorage

FILE = "start.onnx"  # the copy in the run's directory, from which a resume reads


@dataclass(frozen=True)
class Start:
    """What the file holds: its bytes and their SHA-256, the network's hyperparameters, and its state dict as arrays."""

    data: bytes
    sha256: str
    hyperparameters: dict[str, Any]
    weights: dict[str, np.ndarray]


def read_start(
    settings: SearchSettings, storage: RunStorage, previous: Mapping[str, Any] | None
) -> Start | None:
    """The network that --onnx names, or None. previous: run.json of the run that goes on: it must have begun with the same file.

    Raises SettingsError, naming the flag, where the space takes no such start or needs one, or the file cannot be rebuilt.
    """
    wanted = spaces.starts_from_onnx(spaces.find(settings.space))
    if settings.onnx is None:
        if wanted:
            raise SettingsError(
                f"--onnx: space {settings.space!r} trains a trained network further; name an ONNX file of ours"
            )
        return None
    if not wanted:
        raise SettingsError(
            f"--onnx: space {settings.space!r} begins with random weights; expected --space optimizer"
        )
    from mnist_ray.export import onnx_model

    if previous and storage.exists(FILE):
        data, source = storage.read_bytes(FILE), f"--resume: {storage.join(FILE)}"
    else:
        data, source = onnx_model.read(settings.onnx, "--onnx"), f"--onnx: {settings.onnx}"
    sha256 = hashlib.sha256(data).hexdigest()
    if previous and previous.get("onnx_sha256") != sha256:
        raise SettingsError(f"{source} is not the file that the run began with (SHA-256 differs)")
    if "hyperparameters" in onnx_model.metadata(onnx_model.load_verified(data, source)):
        model, hp = onnx_model.rebuild(data, source)
    else:
        from mnist_ray.export import foreign

        model, hp = foreign.read(data, source)
    return Start(
        data, sha256, hp, {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    )
