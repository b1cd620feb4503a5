"""The Ray that a job joins, or starts and stops."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mnist_ray import cluster
from mnist_ray.cluster import connection
from mnist_ray.errors import SettingsError, WorkError
from tests.support import PROGRAMS
from tests.support.processes import nothing_of
from tests.support.runs import SMALL, finish, search


def join() -> None:
    with cluster.connected(verbose=False):
        pass


def test_an_address_at_which_nothing_answers_is_told_in_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(WorkError, match=r"RAY_ADDRESS=127\.0\.0\.1:9 \(Connection refused\)"):
        join()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://head:10001", "nowhere"])
def test_an_address_of_another_kind_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SettingsError, match=f"RAY_ADDRESS={address}: expected HOST:PORT"):
        join()


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of Ray's note, empty, and RAY_ADDRESS=auto."""
    place = tmp_path / "ray" / "ray_current_cluster"
    place.parent.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    return place


@pytest.mark.parametrize("given", [None, "", "auto"])
def test_another_users_ray_is_joined_only_where_its_address_is_given(
    note: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        note.write_text(address)
        if given is None:
            monkeypatch.delenv("RAY_ADDRESS")
        else:
            monkeypatch.setenv("RAY_ADDRESS", given)
        assert connection._to_join() == (address, True)
        monkeypatch.setattr("os.getuid", lambda: note.stat().st_uid + 1)
        with pytest.raises(SettingsError, match=f"the Ray at {address} is of user .*=local starts"):
            join()
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert connection._to_join() == (address, False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "RAY_ADDRESS=auto, and no Ray runs on this machine; unset it, or RAY_ADDRESS=local"),
        (b"\xff", "RAY_ADDRESS=auto, and no Ray runs on this machine"),
        (b"127.0.0.1:9\n", r"at RAY_ADDRESS=auto, 127\.0\.0\.1:9 \(Connection refused\); unset it"),
    ],
    ids=["no note", "no text", "of a Ray that was killed"],
)
def test_the_ray_of_this_machine_is_missing(
    note: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        note.write_bytes(content)
    began = time.monotonic()
    with pytest.raises(WorkError, match=message):
        join()
    assert time.monotonic() - began < 10


def test_the_ray_of_the_note_is_joined_and_no_other(
    note: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own "auto" takes any head among this machine's processes."""
    from mnist_ray.cluster import joined

    addresses = []

    def init(address: str, **options: Any) -> None:
        addresses.append(address)
        raise ConnectionError("enough")

    monkeypatch.setattr(joined, "_check_head", addresses.append)
    monkeypatch.setattr("ray.init", init)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        note.write_text(address)
        with pytest.raises(WorkError, match="^Ray cannot be joined: enough"):
            join()
    assert addresses == [address, address]


@pytest.fixture(params=["silent", "http"])
def other_program(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a program that is no Ray: one that never answers, and a web server."""
    if request.param == "silent":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("given", ["address", "auto"])
def test_another_program_at_the_address_is_told_in_seconds(
    note: Path, monkeypatch: pytest.MonkeyPatch, other_program: str, given: str
) -> None:
    from mnist_ray.cluster import joined

    monkeypatch.setattr(joined, "HEAD_SECONDS", 3.0)
    note.write_text(other_program)
    if given == "address":
        monkeypatch.setenv("RAY_ADDRESS", other_program)
    named = {"address": other_program, "auto": f"auto, {other_program},"}[given]
    began = time.monotonic()
    with pytest.raises(WorkError) as caught:
        join()
    assert time.monotonic() - began < 30
    assert str(caught.value).startswith(
        f"Ray cannot be joined: at RAY_ADDRESS={named} another program answers, no Ray head "
        "(6379 is its usual port; 8265 is the dashboard's)"
    )


def test_a_request_without_the_token_is_refused(ray_head: dict[str, str]) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(ray_head["RAY_API_SERVER_ADDRESS"] + "/api/jobs/", timeout=10)
    assert caught.value.code == 401


def test_another_token_is_named_before_anything_starts(
    ray_head: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("0" * 64)
    env = {**ray_head, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    arguments = [*SMALL, "--trials", "1", "--storage", str(tmp_path / "runs")]
    code, output = finish(search(env, *arguments))
    assert code == 1, output
    said = output.splitlines()[-1]
    assert said.startswith("search.py: Ray cannot be joined: "), output
    assert "the token must be the cluster's: see RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH" in said
    assert "Traceback" not in output
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_ray_of_our_own_leaves_nothing(tmp_path: Path) -> None:
    """No process, no session folder, no token: after success, and after SIGINT."""
    env = {
        k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    }
    env |= {"HOME": str(tmp_path), "TMPDIR": tempfile.mkdtemp(prefix="t")}
    try:
        arguments = [
            *SMALL,
            "--trials",
            "1",
            "--max-epochs",
            "1",
            "--no-finetune",
            "--storage",
            str(tmp_path / "runs"),
        ]
        code, output = finish(search(env, *arguments))
        assert code == 0, output
        assert [name for name in os.listdir(env["TMPDIR"]) if name.startswith("mray-")] == []
        assert not (tmp_path / ".ray").exists()
        assert nothing_of(env["TMPDIR"])
    finally:
        shutil.rmtree(env["TMPDIR"])


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which signals are caught")
def test_while_ray_ends_its_processes_sigterm_is_caught_and_the_monitor_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray._private.node import Node

    from mnist_ray.cluster import patches

    caught, done = [], list[str]()
    monitor = SimpleNamespace(process=SimpleNamespace(kill=lambda: done.append("monitor killed")))
    node = SimpleNamespace(all_processes={"monitor": [monitor]})

    def is_caught() -> bool:
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("SigCgt"))
        return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)

    def ends() -> None:
        """As Ray's, which resets the handler beneath Python."""
        ctypes.CDLL(None).signal(signal.SIGTERM, 0)
        assert not is_caught()
        Node.kill_all_processes(cast(Any, node))
        ctypes.CDLL(None).signal(signal.SIGTERM, 0)

    before = signal.signal(signal.SIGTERM, lambda *of: None)

    def plain(self: Any) -> None:
        done.append("then Ray's way")
        caught.append(is_caught())

    monkeypatch.setattr(Node, "kill_all_processes", plain)
    monkeypatch.setattr("ray.shutdown", ends)
    try:
        patches.shutdown()
        assert caught == [True]
        assert done == ["monitor killed", "then Ray's way"]
        assert is_caught()
    finally:
        signal.signal(signal.SIGTERM, before)


def can_mount() -> bool:
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True).returncode == 0
    )


@pytest.mark.skipif(
    not can_mount(), reason="needs root and mount namespaces, to hide a folder from one node"
)
def test_storage_that_a_node_does_not_see_is_refused(
    ray_head: dict[str, str], tmp_path: Path
) -> None:
    storage = tmp_path / "runs"
    storage.mkdir()
    start = (
        f"ray start --address={ray_head['RAY_ADDRESS']} --num-cpus=1 --block --disable-usage-stats"
    )
    env = {k: v for k, v in ray_head.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    node = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {storage} && exec {start}"],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        count = [sys.executable, str(PROGRAMS / "ray_nodes.py"), "2"]
        subprocess.run(count, env=ray_head, timeout=60, check=True)
        code, output = finish(
            search(
                ray_head, *SMALL, "--trials", "1", "--storage", str(storage), "--name", "unseen"
            ),
            90,
        )
        assert code == 2, output
        assert "is not seen by 1 of 2 nodes" in output
        assert len(output.splitlines()) == 2  # and the line that says which Ray was joined
        assert list(storage.iterdir()) == []
    finally:
        node.terminate()
        node.wait(20)
        time.sleep(1)  # the head notices
