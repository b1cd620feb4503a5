"""Runs on a disk: whole files or none, whatever befalls the writer."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mnist_ray.errors import WorkError
from mnist_ray.run import lease
from mnist_ray.storage import RunStorage, folder

PROGRAMS = Path(__file__).parents[1] / "programs"


def test_a_writer_killed_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    run = RunStorage(str(tmp_path))
    run.write_bytes("model.onnx", b"old")
    command = [sys.executable, str(PROGRAMS / "write_and_die.py"), str(tmp_path)]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    assert run.read_bytes("model.onnx") == b"old"
    assert run.list() == ["model.onnx"]
    assert len(list(tmp_path.iterdir())) == 2  # its temporary file
    RunStorage(str(tmp_path)).write_bytes("model.onnx", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert run.read_bytes("model.onnx") == b"new"


@pytest.mark.parametrize("end", [None, KeyboardInterrupt, WorkError])
def test_a_run_that_ends_leaves_nothing_of_a_worker_that_was_killed_while_it_wrote(
    tmp_path: Path, end: type[BaseException] | None
) -> None:
    run = RunStorage(str(tmp_path))
    command = [sys.executable, str(PROGRAMS / "write_and_die.py"), str(tmp_path / "tune" / "1")]
    expected = contextlib.nullcontext() if end is None else pytest.raises(end)
    with expected, lease.held(run, "search", handle_signals=False):
        assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
        assert len(list((tmp_path / "tune" / "1").iterdir())) == 1
        if end is not None:
            raise end
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_only_what_nobody_writes_any_more_is_removed(tmp_path: Path) -> None:
    elsewhere, old, earlier = ".tmp-0a1b2c3d-1-aa", ".tmp-0a1b2c3d-1-bb", ".tmp-0123456789abcdef"
    own = f".tmp-{folder._machine()}-{os.getpid()}-cc"
    for name in (elsewhere, old, earlier, own):
        (tmp_path / name).write_bytes(b"half")
    two_days_ago = time.time() - 2 * 86_400
    for name in (old, earlier):
        os.utime(tmp_path / name, (two_days_ago, two_days_ago))
    run = RunStorage(str(tmp_path))
    run.write_bytes("a", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([elsewhere, own, "a"])
    assert run.list() == ["a"]


def test_a_full_disk_leaves_the_old_file_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunStorage(str(tmp_path))
    run.write_bytes("model.onnx", b"old")
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        WorkError, match=f"cannot write {tmp_path}/model.onnx: No space left on device"
    ):
        run.write_bytes("model.onnx", b"new")
    assert len(calls) == 1  # not tried again
    with pytest.raises(WorkError, match="No space left"):
        run.create_exclusive("lock", b"x")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert run.read_bytes("model.onnx") == b"old"


def test_a_disk_that_stumbles_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, failures = os.replace, [errno.ESTALE, errno.EIO]

    def stumble(source: Path, target: Path) -> None:
        if failures:
            code = failures.pop()
            raise OSError(code, os.strerror(code))
        replace(source, target)

    monkeypatch.setattr(os, "replace", stumble)
    monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", "5")
    run = RunStorage(str(tmp_path))
    run.write_bytes("a", b"x")
    assert failures == []
    assert run.read_bytes("a") == b"x"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", none)
    run = RunStorage(str(tmp_path))
    assert run.create_exclusive("lock", b"mine")
    assert not run.create_exclusive("lock", b"yours")
    assert run.read_bytes("lock") == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_file_that_another_replaces_at_this_moment_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", "0.5")
    run = RunStorage(str(tmp_path))
    run.write_bytes("lease", b"old")
    with (tmp_path / "lease").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(WorkError, match=r"cannot write .*lease: "):
            run.replace_exclusive("lease", b"old", b"new")
    assert run.replace_exclusive("lease", b"old", b"new")


def test_a_folder_that_is_deleted_is_not_made_again(tmp_path: Path) -> None:
    """A search whose run is deleted would take its name by a part of a run."""
    folder = tmp_path / "run"
    run = RunStorage(str(folder))
    run.write_bytes("a/b", b"1")
    elsewhere = RunStorage.existing(str(folder))
    folder.rename(tmp_path / "moved")
    for storage in (run, elsewhere):
        with pytest.raises(WorkError, match=r"cannot write .*/run/a/c: its folder was deleted or"):
            storage.write_bytes("a/c", b"2")
        assert not storage.replace_exclusive("a/b", b"1", b"2")
    assert not folder.exists()
    assert run.create_exclusive("run.json", b"{}")  # a new run of the name
    run.write_bytes("a/c", b"2")
