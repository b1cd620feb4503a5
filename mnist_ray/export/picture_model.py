"""`picture.onnx`: from a picture as people have it to its class, in one ONNX file.

It joins the preparation of `pictures.py` and a network's file, and decides: softmax at a
temperature, the largest probability, and whether anything is drawn at all. `predict`, the page and
`Model.predict` run it, so a person who runs it with onnxruntime alone gets the same answers.
"""

import hashlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper
from PIL import Image, ImageOps

from mnist_ray.data import read_picture
from mnist_ray.data.pictures import in_8_bits
from mnist_ray.errors import SettingsError, WorkError, first_line
from mnist_ray.export.pictures import Preprocessor, preprocessing_graph
from mnist_ray.export.read import PRODUCER, WHOLE, digest, load_verified, metadata_of
from mnist_ray.export.session import Session, probabilities, runtime_session, temperature_of

IMAGE, PROBABILITIES = "image", "probabilities"  # inner values that the page shows as well
TOLERANCE = 1e-4  # largest difference of a probability from that of the two files apart


class Answer(NamedTuple):
    """What `picture.onnx` says of a picture: a class's number, its probability, and `known`."""

    label: int
    probability: float
    known: bool


def picture_file(model: bytes, source: str) -> bytes:
    """The bytes of `picture.onnx`: equal arguments give equal bytes.

    Input `picture`: uint8 [height, width, 4] (RGBA) of any size. Outputs: `label` int64 [],
    `probability` float32 [], `known` bool []: false where nothing is drawn, and then the
    probability is 0. Standard operators only.

    Args:
        model: The network's file, float32 [batch, C, H, W] to logits [batch, classes]. Its
            metadata may have a `temperature`, by which the logits are divided before the softmax.
        source: Its name in errors.

    Raises:
        SettingsError: The network takes neither 1 nor 3 channels, or its file cannot be joined.
    """
    network = load_verified(model, source)
    facts = {k: v for k, v in metadata_of(network).items() if k not in (WHOLE, "weights_sha256")}
    session = Session(model, source)
    channels, height, width = session.image_shape
    prepare = onnx.load_model_from_string(
        preprocessing_graph((height, width), channels, session.padding)
    )
    try:
        joined = _joined(prepare, network)
    except ValueError as error:
        raise SettingsError(f"{source} takes no pictures: {first_line(error)}") from error
    _decide(
        joined.graph, temperature_of(facts, source), drawn=channels == 1 and session.padding is None
    )
    facts["model_sha256"] = hashlib.sha256(model).hexdigest()
    for key in sorted(facts):
        joined.metadata_props.add(key=key, value=facts[key])
    joined.producer_name, joined.producer_version, joined.ir_version = PRODUCER, "", 10
    joined.metadata_props.add(key=WHOLE, value=digest(joined))
    onnx.checker.check_model(joined)
    data: bytes = joined.SerializeToString(deterministic=True)
    return data


def _joined(prepare: onnx.ModelProto, network: onnx.ModelProto) -> onnx.ModelProto:
    """One graph: `picture` to IMAGE to the network's output, which is called `logits`."""
    for proto in (prepare, network):
        del proto.metadata_props[:]
        proto.ir_version = 10
    prepare = compose.add_prefix(prepare, "prepare/", rename_inputs=False, rename_outputs=False)
    network = compose.add_prefix(network, "network/")
    ends = (network.graph.input[0].name, network.graph.output[0].name)
    joined = compose.merge_models(prepare, network, io_map=[(IMAGE, ends[0])], outputs=[ends[1]])
    del joined.opset_import[1:]  # the same of both
    joined.graph.node.append(helper.make_node("Identity", [ends[1]], ["logits"]))
    joined.graph.name = "picture"
    return joined


def _decide(graph: onnx.GraphProto, temperature: float, *, drawn: bool) -> None:
    """Appends the decision: `logits` [1, classes] and IMAGE to the three outputs."""

    def constant(name: str, value: float | list[int]) -> str:
        kind = np.int64 if isinstance(value, list) else np.float32
        graph.initializer.append(numpy_helper.from_array(np.array(value, kind), name))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    divided = node("Div", ["logits", constant("t", temperature)], "divided")
    node("Softmax", [divided], PROBABILITIES, axis=1)
    flat = node("Reshape", [PROBABILITIES, constant("flat", [-1])], "each")
    largest = node("ReduceMax", [flat], "largest", keepdims=0)
    node("ArgMax", [flat], "label", axis=0, keepdims=0)
    # Any other picture is taken as it is: whether anything is on it is not asked.
    ink = node("ReduceMax", [IMAGE], "ink", keepdims=0) if drawn else constant("ink", 1.0)
    node("Greater", [ink, constant("nothing", 0.0)], "known")
    node("Where", ["known", largest, "nothing"], "probability")
    del graph.output[:]
    kinds = {
        "label": TensorProto.INT64,
        "probability": TensorProto.FLOAT,
        "known": TensorProto.BOOL,
    }
    graph.output.extend(helper.make_tensor_value_info(name, kinds[name], []) for name in kinds)


