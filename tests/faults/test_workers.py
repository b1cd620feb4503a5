"""Trials' workers that are killed, hang, run out of memory, raise, or compute nonsense."""

from pathlib import Path

import pytest

from mnist_ray.storage import RunStorage
from tests.faults.tools import DIGITS, TINY, Rays, no_open_trial, no_secret
from tests.support.processes import Monkey, workers
from tests.support.runs import check_run, finish, search, tables


@pytest.mark.parametrize(
    ("trials", "pause"), [(12, 3), pytest.param(30, 5, marks=pytest.mark.slow)]
)
def test_a_monkey_kills_workers(rays: Rays, tmp_path: Path, trials: int, pause: float) -> None:
    arguments = [
        *TINY,
        "--trials",
        str(trials),
        "--max-epochs",
        "6",
        "--storage",
        str(tmp_path),
        "--name",
        "m",
    ]
    with Monkey(rays.pid(), pause) as monkey:
        code, output = finish(search(rays.env, *arguments), 600)
    assert code == 0, output
    assert monkey.kills >= 2
    check_run(str(tmp_path / "m"), trials)
    no_open_trial(tmp_path / "m")
    assert f"{trials} trials: " in output
    assert " 0 failed" in output, output
    no_secret(output, RunStorage(str(tmp_path / "m")))
    print(f"{monkey.kills} kills")


FAULTY = """
import os, signal, time
import torch
from torch import nn

def space(trial, data):
    kind = trial.suggest_categorical("kind", ["fine", "hangs", "stands", "raises", "nan", "memory"])
    return {"model": "faulty:network", "kind": kind, "lr": 0.01, "schedule": "constant",
            "optimizer": "sgd", "batch_size": 64, **data.hyperparameters()}

class Network(nn.Module):
    def __init__(self, hp):
        super().__init__()
        self.kind, self.layer = hp["kind"], nn.Linear(784, hp["classes"])

    def forward(self, images):
        if self.kind == "hangs":
            time.sleep(1e6)
        if self.kind == "stands":
            os.kill(os.getpid(), signal.SIGSTOP)  # not even Python goes on
        if self.kind == "raises":
            raise RuntimeError("what a network says when it fails")
        if self.kind == "memory":
            limit_memory()
            self.much = [torch.ones(25_000_000) for _ in range(40)]  # 4 GB
        return self.layer(images.flatten(1)) * (float("nan") if self.kind == "nan" else 1)

def limit_memory():
    # The kernel's own OOM killer, in a group of 200 MB more than the process has; where there are no groups, what it would do.
    group = f"/sys/fs/cgroup/memory/mnist-ray-test-{os.getpid()}"
    try:
        os.mkdir(group)
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[1]) * 4096
        for name, value in (("memory.limit_in_bytes", used + 200_000_000), ("cgroup.procs", os.getpid())):
            with open(f"{group}/{name}", "w") as file:
                file.write(str(value))
    except OSError:
        os.kill(os.getpid(), signal.SIGKILL)

def network(hp):
    return Network(hp)
"""
KINDS = ["fine", "hangs", "stands", "raises", "nan", "memory"]


@pytest.mark.parametrize(
    "kinds", [KINDS[:5], pytest.param(["fine", "memory"], marks=pytest.mark.slow)], ids="-".join
)
def test_each_fault_of_a_trial_has_its_reason(rays: Rays, tmp_path: Path, kinds: list[str]) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    (tmp_path / "points.yaml").write_text("".join(f"- kind: {kind}\n" for kind in kinds))
    arguments = [
        *DIGITS,
        "--space",
        "faulty:space",
        "--trials",
        str(len(kinds)),
        "--max-epochs",
        "2",
        "--points",
        "points.yaml",
    ]
    arguments += [
        "--no-finetune",
        "--storage",
        str(tmp_path),
        "--name",
        "f",
        "--trial-timeout",
        "10s",
    ]
    try:
        code, output = finish(search(rays.env, *arguments, cwd=tmp_path), 300)
    finally:
        for group in Path("/sys/fs/cgroup/memory").glob("mnist-ray-test-*"):
            group.rmdir()
    assert code == 0, output
    rows, _ = tables(RunStorage(str(tmp_path / "f")))
    reasons = {row["params_kind"]: (row["state"], row["reason"]) for row in rows}
    expected = {
        "fine": ("COMPLETE", ""),
        "hangs": ("FAIL", "reported no epoch for 10s (--trial-timeout)"),
        "stands": ("FAIL", "reported no epoch for 10s (--trial-timeout)"),
        "raises": ("FAIL", "RuntimeError: what a network says when it fails"),
        "nan": ("FAIL", "the loss is not finite at epoch 1"),
        "memory": ("FAIL", "its worker died too often: "),
    }
    assert list(reasons) == kinds
    for kind, (state, reason) in reasons.items():
        assert (kind, state) == (kind, expected[kind][0])
        assert reason.startswith(expected[kind][1])
        assert reason in output
    assert f"{len(kinds)} trials: 1 complete, 0 pruned, {len(kinds) - 1} failed" in output
    check_run(str(tmp_path / "f"), len(kinds))
    no_open_trial(tmp_path / "f")
    assert workers(rays.pid()) == []


BETWEEN = """
import os, signal
from pathlib import Path
from torch import nn

note = Path(__file__).with_name("pid")

def space(trial, data):
    trial.suggest_float("x", 0, 1)
    if note.exists():  # in the search's own process, between two trials: the worker waits for the next one
        os.kill(int(note.read_text()), signal.SIGKILL)
        note.rename(note.with_name("killed"))
    return {"model": "between:network", "lr": 0.01, "optimizer": "sgd", "batch_size": 64, **data.hyperparameters()}

def network(hp):
    if not note.with_name("killed").exists():
        note.write_text(str(os.getpid()))
    return nn.Sequential(nn.Flatten(), nn.Linear(784, hp["classes"]))
"""


def test_a_worker_dies_between_two_trials(rays: Rays, tmp_path: Path) -> None:
    (tmp_path / "between.py").write_text(BETWEEN)
    arguments = [
        *DIGITS,
        "--space",
        "between:space",
        "--trials",
        "3",
        "--max-epochs",
        "2",
        "--max-concurrent",
        "1",
        "--scheduler",
        "none",
    ]
    code, output = finish(
        search(
            rays.env,
            *arguments,
            "--no-finetune",
            "--storage",
            str(tmp_path),
            "--name",
            "b",
            cwd=tmp_path,
        )
    )
    assert code == 0, output
    assert (tmp_path / "killed").exists()
    assert "3 complete, 0 pruned, 0 failed" in output
    check_run(str(tmp_path / "b"), 3)
