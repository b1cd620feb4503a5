"""Reads an ONNX file that is not ours, through onnx2torch (the extra `foreign-onnx`)."""

from typing import Any

import numpy as np
from torch import nn

from mnist_ray.errors import SettingsError, first_line, shortened
from mnist_ray.export.read import load_verified
from mnist_ray.export.session import Session
from mnist_ray.export.write import export
from mnist_ray.models.foreign import converted, network, packed


def read(data: bytes, source: str) -> tuple[nn.Module, dict[str, Any]]:
    """The file's network in evaluation mode, and the hyperparameters that rebuild it.

    The predictions are those of the file: they are compared on eight random images.

    Raises:
        SettingsError: The file cannot be converted; the message names `source`.
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
            "mean": [0.0] * channels,
            "std": [1.0] * channels,
            "graph": packed(proto),
        }
        model = network(hp).eval()
        model[1].load_state_dict(weights)  # type: ignore[index]
        found = Session(export(model, hp, {}), source).logits(images)
    except SettingsError as error:
        raise SettingsError(f"{source} is not of mnist_ray, and {error}") from error
    except Exception as error:  # of the converter, or of the exporter of its result
        reason = f"{type(error).__name__}: {shortened(first_line(error), 200)}"
        raise _cannot_be_converted(source, reason) from error
    difference = float(np.abs(found - expected).max())
    if not difference <= 1e-3 * max(1.0, float(np.abs(expected).max())):
        raise _cannot_be_converted(source, f"its logits would differ by {difference:.1e}")
    return model, hp


def _cannot_be_converted(source: str, reason: str) -> SettingsError:
    return SettingsError(f"{source} is not of mnist_ray and cannot be converted: {reason}")
