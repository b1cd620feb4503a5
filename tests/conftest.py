"""What several test files share: an S3 server of its own on loopback."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

# Ctrl-C is among what is tested, and a shell starts what it puts into the background deaf to it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A moto server in a process of its own with the empty bucket `bucket`: the URI of that bucket.

    Keys reach pyarrow through the environment, as a user's do.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test-key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret-of-s3-server")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        with moto("127.0.0.1") as place:
            yield f"s3://bucket?endpoint_override={place}&scheme=http"


@contextlib.contextmanager
def moto(host: str) -> Iterator[str]:
    """A moto server at that address with the empty bucket `bucket`: its host and port."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ)
    )
    try:
        make_bucket(f"http://{host}:{port}/bucket", server)
        yield f"{host}:{port}"
    finally:
        server.terminate()
        server.wait(10)


def make_bucket(url: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=10).close()
            return
        except urllib.error.URLError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@pytest.fixture(scope="session")
def ray_head() -> Iterator[dict[str, str]]:
    """A Ray of the tests' own: the environment that reaches it."""
    with head_of(Path(sys.executable).parent) as env:
        yield env


@contextlib.contextmanager
def head_of(programs: Path) -> Iterator[dict[str, str]]:
    """A `ray start --head` from that folder, on loopback with token authentication: the environment that reaches it."""
    # Short, because Unix sockets below it allow 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="mrt-"))
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    port, dashboard, agent = free_port(), free_port(), free_port()
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        str(programs / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2", "--num-gpus=0",
        "--node-ip-address=127.0.0.1", f"--port={port}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--temp-dir={folder}",
        f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={free_port()}",
    ]  # fmt: skip
    start_env = {k: v for k, v in env.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    log = folder / "head.log"
    with log.open("w") as out:
        head = subprocess.Popen(command, env=start_env, stdout=out, stderr=subprocess.STDOUT)
    try:
        for url in (
            f"http://127.0.0.1:{dashboard}/api/version",
            f"http://127.0.0.1:{agent}/api/local_raylet_healthz",
        ):
            _wait_for(
                url, token.read_text(), head, log
            )  # a job that is submitted before the agent is there is refused
        yield env
    finally:
        head.terminate()
        try:
            head.wait(20)
        except subprocess.TimeoutExpired:
            head.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(url: str, token: str, head: subprocess.Popen, log: Path) -> None:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except OSError:
            if head.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text()) from None
            time.sleep(0.3)
