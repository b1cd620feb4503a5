"""The process that trains: its precision, and that torch's compiler is loaded only when it is
needed.
"""

import subprocess
import sys

import pytest
import torch

from mnist_ray.training.machine import best_precision

PROGRAM = "tests.programs.train_without_compiler"


@pytest.mark.parametrize("need", ["torch.compile", "a part of it", "the exporter"])
def test_the_compiler_comes_when_it_is_needed(need: str) -> None:
    command = [sys.executable, "-m", PROGRAM, need]  # what is once loaded stays
    out = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr


@pytest.mark.parametrize(
    ("has", "precision"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx2": True}, "fp32"),
    ],
)
def test_precision_is_that_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, has: dict[str, bool], precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert best_precision(torch.device("cpu")) == precision


def test_precision_is_one_that_torch_knows_here() -> None:
    assert best_precision(torch.device("cpu")) in ("bf16", "fp32")


def test_a_device_of_another_kind_computes_in_float32() -> None:
    assert best_precision(torch.device("mps")) == "fp32"
