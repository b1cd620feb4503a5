"""A smaller file beside `model.onnx`, in int8 or fp16: offered only where it is worth it.

int8 is static QDQ (weights and activations of 8 bits, their ranges taken from training images), as
onnxruntime makes it. Both files take and give float32, as `model.onnx` does.
"""

import functools
import hashlib
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from mnist_ray.data.drawn import spread
from mnist_ray.export.read import (
    PRODUCER,
    WHOLE,
    digest,
    load_verified,
    metadata_of,
    weights_digest,
)
from mnist_ray.export.session import Session, median_ms, pixels

CALIBRATED_ON = 512  # training images that give the activations' ranges
ROUNDS, CALLS = 9, 30  # of the latency: both files in turn, a median of medians


@dataclass(frozen=True)
class Bounds:
    """What a file must reach to be published, against `model.onnx`."""

    agreement: float
    """At least this share of the answers is the same."""
    size: float
    latency: float
    """At most these ratios."""


BOUNDS = {"int8": Bounds(0.999, 0.35, 0.9), "fp16": Bounds(0.9999, 0.6, 1.0)}


@dataclass(frozen=True)
class Compared:
    """A smaller file against `model.onnx` on the same images; the manifest's entry."""

    kind: str
    images: int
    agreement: float
    """Share of the images with the same answer."""
    bytes: int
    size: float
    latency_ms: float
    latency: float
    """`size` and `latency` are the ratios to those of `model.onnx`."""
    refused: str
    """Why it is not published; "" if it is."""
    sha256: str = ""

    def line(self) -> str:
        """For the log."""
        figures = (
            f"{self.agreement:.2%} of {self.images:,} answers are the same, "
            f"{self.size:.2f} × the size, {self.latency:.2f} × the latency"
        )
        outcome = f"refused: {self.refused}" if self.refused else "published"
        return f"{self.kind}: {figures}: {outcome}"


def smaller(model: bytes, kind: str, images: np.ndarray) -> tuple[bytes, Compared]:
    """The file in int8 or fp16, and how it compares.

    Args:
        model: The network's file, float32.
        kind: `int8` or `fp16`.
        images: Training images uint8 [n, C, H, W].
    """
    proto = load_verified(model, "the model")
    facts = metadata_of(proto)
    del proto.metadata_props[:]
    some = images[spread(len(images), CALIBRATED_ON)]
    made = _int8(proto, some) if kind == "int8" else _fp16(proto)
    made.producer_name, made.producer_version = PRODUCER, ""
    facts |= {"weights_sha256": weights_digest(made), "arithmetic": kind}
    for key in sorted(facts.keys() - {WHOLE}):
        made.metadata_props.add(key=key, value=facts[key])
    made.metadata_props.add(key=WHOLE, value=digest(made))
    data: bytes = made.SerializeToString(deterministic=True)
    return data, _compared(model, data, kind, images)


def _int8(proto: onnx.ModelProto, images: np.ndarray) -> onnx.ModelProto:
    """Static QDQ: signed weights a channel, unsigned activations, as onnxruntime advises on x86."""
    name = proto.graph.input[0].name

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Hands out the images in batches."""

        def __init__(self) -> None:
            self.parts: Iterator[np.ndarray] = iter(
                np.array_split(images, max(1, len(images) // 64))
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            part = next(self.parts, None)
            return None if part is None else {name: pixels(part)}

    with tempfile.TemporaryDirectory() as folder:
        fused, small = Path(folder, "fused.onnx"), Path(folder, "small.onnx")
        # BatchNorm goes into the convolutions first: it has no form in int8.
        quantization.quant_pre_process(proto, fused, skip_symbolic_shape=True)
        quantization.quantize_static(
            fused, small, Reader(),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=not _has_vnni(),
        )  # fmt: skip
        return onnx.load(small)


def _fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    made = OnnxModel(convert_float_to_float16(proto, keep_io_types=True))
    made.topological_sort()
    model: onnx.ModelProto = made.model
    return model


def _has_vnni() -> bool:
    """Whether products of 8 bits do not saturate; without it weights of 7 bits are safe."""
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def _compared(model: bytes, data: bytes, kind: str, images: np.ndarray) -> Compared:
    sessions = [Session(each, kind, threads=1) for each in (model, data)]
    answers = [session.logits(images).argmax(1) for session in sessions]
    agreement = float((answers[0] == answers[1]).mean())
    slow, fast = _latencies(sessions, pixels(images[:1]))
    size, latency, bounds = len(data) / len(model), fast / slow, BOUNDS[kind]
    refused = [
        f"{name} {value:{form}}, expected {at} {bound:{form}}"
        for name, value, at, bound, form, good in (
            ("agreement", agreement, "at least", bounds.agreement, ".2%",
             agreement >= bounds.agreement),
            ("size", size, "at most", bounds.size, ".2f", size <= bounds.size),
            ("latency", latency, "at most", bounds.latency, ".2f", latency <= bounds.latency),
        )
        if not good
    ]  # fmt: skip
    sha256 = hashlib.sha256(data).hexdigest()
    return Compared(
        kind, len(images), agreement, len(data), size, fast, latency, ", ".join(refused), sha256
    )


def _latencies(sessions: list[Session], one: np.ndarray) -> list[float]:
    """Milliseconds of one image: of each session the median, taken in turn."""
    found: list[list[float]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for session, times in zip(sessions, found, strict=True):
            times.append(median_ms(functools.partial(session.run, one), CALLS, 5))
    return [statistics.median(times) for times in found]
