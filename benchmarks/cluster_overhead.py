"""A search as a job on a cluster of three nodes against the same search as a plain command, on the same cores.

MNIST_RAY_DATA=DIR python benchmarks/cluster_overhead.py     # 5 minutes a repetition on two cores

Both sides train the same 30 trials: random configurations of one seed, none stopped. The cluster is three raylets on loopback, the head
without CPUs and two nodes that share the cores; it is there before the clock starts, as a cluster is. The plain command starts a Ray of its
own and stops it. Timed is each command from its start to its end.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common import CORES, ROOT, BenchmarkSettings, section, spread
from overhead import run

from mnist_ray.errors import WorkError
from mnist_ray.settings import main


@dataclass(frozen=True)
class ClusterSettings(BenchmarkSettings):
    """Compare a job on a cluster with a plain command."""

    repeats: int = 3
    """Repetitions of both sides."""
    trials: int = 30
    """Trials of the search."""
    max_epochs: int = 1
    """Epochs of each."""
    train_images: int = 6000
    """Training images."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Three raylets: the environment that reaches them."""
    folder = Path(tempfile.mkdtemp(prefix="mrb-"))  # short: Unix sockets below it allow 107 characters
    port, dashboard = free_port(), free_port()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    outside = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"PATH": path, "RAY_AUTH_MODE": "disabled"}
    address = f"127.0.0.1:{port}"
    head = ["--head", f"--port={port}", "--num-cpus=0", f"--temp-dir={folder}", "--dashboard-host=127.0.0.1"]
    head += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}"]
    nodes: list[subprocess.Popen[bytes]] = []
    url = f"http://127.0.0.1:{dashboard}"
    with (folder / "log").open("wb") as log:
        try:
            for options in (head, *([f"--address={address}", f"--num-cpus={CORES / 2:g}"] for _ in range(2))):
                command = ["ray", "start", "--block", "--disable-usage-stats", "--num-gpus=0", "--node-ip-address=127.0.0.1", *options]
                command.append(f"--dashboard-agent-listen-port={free_port()}")
                nodes.append(subprocess.Popen(command, env=outside, stdout=log, stderr=log))
                wait_for(f"{url}/api/version")
            environment = {**outside, "RAY_ADDRESS": address, "RAY_API_SERVER_ADDRESS": url}
            count = "import ray, time; ray.init(logging_level='ERROR')\nwhile len(ray.nodes()) < 3: time.sleep(0.2)"
            subprocess.run([sys.executable, "-c", count], env=environment, check=True, timeout=60, stdout=log, stderr=log)
            yield environment
        finally:
            for node in reversed(nodes):
                node.terminate()
                node.wait(30)
            shutil.rmtree(folder, ignore_errors=True)


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.URLError as error:
            if time.monotonic() > deadline:
                raise WorkError("the cluster did not start") from error
            time.sleep(0.3)


def search(settings: ClusterSettings, folder: Path) -> list[str]:
    """The command's arguments after `python`."""
    arguments = ["jobs/search.py", "--dataset", "mnist", "--data-dir", os.path.abspath(settings.data_dir), "--no-finetune"]
    arguments += ["--sampler", "random", "--scheduler", "none", "--max-concurrent", "2", "--cpus-per-trial", f"{CORES / 2:g}"]
    arguments += ["--train-images", str(settings.train_images), "--trials", str(settings.trials), "--max-epochs", str(settings.max_epochs)]
    return [*arguments, "--storage", str(folder), "--name", "run", "--seed", "1"]


def as_job(settings: ClusterSettings, folder: Path) -> float:
    """Wall seconds of the search as a job."""
    with cluster() as environment:
        start = time.time()
        submit = ["ray", "job", "submit", "--working-dir", ".", "--", "python", *search(settings, folder)]
        done = subprocess.run(submit, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise WorkError("the job failed:\n" + "\n".join((done.stdout + done.stderr).splitlines()[-20:]))
        return time.time() - start


def plain(settings: ClusterSettings, folder: Path) -> float:
    """Wall seconds of the search as a command."""
    script, *arguments = search(settings, folder)
    return run([str(ROOT / script), *arguments], folder / "log")[1]


def measure(settings: ClusterSettings) -> None:
    walls: dict[str, list[float]] = {"job": [], "plain": []}
    for _ in range(settings.repeats):
        for name, side in (("job", as_job), ("plain", plain)):
            with tempfile.TemporaryDirectory(prefix="cluster-overhead-") as folder:
                walls[name].append(side(settings, Path(folder)))
            print(f"{name}: {walls[name][-1]:.1f} s", flush=True)
    extra = [job - alone for job, alone in zip(walls["job"], walls["plain"], strict=True)]
    section(
        "A search on three nodes",
        ["what", "median (quartiles)"],
        [
            ["as a job on three raylets, s", spread(walls["job"], 1)],
            ["as a plain command, s", spread(walls["plain"], 1)],
            ["the job's extra time, s", spread(extra, 1)],
            ["5 % of the plain command + 15 s, s", spread([0.05 * alone + 15 for alone in walls["plain"]], 1)],
        ],
        n=f"n = {settings.repeats} of each in turn",
        out=settings.out,
        notes=[f"{settings.trials} trials, {settings.max_epochs} epoch of {settings.train_images:,} images each, two at a time."],
    )


if __name__ == "__main__":
    main(ClusterSettings, measure)