def with_inner_values(picture: bytes) -> bytes:
    """The same file with IMAGE and PROBABILITIES as further outputs, for the page."""
    proto = onnx.load_model_from_string(picture)
    del proto.metadata_props[:]
    for name in (IMAGE, PROBABILITIES):
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def verify_pictures(data: bytes, model: bytes, images: np.ndarray) -> float:
    """Compares `picture.onnx` with the preparation and the network run apart.

    Args:
        data: `picture.onnx`.
        model: The network's file that it was made of.
        images: uint8 [n, C, H, W], of which pictures of every guise are made.

    Returns:
        The largest absolute difference of a probability.

    Raises:
        WorkError: It is above TOLERANCE.
    """
    session = Session(model, "the exported model")
    channels, height, width = session.image_shape
    prepare = Preprocessor((height, width), channels, session.padding)
    answer = PictureSession(data, "picture.onnx")
    temperature = temperature_of(answer.metadata, "picture.onnx")
    largest = 0.0
    for picture in guises(images):
        image = prepare(picture)
        known = channels != 1 or session.padding is not None or bool(image.any())
        expected = probabilities(session.run(image) / np.float32(temperature))[0].max() * known
        found = answer(picture)
        if found.known != known or not abs(found.probability - expected) <= TOLERANCE:
            raise WorkError(
                f"picture.onnx differs from its parts: {found.probability:.6f} for a picture of "
                f"{picture.shape[1]} x {picture.shape[0]} pixels, expected {expected:.6f}"
            )
        largest = max(largest, abs(found.probability - float(expected)))
    return largest


def guises(images: np.ndarray) -> Iterator[np.ndarray]:
    """Each image as a picture that a person may have, uint8 [h, w, 4]: one guise after the other.

    As it is, large and dark on white, drawn by transparency alone, small in a corner of a page, a
    photo in falling light, half its size; the first is as large as a photo of 12 megapixels.
    """
    yield _dark(_resized(images[0], 3000).crop((0, -500, 3000, 3500)))
    for number, image in enumerate(images):
        kind = number % 6
        if kind == 0:
            yield np.array(_resized(image).convert("RGBA"))
        elif kind == 1:
            yield _dark(_resized(image, 5 * image.shape[2]))
        elif kind == 2:
            alpha = np.array(_resized(image, 80).convert("L"))
            yield np.dstack([np.zeros((*alpha.shape, 3), np.uint8), alpha])
        elif kind == 3:
            yield _dark(_resized(image, 40).crop((-90, -20, 60, 130)))
        elif kind == 4:
            large = _dark(_resized(image, 160)).astype(np.float32)
            light = np.linspace(1.0, 0.6, large.shape[1])[:, None]
            yield np.dstack([large[:, :, :3] * light, large[:, :, 3:]]).astype(np.uint8)
        else:
            yield np.array(_resized(image, max(2, image.shape[2] // 2)).convert("RGBA"))


def _resized(image: np.ndarray, width: int | None = None) -> Image.Image:
    """An image uint8 [C, H, W] as Pillow has it, its sides in their proportion."""
    pixels = image[0] if len(image) == 1 else image[:3].transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if width is None:
        return picture
    return picture.resize((width, max(1, round(width * picture.height / picture.width))))


def _dark(picture: Image.Image) -> np.ndarray:
    return np.array(ImageOps.invert(picture.convert("RGB")).convert("RGBA"))


class PictureSession:
    """`picture.onnx` in onnxruntime on the CPU.

    Args:
        data: The file's bytes.
        source: Its name in errors.

    Raises:
        CorruptFileError: The file is damaged.
        SettingsError: onnxruntime cannot run it.
    """

    def __init__(self, data: bytes, source: str) -> None:
        self.metadata = metadata_of(load_verified(data, source))
        self._session = runtime_session(data, source, threads=1)

    def of(
        self,
        picture: str | os.PathLike[str] | np.ndarray | Image.Image,
        image_shape: tuple[int, int, int],
    ) -> Answer:
        """The answer to a picture in any form that `as_rgba` takes."""
        return self(as_rgba(picture, image_shape))

    def __call__(self, picture: np.ndarray) -> Answer:
        """The answer to a picture, uint8 [h, w, 4]."""
        names = ["label", "probability", "known"]
        label, probability, known = self._session.run(names, {"picture": picture})
        return Answer(int(label), float(probability), bool(known))


def as_rgba(
    picture: str | os.PathLike[str] | np.ndarray | Image.Image, image_shape: tuple[int, int, int]
) -> np.ndarray:
    """A picture in any of the forms that people have, as uint8 [h, w, 4].

    Args:
        picture: A file, a picture of Pillow's, or uint8 [h, w] or [h, w, 3 or 4].
        image_shape: The network's own, named in errors.

    Raises:
        SettingsError: The file cannot be read, or the array is no picture.
    """
    if isinstance(picture, str | os.PathLike):
        return read_picture(picture)
    if isinstance(picture, Image.Image):
        try:
            return np.array(in_8_bits(picture).convert("RGBA"))
        except (OSError, ValueError) as error:
            raise SettingsError(f"picture: {first_line(error)}") from error
    if picture.dtype != np.uint8:
        raise SettingsError(f"picture: an array of {picture.dtype}; expected uint8")
    try:
        return np.array(Image.fromarray(picture).convert("RGBA"))
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"picture: an array of shape {picture.shape}; expected [height, width], "
            f"[height, width, 3 or 4] or {list(image_shape)}"
        ) from error
