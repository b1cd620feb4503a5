"""Reading an ONNX file: damage is found, files elsewhere are refused, a run's model is known by its
manifest.
"""

import hashlib
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper, numpy_helper

from mnist_ray.errors import CorruptFileError, SettingsError
from mnist_ray.export.read import load_verified, read_model
from mnist_ray.export.session import Session
from mnist_ray.run.publication import publish
from mnist_ray.storage import RunStorage


def test_altered_weight_is_found(exported: bytes) -> None:
    proto = onnx.load_model_from_string(exported)
    weight = next(t for t in proto.graph.initializer if t.name == "1.weight")
    changed = numpy_helper.to_array(weight).copy()
    changed.flat[0] += 1
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    with pytest.raises(CorruptFileError, match=r"m\.onnx is damaged: its weights do not match"):
        load_verified(proto.SerializeToString(), "m.onnx")


def test_every_flipped_byte_and_every_truncation_is_found(exported: bytes) -> None:
    """Not only in the weights: the graph, its attributes and the metadata belong to the network
    too.
    """
    generator = random.Random(0)
    metadata_too = (
        len(exported) - 3000
    )  # the end, where the metadata is, is a small part of the file
    positions = [
        *generator.sample(range(len(exported)), 150),
        *generator.sample(range(metadata_too, len(exported)), 100),
    ]
    whole = load_verified(exported, "m.onnx").SerializeToString(deterministic=True)
    for position in positions:
        damaged = bytearray(exported)
        damaged[position] ^= generator.randrange(1, 256)
        try:
            found = load_verified(bytes(damaged), "m.onnx")
        except (CorruptFileError, SettingsError) as error:
            assert str(error).startswith("m.onnx")
            assert "\n" not in str(error)
        else:  # another way to write the same
            assert found.SerializeToString(deterministic=True) == whole
    for length in range(0, len(exported), len(exported) // 60):
        with pytest.raises(CorruptFileError, match=r"^m\.onnx is [^\n]+$"):
            load_verified(exported[:length], "m.onnx")


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"not a model", lambda b: b[100:]],
)
def test_no_onnx_file(exported: bytes, damage: Any) -> None:
    with pytest.raises(CorruptFileError, match=r"^m\.onnx is [^\n]+$"):
        load_verified(damage(exported), "m.onnx")


def test_external_data_is_refused_wherever_it_hides(exported: bytes) -> None:
    outside = onnx.TensorProto(name="secret", data_type=onnx.TensorProto.FLOAT, dims=[1])
    outside.data_location = onnx.TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="/etc/passwd")
    as_initializer, as_constant = (onnx.load_model_from_string(exported) for _ in range(2))
    as_initializer.graph.initializer.append(outside)
    as_constant.graph.node.insert(0, helper.make_node("Constant", [], ["unused"], value=outside))
    for proto in (as_initializer, as_constant):
        with pytest.raises(
            SettingsError, match=r"m\.onnx: the weight 'secret' lies in another file"
        ):
            Session(proto.SerializeToString(), "m.onnx")


def test_read(exported: bytes, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first run"
    manifest = {"file": "model.onnx", "sha256": hashlib.sha256(exported).hexdigest()}
    publish(RunStorage(str(run)), {"model.onnx": exported}, manifest)
    (tmp_path / "bare").write_bytes(exported)
    assert (
        read_model(str(run))
        == read_model(f"{run}/")
        == read_model(str(run / "model.onnx"))
        == exported
    )
    assert read_model(str(tmp_path / "bare")) == exported
    assert read_model((run / "model.onnx").as_uri()) == exported
    (run / "model.onnx").write_bytes(exported[:-1])
    with pytest.raises(SettingsError, match="SHA-256"):
        read_model(str(run / "model.onnx"))
    # A person named it: what is wrong with it is a wrong setting, in one line that begins with the
    # flag.
    (tmp_path / "half").write_bytes(exported[: len(exported) // 2])
    with pytest.raises(
        SettingsError, match=r"^--onnx: [^\n]*half is not an ONNX model or is damaged: [^\n]*$"
    ):
        read_model(str(tmp_path / "half"), "--onnx")
    for nothing in (tmp_path, tmp_path / "none.onnx", tmp_path / "none"):
        with pytest.raises(SettingsError, match="no model lies there"):
            read_model(str(nothing))


def test_read_from_s3(exported: bytes, s3_server: str) -> None:
    folder, mark, query = s3_server.partition("?")
    manifest = {"file": "model.onnx", "sha256": hashlib.sha256(exported).hexdigest()}
    publish(
        RunStorage(f"{folder}/runs/onnx test{mark}{query}".replace(" ", "%20")),
        {"model.onnx": exported},
        manifest,
    )
    assert read_model(f"{folder}/runs/onnx%20test{mark}{query}") == exported
    assert read_model(f"{folder}/runs/onnx%20test/model.onnx{mark}{query}") == exported
    with pytest.raises(SettingsError, match="no model lies there"):
        read_model(f"{folder}/runs/onnx%20test/other.onnx{mark}{query}")


def test_reading_needs_no_torch() -> None:
    code = "import sys, mnist_ray.export.session, mnist_ray.export.pictures; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"  # noqa: E501
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
