"""Which processes have ended, and the folders that they left."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from mnist_ray import processes
from mnist_ray.errors import WorkError

SLEEP = "import time; print('up', flush=True); time.sleep(60)"
POOL = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from mnist_ray.processes import end_with_parent
with ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""
KEEP = Path(__file__).parents[1] / "programs" / "keep_folder.py"


def start(*command: str, **env: str) -> tuple[subprocess.Popen, str]:
    """A Python process, and the first line that it printed."""
    process = subprocess.Popen(
        [sys.executable, *command], env={**os.environ, **env}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, of this process and of those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def dead_process() -> dict[str, object]:
    child, _ = start("-c", SLEEP)
    child.kill()
    child.wait()
    return {**processes.this_process(), "pid": child.pid}


def test_this_process_lives_and_a_dead_one_has_ended() -> None:
    here = processes.this_process()
    assert json.loads(json.dumps(here)) == here
    assert processes.has_ended(here) is False
    assert processes.has_ended({**here, "started": 1.0}) is True  # its number was given out again
    assert processes.has_ended({**here, "machine": "another"}) is None
    child, _ = start("-c", SLEEP)
    started = here["started"] - psutil.Process().create_time()
    described = {
        **here,
        "pid": child.pid,
        "started": started + psutil.Process(child.pid).create_time(),
    }
    assert processes.has_ended(described) is False
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, but not collected
    assert processes.has_ended(described) is True
    child.wait()
    assert processes.has_ended(described) is True


def test_a_process_that_an_earlier_version_described_is_unknown_while_its_number_is_taken() -> None:
    here = processes.this_process()
    assert processes.has_ended({**here, "started": "123456"}) is None
    assert processes.has_ended({**here, "started": None}) is None
    assert processes.has_ended({**dead_process(), "started": "123456"}) is True
    for damaged in ({}, {**here, "pid": "x"}, {**here, "pid": -1}, {**here, "machine": 7}):
        assert processes.has_ended(damaged) is None


def test_a_hidden_process_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where /proc shows only one's own processes (hidepid)."""

    def hidden(pid: int) -> None:
        raise psutil.NoSuchProcess(pid)

    def not_permitted(pid: int, number: int) -> None:
        raise PermissionError

    here = processes.this_process()
    monkeypatch.setattr(psutil, "Process", hidden)
    monkeypatch.setattr(os, "kill", not_permitted)
    assert processes.has_ended(here) is None


def test_the_next_one_removes_what_a_killed_process_left(shared: Path) -> None:
    (shared / "mray-t-another").mkdir()  # not ours: nobody's name is in it
    killed, left = start(str(KEEP))
    living, kept = start(str(KEEP))
    killed.kill()
    killed.wait()
    assert (Path(left) / "file").exists()
    with processes.temporary_folder("mray-t-") as folder:
        assert sorted(shared.iterdir()) == sorted([shared / "mray-t-another", Path(kept), folder])
    assert not folder.exists()
    living.kill()
    living.wait()


def test_nothing_is_followed_and_no_pipe_is_waited_for(shared: Path) -> None:
    """Whoever shares the folder for temporary files cannot make us wait, nor delete elsewhere."""
    owner = json.dumps(dead_process())
    precious = shared / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    (precious / "owner.json").write_text(owner)
    (shared / "mray-t-link").symlink_to(precious)
    (shared / "mray-t-file").write_text(owner)
    for name in ("pipe", "linked-owner", "ours"):
        (shared / f"mray-t-{name}").mkdir()
    os.mkfifo(shared / "mray-t-pipe" / "owner.json")
    (shared / "mray-t-linked-owner" / "owner.json").symlink_to(precious / "owner.json")
    (shared / "mray-t-ours" / "owner.json").write_text(owner)
    (shared / "mray-t-ours" / "link").symlink_to(precious)
    with processes.temporary_folder("mray-t-"):
        assert not (shared / "mray-t-ours").exists()
    assert sorted(path.name for path in precious.iterdir()) == ["file", "owner.json"]
    left = sorted(path.name for path in shared.iterdir())
    assert left == ["mray-t-file", "mray-t-link", "mray-t-linked-owner", "mray-t-pipe", "precious"]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give a folder to another user")
def test_another_users_folder_is_left_alone(shared: Path) -> None:
    folder = shared / "mray-t-theirs"
    folder.mkdir()
    (folder / "owner.json").write_text(json.dumps(dead_process()))
    os.chown(folder, 12345, 12345)
    with processes.temporary_folder("mray-t-"):
        assert folder.exists()


def test_where_tmpdir_is_too_long_for_sockets_the_folder_lies_elsewhere(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with processes.temporary_folder("mray-t-", longest=30) as folder:
        assert folder.parent == Path("/tmp")
    with processes.temporary_folder("mray-t-", longest=500) as folder:
        assert folder.parent == shared
    monkeypatch.setattr(tempfile, "tempdir", str(shared / "missing"))
    with (
        pytest.raises(WorkError, match=r"TMPDIR=.*/missing.*No such file"),
        processes.temporary_folder("mray-t-"),
    ):
        pass


def test_an_interrupt_while_it_is_removed_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor does a process that still wrote there."""
    plain, faults = shutil.rmtree, ["interrupt", "write"]

    def rmtree(folder: Path, **options: Any) -> None:
        fault = faults.pop(0) if faults else None
        if fault == "interrupt":
            raise KeyboardInterrupt
        plain(folder, **options)
        if fault == "write":
            folder.mkdir()

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with (
        pytest.raises(KeyboardInterrupt),
        processes.temporary_folder("mray-t-") as folder,
    ):
        pass
    assert faults == []
    assert not folder.exists()


def test_what_still_runs_within_the_folder_is_ended_with_it() -> None:
    with processes.temporary_folder("mray-t-") as folder:
        left, _ = start("-c", SLEEP, TMPDIR=str(folder))
    assert left.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("terminal", [False, True])
def test_a_clock_runs_in_a_terminal_only(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", shown)
    deadline = time.monotonic() + (20 if terminal else 1.3)
    with processes.clock("starting Ray"):
        while "starting Ray 00:01" not in shown.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert ("starting Ray 00:01" in shown.getvalue()) == terminal


def test_a_worker_ends_with_the_process_that_started_it() -> None:
    parent, worker = start("-c", POOL)
    found = psutil.Process(int(worker))
    parent.kill()
    parent.wait()
    try:
        found.wait(10)  # TimeoutExpired if it is still there
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.kill()
