"""The smaller files: they answer as the model does, or are refused with the figures."""

import numpy as np
import onnx
import pytest

from mnist_ray import data
from mnist_ray.export import quantize
from mnist_ray.export.quantize import Bounds, smaller
from mnist_ray.export.read import load_verified, metadata_of
from mnist_ray.export.session import Session

LENIENT = Bounds(0.0, 99.0, 99.0)


@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_a_smaller_file_answers_nearly_the_same(
    exported: bytes, digits: data.Images, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(quantize.BOUNDS, kind, LENIENT)
    file, compared = smaller(exported, kind, digits.images)
    assert compared.refused == ""
    assert compared.line().endswith(": published")
    found = Session(file, kind)
    logits = [session.logits(digits.images) for session in (found, Session(exported, "model"))]
    assert (logits[0].argmax(1) == logits[1].argmax(1)).mean() == compared.agreement
    assert compared.agreement > 0.9
    assert np.abs(logits[0] - logits[1]).max() > 0
    facts = metadata_of(load_verified(file, kind))
    assert (facts["arithmetic"], facts["dataset"]) == (kind, "digits")
    types = {t.data_type for t in onnx.load_model_from_string(file).graph.initializer}
    expected = onnx.TensorProto.INT8 if kind == "int8" else onnx.TensorProto.FLOAT16
    assert expected in types


def test_the_ranges_come_from_images_of_the_whole_set(
    exported: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they are sorted by class, the first are of one class."""
    seen: list[int] = []

    def int8(proto: onnx.ModelProto, images: np.ndarray) -> onnx.ModelProto:
        seen.extend(images[:, 0, 0, 0].tolist())
        return proto

    monkeypatch.setattr(quantize, "_int8", int8)
    monkeypatch.setattr(quantize, "_latencies", lambda *_: [1.0, 0.5])
    monkeypatch.setattr(quantize, "CALIBRATED_ON", 3)
    images = np.zeros((9, 1, 28, 28), np.uint8)
    images[:, 0, 0, 0] = np.arange(9)
    _, compared = smaller(exported, "int8", images)
    assert seen == [0, 4, 8]
    assert compared.images == 9


def test_it_is_refused_with_its_figures(
    exported: bytes, digits: data.Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(quantize.BOUNDS, "fp16", Bounds(1.0, 0.01, 0.001))
    _, compared = smaller(exported, "fp16", digits.images[:50])
    assert f"size {compared.size:.2f}, expected at most 0.01" in compared.refused
    assert f"latency {compared.latency:.2f}, expected at most 0.00" in compared.refused
    assert "refused: " in compared.line()


@pytest.mark.parametrize(("kind", "wrong"), [("int8", 2), ("fp16", 1)])
def test_a_file_that_answers_otherwise_is_refused(
    kind: str, wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the bounds of docs/shipped-file.md: 99.9 and 99.99 % of the answers."""
    n = 1_500

    class Fake:
        def __init__(self, model: bytes, *_: object, **__: object) -> None:
            self.other = model != b"0123456789"

        def logits(self, images: np.ndarray) -> np.ndarray:
            answers = np.zeros(n, int)
            answers[: wrong * self.other] = 1
            return np.eye(2)[answers]

    monkeypatch.setattr(quantize, "Session", Fake)
    monkeypatch.setattr(quantize, "_latencies", lambda *_: [1.0, 0.5])
    images = np.zeros((n, 1, 2, 2), np.uint8)
    compared = quantize._compared(b"0123456789", b"0", kind, images)
    least = {"int8": "99.90%", "fp16": "99.99%"}[kind]
    assert compared.refused == f"agreement {1 - wrong / n:.2%}, expected at least {least}"
