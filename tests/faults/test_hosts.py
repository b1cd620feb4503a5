"""Hosts of their own (network namespaces) that share S3 alone: one is cut off and comes back."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mnist_ray.storage import RunStorage
from tests.faults.tools import DIGITS, SECRETS, no_secret
from tests.support import PROGRAMS, ROOT
from tests.support.processes import kill_tree, outside, workers
from tests.support.runs import check_run, finish, flags, wait_for
from tests.support.servers import moto

NETWORK = "10.213.77"  # a bridge at .254, the hosts from .1 on
QUICK = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Hosts:
    """Network namespaces on one bridge; in each, /dev/shm and the temporary folder are its own."""

    def __init__(self, count: int) -> None:
        self.mark = f"mrh{os.getpid() % 100000}"
        self.folder = Path(tempfile.mkdtemp(prefix="mrh-"))
        (self.folder / "tmp").mkdir()
        (self.folder / "token").write_text("0f1e2d3c4b5a6978" * 4)
        self.count, self.nodes, self.log = count, [], (self.folder / "log").open("wb")  # type: ignore[var-annotated]
        paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "PATH": paths,
            "TMPDIR": f"{self.folder}/tmp",
        }
        self.env = outside(**own, **QUICK, MNIST_RAY_STORAGE_RETRY_SECONDS="60")
        self.head = f"{NETWORK}.1:6379"
        run("ip", "link", "add", self.mark, "type", "bridge")
        run("ip", "address", "add", f"{NETWORK}.254/24", "dev", self.mark)
        run("ip", "link", "set", self.mark, "up")
        for i in range(count):
            name, inside = f"{self.mark}-{i}", "eth0"
            run("ip", "netns", "add", name)
            run("ip", "link", "add", name, "type", "veth", "peer", "name", inside, "netns", name)
            run("ip", "link", "set", name, "master", self.mark, "up")
            run("ip", "-n", name, "address", "add", f"{NETWORK}.{i + 1}/24", "dev", inside)
            run("ip", "-n", name, "link", "set", inside, "up")
            run("ip", "-n", name, "link", "set", "lo", "up")

    def start(self, i: int, cpus: int) -> subprocess.Popen:
        """A Ray node on host i: the head on the first."""
        options = (
            ["--head", "--port=6379", "--dashboard-host=127.0.0.1"]
            if i == 0
            else [f"--address={self.head}"]
        )
        ray = [
            "ray",
            "start",
            "--block",
            "--disable-usage-stats",
            f"--num-cpus={cpus}",
            "--num-gpus=0",
            f"--node-ip-address={NETWORK}.{i + 1}",
            *options,
        ]
        command = [
            "ip",
            "netns",
            "exec",
            f"{self.mark}-{i}",
            "unshare",
            "-m",
            "sh",
            str(PROGRAMS / "own_folders.sh"),
            *ray,
            f"--temp-dir={self.folder}/tmp/r",
        ]
        self.nodes.append(subprocess.Popen(command, env=self.env, stdout=self.log, stderr=self.log))
        return self.nodes[-1]

    def on_head(self, *command: str) -> subprocess.Popen:
        where = ["nsenter", "-t", str(self.nodes[0].pid), "-m", "-n", f"--wd={ROOT}"]
        env = {**self.env, "RAY_ADDRESS": self.head}
        return subprocess.Popen(
            [*where, *command], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def wait(self, count: int) -> None:
        """Until the cluster has so many nodes."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with contextlib.suppress(AssertionError):
                process = self.on_head(sys.executable, str(PROGRAMS / "ray_nodes.py"), str(count))
                if finish(process, 60)[0] == 0:
                    return
            time.sleep(0.5)
        raise AssertionError((self.folder / "log").read_text())

    def link(self, i: int, state: str) -> None:
        run("ip", "link", "set", f"{self.mark}-{i}", state)

    def remove(self) -> None:
        for node in self.nodes:
            kill_tree(node.pid)
            node.wait(20)
        self.log.close()
        for i in range(self.count):
            subprocess.run(["ip", "netns", "delete", f"{self.mark}-{i}"], capture_output=True)
        subprocess.run(["ip", "link", "delete", self.mark], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.getuid() or not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        pytest.skip("needs root, ip, unshare and nsenter, for hosts of its own")
    found = None
    try:
        try:
            found = Hosts(3)
        except subprocess.CalledProcessError as error:
            pytest.skip(
                f"this machine allows no network namespaces: {error.stderr.decode().strip()}"
            )
        yield found
    finally:
        if found is not None:
            found.remove()


@pytest.fixture
def far_bucket(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a server that all hosts reach, outside them."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS["AWS_SECRET_ACCESS_KEY"])
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    hosts.env |= {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
    with moto(f"{NETWORK}.254") as place:
        yield f"s3://bucket/hosts?endpoint_override={place}&scheme=http"


@pytest.mark.slow
def test_a_host_is_cut_off_and_comes_back(hosts: Hosts, far_bucket: str) -> None:
    """Its trial goes on elsewhere; back again, it ends by itself and can be joined again."""
    hosts.start(0, cpus=0)
    hosts.wait(1)
    first, second = hosts.start(1, cpus=1), hosts.start(2, cpus=1)
    hosts.wait(3)
    size = [
        *DIGITS,
        *flags(
            space_args=["min_width=8", "max_width=16"], trials=8, max_epochs=24, scheduler="none"
        ),
    ]
    search = hosts.on_head(
        sys.executable,
        "jobs/search.py",
        *size,
        *flags(max_concurrent=2, storage=far_bucket, name="h", seed=0),
    )
    try:
        seen = wait_for(search, "epochs=")
        while not (workers(first.pid) and workers(second.pid)):
            assert search.poll() is None
            time.sleep(0.1)
        cut = workers(second.pid)
        hosts.link(2, "down")
        hosts.wait(2)
        hosts.link(2, "up")
        assert (
            psutil.wait_procs(cut, 60)[1] == []
        )  # the trial's process, whose trial is another's now, ends
        second.wait(60)
        assert search.poll() is None
        hosts.start(2, cpus=1)
        hosts.wait(3)
        code, output = finish(search)
        assert code == 0, seen + output
        assert " 0 failed" in seen + output
        storage = RunStorage(far_bucket.replace("/hosts?", "/hosts/h?"))
        check_run(far_bucket.replace("/hosts?", "/hosts/h?"), 8)
        assert {"model.onnx", "model.json"} <= set(storage.list())
        no_secret(seen + output, storage)
    finally:
        if search.poll() is None:
            search.send_signal(signal.SIGKILL)
            search.wait(20)
