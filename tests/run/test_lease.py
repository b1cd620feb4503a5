"""One process at a time: refused, taken over after a kill or silence, given up to another."""

import fcntl
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mnist_ray import processes
from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.run import layout, lease
from mnist_ray.signals import interruptible
from mnist_ray.storage import RunStorage, open_run

HOLD = str(Path(__file__).parents[1] / "programs" / "hold_lease.py")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.2)
    monkeypatch.setattr(lease, "SILENT", 2.0)


def hold(run: str, seconds: float = 30, *before: str) -> subprocess.Popen:
    command = [*before, sys.executable, HOLD, run, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def suspend_between_beats(process: subprocess.Popen, file: Path) -> None:
    """Not within one, when it has locked the file: then another waits until it goes on."""
    while True:
        process.send_signal(signal.SIGSTOP)
        with suppress(BlockingIOError), file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        process.send_signal(signal.SIGCONT)


def first_line(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def place(folder: Path, request: pytest.FixtureRequest, kind: str, name: str) -> RunStorage:
    """A run's directory on a disk or on S3."""
    base = request.getfixturevalue("s3_server") if kind == "s3" else str(folder)
    return open_run(base, name)


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_the_second_is_refused_and_a_killed_ones_place_is_taken(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    run = place(tmp_path, request, kind, "lease")
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
        while run.read_json("search.lease")["beat"] < 1:
            assert time.monotonic() - started < 20
            time.sleep(0.1)
    assert run.list() == []
    if kind == "disk":
        assert not Path(run.uri).exists()  # nothing was written into it


def test_what_is_on_another_machine_is_watched(tmp_path: Path) -> None:
    run = RunStorage(str(tmp_path / "run"))
    elsewhere: dict[str, Any] = {
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

    heart = threading.Thread(target=beat, daemon=True)
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
    suspend_between_beats(first, Path(run, "search.lease"))
    second = hold(run, 30, *apart)
    assert first_line(second).startswith("waiting 2 s to see whether process ")
    assert first_line(second) == "held"
    first.send_signal(signal.SIGCONT)
    assert first.wait(20) == 1
    assert first.communicate()[0].startswith(
        f"WorkError: the search at {run} ends: another process has taken over its run"
    )
    assert second.poll() is None
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
        {"token": "t", "process": {**processes.this_process(), "started": 1.0}, "beat": 3},
    ):
        run = RunStorage(str(tmp_path / f"run-{left is None}-{bool(left)}"))
        if left is not None:
            run.write_json("search.lease", left)
        all_of_them = [hold(run.uri, 60) for _ in range(4)]  # longer than any of them starts
        try:
            deadline = time.monotonic() + 50
            while len(at_work := [each for each in all_of_them if each.poll() is None]) > 1:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            [winner] = at_work
            assert first_line(winner) == "held"
        finally:
            for each in all_of_them:
                each.kill()
        outputs = [each.communicate(timeout=60)[0] for each in all_of_them if each is not winner]
        assert [each.returncode for each in all_of_them if each is not winner] == [1, 1, 1], outputs
        assert sum("another search is at work" in output for output in outputs) == 3


def test_a_deleted_run_stops_its_search(tmp_path: Path) -> None:
    run = RunStorage(str(tmp_path / "run"))
    with (
        pytest.raises(WorkError, match="or deleted it"),
        interruptible(),
        lease.held(run, "search"),
    ):
        while (tmp_path / "run").exists():  # a beat may write while it is deleted
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
        time.sleep(20)


def test_a_node_that_does_not_see_the_storage_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "of another node" / "run"
    unseen = lease.owned(str(folder), "search", "token")
    message = f"^{folder} is not there on node {platform.node()}: it was deleted, or --storage is"
    for write in (lambda: unseen.write_bytes("a", b""), unseen.check):
        with pytest.raises(WorkError, match=message):
            write()
    assert list(tmp_path.iterdir()) == []
    folder.mkdir(parents=True)
    with pytest.raises(WorkError, match="another process has taken over its run"):
        unseen.check()


def test_a_file_that_says_nothing_is_no_lease(tmp_path: Path) -> None:
    for text in (b"", b"[]", json.dumps({"token": 1}).encode()):
        run = RunStorage(str(tmp_path / "run"))  # anew: the folder goes with the lease
        run.write_bytes("search.lease", text)
        with lease.held(run, "search"):
            pass


def dead_lease(run: RunStorage) -> None:
    process = {**processes.this_process(), "started": 1.0}
    run.write_json("search.lease", {"token": "t", "process": process, "beat": 3})


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_one_held_up_between_its_look_and_its_write_does_not_get_the_lease(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    run = place(tmp_path, request, kind, "held-up")
    dead_lease(run)
    quick, has_ended = lease.Lease(run, "search"), processes.has_ended

    def slow(process: dict[str, object]) -> bool | None:
        monkeypatch.setattr(processes, "has_ended", has_ended)
        quick.take("--name")
        return has_ended(process)

    monkeypatch.setattr(processes, "has_ended", slow)
    with pytest.raises(SettingsError, match="another search is at work"):
        lease.Lease(run, "search").take("--name")
    quick.check()
    quick.give_back()
    assert run.list() == []


def test_without_signals_the_holder_looks_itself(tmp_path: Path) -> None:
    """As in a thread of a notebook."""
    run, errors = RunStorage(str(tmp_path / "run")), []

    def work() -> None:
        try:
            with lease.held(run, "search") as held:
                taken = dict(run.read_json("search.lease"), token="another")
                run.write_json("search.lease", taken)
                assert held.lost.wait(10)
                held.check()
        except WorkError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert len(errors) == 1
    assert "another process has taken over" in errors[0]
    assert run.read_json("search.lease")["token"] == "another"


def test_the_callers_signal_handlers_are_left_alone(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with lease.held(RunStorage(str(tmp_path / "run")), "search", handle_signals=False) as held:
            shutil.rmtree(tmp_path / "run")
            assert held.lost.wait(10)

    with pytest.raises(WorkError, match="or deleted it"):
        work()
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_who_was_suspended_and_has_lost_the_run_writes_nothing(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Before its next beat, and whatever its clock says: that of a laptop stands while it sleeps.

    The same of a worker on another machine, which knows its owner's token alone.
    """
    monkeypatch.setattr(lease, "BEAT", 60.0)
    run = place(tmp_path, request, kind, "suspended")
    held = lease.Lease(run, "search")
    held.take("--name")
    for storage in (held.owned, lease.owned(run.uri, "search", held.token)):
        storage.write_bytes("a", b"1")
        storage.check()
    taken = dict(run.read_json("search.lease"), token="another")
    run.write_json("search.lease", taken)
    for storage in (lease.owned(run.uri, "search", held.token), held.owned):
        for write in (
            lambda storage=storage: storage.write_bytes("a", b"2"),
            lambda storage=storage: storage.write_json("b", 2),
            lambda storage=storage: storage.change_json("a", lambda value: value + 1),
            lambda storage=storage: storage.create_exclusive("c", b"2"),
            lambda storage=storage: storage.delete("a"),
            storage.check,
        ):
            with pytest.raises(WorkError, match="taken over its run, or deleted it"):
                write()
    assert run.list() == ["a", "search.lease"]
    assert run.read_bytes("a") == b"1"


@pytest.mark.parametrize("kind", ["disk", "s3"])
@pytest.mark.parametrize("before", [None, b"0"])
def test_a_write_that_was_held_up_after_its_check_does_not_replace_the_next_owners(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    before: bytes | None,
) -> None:
    run = place(tmp_path, request, kind, "held-up-new" if before is None else "held-up")
    held = lease.Lease(run, "search")
    held.take("--name")
    if before is not None:
        run.write_bytes("study.journal", before)
    write_if = held.owned._place.write_if

    def held_up(*arguments: Any) -> bool:
        run.write_json("search.lease", dict(run.read_json("search.lease"), token="another"))
        run.write_bytes("study.journal", b"the next owner's")
        return write_if(*arguments)

    monkeypatch.setattr(held.owned._place, "write_if", held_up)
    with pytest.raises(WorkError, match="taken over"):
        held.owned.write_bytes("study.journal", b"older")
    assert run.read_bytes("study.journal") == b"the next owner's"


def test_the_lease_of_an_earlier_version_is_watched_while_its_process_lives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunStorage(str(tmp_path / "run"))
    process = {**processes.this_process(), "started": "123456"}
    run.write_json("search.lease", {"token": "t", "process": process, "beat": 3})
    with lease.held(run, "search"):
        assert capsys.readouterr().out.startswith("waiting 2 s to see whether process ")


def test_a_lease_does_not_command_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunStorage(str(tmp_path / "run"))
    process = {"machine": "m", "pid": "\x1b[2J", "node": "\x07\n" * 400}
    run.write_json("search.lease", {"token": "t", "process": process, "beat": 3})
    with pytest.raises(SettingsError) as error, monkeypatch.context() as patch:
        patch.setattr(lease, "_has_ended", lambda *of: False)
        lease.Lease(run, "search").take("--name")
    with lease.held(run, "search"):
        pass
    for text in (str(error.value), capsys.readouterr().out.strip()):
        assert text.isprintable()
        assert len(text) < 1000


def test_a_run_is_not_replaced_while_another_works_on_it(tmp_path: Path) -> None:
    run = RunStorage(str(tmp_path / "run"))
    lease.refuse_while_held(run, "fine-tuning", "--overwrite")
    with lease.held(run, "fine-tuning"), pytest.raises(SettingsError, match="--overwrite: another"):
        lease.refuse_while_held(run, "fine-tuning", "--overwrite")
    lease.refuse_while_held(run, "fine-tuning", "--overwrite")


def test_a_folder_of_a_run_is_its_owners(tmp_path: Path) -> None:
    run = RunStorage(str(tmp_path / "run"))
    held = lease.Lease(run, "search")
    held.take("--name")
    folders = [
        held.owned.below("confirm"),
        lease.owned(run.uri, "search", held.token).below("confirm"),
    ]
    for folder in folders:
        folder.write_bytes("a", folder.uri.encode())
        folder.below("b").write_bytes("c", b"d")
    assert run.list("confirm") == ["confirm/a", "confirm/b/c"]
    (tmp_path / "run" / layout.lease_file("search")).unlink()
    lease.Lease(run, "search").take("--name")
    for folder in folders:
        for write in (folder.write_bytes, folder.create_exclusive):
            with pytest.raises(WorkError, match="another process has taken over its run"):
                write("new", b"")
        with pytest.raises(WorkError, match="another process has taken over its run"):
            folder.below("b").delete("c")
    assert run.list("confirm") == ["confirm/a", "confirm/b/c"]


def test_a_search_that_waits_for_its_second_job_lets_it_hold_the_run(tmp_path: Path) -> None:
    run = RunStorage(str(tmp_path / "run"))
    held = lease.Lease(run, "search")
    held.take("--name")
    with pytest.raises(SettingsError, match="another search is at work"):
        lease.refuse_while_held(run, "search", "--run", own="fine-tuning")
    held.allow("fine-tuning")
    held.renew()  # the next beats say so too
    lease.refuse_while_held(run, "search", "--run", own="fine-tuning")
    for other in ("", "search"):
        with pytest.raises(SettingsError, match="another search is at work"):
            lease.refuse_while_held(run, "search", "--run", own=other)
    held.check()
    run.write_json("search.lease", {**run.read_json("search.lease"), "token": "another"})
    with pytest.raises(WorkError, match="taken over its run, or deleted it"):
        held.allow("fine-tuning")
