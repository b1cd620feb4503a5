"""The family `foreign`: a network from somebody else's ONNX file, through the extra `foreign-onnx`.

Its graph travels inside the hyperparameters, without its large weights, so that the dict still
rebuilds the network anywhere.
"""

import base64
import binascii
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper, version_converter
from onnx.external_data_helper import uses_external_data
from torch import nn

from mnist_ray.errors import SettingsError, first_line
from mnist_ray.models.layers import Normalize

OPSET = 17  # the converter knows no later form of Reshape, Identity and others
LARGE = (
    64  # elements: a smaller tensor may be a shape or another constant that the conversion reads
)
MAX_BYTES = 2**28  # of an unpacked graph, whose large weights are zeros: few MB may hold GB


def network(hp: Mapping[str, Any]) -> nn.Module:
    """Normalize and the graph; the graph's large weights are zeros, and must be loaded.

    Raises:
        SettingsError: The graph is damaged, or onnx2torch is missing.
    """
    return nn.Sequential(Normalize(hp["mean"], hp["std"]), converted(unpacked(hp["graph"])))


def packed(proto: onnx.ModelProto) -> str:
    """The graph as the hyperparameters carry it. Sets the large weights of `proto` to zero."""
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size > LARGE:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(array), tensor.name))
    return base64.b64encode(zlib.compress(proto.SerializeToString(), 9)).decode()


def unpacked(text: str) -> onnx.ModelProto:
    """The inverse of `packed`. The text may come from a file of somebody else's.

    Raises:
        SettingsError: It is no ONNX graph, inflates to too much, or keeps weights in other files.
    """
    try:
        inflater = zlib.decompressobj()
        data = inflater.decompress(base64.b64decode(text), MAX_BYTES)
        if not inflater.eof:
            raise ValueError(f"it is cut off or inflates to more than {MAX_BYTES} bytes")
        proto = onnx.load_model_from_string(data)
        functions = [each.node for each in proto.functions]
        # The attributes of a function's call have defaults: as those of a node.
        defaults = [onnx.NodeProto(attribute=each.attribute_proto) for each in proto.functions]
        nodes = itertools.chain(*functions, defaults)
        tensors = (*_tensors(proto.graph), *_constants(nodes))
        if any(uses_external_data(tensor) for tensor in tensors):
            raise ValueError("it keeps weights in another file")
        onnx.checker.check_model(proto)
    except (
        *(binascii.Error, zlib.error, DecodeError, ValueError),
        onnx.checker.ValidationError,
    ) as error:
        raise SettingsError(f"hyperparameter graph is damaged: {first_line(error)}") from error
    return proto


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The weights and constants of a graph and of the graphs within it."""
    yield from graph.initializer
    yield from _constants(graph.node)


def _constants(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """The constants of nodes and of the graphs within them."""
    for attribute in (a for node in nodes for a in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            yield from _tensors(inner)


def converted(proto: onnx.ModelProto) -> nn.Module:
    """The graph as torch has it. Changes `proto`.

    Raises:
        SettingsError: onnx2torch is missing.
        Exception: onnx2torch cannot convert the graph.
    """
    try:
        from onnx2torch import convert  # noqa: PLC0415 (optional package)
    except ImportError as error:
        raise SettingsError(
            "a network of another's needs the package onnx2torch; "
            "pip install 'mnist_ray[foreign-onnx]'"
        ) from error
    if any(entry.domain == "" and entry.version > OPSET for entry in proto.opset_import):
        proto = version_converter.convert_version(proto, OPSET)
    shapes = {
        t.name: numpy_helper.to_array(t)
        for t in proto.graph.initializer
        if t.data_type == onnx.TensorProto.INT64
    }
    for i, node in enumerate(proto.graph.node):
        # Names become Python code on the way: a file must not choose that code.
        node.name = f"node{i}"
        shape = shapes.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is not None and shape.shape == (2,) and shape[0] == -1:
            # As a Flatten it can be exported again.
            flatten = onnx.helper.make_node("Flatten", node.input[:1], node.output, node.name)
            node.CopyFrom(flatten)
    module: nn.Module = convert(proto)
    return module
