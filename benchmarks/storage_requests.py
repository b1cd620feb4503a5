"""Requests to an object store, a trial: searches of trials that only sleep, with their runs on an
S3 server of this script's own (moto).

    python benchmarks/storage_requests.py     # 2 minutes

A trial of one epoch writes its weights and its state; the rest is the search's: the study, the
tables, the best kept and losers' files removed. Each further epoch of a trial is up to three writes
more.
"""

import logging
import re
import tempfile
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common import CORES, ROOT, BenchmarkSettings, section
from moto.server import ThreadedMotoServer
from overhead import run

from mnist_ray.settings import main

KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}
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


class Requests(logging.Handler):
    """Counts the server's log lines, some of them coloured, by method: '127.0.0.1 - - [date] "PUT
    /runs/n HTTP/1.1" 200 -'.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        self.count.update(re.findall(rf"({'|'.join(METHODS)}) /", record.getMessage()))


def count(trials: int, seconds: float) -> Counter[str]:
    """The requests of one search, by method."""
    requests, server = Requests(), ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    logging.getLogger("werkzeug").addHandler(requests)
    server.start()
    try:
        place = "{}:{}".format(*server.get_host_and_port())
        urllib.request.urlopen(
            urllib.request.Request(f"http://{place}/runs", method="PUT")
        ).close()  # the bucket
        requests.count.clear()
        with tempfile.TemporaryDirectory(prefix="requests-") as folder:
            command = [
                str(ROOT / "jobs" / "search.py"),
                "--dataset",
                "digits",
                "--space",
                "noop_space:space",
                "--max-epochs",
                "1",
            ]
            command += [
                "--space-args",
                f"seconds={seconds}",
                f"stamps={folder}",
                "floats=8",
                "--trials",
                str(trials),
            ]
            command += [
                "--storage",
                f"s3://runs?endpoint_override={place}&scheme=http",
                "--name",
                Path(folder).name,
                "--no-finetune",
            ]
            run([*command, "--max-concurrent", str(CORES)], Path(folder, "log"), **KEYS)
    finally:
        logging.getLogger("werkzeug").removeHandler(requests)
        server.stop()
    return requests.count


def measure(settings: RequestSettings) -> None:
    rows = []
    for trials in settings.trials:
        for _ in range(settings.repeats):
            found = count(trials, settings.seconds)
            print(trials, dict(found), flush=True)
            rows.append(
                [
                    f"{trials:,}",
                    f"{found.total() / trials:.1f}",
                    *(f"{found[method] / trials:.1f}" for method in METHODS),
                ]
            )
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
