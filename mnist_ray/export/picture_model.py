"""`picture.onnx`: from a picture as people have it to its class, in one ONNX file.

It joins the preparation of `pictures.py` and a network's file, and decides: softmax at a
temperature, the largest probability, and whether the picture is one of the classes at all.
`predict`, the page, `serve` and `Model.predict` run it, so a person who runs it with onnxruntime
alone gets the same answers.
"""

import hashlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper
from PIL import Image, ImageOps

from mnist_ray.data.pictures import as_rgba
from mnist_ray.errors import SettingsError, WorkError, first_line
from mnist_ray.export.pictures import SEVERAL, Preprocessor, preprocessing_graph
from mnist_ray.export.read import PRODUCER, WHOLE, digest, load_verified, messages, metadata_of
from mnist_ray.export.session import (
    CANNOT_RUN,
    Session,
    median_ms,
    probabilities,
    runtime_session,
    temperature_of,
)

IMAGE, PROBABILITIES = "image", "probabilities"  # inner values that the page shows as well
TOLERANCE = 1e-4  # largest difference of a probability from that of the two files apart
OUTPUTS = {"label": "tensor(int64)", "probability": "tensor(float)", "known": "tensor(bool)"}
OF_ONE_STROKE = ("mnist", "digits")  # data sets whose pictures are declined if they show several
UNSURE, FOREIGN = "unsure_below", "foreign_above"  # the thresholds, in the metadata


class Answer(NamedTuple):
    """What `picture.onnx` says of a picture.

    Attributes:
        label: A class's number.
        probability: Of that class, calibrated; 0 if nothing is drawn.
        known: Whether the picture is one of the classes.
        reason: Why not: `nothing drawn`, `several`, `unsure` or `foreign`; "" if it is.
    """

    label: int
    probability: float
    known: bool
    reason: str


class Declining(NamedTuple):
    """When a picture with something on it is none of the classes.

    Attributes:
        gate: An ONNX file, float32 [batch, C, H, W] in [0, 1] to scores [batch].
        unsure: The picture is declined below this calibrated probability,
        foreign: and above this score.
    """

    gate: bytes
    unsure: float
    foreign: float


