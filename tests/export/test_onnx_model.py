"""Export, verification, reading back and onnxruntime, on small networks with weights that no two layers share."""

import copy
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from mnist_ray import data, models
from mnist_ray.errors import CorruptFileError, SettingsError, WorkError
from mnist_ray.export import onnx_model
from mnist_ray.models import Committee
from mnist_ray.run.publication import publish
from mnist_ray.storage import RunStorage

HP = {
    "model": "convnet", "in_channels": 1, "image_size": [28, 28], "classes": 10, "mean": [0.1], "std": [0.3], "blocks": 2,
    "layers_per_block": 1, "width": 4, "kernel_size": 3, "activation": "gelu", "activation_position": "after_norm", "pooling": "max",
    "pool_position": "end", "dropout": 0.2, "dropout_place": "head",
}  # fmt: skip

EXPORT = """
import hashlib, sys, torch
sys.path.insert(0, sys.argv[1])
from test_onnx_model import HP, network
from mnist_ray.export import onnx_model
print(hashlib.sha256(onnx_model.export(network(HP), HP, {"dataset": "digits", "run": "r"})).hexdigest())
"""

# Imports nothing of ours: the contract is all that it knows.
PLAIN_READER = """
import sys
import numpy as np
import onnxruntime
images, labels = np.load(sys.argv[2]), np.load(sys.argv[3])
session = onnxruntime.InferenceSession(sys.argv[1])
logits = session.run(["output"], {"input": images.astype(np.float32) / 255})[0]
print(int((logits.argmax(1) == labels).sum()))
"""


def network(hp: dict[str, Any], seed: int = 0) -> nn.Module:
    """A network whose BatchNorm layers do something: with their initial values folding mistakes would not show."""
    torch.manual_seed(seed)
    model = models.build(hp)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low in (
                (layer.running_mean, -0.5),
                (layer.running_var, 0.5),
                (layer.weight, 0.5),
                (layer.bias, -0.5),
            ):
                assert tensor is not None
                nn.init.uniform_(tensor, low, low + 1)
    return model.eval()


@pytest.fixture(scope="module")
def digits() -> data.Images:
    return data.load("digits", "test")


@pytest.fixture(scope="module")
def exported() -> bytes:
    return onnx_model.export(
        network(HP), HP, {"dataset": "digits", "run": "first", "val_accuracy": "0.5"}
    )


def test_contract(exported: bytes) -> None:
    proto = onnx.load_model_from_string(exported)
    onnx.checker.check_model(proto, full_check=True)
    (entry,), (result,) = proto.graph.input, proto.graph.output
    assert (entry.name, entry.type.tensor_type.elem_type) == ("input", onnx.TensorProto.FLOAT)
    assert [d.dim_value or d.dim_param for d in entry.type.tensor_type.shape.dim] == [
        "batch",
        1,
        28,
        28,
    ]
    assert (result.name, result.type.tensor_type.elem_type) == ("output", onnx.TensorProto.FLOAT)
    assert [d.dim_value or d.dim_param for d in result.type.tensor_type.shape.dim] == ["batch", 10]
    facts = onnx_model.metadata(proto)
    assert json.loads(facts["hyperparameters"]) == HP
    assert (facts["dataset"], facts["run"], facts["val_accuracy"]) == ("digits", "first", "0.5")
    assert facts["weights_sha256"] == onnx_model.weights_digest(proto)


def test_export_leaves_no_trace_of_the_machine(exported: bytes) -> None:
    for trace in (
        str(Path(__file__).parents[2]),
        str(Path.home()),
        ".py",
        "site-packages",
        "stack_trace",
        "File ",
    ):
        assert trace.encode() not in exported


def test_export_leaves_the_model_as_it_was() -> None:
    model = network(HP).train()
    before = copy.deepcopy(model.state_dict())
    onnx_model.export(model, HP, {})
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_equal_weights_give_equal_bytes_from_another_process_and_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, str(Path(__file__).parent)],
        cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    here = onnx_model.export(network(HP), HP, {"run": "r", "dataset": "digits"})
    assert done.stdout.strip() == hashlib.sha256(here).hexdigest()
    assert done.stderr == "", "the exporter's chatter"
    assert not list(tmp_path.iterdir())


