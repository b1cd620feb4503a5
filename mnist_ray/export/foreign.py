"""A network from an ONNX file that is not ours, through the extra `foreign-onnx` (onnx2torch), where that can convert it.

Its graph travels inside the hyperparameters, without its large weights, so that their dict still rebuilds the network anywhere.
"""

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, version_converter
from torch import nn

from mnist_ray.errors import SettingsError
from mnist_ray.export.onnx_model import Session, export, load_verified

OPSET = 17  # the converter knows no later form of Reshape, Identity and others
LARGE = 64  # elements: a smaller tensor may be a shape or another constant that the conversion itself reads


def read(data: bytes, source: str) -> tuple[nn.Module, dict[str, Any]]:
    """The file's network in evaluation mode, its predictions those of the file, and the hyperparameters that rebuild it.

    Raises SettingsError naming `source` where the file cannot be converted.
    """
    session, proto = Session(data, source), load_verified(data, source)
    channels, height, width = session.image_shape
    images = np.random.default_rng(0).integers(0, 256, (8, channels, height, width), dtype=np.uint8)
    expected = session.logits(images)
    try:
        weights = _converted(proto).state_dict()
        hp = {
            "model": "foreign",
            "in_channels": channels,
            "image_size": [height, width],
            "classes": expected.shape[1],
        }
        hp |= {"mean": [0.0] * channels, "std": [1.0] * channels, "graph": _packed(proto)}
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


def network(hp: Mapping[str, Any]) -> nn.Module:
    """Normalize and the graph. Its weights are zeros, and must be loaded."""
    from mnist_ray.models import Normalize

    proto = load_verified(
        zlib.decompress(base64.b64decode(hp["graph"])), "the hyperparameters' graph"
    )
    return nn.Sequential(Normalize(hp["mean"], hp["std"]), _converted(proto))


def _converted(proto: onnx.ModelProto) -> nn.Module:
    try:
        from onnx2torch import convert
    except ImportError as error:
        raise SettingsError(
            "a network of another's needs the package onnx2torch; pip install 'mnist_ray[foreign-onnx]'"
        ) from error
    if any(entry.domain == "" and entry.version > OPSET for entry in proto.opset_import):
        proto = version_converter.convert_version(proto, OPSET)
    shapes = {
        t.name: numpy_helper.to_array(t)
        for t in proto.graph.initializer
        if t.data_type == onnx.TensorProto.INT64
    }
    for i, node in enumerate(proto.graph.node):
        node.name = (
            f"node{i}"  # names become Python code on the way: a file must not choose what that is
        )
        if (
            node.op_type == "Reshape"
            and list(shapes.get(node.input[1], [])[:1]) == [-1]
            and len(shapes[node.input[1]]) == 2
        ):
            node.CopyFrom(
                onnx.helper.make_node("Flatten", node.input[:1], node.output, node.name)
            )  # as which it can be exported again
    return convert(proto)


def _packed(proto: onnx.ModelProto) -> str:
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size > LARGE:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(array), tensor.name))
    return base64.b64encode(zlib.compress(proto.SerializeToString(), 9)).decode()
