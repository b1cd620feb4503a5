"""A published model: what a reader finds while one is replaced, and what it refuses."""

import hashlib
import threading
import uuid
from pathlib import Path

import pytest

from mnist_ray.errors import CorruptFileError
from mnist_ray.run import layout, publication
from mnist_ray.run.publication import publish, read_picture, read_verified
from mnist_ray.storage import RunStorage, open_run


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_a_model_is_published_and_read_back(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path) if place == "folder" else request.getfixturevalue("s3_server")
    run = open_run(root, f"published-{uuid.uuid4().hex}")
    with pytest.raises(FileNotFoundError):
        read_verified(run)
    publish(
        run,
        {"model.onnx": b"weights", "README.md": b"card"},
        {"file": "model.onnx", "n_parameters": 7},
    )
    manifest, data = read_verified(run)
    assert data == b"weights"
    assert manifest == {
        "file": "model.onnx",
        "n_parameters": 7,
        "sha256": hashlib.sha256(b"weights").hexdigest(),
    }
    assert run.list() == ["README.md", "model.json", "model.onnx"]
    with pytest.raises(ValueError, match="sha256"):
        publish(run, {"model.onnx": b"other"}, manifest)


# ---- readers of a model ----


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStorage:
    monkeypatch.setattr(publication, "READ_AGAIN", (0.05, 0.05))
    return open_run(str(tmp_path), "first")


def test_a_mixture_of_two_models_is_refused(run: RunStorage) -> None:
    publish(run, {"model.onnx": b"old"}, {"file": "model.onnx"})
    run.write_bytes("model.onnx", b"new")
    with pytest.raises(
        CorruptFileError,
        match=r"model\.onnx is not the file that model\.json describes: SHA-256 [0-9a-f]{64}, ",
    ):
        read_verified(run)
    run.delete("model.onnx")
    with pytest.raises(CorruptFileError, match="SHA-256 missing"):
        read_verified(run)


def test_a_reader_waits_for_the_manifest_of_a_new_model(
    run: RunStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publication, "READ_AGAIN", (0.2,) * 20)
    publish(run, {"model.onnx": b"old"}, {"file": "model.onnx"})
    run.write_bytes("model.onnx", b"new")
    late = threading.Timer(0.3, publish, (run, {"model.onnx": b"new"}, {"file": "model.onnx"}))
    late.start()
    assert read_verified(run)[1] == b"new"
    late.join()


@pytest.mark.parametrize(
    "name", ["../model.onnx", "/etc/passwd", "best/model.onnx", "..", "", "a\\b", "a\nb", 7, None]
)
def test_a_manifest_cannot_lead_out_of_the_run(run: RunStorage, name: object) -> None:
    run.write_json("model.json", {"file": name, "sha256": "0" * 64})
    with pytest.raises(CorruptFileError, match=r"model\.json"):
        read_verified(run)


@pytest.mark.parametrize("text", [b"[]", b"{}", b"7", b"", b"\xff\xfe"])
def test_a_manifest_that_is_none_is_refused(run: RunStorage, text: bytes) -> None:
    run.write_bytes("model.json", text)
    with pytest.raises(CorruptFileError, match=r"model\.json"):
        read_verified(run)


def test_the_pictures_file_is_the_one_that_the_manifest_names(run: RunStorage) -> None:
    about = {"file": "picture.onnx", "sha256": hashlib.sha256(b"graph").hexdigest()}
    publish(
        run,
        {"model.onnx": b"weights", "picture.onnx": b"graph"},
        {"file": "model.onnx", "picture": about},
    )
    described = read_verified(run)[0]
    assert read_picture(run, described) == b"graph"
    assert read_picture(run, {**described, "picture": None}) is None
    run.write_bytes("picture.onnx", b"another")
    with pytest.raises(CorruptFileError, match=r"picture\.onnx is not the file that model\.json"):
        read_picture(run, described)
    run.delete("picture.onnx")
    with pytest.raises(CorruptFileError, match="SHA-256 missing, expected"):
        read_picture(run, described)


def test_a_smaller_file_of_the_model_before_is_removed(run: RunStorage) -> None:
    both = {"model.onnx": b"old", layout.smaller_model("int8"): b"small"}
    publish(run, both, {"file": "model.onnx"})
    assert layout.smaller_model("int8") in run.list()
    publish(run, {"model.onnx": b"new"}, {"file": "model.onnx"})
    assert run.list() == ["model.json", "model.onnx"]
