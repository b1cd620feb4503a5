"""A search as a job on a cluster of three nodes against the same search as a plain command, on the
same cores.

    MNIST_RAY_DATA=DIR python benchmarks/cluster_overhead.py  # 11 minutes a repetition on two cores

Both sides train the same 30 trials: random configurations of one seed, none stopped. The cluster is
three raylets on this machine, the head without CPUs and two nodes that share the cores; it is there
before the clock starts, as a cluster is. The plain command starts a Ray of its own and stops it.
Timed is each command from its start to its end.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import CORES, ROOT, BenchmarkSettings, failed, section, spread
from overhead import run

from mnist_ray.settings import main

NODES = 2  # besides the head


@dataclass(frozen=True)
class ClusterSettings(BenchmarkSettings):
    """Compare a job on a cluster with a plain command."""

    repeats: int = 3
    """Repetitions of both sides."""
    trials: int = 30
    """Trials of the search."""
    max_epochs: int = 3
    """Epochs of each."""
    train_images: int = 6000
    """Training images."""


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Three raylets: the environment that reaches them."""
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(
        prefix="mrb-"
    ) as folder:  # short: Unix sockets below it allow 107 characters

        def node(name: str) -> dict[str, Any]:
            # A folder of its own, as on a machine of its own: in a shared one each node clears the
            # others' working directories away.
            return {"temp_dir": f"{folder}/{name}", "object_store_memory": 400 * 2**20}

        three = Cluster(
            True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": True,
                "dashboard_port": 0,
                **node("head"),
            },
        )
        try:
            for i in range(NODES):
                three.add_node(num_cpus=CORES / NODES, **node(str(i)))
            yield {
                "RAY_ADDRESS": three.address,
                "RAY_API_SERVER_ADDRESS": f"http://{three.webui_url}",
            }
        finally:
            three.shutdown()


def search(settings: ClusterSettings, folder: str) -> list[str]:
    """The command's arguments after `python`."""
    arguments = [
        "--dataset",
        "mnist",
        "--data-dir",
        os.path.abspath(settings.data_dir),
        "--no-finetune",
    ]
    arguments += [
        "--sampler",
        "random",
        "--scheduler",
        "none",
        "--max-concurrent",
        f"{NODES}",
        "--cpus-per-trial",
        f"{CORES / NODES:g}",
    ]
    arguments += [
        "--train-images",
        str(settings.train_images),
        "--trials",
        str(settings.trials),
        "--max-epochs",
        str(settings.max_epochs),
    ]
    return ["jobs/search.py", *arguments, "--storage", folder, "--name", "run", "--seed", "1"]


def as_job(settings: ClusterSettings, folder: str) -> float:
    """Wall seconds of the search as a job."""
    submit = [
        str(Path(sys.executable).with_name("ray")),
        "job",
        "submit",
        "--working-dir",
        ".",
        "--",
        sys.executable,
    ]
    with cluster() as environment:
        start = time.time()
        done = subprocess.run(
            [*submit, *search(settings, folder)],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise failed("the job failed", (done.stdout + done.stderr).splitlines())
        return time.time() - start


def plain(settings: ClusterSettings, folder: str) -> float:
    """Wall seconds of the search as a command."""
    script, *arguments = search(settings, folder)
    return run([str(ROOT / script), *arguments], Path(folder) / "log")[1]


def measure(settings: ClusterSettings) -> None:
    """Both sides in turn."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # a cluster on loopback that is gone in five minutes
    walls: dict[str, list[float]] = {"job": [], "plain": []}
    for _ in range(settings.repeats):
        for name, side in (("job", as_job), ("plain", plain)):
            with tempfile.TemporaryDirectory(prefix="cluster-overhead-") as folder:
                walls[name].append(side(settings, folder))
            print(f"{name}: {walls[name][-1]:.1f} s", flush=True)
    extra = [job - alone for job, alone in zip(walls["job"], walls["plain"], strict=True)]
    section(
        "A search on three nodes",
        ["what", "median (quartiles)"],
        [
            ["as a job on three raylets, s", spread(walls["job"], 1)],
            ["as a plain command, s", spread(walls["plain"], 1)],
            ["the job's extra time, s", spread(extra, 1)],
            [
                "5 % of the plain command + 15 s, s",
                spread([0.05 * alone + 15 for alone in walls["plain"]], 1),
            ],
        ],
        n=f"n = {settings.repeats} of each in turn",
        out=settings.out,
        notes=[
            f"{settings.trials} trials of {settings.max_epochs} epochs on "
            f"{settings.train_images:,} images each, {NODES} at a time."
        ],
    )


if __name__ == "__main__":
    main(ClusterSettings, measure)
