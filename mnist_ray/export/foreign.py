"""Reads an ONNX file that is not ours, where onnx2torch (the extra `foreign-onnx`) can convert it."""

from typing import Any

import numpy as np
from torch import nn

from mnist_ray.errors import SettingsError
from mnist_ray.export.onnx_model import Session, export, load_verified
from mnist_ray.models.foreign import converted, network, packed


def read(data: bytes, source: str) -> tuple[nn.Module, dict[str, Any]]:
    """The file's network in evaluation mode, its predictions those of the file, and the hyperparameters that rebuild it.

    Raises SettingsError naming `source` where the file cannot be converted.
    """
    session, proto = Session(data, source), load_verified(data, source)
    channels, height, width = session.image_shape
    images = np.random.default_rng(0).integers(0, 256, (8, channels, height, width), dtype=np.uint8)
    expected = session.logits(images)
    try:
        weights = converted(proto).state_dict()
        hp = {
            "model": "foreign",
            "in_channels": channels,
            "image_size": [height, width],
            "classes": expected.shape[1],
        }
        hp |= {"mean": [0.0] * channels, "std": [1.0] * channels, "graph": packed(proto)}
        model = network(hp).eval()
        model[1].load_state_dict(weights)  # type: ignore[index]
        difference = float(
            np.abs(Session(export(model, hp, {}), source).logits(images) - expected).max()
        )
    except SettingsError as error:
        raise SettingsError(f"{source} is not of mnist_ray, and {error}") from error
    except (
        Exception
    ) as error:  # whatever the converter, or the exporter of what it made, fails with
        raise SettingsError(
            f"{source} is not of mnist_ray and cannot be converted: {repr(error).splitlines()[0][:200]}"
        ) from error
    if not difference <= 1e-3 * max(1.0, float(np.abs(expected).max())):
        raise SettingsError(
            f"{source} is not of mnist_ray and cannot be converted: its logits would differ by {difference:.1e}"
        )
    return model, hp
