"""A graph inside the hyperparameters: packed, unpacked, and refused where somebody has tampered
with it.
"""

import base64
import zlib
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mnist_ray.errors import SettingsError
from mnist_ray.models import foreign


def linear() -> onnx.ModelProto:
    weights = [
        numpy_helper.from_array(np.ones((12, 9), np.float32), "w"),
        numpy_helper.from_array(np.array([0, -1]), "shape"),
    ]
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 3, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 9])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def text(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


def elsewhere(tensor: Any) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret")


def test_a_packed_graph_has_its_shapes_but_no_large_weights() -> None:
    proto = foreign.unpacked(foreign.packed(linear()))
    w, shape = (numpy_helper.to_array(tensor) for tensor in proto.graph.initializer)
    assert not w.any()
    assert shape.tolist() == [0, -1]
    assert [node.op_type for node in proto.graph.node] == ["Reshape", "MatMul"]


def test_weights_in_another_file_are_refused_wherever_they_are_named() -> None:
    proto = linear()
    elsewhere(proto.graph.initializer[0])
    inner = linear()
    inner.graph.node.append(
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(2), "c"))
    )
    elsewhere(inner.graph.node[2].attribute[0].t)
    outer = linear()
    outer.graph.node.append(
        helper.make_node("If", ["y"], ["z"], then_branch=inner.graph, else_branch=inner.graph)
    )
    function = linear()
    function.functions.append(
        helper.make_function("own", "F", [], ["c"], [inner.graph.node[2]],
                             [helper.make_opsetid("", 13)])
    )  # fmt: skip
    default = linear()
    default.functions.append(
        helper.make_function("own", "F", [], ["c"], [], [helper.make_opsetid("", 13)],
                             attribute_protos=inner.graph.node[2].attribute)
    )  # fmt: skip
    for tampered in (proto, inner, outer, function, default):
        with pytest.raises(SettingsError, match="keeps weights in another file"):
            foreign.unpacked(text(tampered.SerializeToString()))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ("no base64", "graph is damaged"),
        (text(b"no graph"), "graph is damaged"),
        (text(b""), "graph is damaged"),
        (text(linear().SerializeToString())[:40], "graph is damaged: it is cut off"),
    ],
)
def test_what_is_no_graph_is_refused(graph: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        foreign.unpacked(graph)
    assert "\n" not in str(error.value)


def test_a_graph_that_inflates_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "MAX_BYTES", 1000)
    with pytest.raises(SettingsError, match="inflates to more than 1000 bytes"):
        foreign.unpacked(text(bytes(2000)))