def test_memory_layout_does_not_matter(exported: bytes) -> None:
    model = network(HP).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert (
        onnx_model.export(model, HP, {"dataset": "digits", "run": "first", "val_accuracy": "0.5"})
        == exported
    )


def test_other_weights_give_another_digest(exported: bytes) -> None:
    other = onnx_model.load_verified(onnx_model.export(network(HP, seed=1), HP, {}), "")
    assert onnx_model.weights_digest(other) != onnx_model.weights_digest(
        onnx.load_model_from_string(exported)
    )


VARIANTS = {
    "gelu-max": {},
    "silu-conv-layer": {
        "activation": "silu",
        "pooling": "conv",
        "pool_position": "conv",
        "dropout_place": "layer",
    },
    "gelu-blur": {"pooling": "blur", "pool_position": "conv"},
    "relu-before-norm-avg": {
        "activation": "relu",
        "activation_position": "before_norm",
        "pooling": "avg",
        "layers_per_block": 2,
    },
    "leaky-colour": {
        "activation": "leaky_relu",
        "in_channels": 3,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2] * 3,
        "image_size": [32, 32],
    },
    "elu-odd": {
        "activation": "elu",
        "image_size": [9, 11],
        "kernel_size": 5,
        "classes": 3,
        "dropout_place": "block",
    },
}


@pytest.mark.parametrize("change", VARIANTS.values(), ids=list(VARIANTS))
def test_verify_and_rebuild(change: dict[str, Any]) -> None:
    hp = {**HP, **change}
    model = network(hp)
    exported = onnx_model.export(model, hp, {})
    images = np.random.default_rng(0).integers(
        0, 256, (300, hp["in_channels"], *hp["image_size"]), dtype=np.uint8
    )
    assert onnx_model.verify(exported, model, images) <= onnx_model.TOLERANCE
    rebuilt, found = onnx_model.rebuild(exported, "model.onnx")
    assert found == hp
    assert not rebuilt.training
    expected = {
        name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name
    }
    assert all(torch.equal(rebuilt.state_dict()[name], tensor) for name, tensor in expected.items())
    assert onnx_model.verify(exported, rebuilt, images) <= onnx_model.TOLERANCE


def test_verify_finds_another_networks_weights(exported: bytes, digits: data.Images) -> None:
    model = network(HP)
    with torch.no_grad():
        model[-1].bias[3] += 0.01
    with pytest.raises(WorkError, match=r"logits by 1\.0\de-02 on 300 images; at most 1e-04"):
        onnx_model.verify(exported, model, digits.images[:300])


def test_verify_refuses_nan(digits: data.Images) -> None:
    model = network(HP)
    with torch.no_grad():
        model[-1].bias[3] = float("nan")
    with pytest.raises(WorkError, match="nan"):
        onnx_model.verify(onnx_model.export(model, HP, {}), model, digits.images[:5])


@pytest.mark.parametrize("n", [1, 3])
def test_committee_is_the_log_of_the_mean_probability(n: int, digits: data.Images) -> None:
    networks = [network(HP, seed) for seed in range(n)]
    exported = onnx_model.export(Committee(networks), [HP] * n, {"dataset": "digits"})
    assert onnx_model.verify(exported, Committee(networks), digits.images) <= onnx_model.TOLERANCE
    pixels = torch.from_numpy(digits.images / np.float32(255))
    with torch.inference_mode():
        mean = torch.stack([one(pixels).softmax(1) for one in networks]).mean(0).numpy()
    logits = onnx_model.Session(exported, "committee").logits(digits.images)
    np.testing.assert_allclose(np.exp(logits), mean, atol=1e-5)
    np.testing.assert_allclose(onnx_model.probabilities(logits), mean, atol=1e-5)
    with pytest.raises(SettingsError, match=f"committee of {n} networks"):
        onnx_model.rebuild(exported, "model.onnx")


# ---- damaged and foreign files


def test_altered_weight_is_found(exported: bytes) -> None:
    proto = onnx.load_model_from_string(exported)
    weight = next(t for t in proto.graph.initializer if t.name == "1.weight")
    changed = numpy_helper.to_array(weight).copy()
    changed.flat[0] += 1
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    with pytest.raises(CorruptFileError, match=r"m\.onnx is damaged: its weights do not match"):
        onnx_model.load_verified(proto.SerializeToString(), "m.onnx")