def picture_file(model: bytes, source: str, declining: Declining | None = None) -> bytes:
    """The bytes of `picture.onnx`: equal arguments give equal bytes.

    Input `picture`: uint8 [height, width, 4] (RGBA) of any size. Outputs: `label` int64 [],
    `probability` float32 [], `known` bool []: false for none of the classes, and where nothing is
    drawn; then the probability is 0 too. Standard operators only.

    Args:
        model: The network's file, float32 [batch, C, H, W] to logits [batch, classes]. Its
            metadata may have a `temperature`, by which the logits are divided before the softmax.
        source: Its name in errors.
        declining: None: every picture with something on it is known.

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
    gate = None if declining is None else load_verified(declining.gate, "the gate")
    try:
        joined = _joined(prepare, network, gate)
    except (ValueError, onnx.checker.ValidationError) as error:
        raise SettingsError(f"{source} takes no pictures: {first_line(error)}") from error
    _decide(
        joined.graph,
        temperature_of(facts, source),
        declining,
        drawn=channels == 1 and session.padding is None,
        one=facts.get("dataset") in OF_ONE_STROKE,
    )
    if declining is not None:
        facts |= {UNSURE: repr(declining.unsure), FOREIGN: repr(declining.foreign)}
    facts["model_sha256"] = hashlib.sha256(model).hexdigest()
    for key in sorted(facts):
        joined.metadata_props.add(key=key, value=facts[key])
    joined.producer_name, joined.producer_version, joined.ir_version = PRODUCER, "", 10
    joined.metadata_props.add(key=WHOLE, value=digest(joined))
    try:
        onnx.checker.check_model(joined)
    except onnx.checker.ValidationError as error:
        raise SettingsError(f"{source} takes no pictures: {first_line(error)}") from error
    data: bytes = joined.SerializeToString(deterministic=True)
    return data


def _joined(
    prepare: onnx.ModelProto, network: onnx.ModelProto, gate: onnx.ModelProto | None
) -> onnx.ModelProto:
    """One graph: `picture` to IMAGE, and that to the network's `logits` and the gate's `score`."""
    joined = compose.add_prefix(
        _bare(prepare), "prepare/", rename_inputs=False, rename_outputs=False
    )
    found = [each.name for each in joined.graph.output]
    outputs = []
    for name, part in (("logits", network), ("score", gate)):
        if part is None:
            continue
        part = compose.add_prefix(_bare(part), f"{name}/")
        outputs.append((name, part.graph.output[0].name))
        io_map = [(IMAGE, part.graph.input[0].name)]
        kept = [*found, *(output for _, output in outputs)]
        joined = compose.merge_models(joined, part, io_map=io_map, outputs=kept)
    used = {each.domain for each in messages(joined) if isinstance(each, onnx.NodeProto)}
    versions = {each.domain: each.version for each in joined.opset_import}
    del joined.opset_import[1:]  # the same of all, but those of operators of another's
    for domain in sorted(used & versions.keys() - {joined.opset_import[0].domain}):
        joined.opset_import.append(helper.make_opsetid(domain, versions[domain]))
    for name, output in outputs:
        joined.graph.node.append(helper.make_node("Identity", [output], [name]))
    joined.graph.name = "picture"
    return joined


def _bare(proto: onnx.ModelProto) -> onnx.ModelProto:
    del proto.metadata_props[:]
    proto.ir_version = 10
    return proto


def _decide(
    graph: onnx.GraphProto,
    temperature: float,
    declining: Declining | None,
    *,
    drawn: bool,
    one: bool,
) -> None:
    """Appends the decision: `logits` [1, classes], `score` [1] and IMAGE to the three outputs."""

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
    node("Greater", [ink, constant("nothing", 0.0)], "drawn")
    node("Where", ["drawn", largest, "nothing"], "probability")
    conditions = ["drawn"]
    if one and drawn:
        conditions.append(node("Less", [SEVERAL, constant("half", 0.5)], "one"))
    if declining is not None:
        sure = node("GreaterOrEqual", [largest, constant(UNSURE, declining.unsure)], "sure")
        score = node("ReduceMax", ["score"], "of one", keepdims=0)
        near = node("LessOrEqual", [score, constant(FOREIGN, declining.foreign)], "near")
        conditions += [sure, near]
    known = conditions[0]
    for number, condition in enumerate(conditions[1:]):
        known = node("And", [known, condition], f"and {number}")
    node("Identity", [known], "known")
    del graph.output[:]
    kinds = {
        "label": TensorProto.INT64,
        "probability": TensorProto.FLOAT,
        "known": TensorProto.BOOL,
    }
    graph.output.extend(helper.make_tensor_value_info(name, kinds[name], []) for name in kinds)


def with_inner_values(picture: bytes) -> bytes:
    """The same file with IMAGE, PROBABILITIES and SEVERAL as further outputs, for the page."""
    proto = onnx.load_model_from_string(picture)
    del proto.metadata_props[:]
    _give(proto, IMAGE, PROBABILITIES, SEVERAL)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _give(proto: onnx.ModelProto, *names: str) -> None:
    """Makes inner values outputs; those on which nothing depends are left out."""
    there = {name for node in proto.graph.node for name in node.input}
    for name in names:
        if name in there:
            proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def verify_pictures(
    data: bytes, model: bytes, images: np.ndarray, declining: Declining | None = None
) -> float:
    """Compares `picture.onnx` with the preparation, the network and the gate run apart.

    Args:
        data: `picture.onnx`.
        model: The network's file that it was made of.
        images: uint8 [n, C, H, W], of which pictures of every guise are made.
        declining: As it was made with.

    Returns:
        The largest absolute difference of a probability.

    Raises:
        WorkError: It is above TOLERANCE, or `known` differs though no threshold is that close.
    """
    session = Session(model, "the exported model")
    channels, height, width = session.image_shape
    prepare = Preprocessor((height, width), channels, session.padding)
    answer = PictureSession(data, "picture.onnx")
    temperature = temperature_of(answer.metadata, "picture.onnx")
    gate = None if declining is None else runtime_session(declining.gate, "the gate", threads=1)
    largest = 0.0
    for picture in guises(images):
        image, several = prepare.looked_at(picture)
        drawn = channels != 1 or session.padding is not None or bool(image.any())
        expected = probabilities(session.run(image) / np.float32(temperature))[0].max() * drawn
        found = answer(picture)
        one = not (several and answer.metadata.get("dataset") in OF_ONE_STROKE)
        margins = [1.0 if drawn and one else -1.0]  # `known` where all are positive
        if declining is not None and gate is not None:
            [score] = gate.run(None, {gate.get_inputs()[0].name: image})
            margins += [expected - declining.unsure, declining.foreign - float(score[0])]
        clear = min(map(abs, margins)) > TOLERANCE
        other = clear and found.known != (min(margins) > 0)
        if other or not abs(found.probability - expected) <= TOLERANCE:
            raise WorkError(
                f"picture.onnx differs from its parts: {found.probability:.6f}, known "
                f"{found.known} for a picture of {picture.shape[1]} x {picture.shape[0]} pixels, "
                f"expected {expected:.6f}, {min(margins) > 0}"
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
            yield as_picture(image)
        elif kind == 1:
            yield _dark(_resized(image, 5 * max(image.shape[1:])))
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
            yield np.array(_resized(image, max(2, max(image.shape[1:]) // 2)).convert("RGBA"))


def _resized(image: np.ndarray, longer: int | None = None) -> Image.Image:
    """An image uint8 [C, H, W] as Pillow has it; its longer side resized, the other in proportion.

    The width alone would make a tall image too large for the memory.
    """
    pixels = image[0] if len(image) == 1 else image[:3].transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if longer is None:
        return picture
    width, height = (max(1, round(longer * side / max(picture.size))) for side in picture.size)
    return picture.resize((width, height))


def as_picture(image: np.ndarray) -> np.ndarray:
    """An image uint8 [C, H, W] as a picture, uint8 [H, W, 4]."""
    return np.array(_resized(image).convert("RGBA"))


def _dark(picture: Image.Image) -> np.ndarray:
    return np.array(ImageOps.invert(picture.convert("RGB")).convert("RGBA"))


class PictureSession:
    """`picture.onnx` in onnxruntime on the CPU.

    Args:
        data: The file's bytes.
        source: Its name in errors.

    Raises:
        CorruptFileError: The file is damaged.
        SettingsError: onnxruntime cannot run it, or it takes and gives other values.
    """

    def __init__(self, data: bytes, source: str) -> None:
        self.source = source
        proto = load_verified(data, source)
        self.metadata = metadata_of(proto)
        _give(proto, SEVERAL)
        self._session = runtime_session(proto.SerializeToString(), source, threads=1)
        try:
            self._unsure = float(self.metadata.get(UNSURE, "0"))
        except ValueError as error:
            raise SettingsError(f"{source}: {UNSURE} in its metadata is no number") from error
        given = {each.name: each.type for each in self._session.get_inputs()}
        found = {each.name: each.type for each in self._session.get_outputs()}
        if given != {"picture": "tensor(uint8)"} or not OUTPUTS.items() <= found.items():
            raise SettingsError(
                f"{source} takes {', '.join(given)} and gives {', '.join(found)}; expected picture "
                f"and {', '.join(OUTPUTS)} as a picture.onnx has them"
            )
        self._names = [*OUTPUTS, *({SEVERAL} & found.keys())]

    def of(
        self,
        picture: str | os.PathLike[str] | np.ndarray | Image.Image,
        image_shape: tuple[int, int, int],
    ) -> Answer:
        """The answer to a picture in any form that `as_rgba` takes."""
        return self(as_rgba(picture, image_shape))

    def __call__(self, picture: np.ndarray) -> Answer:
        """The answer to a picture, uint8 [h, w, 4]."""
        try:
            answer = self._session.run(self._names, {"picture": picture})
            label, probability, known, *several = (each.item() for each in answer)
        except (*CANNOT_RUN, ValueError) as error:  # ValueError: more than one value
            raise SettingsError(f"{self.source} cannot be run: {first_line(error)}") from error
        if not 0 <= probability <= 1 + TOLERANCE:  # NaN too
            raise SettingsError(
                f"{self.source} gives the probability {probability}; expected 0 to 1"
            )
        if known:
            reason = ""
        elif not probability:
            reason = "nothing drawn"
        elif any(several):
            reason = "several"
        else:
            reason = "unsure" if probability < self._unsure else "foreign"
        return Answer(label, probability, known, reason)

    def latency_ms(self, picture: np.ndarray, n: int = 50) -> float:
        """Median milliseconds for a picture uint8 [h, w, 4], over n runs after five to warm up."""
        return median_ms(lambda: self(picture), n, 5)
