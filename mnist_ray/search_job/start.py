"""--onnx: a search whose trials all begin with one trained network, read from an ONNX file."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnist_ray import spaces
from mnist_ray.errors import SettingsError
from mnist_ray.run import layout
from mnist_ray.run.about import About
from mnist_ray.settings import SearchSettings
from mnist_ray.storage import RunStorage


@dataclass(frozen=True)
class Start:
    """A trained network: its ONNX file and SHA-256, its hyperparameters, its weights by name."""

    data: bytes
    sha256: str
    hyperparameters: dict[str, Any]
    weights: dict[str, np.ndarray]


def read_start(
    settings: SearchSettings,
    space: Callable[..., Any],
    storage: RunStorage,
    resumed: About | None,
) -> Start | None:
    """The network that --onnx names, or None.

    Args:
        settings: Of the search.
        space: The space that they name.
        storage: The run's directory, which may hold a copy.
        resumed: The run that goes on: it must have begun with the same file.

    Raises:
        SettingsError: The space takes no such start or needs one, or the file cannot be used.
    """
    onnx, name = settings.onnx, settings.space
    wanted = spaces.starts_from_onnx(space)
    if onnx is None:
        if wanted:
            raise SettingsError(
                f"--onnx: space {name!r} trains a trained network further; name an ONNX file"
            )
        return None
    if not wanted:
        raise SettingsError(
            f"--onnx: space {name!r} begins with random weights; expected --space optimizer"
        )
    from mnist_ray.export import foreign, read, write  # noqa: PLC0415 (seconds at start)

    if resumed and storage.exists(layout.START):
        data, source = storage.read_bytes(layout.START), f"--resume: {storage.join(layout.START)}"
    else:
        data, source = read.read_model(onnx, "--onnx"), f"--onnx: {onnx}"
    sha256 = hashlib.sha256(data).hexdigest()
    if resumed and resumed.onnx_sha256 != sha256:
        raise SettingsError(f"{source} is not the file that the run began with (SHA-256 differs)")
    ours = "hyperparameters" in read.metadata_of(read.load_verified(data, source))
    model, hp = (write.rebuild if ours else foreign.read)(data, source)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return Start(data, sha256, hp, weights)
