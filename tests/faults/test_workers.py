"""Trials' workers that are killed, hang, run out of memory, raise, or compute nonsense."""

import shutil
import time
from pathlib import Path

import pytest

from mnist_ray.run.layout import error_file
from mnist_ray.storage import RunStorage
from tests.faults.tools import DIGITS, TINY, Rays, no_open_trial, no_secret
from tests.support import PROGRAMS
from tests.support.processes import Monkey, workers
from tests.support.runs import check_run, finish, flags, search, tables


@pytest.mark.parametrize(
    ("trials", "kills"), [(8, 3), pytest.param(30, 12, marks=pytest.mark.slow)]
)
def test_a_monkey_kills_workers(rays: Rays, tmp_path: Path, trials: int, kills: int) -> None:
    arguments = [
        *TINY,
        *flags(trials=trials, max_epochs=12, train_images=1000, storage=tmp_path, name="m"),
    ]
    with Monkey(rays.pid(), 2, kills) as monkey:
        code, output = finish(search(rays.env, *arguments), 600)
    assert code == 0, output
    assert monkey.kills == kills
    check_run(str(tmp_path / "m"), trials)
    no_open_trial(tmp_path / "m")
    assert f"{trials} trials: " in output
    assert " 0 failed" in output, output
    no_secret(output, RunStorage(str(tmp_path / "m")))


KINDS = ["fine", "hangs", "stands", "raises", "nan", "memory"]


@pytest.mark.parametrize(
    "kinds", [KINDS[:5], pytest.param(["fine", "memory"], marks=pytest.mark.slow)], ids="-".join
)
def test_each_fault_of_a_trial_has_its_reason(rays: Rays, tmp_path: Path, kinds: list[str]) -> None:
    shutil.copy(PROGRAMS / "faulty.py", tmp_path)
    (tmp_path / "points.yaml").write_text("".join(f"- kind: {kind}\n" for kind in kinds))
    arguments = [
        *DIGITS,
        *flags(space="faulty:space", trials=len(kinds), max_epochs=2, points="points.yaml"),
    ]
    arguments += [
        *flags(finetune=False, storage=tmp_path, name="f", trial_timeout="25s"),
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
        "hangs": ("FAIL", "reported no epoch for 25s (--trial-timeout)"),
        "stands": ("FAIL", "reported no epoch for 25s (--trial-timeout)"),
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
    deadline = time.monotonic() + 30  # a killed one may be listed a moment longer
    while (left := workers(rays.pid())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def test_a_worker_dies_between_two_trials(rays: Rays, tmp_path: Path) -> None:
    shutil.copy(PROGRAMS / "between.py", tmp_path)
    arguments = [
        *DIGITS,
        *flags(space="between:space", trials=3, max_epochs=2, max_concurrent=1, scheduler="none"),
    ]
    code, output = finish(
        search(
            rays.env,
            *arguments,
            *flags(finetune=False, storage=tmp_path, name="b"),
            cwd=tmp_path,
        )
    )
    assert code == 0, output
    assert (tmp_path / "killed").exists()
    assert "3 complete, 0 pruned, 0 failed" in output
    check_run(str(tmp_path / "b"), 3)


@pytest.mark.slow
def test_a_broken_gpu_context_costs_one_trial(rays: Rays, tmp_path: Path) -> None:
    """The next trials run in another process, where the GPU works."""
    shutil.copy(PROGRAMS / "sticky.py", tmp_path)
    kinds = ["fine", "bad", "fine again", "fine"]
    (tmp_path / "points.yaml").write_text("".join(f"- kind: {kind}\n" for kind in kinds))
    arguments = [
        *DIGITS,
        *flags(space="sticky:space", trials=4, max_epochs=2, points="points.yaml"),
        *flags(max_concurrent=1, scheduler="none", finetune=False, storage=tmp_path, name="s"),
    ]
    code, output = finish(search(rays.env, *arguments, cwd=tmp_path))
    assert code == 0, output
    rows, _ = tables(RunStorage(str(tmp_path / "s")))
    assert [row["state"] for row in rows] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert rows[1]["reason"].startswith("RuntimeError: CUDA error: device-side assert triggered")
    check_run(str(tmp_path / "s"), 4)


def test_a_function_that_does_not_end_holds_up_no_other_trial(rays: Rays, tmp_path: Path) -> None:
    shutil.copy(PROGRAMS / "endless_end.py", tmp_path)
    arguments = flags(train="endless_end:train", space="endless_end:space", metric="score")
    arguments += flags(trials=3, max_epochs=2, max_concurrent=1, scheduler="none")
    arguments += flags(storage=tmp_path, name="e")
    code, output = finish(search(rays.env, *arguments, cwd=tmp_path))
    assert code == 0, output
    assert "3 complete, 0 pruned, 0 failed" in output
    for number in (0, 1):
        text = (tmp_path / "e" / error_file(number)).read_text()
        assert text.startswith("The function did not end within 2 s:")
        assert "time.sleep(1e6)" in text
    no_open_trial(tmp_path / "e")
