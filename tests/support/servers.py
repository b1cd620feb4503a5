"""Servers of the tests' own on loopback: S3 (moto), Ray, PostgreSQL, MariaDB and Redis."""

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
from collections.abc import Callable, Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import TypeVar

import pytest

from mnist_ray.errors import SettingsError
from mnist_ray.study.storages import opened
from tests.support.processes import kill_tree

SECRET = "s3cret-of-the-test"  # the databases' password
# So often a server is started, at other ports each time: another process may take a free port
# before its server binds it.
ATTEMPTS = 3
T = TypeVar("T")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tried(start: Callable[[], T]) -> T:
    """What `start` gives; where it fails it is called again, and takes other ports."""
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(OSError, RuntimeError, AssertionError):
            return start()
    return start()


def soon(start: Callable[[], T], seconds: float = 20) -> T:
    """What `start` gives at a port that it had before: another may hold that for a moment."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, AssertionError):
            return start()
        time.sleep(0.1)
    return start()


def end(server: subprocess.Popen) -> None:
    """Ends a server of ours and what it has started."""
    server.terminate()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        kill_tree(server.pid)
        server.wait(20)


@contextlib.contextmanager
def moto(host: str) -> Iterator[str]:
    """A moto server at that address with the empty bucket `bucket`: its host and port."""
    server, port = tried(lambda: _moto(host))
    try:
        yield f"{host}:{port}"
    finally:
        end(server)


def _moto(host: str) -> tuple[subprocess.Popen, int]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ)
    )
    try:
        make_bucket(f"http://{host}:{port}/bucket", server)
    except BaseException:
        end(server)
        raise
    return server, port


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


@contextlib.contextmanager
def head_of(programs: Path) -> Iterator[dict[str, str]]:
    """A `ray start --head` from that folder, with a token: the environment that reaches it."""
    # Short, because Unix sockets below it allow 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="mrt-"))
    try:
        head, env = tried(lambda: _head(programs, folder))
        try:
            yield env
        finally:
            end(head)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _head(programs: Path, folder: Path) -> tuple[subprocess.Popen, dict[str, str]]:
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
        str(programs / "ray"),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        "--num-cpus=2",
        "--num-gpus=0",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--temp-dir={folder}",
        f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={free_port()}",
    ]
    start_env = {k: v for k, v in env.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    log = folder / "head.log"
    with log.open("w") as out:
        head = subprocess.Popen(command, env=start_env, stdout=out, stderr=subprocess.STDOUT)
    try:
        for url in (
            f"http://127.0.0.1:{dashboard}/api/version",
            # a job that is submitted before the agent is there is refused
            f"http://127.0.0.1:{agent}/api/local_raylet_healthz",
        ):
            _wait_for(url, token.read_text(), head, log)
    except BaseException:
        kill_tree(head.pid)
        head.wait(20)
        raise
    return head, env


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


# ---- databases


class Server:
    """A database server as a child of the tests, on a port and in a short folder of its own."""

    def __init__(self, account: str) -> None:
        self.port = 0  # until it is started
        self.folder = Path(tempfile.mkdtemp(prefix="mrt-db-"))
        # Servers refuse root: they run under the account that their package brought.
        self.become = (
            []
            if os.getuid()
            else ["setpriv", f"--reuid={account}", f"--regid={account}", "--clear-groups", "--"]
        )
        if self.become:
            shutil.chown(self.folder, account, account)
        self.process: subprocess.Popen | None = None

    def run(self, *command: str) -> None:
        done = subprocess.run(
            [*self.become, *command], cwd=self.folder, capture_output=True, text=True, timeout=120
        )
        if done.returncode:
            self.remove()
            raise AssertionError(done.stdout + done.stderr)

    def start(self) -> None:
        """At a free port, and after a stop at the same."""
        if self.port:
            soon(self._start)
        else:
            tried(self._start_anew)

    def _start_anew(self) -> None:
        self.port = free_port()
        self._start()

    def _start(self) -> None:
        self.process = subprocess.Popen(
            [*self.become, *self.command()],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                with opened(self.url):
                    return
            except SettingsError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise AssertionError(
                        f"{type(self).__name__} does not start: {error}"
                    ) from error
                time.sleep(0.1)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(
                signal.SIGINT if isinstance(self, PostgreSQL) else signal.SIGTERM
            )
            self.process.wait(60)
            self.process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def url(self) -> str:
        raise AssertionError

    def command(self) -> Sequence[str]:
        raise AssertionError


class PostgreSQL(Server):
    def __init__(self, binaries: Path) -> None:
        super().__init__("postgres")
        self.binaries = binaries
        password = self.folder / "password"
        password.write_text(SECRET)
        password.chmod(0o644)
        self.run(
            str(binaries / "initdb"),
            "-D",
            "data",
            "-U",
            "optuna",
            "--auth=scram-sha-256",
            f"--pwfile={password}",
            "--no-sync",
        )

    @property
    def url(self) -> str:
        return f"postgresql://optuna:{SECRET}@127.0.0.1:{self.port}/postgres"

    def command(self) -> Sequence[str]:
        return [
            str(self.binaries / "postgres"),
            "-D",
            "data",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-k",
            str(self.folder),
            "-F",
        ]


class MariaDB(Server):
    def __init__(self, server: str) -> None:
        super().__init__("mysql")
        self.server = server
        self.run(
            "mariadb-install-db",
            "--no-defaults",
            f"--datadir={self.folder}/data",
            "--skip-test-db",
            "--auth-root-authentication-method=normal",
        )
        first = self.folder / "first.sql"
        first.write_text(
            "CREATE DATABASE IF NOT EXISTS optuna;\n"
            f"CREATE USER IF NOT EXISTS optuna@'%' IDENTIFIED BY '{SECRET}';\n"
            "GRANT ALL ON optuna.* TO optuna@'%';\n"
        )

    @property
    def url(self) -> str:
        return f"mysql://optuna:{SECRET}@127.0.0.1:{self.port}/optuna"

    def command(self) -> Sequence[str]:
        folder = self.folder
        return [
            self.server,
            "--no-defaults",
            f"--datadir={folder}/data",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            f"--socket={folder}/socket",
            f"--pid-file={folder}/pid",
            f"--init-file={folder}/first.sql",
        ]


class Redis(Server):
    def __init__(self, server: str) -> None:
        super().__init__("redis")
        self.server = server

    @property
    def url(self) -> str:
        return f"redis://:{SECRET}@127.0.0.1:{self.port}/0"

    def command(self) -> Sequence[str]:
        return [
            self.server,
            "--bind",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--requirepass",
            SECRET,
            "--appendonly",
            "yes",
        ]


def postgresql() -> Server:
    found = sorted(glob("/usr/lib/postgresql/*/bin/initdb")) or [
        p for p in [shutil.which("initdb")] if p
    ]
    if not found:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    return PostgreSQL(Path(found[-1]).parent)


def mariadb() -> Server:
    found = shutil.which("mariadbd", path=os.environ["PATH"] + ":/usr/sbin")
    if not found:
        pytest.skip("MariaDB is not installed (apt-get install mariadb-server)")
    return MariaDB(found)


def redis() -> Server:
    found = shutil.which("redis-server")
    if not found:
        pytest.skip("Redis is not installed (apt-get install redis-server)")
    return Redis(found)


KINDS: dict[str, tuple[Callable[[], Server], str]] = {
    "postgresql": (postgresql, "psycopg2"),
    "mysql": (mariadb, "pymysql"),
    "redis": (redis, "redis"),
}
