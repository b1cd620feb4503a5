"""Requests to an object store, a trial: searches of trials that only sleep, with their runs on an S3 server of this script's own (moto).

python benchmarks/storage_requests.py     # 2 minutes

A trial of one epoch writes its weights and its state; the rest is the search's: the study, the tables, the best kept and losers' files
removed. Each further epoch of a trial is up to three writes more.
"""

import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common import CORES, ROOT, BenchmarkSettings, section
from overhead import run

from mnist_ray.errors import WorkError
from mnist_ray.settings import main

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
METHODS = ("PUT", "GET", "HEAD", "POST", "DELETE")


@dataclass(frozen=True)
class RequestSettings(BenchmarkSettings):
    """Count a search's requests to an object store."""

    repeats: int = 1
    """Searches of each length."""
    trials: tuple[int, ...] = (50, 200)
    """Trials of each search."""
    seconds: float = 0.1
    """How long each sleeps."""


@contextmanager
def server(log: Path) -> Iterator[str]:
    """An S3 server on loopback that writes a line a request to `log`: its host and port. The bucket is called runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", place.rpartition(":")[2]], stdout=file, stderr=file)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(urllib.request.Request(f"http://{place}/runs", method="PUT"), timeout=10).close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        else:
            raise WorkError(f"moto does not answer: {log.read_text()}")
        yield place
    finally:
        process.terminate()
        process.wait()


def count(trials: int, seconds: float) -> Counter[str]:
    """The requests of one search, by method."""
    with tempfile.TemporaryDirectory(prefix="requests-") as name:
        folder, log = Path(name), Path(name, "requests")
        with server(log) as place:
            before = len(log.read_text().splitlines())
            command = [str(ROOT / "jobs" / "search.py"), "--dataset", "digits", "--space", "noop_space:space", "--max-epochs", "1"]
            command += ["--space-args", f"seconds={seconds}", f"stamps={folder}", "floats=8", "--trials", str(trials)]
            command += ["--storage", f"s3://runs?endpoint_override={place}&scheme=http", "--name", "n", "--no-finetune"]
            run([*command, "--max-concurrent", str(CORES)], folder / "log", **KEYS)
            lines = log.read_text().splitlines()[before:]
    return Counter(match[1] for line in lines if (match := re.search(r'"(\w+) /', line)))


def measure(settings: RequestSettings) -> None:
    rows = []
    for trials in settings.trials:
        for _ in range(settings.repeats):
            found = count(trials, settings.seconds)
            print(trials, dict(found), flush=True)
            rows.append([f"{trials:,}", f"{found.total() / trials:.1f}", *(f"{found[method] / trials:.1f}" for method in METHODS)])
    section(
        "Requests to an object store, a trial",
        ["trials", "all", *METHODS],
        rows,
        n=f"n = {settings.repeats} of each length",
        out=settings.out,
        notes=[f"Trials of one epoch and {settings.seconds} s, {CORES} at a time; a row a search."],
    )


if __name__ == "__main__":
    main(RequestSettings, measure)
