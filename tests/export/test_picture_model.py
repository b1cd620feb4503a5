"""picture.onnx: the answers of its parts, by onnxruntime and Pillow alone."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from mnist_ray import data, load_model
from mnist_ray.data.pictures import as_rgba
from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.export.picture_model import (
    PictureSession,
    guises,
    picture_file,
    verify_pictures,
    with_inner_values,
)
from mnist_ray.export.session import Session, probabilities
from mnist_ray.export.write import export
from mnist_ray.results import Model
from tests.support.hostile import with_metadata
from tests.support.networks import HP, network


@pytest.fixture(scope="module")
def calibrated() -> bytes:
    """A file whose metadata has a temperature."""
    facts = {"dataset": "digits", "temperature": "0.5", "classes": json.dumps(list("abcdefghij"))}
    return export(network(HP), HP, facts)


def test_equal_files_give_equal_bytes(exported: bytes) -> None:
    assert picture_file(exported, "model") == picture_file(exported, "model")


def test_three_lines_of_onnxruntime_give_what_predict_gives(
    calibrated: bytes, digits: data.Images, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(calibrated)
    (tmp_path / "picture.onnx").write_bytes(picture_file(calibrated, "model"))
    session = onnxruntime.InferenceSession(tmp_path / "picture.onnx")
    model = load_model(tmp_path / "model.onnx")
    for picture in guises(digits.images[:24]):
        label, probability, known = session.run(None, {"picture": picture})
        assert (label.shape, label.dtype, probability.dtype, known.dtype) == (
            (), np.int64, np.float32, np.bool_,
        )  # fmt: skip
        found = model.predict(picture)
        assert (found.label, found.known) == ("abcdefghij"[label], known)
        assert found.probability == pytest.approx(float(probability), abs=1e-6)


def test_its_probability_is_that_of_the_parts_at_the_temperature(
    exported: bytes, calibrated: bytes, digits: data.Images
) -> None:
    plain, sharper = (picture_file(model, "model") for model in (exported, calibrated))
    assert verify_pictures(plain, exported, digits.images[:12]) < 1e-5
    assert verify_pictures(sharper, calibrated, digits.images[:12]) < 1e-5
    with pytest.raises(WorkError, match=r"^picture\.onnx differs from its parts: "):
        verify_pictures(sharper, export(network(HP, seed=5), HP, {}), digits.images[:12])


@pytest.mark.parametrize("shape", [(1, 64, 1), (3, 600, 1), (1, 30, 20)])
def test_a_tall_image_makes_no_huge_picture(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 64 x 1 pixels one was made of 192,000 x 3,000."""
    resize = Image.Image.resize

    def small(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        assert max(size) <= 3000
        return resize(image, size)

    monkeypatch.setattr(Image.Image, "resize", small)
    pictures = list(guises(np.full((6, *shape), 200, np.uint8)))
    assert len(pictures) == 7
    assert pictures[0].shape == (4000, 3000, 4)


def test_nothing_drawn_is_not_known(exported: bytes) -> None:
    session = PictureSession(picture_file(exported, "model"), "picture.onnx")
    for picture in (np.full((50, 60, 4), 255, np.uint8), np.zeros((9, 9, 4), np.uint8)):
        answer = session(picture)
        assert (answer.probability, answer.known) == (0.0, False)


def test_standard_operators_only(exported: bytes) -> None:
    proto = onnx.load_model_from_string(picture_file(exported, "model"))
    onnx.checker.check_model(proto, full_check=True)
    assert [opset.domain for opset in proto.opset_import] == [""]
    assert not proto.functions
    assert [each.name for each in proto.graph.output] == ["label", "probability", "known"]


def test_the_page_sees_the_image_and_every_probability(
    exported: bytes, digits: data.Images
) -> None:
    session = onnxruntime.InferenceSession(with_inner_values(picture_file(exported, "model")))
    picture = np.array(Image.fromarray(digits.images[3, 0]).resize((90, 90)).convert("RGBA"))
    image, each, probability = session.run(
        ["image", "probabilities", "probability"], {"picture": picture}
    )
    expected = probabilities(Session(exported, "model").run(image))
    assert np.abs(each - expected).max() < 1e-6
    assert each.max() == probability


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "warm"])
def test_a_temperature_that_is_none_is_named(text: str) -> None:
    model = export(network(HP), HP, {"temperature": text})
    with pytest.raises(SettingsError, match=f"^model has the temperature '{text}'; expected"):
        picture_file(model, "model")


def test_other_channels_are_refused() -> None:
    hp = {**HP, "in_channels": 2, "mean": (0.1, 0.1), "std": (0.3, 0.3)}
    with pytest.raises(SettingsError, match=r"^pictures: a model of 2 channels"):
        picture_file(export(network(hp), hp, {}), "model")


