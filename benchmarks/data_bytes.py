"""Does the data set reach each node once, or once a trial? What the object stores of three nodes
hold at most while a search runs.

    MNIST_RAY_DATA=DIR python benchmarks/data_bytes.py     # a minute and a half
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cluster_overhead import NODES, ClusterSettings, cluster, search
from common import ROOT, BenchmarkSettings, failed, section

from mnist_ray import data
from mnist_ray.settings import main

STATUS = re.compile(r"Plasma memory usage (\d+) MiB, (\d+) objects")


@dataclass(frozen=True)
class BytesSettings(BenchmarkSettings):
    """Measure what the nodes' object stores hold during a search."""

    repeats: int = 1
    """Searches of each length."""
    trials: tuple[int, ...] = (6, 30)
    """Trials of each search."""


def largest(settings: BytesSettings, trials: int) -> tuple[int, int]:
    """MiB and objects of all nodes' object stores together, the most that was seen while the search
    ran.
    """
    searched = ClusterSettings(
        trials=trials, max_epochs=1, train_images=500, data_dir=settings.data_dir
    )
    with cluster() as environment, tempfile.TemporaryDirectory(prefix="data-bytes-") as folder:
        env, log, seen = {**os.environ, **environment}, Path(folder, "log"), (0, 0)
        status = [
            str(Path(sys.executable).with_name("ray")),
            "memory",
            "--stats-only",
            "--address",
            env["RAY_ADDRESS"],
        ]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *search(searched, folder)],
                cwd=ROOT,
                env=env,
                stdout=file,
                stderr=file,
            )
            while process.poll() is None:
                match = STATUS.search(
                    subprocess.run(status, env=env, capture_output=True, text=True).stdout
                )
                seen = max(seen, (int(match[1]), int(match[2])) if match else seen)
                time.sleep(2)
        if process.returncode:
            raise failed("the search failed", log.read_text().splitlines())
    return seen


def measure(settings: BytesSettings) -> None:
    """One row a search."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # a cluster on loopback that is gone in a minute
    images = data.load("mnist", "train", settings.data_dir)
    size = (images.images.nbytes + images.labels.nbytes) / 2**20
    rows = []
    for trials in settings.trials:
        for _ in range(settings.repeats):
            mib, objects = largest(settings, trials)
            print(f"{trials} trials: {mib} MiB in {objects} objects", flush=True)
            rows.append([str(trials), str(mib), str(objects), f"{mib / size:.2f}"])
    section(
        "The data set on three nodes",
        ["trials", "object stores of all nodes, most, MiB", "objects", "times the data set"],
        rows,
        n=f"n = {settings.repeats} of each length",
        out=settings.out,
        notes=[
            f"{size:.1f} MiB of images and labels; {NODES} nodes with a trial at a time each, "
            f"and a head that has none, only the driver."
        ],
    )


if __name__ == "__main__":
    main(BytesSettings, measure)
