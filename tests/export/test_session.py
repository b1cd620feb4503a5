"""onnxruntime's answers: accuracy, latency, and the refusal of files and images that do not fit."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from scipy.stats import binomtest

from mnist_ray import data
from mnist_ray.errors import SettingsError
from mnist_ray.export.session import Session, confidence_interval
from mnist_ray.results import Model
from tests.support.networks import HP, network

PLAIN_READER = Path(__file__).parents[1] / "programs" / "plain_reader.py"


def test_an_open_image_shape_is_refused(exported: bytes) -> None:
    proto = onnx.load_model_from_string(exported)
    del proto.metadata_props[:]
    proto.producer_name = "another"
    for axis, name in ((2, "height"), (3, "width")):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    with pytest.raises(
        SettingsError,
        match=r"^m\.onnx leaves the images' shape open \(1xheightxwidth\); expected fixed [^\n]*$",
    ):
        Session(proto.SerializeToString(), "m.onnx")


def test_a_file_without_images_or_an_answer_is_refused() -> None:
    value = onnx.numpy_helper.from_array(np.ones((1, 3), np.float32), "w")
    given = [helper.make_tensor_value_info("y", 1, [1, 3])]
    nodes = [helper.make_node("Identity", ["w"], ["y"])]
    graph = helper.make_graph(nodes, "g", [], given, [value])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(
        SettingsError, match=r"^m\.onnx takes other input than one float32 tensor \[batch, [^\n]*$"
    ):
        Session(proto.SerializeToString(), "m.onnx")
    taken = [helper.make_tensor_value_info("x", 1, ["n", 1, 2, 2])]
    graph = helper.make_graph([], "g", taken, [])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(SettingsError, match=r"^m\.onnx [^\n]*$"):
        Session(proto.SerializeToString(), "m.onnx")


def broken(weight: float, name: str) -> bytes:
    """A file that fails for more than one image at a time, at a node of this name."""
    info = helper.make_tensor_value_info
    arrays = {"shape": np.array([1, 4]), "w": np.full((4, 3), weight, np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["x", "shape"], ["flat"], name),
            helper.make_node("MatMul", ["flat", "w"], ["y"]),
        ],
        "g",
        [info("x", 1, ["n", 1, 2, 2])],
        [info("y", 1, ["n", 3])],
        [onnx.numpy_helper.from_array(array, key) for key, array in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    data: bytes = proto.SerializeToString()
    return data


def test_names_of_a_file_do_not_reach_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """onnxruntime writes a line of its own for a node that fails."""
    session = Session(broken(1.0, "\x1b]0;mine\x07"), "m.onnx")
    with pytest.raises(SettingsError, match=r"m\.onnx cannot be run: "):
        session.logits(np.zeros((2, 1, 2, 2), np.uint8))
    assert capfd.readouterr() == ("", "")


def test_logits_that_are_no_numbers_are_no_answer() -> None:
    image = np.ones((1, 1, 2, 2), np.uint8)
    model = Model(broken(math.nan, ""), "m.onnx", {})
    part = data.Images("x", "test", image, np.zeros(1, int), ("a", "b", "c"), (0.1,), (0.3,))
    for call in (lambda: model.judge(part), lambda: model.probabilities(image)):
        with pytest.raises(SettingsError, match=r"^m\.onnx gives logits that are no numbers"):
            call()
    with pytest.raises(SettingsError, match=r"^picture\.onnx gives the probability nan; expected"):
        model.predict(np.eye(9, dtype=np.uint8) * 255)


def test_session_refuses_other_images_and_other_inputs(exported: bytes) -> None:
    session = Session(exported, "m.onnx")
    with pytest.raises(SettingsError, match=r"m\.onnx takes images of 1x28x28 .* found 3x32x32"):
        session.logits(np.zeros((2, 3, 32, 32), np.uint8))
    flat = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 784])],
        [helper.make_tensor_value_info("y", 1, ["n", 784])],
    )
    proto = helper.make_model(flat, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(SettingsError, match="takes other input"):
        Session(proto.SerializeToString(), "m.onnx")
    proto.graph.node[0].domain = "nobody.knows"
    proto.opset_import.append(helper.make_opsetid("nobody.knows", 1))
    with pytest.raises(SettingsError, match=r"m\.onnx cannot be run: [^\n]+$"):
        Session(proto.SerializeToString(), "m.onnx")


@pytest.mark.parametrize(
    ("batch", "output", "message"),
    [
        (1, ["n", 4], r"takes 1 image\(s\) at a time; expected any number"),
        ("n", [], r"gives tensor\(float\) \[\]; expected float32 logits"),
        ("n", ["n"], r"gives tensor\(float\) \['n'\]; expected float32 logits"),
        ("n", ["n", 1], r"gives tensor\(float\) \['n', 1\]; .* of at least two classes"),
    ],
)
def test_answers_that_are_no_logits_are_refused(
    batch: int | str, output: list[int | str], message: str
) -> None:
    shape = helper.make_tensor_value_info("x", 1, [batch, 1, 2, 2])
    axes = {0: [0, 1, 2, 3], 1: [1, 2, 3], 2: [2, 3]}[len(output)]
    nodes = [helper.make_node("Flatten", ["x"], ["f"])]
    if len(output) == 2 and output[1] != 4:
        nodes.append(helper.make_node("ReduceSum", ["f", "axes"], ["y"], keepdims=1))
        axes = [1]
    elif len(output) == 2:
        nodes.append(helper.make_node("Identity", ["f"], ["y"]))
    else:
        nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)]
    constant = helper.make_tensor("axes", onnx.TensorProto.INT64, [len(axes)], axes)
    answer = helper.make_tensor_value_info("y", 1, output)
    graph = helper.make_graph(nodes, "g", [shape], [answer], [constant])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(SettingsError, match=rf"^m\.onnx {message}"):
        Session(proto.SerializeToString(), "m.onnx")


def test_evaluate(exported: bytes, digits: data.Images) -> None:
    with torch.inference_mode():
        expected = network(HP)(torch.from_numpy(digits.images / np.float32(255))).argmax(1).numpy()
    labels = expected.copy()
    labels[:10] = (labels[:10] + 1) % 10
    result = Session(exported, "m.onnx", threads=1).evaluate(digits.images, labels)
    assert (result.right, result.n) == (len(labels) - 10, len(labels))
    assert result.accuracy == (len(labels) - 10) / len(labels)
    np.testing.assert_array_equal(result.predictions, expected)
    for c in range(10):
        of_class = labels == c
        if of_class.any():
            assert result.per_class[c] == (expected[of_class] == c).mean()
        else:
            assert np.isnan(result.per_class[c])


def test_batch_size_changes_no_logit_much(exported: bytes, digits: data.Images) -> None:
    session = Session(exported, "m.onnx")
    np.testing.assert_allclose(
        session.logits(digits.images, 7), session.logits(digits.images), atol=1e-5
    )


def test_latency_is_a_time(exported: bytes, digits: data.Images) -> None:
    assert 0 < Session(exported, "m.onnx", threads=1).latency_ms(digits.images[0], n=5) < 1000


@pytest.mark.parametrize(("right", "n"), [(9950, 10_000), (100, 100), (0, 7), (1, 2)])
def test_confidence_interval_is_wilsons(right: int, n: int) -> None:
    expected = binomtest(right, n).proportion_ci(method="wilson")
    found = confidence_interval(right, n)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found[0] < found[1] <= 1


def test_a_plain_script_gets_the_same_accuracy(
    exported: bytes, digits: data.Images, tmp_path: Path
) -> None:
    result = Session(exported, "m.onnx").evaluate(digits.images, digits.labels)
    (tmp_path / "model.onnx").write_bytes(exported)
    np.save(tmp_path / "images.npy", digits.images)
    np.save(tmp_path / "labels.npy", digits.labels)
    command = [sys.executable, "-I", str(PLAIN_READER), "model.onnx", "images.npy", "labels.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(done.stdout) == result.right
