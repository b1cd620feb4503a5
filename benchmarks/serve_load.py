"""`mnist-ray serve` under load: requests a second, times, and memory with bad requests among good.

    python benchmarks/serve_load.py                        # a small network; 30 seconds a step
    python benchmarks/serve_load.py --model DIR/first --minutes 10

The server is a process of its own, and so are the clients: they share the machine's cores. Each
client keeps one connection and sends the next request as soon as it has the answer. The first table
raises the number of clients; the second part holds one load and sends a bad request now and then.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
from common import BenchmarkSettings, section

from mnist_ray import data
from mnist_ray.export.picture_model import guises
from mnist_ray.settings import main

LIMIT_MS = 50.0  # of the 99th percentile


@dataclass(frozen=True)
class LoadSettings(BenchmarkSettings):
    """Load a server."""

    model: str | None = None
    """An ONNX file of ours or a run's directory (default: a small network for digits)."""
    seconds: float = 15.0
    """Of each number of clients."""
    minutes: float = 2.0
    """Of the load with bad requests."""


@dataclass
class Seen:
    """What the clients of a step saw."""

    times: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    wrong: int = 0


GOOD, BAD = "image/png", (
    (b"", "image/png", 400), (b"no picture", "image/png", 400), (b"[[", "application/json", 400),
    (b"[[999]]", "application/json", 400), (b"x", "text/html", 415), (b"\0" * 100_000, "a/b", 415),
    (b"x", "multipart/form-data; boundary=y", 400),
)  # fmt: skip


async def client(url: str, pictures: list[bytes], until: float, seen: Seen, bad_every: int) -> None:
    async with httpx.AsyncClient(timeout=30) as connection:
        number = 0
        while time.monotonic() < until:
            number += 1
            bad = bad_every and number % bad_every == 0
            content, kind, expected = (
                BAD[number // bad_every % len(BAD)]
                if bad
                else (pictures[number % len(pictures)], GOOD, 200)
            )
            began = time.perf_counter()
            try:
                answer = await connection.post(url, content=content, headers={"Content-Type": kind})
            except httpx.HTTPError:
                seen.lost += 1
                continue
            if not bad:
                seen.times.append(1000 * (time.perf_counter() - began))
            seen.statuses[answer.status_code] += 1
            seen.wrong += answer.status_code != expected


async def load(
    url: str, pictures: list[bytes], clients: int, seconds: float, bad_every: int = 0
) -> Seen:
    seen, until = Seen(), time.monotonic() + seconds
    await asyncio.gather(
        *(client(url, pictures[i:] + pictures[:i], until, seen, bad_every) for i in range(clients))
    )
    return seen


def row(clients: int, seconds: float, seen: Seen) -> list[str]:
    p50, p99 = np.percentile(seen.times, [50, 99])
    rate = len(seen.times) / seconds
    return [str(clients), f"{rate:,.0f}", f"{p50:.1f}", f"{p99:.1f}", str(seen.lost + seen.wrong)]


def pictures_of() -> list[bytes]:
    from tests.support.pictures import png

    return [png(picture) for picture in list(guises(data.load("digits", "test").images[:60]))[1:]]


def measure(settings: LoadSettings) -> None:
    """Starts the server, loads it, ends it."""
    from tests.support.published import published

    with tempfile.TemporaryDirectory() as folder:
        model = settings.model or str(published(Path(folder, "run")))
        server = subprocess.Popen(
            [sys.executable, "-m", "mnist_ray", "serve", model],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert server.stdout is not None
        url = server.stdout.readline().split()[0]
        memory = psutil.Process(server.pid).memory_info
        pictures = pictures_of()
        rows = []
        asyncio.run(load(url, pictures, 4, 3))  # warms up
        for clients in (1, 2, 4, 8, 16, 32):
            seen = asyncio.run(load(url, pictures, clients, settings.seconds))
            rows.append(row(clients, settings.seconds, seen))
            print(rows[-1], flush=True)
        fast = [r[1] for r in rows if float(r[3]) <= LIMIT_MS]
        best = max(fast, key=lambda rate: float(rate.replace(",", "")), default="none")
        held, parts = [memory().rss / 2**20], 10
        total = Seen()
        for _ in range(parts):
            seen = asyncio.run(load(url, pictures, 4, 60 * settings.minutes / parts, bad_every=7))
            total.times += seen.times
            total.statuses += seen.statuses
            total.lost += seen.lost
            total.wrong += seen.wrong
            held.append(memory().rss / 2**20)
        alive = server.poll() is None
        server.send_signal(signal.SIGINT)
        code = server.wait(20)
    statuses = ", ".join(f"{n:,} × {status}" for status, n in sorted(total.statuses.items()))
    section(
        "Serving under load",
        ["clients", "pictures/s", "median, ms", "99th percentile, ms", "lost or wrong"],
        rows,
        n=f"{settings.seconds:g} seconds a row, one run",
        out=settings.out,
        notes=[
            f"Most pictures a second with a 99th percentile of at most {LIMIT_MS:g} ms: "
            f"{best}. Clients and server share the cores.",
            f"{settings.minutes:g} minutes of 4 clients, each seventh request bad: {statuses}; "
            f"{total.lost} lost, {total.wrong} with another status than expected; 99th percentile "
            f"{np.percentile(total.times, 99):.1f} ms; the server "
            f"{'lived' if alive else 'died'} and ended with {code}.",
            "Memory of the server, MiB, before and after each tenth: "
            + ", ".join(f"{each:.0f}" for each in held) + ".",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main(LoadSettings, measure)