def test_every_flipped_byte_and_every_truncation_is_found(exported: bytes) -> None:
    """Not only in the weights: the graph, its attributes and the metadata belong to the network too."""
    generator = random.Random(0)
    metadata_too = (
        len(exported) - 3000
    )  # the end, where the metadata is, is a small part of the file
    positions = [
        *generator.sample(range(len(exported)), 150),
        *generator.sample(range(metadata_too, len(exported)), 100),
    ]
    whole = onnx_model.load_verified(exported, "m.onnx").SerializeToString(deterministic=True)
    for position in positions:
        damaged = bytearray(exported)
        damaged[position] ^= generator.randrange(1, 256)
        try:
            found = onnx_model.load_verified(bytes(damaged), "m.onnx")
        except (CorruptFileError, SettingsError) as error:
            assert str(error).startswith("m.onnx")
            assert "\n" not in str(error)
        else:  # another way to write the same
            assert found.SerializeToString(deterministic=True) == whole
    for length in range(0, len(exported), len(exported) // 60):
        with pytest.raises(CorruptFileError, match=r"^m\.onnx is [^\n]+$"):
            onnx_model.load_verified(exported[:length], "m.onnx")


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
        onnx_model.Session(proto.SerializeToString(), "m.onnx")


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"not a model", lambda b: b[100:]],
)
def test_no_onnx_file(exported: bytes, damage: Any) -> None:
    with pytest.raises(CorruptFileError, match=r"^m\.onnx is [^\n]+$"):
        onnx_model.load_verified(damage(exported), "m.onnx")


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
            onnx_model.Session(proto.SerializeToString(), "m.onnx")


def with_metadata(data: bytes, **facts: str) -> bytes:
    proto = onnx.load_model_from_string(data)
    merged = {**onnx_model.metadata(proto), **facts}
    del proto.metadata_props[:]
    helper.set_model_props(proto, merged)
    return signed(proto)


def signed(proto: onnx.ModelProto) -> bytes:
    """With the digest that whoever changes a file on purpose writes too."""
    facts = onnx_model.metadata(proto) | {onnx_model.WHOLE: onnx_model.digest(proto)}
    del proto.metadata_props[:]
    helper.set_model_props(proto, facts)
    return proto.SerializeToString()


def test_rebuild_refuses_what_is_not_ours(exported: bytes) -> None:
    proto = onnx.load_model_from_string(exported)
    del proto.metadata_props[:]
    proto.producer_name = "another"
    with pytest.raises(SettingsError, match="no hyperparameters"):
        onnx_model.rebuild(proto.SerializeToString(), "m.onnx")
    with pytest.raises(
        SettingsError, match=r"weight 1\.weight is \(4, 1, 3, 3\), expected \(8, 1, 3, 3\)"
    ):
        onnx_model.rebuild(
            with_metadata(exported, hyperparameters=json.dumps({**HP, "width": 8})), "m.onnx"
        )


def test_rebuild_runs_no_code_that_the_file_names(exported: bytes, tmp_path: Path) -> None:
    # subprocess.Popen(dict) runs the dict's keys as a command.
    hp = {"touch": 0, str(tmp_path / "pwned"): 0, "model": "subprocess:Popen"}
    with pytest.raises(SettingsError, match="names the model 'subprocess:Popen'"):
        onnx_model.rebuild(with_metadata(exported, hyperparameters=json.dumps(hp)), "m.onnx")
    assert not (tmp_path / "pwned").exists()


