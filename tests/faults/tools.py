"""What breaks things: Rays of several nodes, a failing network, small disks; planted secrets."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mnist_ray.storage import RunStorage
from tests.support import PROGRAMS
from tests.support.processes import kill_tree, outside
from tests.support.runs import flags, load_study
from tests.support.servers import free_port, soon, tried

DIGITS = flags(dataset="digits", train_images=200, val_images=100)
TINY = [*DIGITS, *flags(space_args=["min_width=8", "max_width=16"], finetune=False)]
# Whoever finds one of these in a run's directory or output has found a leak.
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret-4711",
    "AWS_SESSION_TOKEN": "planted-aws-token-4712",
    "PGPASSWORD": "planted-pg-password-4713",
    "STUDY_PASSWORD": "planted-study-password-4714",
}


def paced(folder: Path) -> list[str]:
    """Options of a search whose epochs take 0.25 s or more on any machine; it starts in folder."""
    shutil.copy(PROGRAMS / "paced.py", folder)
    return [*DIGITS, *flags(space="paced:space", finetune=False)]


def no_secret(output: str, run: RunStorage, secrets: dict[str, str] = SECRETS) -> None:
    """Neither the output nor any file of the run holds a planted secret."""
    content = {"output": output.encode(), **{name: run.read_bytes(name) for name in run.list()}}
    for name, data in content.items():
        for key, secret in secrets.items():
            assert secret.encode() not in data, f"{key} is in {name}"


def no_open_trial(folder: Path) -> None:
    assert [t.number for t in load_study(folder).trials if t.state.name == "RUNNING"] == []


# ---- Rays of our own


class Rays:
    """A Ray of several nodes on loopback, each a `ray start --block`; `env` reaches it.

    Args:
        cpus: of the head.
        options: more options of its start.
        port: the head's; any if None.
        env: of all its processes.
    """

    def __init__(self, cpus: int, *options: str, port: int | None = None, **env: str) -> None:
        self.folder = Path(
            tempfile.mkdtemp(prefix="mrf-")
        )  # short: Unix sockets below it allow 107 characters
        (self.folder / "token").write_text("fedcba9876543210" * 4)
        paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "PATH": paths,
            "TMPDIR": str(self.folder),
        }
        self.start_env = outside(**own, **env)
        self.nodes: list[subprocess.Popen] = []
        self.log = (self.folder / "log").open("wb")
        start = [
            "--head",
            f"--num-cpus={cpus}",
            "--include-dashboard=false",
            f"--temp-dir={self.folder}",
            *options,
        ]
        try:
            if port:
                self._start_head(port, start)
            else:
                tried(lambda: self._start_head(free_port(), start))
        except BaseException:
            self.remove()
            raise

    def _start_head(self, port: int, start: list[str]) -> None:
        self.kill()  # what an attempt before has left
        self.nodes.clear()
        self.port = port
        self.env = {**self.start_env, "RAY_ADDRESS": f"127.0.0.1:{port}"}
        self._start(*start, f"--port={port}", f"--ray-client-server-port={free_port()}")
        self._wait(1)

    def add(self, cpus: int) -> subprocess.Popen:
        """One more node; returns when the cluster knows it."""
        node = self._start(f"--address=127.0.0.1:{self.port}", f"--num-cpus={cpus}")
        self._wait(len(self.nodes))
        return node

    def _start(self, *options: str) -> subprocess.Popen:
        command = [
            "ray",
            "start",
            "--block",
            "--disable-usage-stats",
            "--num-gpus=0",
            "--node-ip-address=127.0.0.1",
            "--dashboard-agent-listen-port=0",
            *options,
        ]
        node = subprocess.Popen(command, env=self.start_env, stdout=self.log, stderr=self.log)
        self.nodes.append(node)
        return node

    def _wait(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.nodes[-1].poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                self._nodes(count)
                return
            except (OSError, subprocess.SubprocessError):
                time.sleep(0.3)
        raise AssertionError((self.folder / "log").read_text())

    def _nodes(self, count: int) -> list[str]:
        """Waits for so many nodes: the ids of those with CPUs."""
        command = [sys.executable, str(PROGRAMS / "ray_nodes.py"), str(count)]
        done = subprocess.run(
            command, env=self.env, check=True, timeout=60, capture_output=True, text=True
        )
        return done.stdout.split()

    def nodes_with_cpus(self, count: int | None = None) -> list[str]:
        """Their ids, when so many nodes are there: those that were started here."""
        return self._nodes(count or len(self.nodes))

    def pid(self) -> int:
        """Of the head node, under which its workers are."""
        return self.nodes[0].pid

    def kill(self) -> None:
        """All of it, at once, as a power cut would."""
        for node in self.nodes:
            kill_tree(node.pid)
        for node in self.nodes:
            node.wait(20)

    def remove(self) -> None:
        self.kill()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


# ---- a network that fails


class Network:
    """Passes connections to 127.0.0.1:port on, through a port of its own, until told to fail.

    mode: "up"; "down" (connections are refused, open ones are cut); "error" (HTTP 503); "slow"
    (0.3 s for each piece); "silent" (nothing comes back). `met` counts, by mode, the connections
    that were made in it and the pieces that it slowed down.
    """

    def __init__(self, port: int) -> None:
        self.target, self.port, self.mode = port, 0, "up"
        self.met: Counter[str] = Counter()
        self.open: set[socket.socket] = set()
        self.listener: socket.socket | None = None
        self._listen()

    def _listen(self) -> None:
        self.listener = soon(lambda: socket.create_server(("127.0.0.1", self.port), backlog=64))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self.open.add(client)
        self.met[self.mode] += 1
        with contextlib.suppress(OSError), client:
            if self.mode == "error":
                client.recv(65536)
                client.sendall(
                    b"HTTP/1.1 503 Service Unavailable\r\n"
                    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
                )
                return
            if self.mode == "silent":
                while client.recv(65536):
                    pass
                return
            with socket.create_connection(("127.0.0.1", self.target)) as server:
                self.open.add(server)
                back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
                back.start()
                self._copy(client, server)
                back.join()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if self.mode == "slow":
                    self.met["slow"] += 1
                    time.sleep(0.3)
                sink.sendall(piece)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def set(self, mode: str) -> None:
        self.mode = mode
        if mode == "down" and self.listener is not None:
            with contextlib.suppress(OSError):
                self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            self.listener = None
        elif mode != "down" and self.listener is None:
            self._listen()
        if mode != "up":
            for connection in list(self.open):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.open = {each for each in self.open if each.fileno() >= 0}

    @contextlib.contextmanager
    def failing(self, mode: str) -> Iterator[None]:
        self.set(mode)
        try:
            yield
        finally:
            self.set("up")


# ---- disks


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs of so many bytes (as 8m) at `folder`. To make space, remount it larger."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        check=True,
        capture_output=True,
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def can_mount() -> bool:
    """Whether this process may mount, as root outside a strict container may."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
        if (
            os.getuid()
            or shutil.which("mount") is None
            or subprocess.run(command, capture_output=True).returncode
        ):
            return False
        subprocess.run(["umount", folder], check=True)
        return True