def anothers(nodes: list[Any], functions: list[Any]) -> bytes:
    """Another's network of four pixels and classes, with the weights w and yes."""
    make, floats = onnx.helper, onnx.TensorProto.FLOAT
    weights = {"w": np.ones(4, np.float32), "yes": np.array(True)}
    graph = make.make_graph(
        nodes,
        "g",
        [make.make_tensor_value_info("x", floats, ["n", 1, 2, 2])],
        [make.make_tensor_value_info("y", floats, ["n", 4])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [make.make_opsetid("", 20), make.make_opsetid("own", 1)]
    proto = make.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)
    data: bytes = proto.SerializeToString()
    return data


def test_a_network_with_a_function_of_its_own_takes_pictures() -> None:
    make = onnx.helper
    inner = [make.make_node("Flatten", ["a"], ["b"])]
    own = make.make_function("own", "Flat", ["a"], ["b"], inner, [make.make_opsetid("", 20)])
    model = anothers([make.make_node("Flat", ["x"], ["y"], domain="own")], [own])
    answer = PictureSession(picture_file(model, "model"), "picture.onnx")
    assert answer(np.full((9, 9, 4), 255, np.uint8)).reason == "nothing drawn"


def test_a_network_that_cannot_be_joined_is_refused() -> None:
    """ONNX's own tools rename no weight in the graphs within nodes."""
    make = onnx.helper
    found = make.make_tensor_value_info("v", onnx.TensorProto.FLOAT, [4])
    branch = make.make_graph([make.make_node("Identity", ["w"], ["v"])], "inner", [], [found])
    nodes = [
        make.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch),
        make.make_node("Flatten", ["x"], ["flat"]),
        make.make_node("Add", ["flat", "chosen"], ["y"]),
    ]
    model = anothers(nodes, [])
    assert Session(model, "model").n_classes == 4
    with pytest.raises(SettingsError, match="^model takes no pictures: "):
        picture_file(model, "model")


def test_a_photo_is_read_from_a_file_as_people_have_it(
    exported: bytes, digits: data.Images
) -> None:
    """EXIF rotation is the caller's: the graph sees pixels."""
    file = io.BytesIO()
    Image.fromarray(255 - digits.images[0, 0]).resize((300, 300)).save(file, "JPEG")
    picture = np.array(Image.open(file).convert("RGBA"))
    assert PictureSession(picture_file(exported, "model"), "picture.onnx")(picture).known


def test_pillows_16_bits_are_scaled_as_a_files(
    exported: bytes, digits: data.Images, tmp_path: Path
) -> None:
    deep = Image.fromarray(digits.images[0, 0].astype(np.uint16) * 257).resize((90, 90), 0)
    deep.save(tmp_path / "deep.png")
    expected = as_rgba(tmp_path / "deep.png", (1, 28, 28))
    np.testing.assert_array_equal(as_rgba(deep, (1, 28, 28)), expected)
    assert len(np.unique(expected)) > 2
    with pytest.raises(SettingsError, match="^picture: its pixels are floating-point"):
        as_rgba(Image.new("F", (9, 9)), (1, 28, 28))


def test_a_file_that_is_no_picture_onnx_is_named(exported: bytes, digits: data.Images) -> None:
    """A run from elsewhere names its own, with the digest that fits."""
    picture = picture_file(exported, "model")
    with pytest.raises(SettingsError, match=r"^a file takes input and gives output; expected pic"):
        PictureSession(exported, "a file")
    unsure = with_metadata(picture, "unsure_below", "rather")
    with pytest.raises(SettingsError, match=r"^a file: unsure_below .* is no number"):
        PictureSession(unsure, "a file")


@pytest.mark.parametrize("label", [[3, 4], 99, -1])
def test_an_answer_that_cannot_be_is_no_traceback(
    calibrated: bytes, label: int | list[int]
) -> None:
    graph = onnx.load_model_from_string(picture_file(calibrated, "model"))
    given = onnx.numpy_helper.from_array(np.array(label, np.int64), "given")
    graph.graph.initializer.append(given)
    next(n for n in graph.graph.node if "label" in n.output).output[0] = "argmax"
    graph.graph.node.append(onnx.helper.make_node("Identity", ["given"], ["label"]))
    changed = with_metadata(graph.SerializeToString(), "of", "another")
    model = Model(calibrated, "a run", {}, changed)
    picture = np.eye(50, dtype=np.uint8) * 255
    if isinstance(label, list):
        with pytest.raises(SettingsError, match=r"^picture.onnx cannot be run: "):
            model.predict(picture)
    else:
        assert model.predict(picture).label == str(label)