def test_session_refuses_other_images_and_other_inputs(exported: bytes) -> None:
    session = onnx_model.Session(exported, "m.onnx")
    with pytest.raises(SettingsError, match=r"m\.onnx takes images of 1x28x28 .* found 3x32x32"):
        session.logits(np.zeros((2, 3, 32, 32), np.uint8))
    flat = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", 1, ["n", 784])], [helper.make_tensor_value_info("y", 1, ["n", 784])],
    )  # fmt: skip
    proto = helper.make_model(flat, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(SettingsError, match="takes other input"):
        onnx_model.Session(proto.SerializeToString(), "m.onnx")
    proto.graph.node[0].domain = "nobody.knows"
    proto.opset_import.append(helper.make_opsetid("nobody.knows", 1))
    with pytest.raises(SettingsError, match=r"m\.onnx cannot be run: [^\n]+$"):
        onnx_model.Session(proto.SerializeToString(), "m.onnx")


# ---- running


def test_evaluate(exported: bytes, digits: data.Images) -> None:
    with torch.inference_mode():
        expected = network(HP)(torch.from_numpy(digits.images / np.float32(255))).argmax(1).numpy()
    labels = expected.copy()
    labels[:10] = (labels[:10] + 1) % 10
    result = onnx_model.Session(exported, "m.onnx", threads=1).evaluate(digits.images, labels)
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
    session = onnx_model.Session(exported, "m.onnx")
    np.testing.assert_allclose(
        session.logits(digits.images, 7), session.logits(digits.images), atol=1e-5
    )


def test_latency_is_a_time(exported: bytes, digits: data.Images) -> None:
    assert (
        0
        < onnx_model.Session(exported, "m.onnx", threads=1).latency_ms(digits.images[0], n=5)
        < 1000
    )


def test_confidence_interval() -> None:
    p, n, z = 0.995, 10_000, 1.959963985  # the normal distribution's 97.5th percentile
    middle, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    expected = ((middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n))
    assert onnx_model.confidence_interval(9950, 10_000) == pytest.approx(expected, abs=1e-9)
    low, high = onnx_model.confidence_interval(100, 100)
    assert 0.96 < low < 0.97
    assert high == 1


def test_a_plain_script_gets_the_same_accuracy(
    exported: bytes, digits: data.Images, tmp_path: Path
) -> None:
    result = onnx_model.Session(exported, "m.onnx").evaluate(digits.images, digits.labels)
    (tmp_path / "model.onnx").write_bytes(exported)
    np.save(tmp_path / "images.npy", digits.images)
    np.save(tmp_path / "labels.npy", digits.labels)
    (tmp_path / "plain.py").write_text(PLAIN_READER)
    command = [sys.executable, "-I", "plain.py", "model.onnx", "images.npy", "labels.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(done.stdout) == result.right


# ---- where a model lies


def test_read(exported: bytes, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first run"
    manifest = {"file": "model.onnx", "sha256": hashlib.sha256(exported).hexdigest()}
    publish(RunStorage(str(run)), {"model.onnx": exported}, manifest)
    (tmp_path / "bare").write_bytes(exported)
    assert (
        onnx_model.read(str(run))
        == onnx_model.read(f"{run}/")
        == onnx_model.read(str(run / "model.onnx"))
        == exported
    )
    assert onnx_model.read(str(tmp_path / "bare")) == exported
    assert onnx_model.read((run / "model.onnx").as_uri()) == exported
    (run / "model.onnx").write_bytes(exported[:-1])
    with pytest.raises(SettingsError, match="SHA-256"):
        onnx_model.read(str(run / "model.onnx"))
    # A person named it: what is wrong with it is a wrong setting, in one line that begins with the flag.
    (tmp_path / "half").write_bytes(exported[: len(exported) // 2])
    with pytest.raises(
        SettingsError, match=r"^--onnx: [^\n]*half is not an ONNX model or is damaged: [^\n]*$"
    ):
        onnx_model.read(str(tmp_path / "half"), "--onnx")
    for nothing in (tmp_path, tmp_path / "none.onnx", tmp_path / "none"):
        with pytest.raises(SettingsError, match="no model lies there"):
            onnx_model.read(str(nothing))


def test_read_from_s3(exported: bytes, s3_server: str) -> None:
    folder, mark, query = s3_server.partition("?")
    manifest = {"file": "model.onnx", "sha256": hashlib.sha256(exported).hexdigest()}
    publish(
        RunStorage(f"{folder}/runs/onnx test{mark}{query}".replace(" ", "%20")),
        {"model.onnx": exported},
        manifest,
    )
    assert onnx_model.read(f"{folder}/runs/onnx%20test{mark}{query}") == exported
    assert onnx_model.read(f"{folder}/runs/onnx%20test/model.onnx{mark}{query}") == exported
    with pytest.raises(SettingsError, match="no model lies there"):
        onnx_model.read(f"{folder}/runs/onnx%20test/other.onnx{mark}{query}")


def test_reading_needs_no_torch() -> None:
    code = "import sys, mnist_ray.export.onnx_model, mnist_ray.export.pictures; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
