"""Training without torch's compiler: it is not loaded, and comes when it is needed. In processes of their own, as it stays once loaded."""

import subprocess
import sys

import pytest

TRAIN = """
import sys
import torch
from mnist_ray.training.light_torch import leave_out_the_compiler
from mnist_ray.training.trainer import Trainer
leave_out_the_compiler()
leave_out_the_compiler()  # as for a second trial
images, labels = torch.randint(0, 255, (64, 1, 8, 8), dtype=torch.uint8), torch.arange(64) % 10
hp = {"model": "mlp", "in_channels": 1, "image_size": [8, 8], "classes": 10, "mean": [0.5], "std": [0.5], "batch_size": 16, "lr": 0.01}
for kind in ("adam", "adamw", "sgd", "rmsprop"):
    trainer = Trainer({**hp, "units": [8], "dropouts": [0.1], "optimizer": kind}, epochs=2, seed=0)
    trainer.run_epoch(images, labels, torch.arange(48), torch.arange(48, 64))
    trainer.load_state(trainer.state_bytes({}), "here")
assert "torch._dynamo.config" not in sys.modules
"""
NEEDS = {
    "torch.compile": "assert torch.compile(trainer.model, backend='eager')(torch.zeros(1, 1, 8, 8)).shape == (1, 10)",
    "a part of it": "import torch._dynamo.config",
    "the exporter": "from mnist_ray.export.onnx_model import export; export(trainer.model, trainer.hp, {})",
}


@pytest.mark.parametrize("need", NEEDS.values(), ids=NEEDS.keys())
def test_the_compiler_comes_when_it_is_needed(need: str) -> None:
    code = f"{TRAIN}{need}\nimport torch._dynamo\nassert callable(torch._dynamo.optimize)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
