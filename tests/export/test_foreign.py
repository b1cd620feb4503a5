"""ONNX files that are not ours: converted, trained further, exported as ours; refused in one line
where that cannot be.
"""

import base64
import io
import json
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import optuna
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor, nn

pytest.importorskip("onnx2torch", reason="the extra `foreign-onnx` is not installed")

from mnist_ray import spaces
from mnist_ray.errors import SettingsError
from mnist_ray.export import foreign
from mnist_ray.export.session import Session
from mnist_ray.export.write import export, rebuild, verify
from mnist_ray.models.foreign import network
from mnist_ray.search_job.start import read_start
from mnist_ray.settings import SearchSettings
from mnist_ray.storage import RunStorage
from mnist_ray.training.trainer import Trainer, load_network

IMAGES = np.random.default_rng(1).integers(0, 256, (64, 1, 12, 12), dtype=np.uint8)
LABELS = torch.from_numpy((IMAGES.mean((1, 2, 3)) > 127).astype(np.int64))
SHAPE = spaces.DataShape(1, (12, 12), 3, (0.2,), (0.5,))


class Net(nn.Module):
    """Somebody's network, with a BatchNorm that cannot be folded and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.hidden, self.out = nn.Linear(6 * 6 * 6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.norm(F.leaky_relu(self.conv(x), 0.1)), 2).flatten(1)
        return self.out(F.dropout(F.relu(self.hidden(x)), 0.5, self.training))


@pytest.fixture(scope="module", params=["torchscript", "dynamo"])
def theirs(request: pytest.FixtureRequest) -> bytes:
    """The file as either of torch's exporters writes it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = Net()
    net(torch.rand(32, 1, 12, 12))  # BatchNorm's statistics are no longer 0 and 1
    net.eval()
    example = (torch.rand(2, 1, 12, 12),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if request.param == "dynamo":
            program = torch.onnx.export(
                net,
                example,
                dynamo=True,
                dynamic_shapes=({0: "batch"},),
                external_data=False,
                verbose=False,
            )
            assert program is not None
            return program.model_proto.SerializeToString()
        file = io.BytesIO()
        names: dict[str, Any] = {
            "input_names": ["input"],
            "output_names": ["output"],
            "dynamic_axes": {"input": {0: "batch"}},
        }
        torch.onnx.export(net, example, cast(Any, file), dynamo=False, opset_version=13, **names)
        return file.getvalue()


def test_it_goes_all_the_way_to_a_file_of_ours(theirs: bytes, tmp_path: Path) -> None:
    (tmp_path / "theirs.onnx").write_bytes(theirs)
    settings = SearchSettings(space="optimizer", onnx=str(tmp_path / "theirs.onnx"))
    start = read_start(settings, spaces.find("optimizer"), RunStorage(str(tmp_path / "run")), None)
    assert start is not None
    hp = spaces.find("optimizer")(optuna.create_study().ask(), SHAPE, start=start.hyperparameters)
    assert json.loads(json.dumps(hp)) == hp
    weights = {name: torch.from_numpy(array) for name, array in start.weights.items()}
    trainer = Trainer(hp, epochs=1, seed=0, precision="fp32", weights=weights)
    logits = Session(theirs, "theirs").logits(IMAGES)
    assert np.abs(run(trainer.eval_model()) - logits).max() < 1e-4
    before = {name: tensor.clone() for name, tensor in trainer.weights().items()}
    trainer.run_epoch(torch.from_numpy(IMAGES), LABELS, None, torch.arange(64))
    changed = [
        name for name, tensor in trainer.weights().items() if not torch.equal(tensor, before[name])
    ]
    assert {name.rpartition(".")[2] for name in changed} >= {"weight", "bias", "running_mean"}
    # A checkpoint, the file that is published, and a fine-tuning that starts from that file.
    kept, metadata = load_network(trainer.weights_bytes({}), "best/model.safetensors")
    ours = export(kept, metadata["hyperparameters"], {})
    assert verify(ours, kept, IMAGES) < 1e-4
    again, _ = rebuild(ours, "ours")
    assert np.abs(run(again) - run(kept)).max() < 1e-5


def run(model: nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return model.eval()(torch.from_numpy(IMAGES).float() / 255).numpy()


def test_an_input_that_is_normalised_is_said_to_be(theirs: bytes) -> None:
    model, start = foreign.read(theirs, "theirs")
    hp = spaces.find("optimizer")(optuna.create_study().ask(), SHAPE, start=start, normalize=True)
    trainer = Trainer(hp, epochs=1, seed=0, precision="fp32", weights=model.state_dict())
    trained = trainer.eval_model()
    normalised = (torch.from_numpy(IMAGES).float() / 255 - 0.2) / 0.5
    with torch.inference_mode():
        assert torch.allclose(
            trained(torch.from_numpy(IMAGES).float() / 255), model(normalised), atol=1e-4
        )


def test_names_in_a_file_are_not_run(theirs: bytes, tmp_path: Path) -> None:
    """Neither those of their file nor those of a checkpoint that somebody made up."""
    proto = onnx.load_model_from_string(theirs)
    for i, node in enumerate(proto.graph.node):
        node.name = f'x{i}", __import__("pathlib").Path("{tmp_path}/executed".replace("|", ".")).touch()) or getattr(self, "x'  # noqa: E501
    model, hp = foreign.read(proto.SerializeToString(), "theirs")
    run(model)
    run(
        network(
            {**hp, "graph": base64.b64encode(zlib.compress(proto.SerializeToString())).decode()}
        )
    )
    assert not (tmp_path / "executed").exists()


def test_what_cannot_be_converted_is_one_line(
    theirs: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape: list[str | int] = ["batch", 1, 12, 12]
    graph = helper.make_graph(
        [
            helper.make_node("Det", ["x"], ["d"]),
            helper.make_node("Concat", ["d", "d"], ["y"], axis=1),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    with pytest.raises(
        SettingsError,
        match=r"^m\.onnx is not of mnist_ray and cannot be converted: [^\n]*Det[^\n]*$",
    ):
        foreign.read(proto.SerializeToString(), "m.onnx")
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(
        SettingsError,
        match=r"^m\.onnx is not of mnist_ray, and [^\n]* pip install 'mnist_ray\[foreign-onnx\]'$",
    ):
        foreign.read(theirs, "m.onnx")
