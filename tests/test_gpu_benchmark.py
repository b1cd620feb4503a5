"""The benchmark for a GPU cannot fail for a typo: it is tried on the CPU, small."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mnist_ray.training import step
from tests.support.datasets import real_mnist

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu

SMALL = gpu.GpuSettings(device="cpu", small=True, data_dir="nowhere")


def test_every_name_of_torch_cuda_that_it_uses_exists() -> None:
    training = Path(step.__file__).parent
    files = (BENCHMARKS / "gpu.py", training / "step.py", training / "gpu_share.py")
    used = {
        node.attr
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch.cuda"
    }
    assert len(used) >= 8
    assert [name for name in sorted(used) if not hasattr(torch.cuda, name)] == []


@pytest.mark.parametrize("name", ["matrix", "vmap"])
def test_a_section_of_one_process(name: str) -> None:
    rows = list(gpu.SECTIONS[name](SMALL))
    assert len(rows) >= 2
    assert all(isinstance(value, str) for row in rows for value in row)


def test_the_chain_is_left_out_without_mnist() -> None:
    with pytest.raises(Exception, match="nowhere"):
        list(gpu.chain(SMALL))


def failing(settings: gpu.GpuSettings) -> Iterator[gpu.Row]:
    """A section with one row and an error."""
    yield "first", "1"
    raise ValueError("as an operator that is missing")


def test_a_section_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.SECTIONS, "matrix", failing)
    monkeypatch.setattr("os.setsid", lambda: None)
    answers: list[gpu.Row | None] = []
    queue = type("Queue", (), {"put": staticmethod(answers.append)})
    gpu._run("matrix", SMALL, queue)
    assert answers == [
        ("first", "1"),
        ("failed", "ValueError: as an operator that is missing"),
        None,
    ]


@real_mnist  # the chain trains on it
@pytest.mark.slow  # every section with its processes, a Ray among them: two minutes
def test_all_of_it(tmp_path: Path) -> None:
    out = tmp_path / "out.md"
    gpu.measure(gpu.GpuSettings(device="cpu", small=True, out=str(out)))
    table = out.read_text()
    assert "| failed |" not in table, table
    assert all(f"| {name} | " in table for name in gpu.SECTIONS)
