"""One process at a time: refused, taken over after a kill, after silence, and given up when another has come."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mnist_ray import processes
from mnist_ray.cluster import interruptible
from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.run import lease
from mnist_ray.storage import RunStorage

HOLD = """
import sys, time
from mnist_ray.run import lease
from mnist_ray.cluster import interruptible
from mnist_ray.errors import MnistRayError
from mnist_ray.storage import RunStorage
lease.BEAT, lease.SILENT, lease.SETTLE = 0.2, 2.0, 0.5
try:
    with interruptible(), lease.held(RunStorage(sys.argv[1]), "search"):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
    print("done")
except MnistRayError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.2)
    monkeypatch.setattr(lease, "SILENT", 2.0)
    monkeypatch.setattr(lease, "SETTLE", 0.3)


def hold(run: str, seconds: float = 30, *before: str) -> subprocess.Popen:
    command = [*before, sys.executable, "-c", HOLD, run, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def first_line(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_the_second_is_refused_and_a_killed_ones_place_is_taken(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    base, _, query = (
        request.getfixturevalue("s3_server").partition("?")
        if kind == "s3"
        else (str(tmp_path), "", "")
    )
    run = RunStorage(f"{base}/lease{'?' if query else ''}{query}")
    first = hold(run.uri)
    assert first_line(first) == "held"
    refused = f"--name: another search is at work at .*lease.* \\(process {first.pid} on "
    with pytest.raises(SettingsError, match=refused), lease.held(run, "search"):
        pass
    with lease.held(run, "fine-tuning"):
        pass  # another kind of work
    first.kill()
    first.communicate()
    started = time.monotonic()
    with lease.held(run, "search"):
        assert time.monotonic() - started < 3
        time.sleep(0.5)
        assert run.read_json("search.lease")["beat"] >= 1
    assert run.list() == []
    if kind == "disk":
        assert not Path(run.uri).exists()  # nothing was written into it


def test_what_is_on_another_machine_is_watched(tmp_path: Path) -> None:
    run = RunStorage(str(tmp_path / "run"))
    elsewhere = {
        "token": "a",
        "process": {**processes.this_process(), "machine": "m", "node": "n"},
        "beat": 0,
    }
    run.write_json("search.lease", elsewhere)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.1):
            elsewhere["beat"] += 1
            run.write_json("search.lease", elsewhere)

    heart = threading.Thread(target=beat)
    heart.start()
    with (
        pytest.raises(SettingsError, match=f"process {os.getpid()} on n"),
        lease.held(run, "search"),
    ):
        pass
    over.set()
    heart.join()
    started = time.monotonic()
    with lease.held(run, "search"):
        assert 2 <= time.monotonic() - started < 6


def test_one_that_was_suspended_finds_that_another_has_come(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    apart = ["unshare", "--pid", "--fork", "--mount-proc"]  # as in another container
    if (
        shutil.which("unshare") is None
        or subprocess.run([*apart, "true"], capture_output=True).returncode
    ):
        pytest.skip("needs process namespaces, and the right to make them")
    first = hold(run)
    assert first_line(first) == "held"
    first.send_signal(signal.SIGSTOP)
    second = hold(run, 30, *apart)
    assert first_line(second).startswith("waiting 2 s to see whether process ")
    assert first_line(second) == "held"
    first.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 20
    while first.poll() is second.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # Where it was suspended within a beat, between reading and writing, it is the other that finds itself replaced: always one stops.
    loser, winner = (first, second) if first.poll() is not None else (second, first)
    assert loser.communicate()[0].startswith(
        f"WorkError: the search at {run} ends: another process has taken over its run"
    )
    assert loser.returncode == 1
    assert winner.poll() is None
    for process in (first, second):
        subprocess.run(
            ["pkill", "-KILL", "-P", str(process.pid)], check=False
        )  # the child of unshare
        process.kill()
        process.wait()


def test_of_many_at_once_one_wins(tmp_path: Path) -> None:
    for left in (
        None,
        {},
        {"token": "t", "process": {**processes.this_process(), "started": "1"}, "beat": 3},
    ):
        run = RunStorage(str(tmp_path / f"run-{left is None}-{bool(left)}"))
        if left is not None:
            run.write_json("search.lease", left)
        all_of_them = [hold(run.uri, 2) for _ in range(4)]
        outputs = [process.communicate(timeout=60)[0] for process in all_of_them]
        assert sorted(process.returncode for process in all_of_them) == [0, 1, 1, 1], outputs
        assert sum("another search is at work" in output for output in outputs) == 3


def test_a_deleted_run_stops_its_search(tmp_path: Path) -> None:
    run = RunStorage(str(tmp_path / "run"))
    later = threading.Timer(0.5, shutil.rmtree, (tmp_path / "run",))
    later.start()
    with (
        pytest.raises(WorkError, match="or deleted it"),
        interruptible(),
        lease.held(run, "search"),
    ):
        time.sleep(10)


def test_a_file_that_says_nothing_is_no_lease(tmp_path: Path) -> None:
    run = RunStorage(str(tmp_path / "run"))
    for text in (b"", b"[]", json.dumps({"token": 1}).encode()):
        run.write_bytes("search.lease", text)
        with lease.held(run, "search"):
            pass
