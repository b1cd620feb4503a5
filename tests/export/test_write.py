"""Export, verification against torch, and rebuilding: small networks of every kind of layer."""

import copy
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from mnist_ray import data
from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.export.read import WHOLE, digest, load_verified, metadata_of, weights_digest
from mnist_ray.export.session import Session, probabilities
from mnist_ray.export.write import TOLERANCE, export, rebuild, verify
from mnist_ray.models import Committee
from tests.support.networks import HP, network

ROOT = Path(__file__).parents[2]


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
    facts = metadata_of(proto)
    assert json.loads(facts["hyperparameters"]) == HP
    assert (facts["dataset"], facts["run"], facts["val_accuracy"]) == ("digits", "first", "0.5")
    assert facts["weights_sha256"] == weights_digest(proto)


def test_export_leaves_no_trace_of_the_machine(exported: bytes) -> None:
    for trace in (
        str(ROOT),
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
    export(model, HP, {})
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_equal_weights_give_equal_bytes_from_another_process_and_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tests/programs/export_digest.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    here = export(network(HP), HP, {"run": "r", "dataset": "digits"})
    assert done.stdout.strip() == hashlib.sha256(here).hexdigest()
    assert done.stderr == "", "the exporter's chatter"
    assert not list(tmp_path.iterdir())


def test_memory_layout_does_not_matter(exported: bytes) -> None:
    model = network(HP).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert (
        export(model, HP, {"dataset": "digits", "run": "first", "val_accuracy": "0.5"}) == exported
    )


def test_other_weights_give_another_digest(exported: bytes) -> None:
    other = load_verified(export(network(HP, seed=1), HP, {}), "")
    assert weights_digest(other) != weights_digest(onnx.load_model_from_string(exported))


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
    exported = export(model, hp, {})
    images = np.random.default_rng(0).integers(
        0, 256, (300, hp["in_channels"], *hp["image_size"]), dtype=np.uint8
    )
    assert verify(exported, model, images) <= TOLERANCE
    rebuilt, found = rebuild(exported, "model.onnx")
    assert found == hp
    assert not rebuilt.training
    expected = {
        name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name
    }
    assert all(torch.equal(rebuilt.state_dict()[name], tensor) for name, tensor in expected.items())
    assert verify(exported, rebuilt, images) <= TOLERANCE


def last(model: nn.Module) -> nn.Linear:
    layer = list(model.children())[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def test_large_logits_may_differ_in_proportion(digits: data.Images) -> None:
    """A network that was trained badly is published too; another one's weights are still found."""
    model = network(HP)
    with torch.no_grad():
        last(model).weight *= 1000
    exported = export(model, HP, {})
    assert verify(exported, model, digits.images[:300]) < 0.1
    with torch.no_grad():
        last(model).weight *= 1.001
    with pytest.raises(WorkError, match="differs from the network"):
        verify(exported, model, digits.images[:300])


def test_verify_finds_another_networks_weights(exported: bytes, digits: data.Images) -> None:
    model = network(HP)
    with torch.no_grad():
        last(model).bias[3] += 0.01
    with pytest.raises(WorkError, match=r"logits by 1\.0\de-02 on 300 images; at most 1e-04"):
        verify(exported, model, digits.images[:300])


def test_verify_refuses_nan(digits: data.Images) -> None:
    model = network(HP)
    with torch.no_grad():
        last(model).bias[3] = float("nan")
    with pytest.raises(WorkError, match="nan"):
        verify(export(model, HP, {}), model, digits.images[:5])


@pytest.mark.parametrize("n", [1, 3])
def test_committee_is_the_log_of_the_mean_probability(n: int, digits: data.Images) -> None:
    networks = [network(HP, seed) for seed in range(n)]
    exported = export(Committee(networks), [HP] * n, {"dataset": "digits"})
    assert verify(exported, Committee(networks), digits.images) <= TOLERANCE
    pixels = torch.from_numpy(digits.images / np.float32(255))
    with torch.inference_mode():
        mean = torch.stack([one(pixels).softmax(1) for one in networks]).mean(0).numpy()
    logits = Session(exported, "committee").logits(digits.images)
    np.testing.assert_allclose(np.exp(logits), mean, atol=1e-5)
    np.testing.assert_allclose(probabilities(logits), mean, atol=1e-5)
    with pytest.raises(SettingsError, match=f"committee of {n} networks"):
        rebuild(exported, "model.onnx")


def with_metadata(data: bytes, **facts: str) -> bytes:
    proto = onnx.load_model_from_string(data)
    merged = {**metadata_of(proto), **facts}
    del proto.metadata_props[:]
    helper.set_model_props(proto, merged)
    return signed(proto)


def signed(proto: onnx.ModelProto) -> bytes:
    """With the digest that whoever changes a file on purpose writes too."""
    facts = metadata_of(proto) | {WHOLE: digest(proto)}
    del proto.metadata_props[:]
    helper.set_model_props(proto, facts)
    return proto.SerializeToString()


def test_rebuild_refuses_what_is_not_ours(exported: bytes) -> None:
    proto = onnx.load_model_from_string(exported)
    del proto.metadata_props[:]
    proto.producer_name = "another"
    with pytest.raises(SettingsError, match="no hyperparameters"):
        rebuild(proto.SerializeToString(), "m.onnx")
    with pytest.raises(
        SettingsError, match=r"weight 1\.weight is \(4, 1, 3, 3\), expected \(8, 1, 3, 3\)"
    ):
        rebuild(with_metadata(exported, hyperparameters=json.dumps({**HP, "width": 8})), "m.onnx")


def test_rebuild_runs_no_code_that_the_file_names(exported: bytes, tmp_path: Path) -> None:
    # subprocess.Popen(dict) runs the dict's keys as a command.
    hp = {"touch": 0, str(tmp_path / "pwned"): 0, "model": "subprocess:Popen"}
    with pytest.raises(SettingsError, match="names the model 'subprocess:Popen'"):
        rebuild(with_metadata(exported, hyperparameters=json.dumps(hp)), "m.onnx")
    assert not (tmp_path / "pwned").exists()


def test_numpys_values_among_the_hyperparameters_are_kept_as_pythons(exported: bytes) -> None:
    hp = {**HP, "mean": np.array([0.1]), "width": np.int64(4), "image_size": (28, 28)}
    facts = {"dataset": "digits", "run": "first", "val_accuracy": "0.5"}
    assert export(network(HP), hp, facts) == exported


@pytest.mark.parametrize("text", ["5", "null", '{"model": ["convnet"]}', "{}"])
def test_rebuild_refuses_hyperparameters_of_another_form(exported: bytes, text: str) -> None:
    with pytest.raises(SettingsError, match=r"m\.onnx names the model"):
        rebuild(with_metadata(exported, hyperparameters=text), "m.onnx")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"blocks": 10**9}, "hyperparameter blocks is 1000000000: expected .* less than 33"),
        ({"layers_per_block": 10**6}, "hyperparameter layers_per_block is 1000000: expected"),
        ({"fc": [8] * 10**6}, "hyperparameter fc has 1000000 values: expected at most 100"),
        ({"width": 10**6}, "m.onnx does not fit its hyperparameters: they describe [0-9,]+ param"),
        ({"fc": [10**5] * 100}, "they describe [0-9,]+ parameters, and it holds [0-9,]+ numbers"),
        ({"model": "vgg", "block_layers": [100] * 101}, "block_layers has 101 values: expected"),
    ],
    ids=["blocks", "layers", "list", "width", "fc", "vgg"],
)
def test_no_number_in_a_file_fills_the_memory(
    exported: bytes, change: dict[str, Any], said: str
) -> None:
    """Each of these would take gigabytes or minutes."""
    network = json.loads(metadata_of(onnx.load_model_from_string(exported))["hyperparameters"])
    file = with_metadata(exported, hyperparameters=json.dumps({**network, **change}))
    with pytest.raises(SettingsError, match=said):
        rebuild(file, "m.onnx")
