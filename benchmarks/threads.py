"""A trial of two threads beside other work: images a second by how OpenMP's threads wait.

    MNIST_RAY_DATA=DIR python benchmarks/threads.py     # 3 minutes on two cores

OpenMP's threads meet after every operator. A thread that waits spins, in the hope that the others
come at once; where another program has the core of one of them, all of the others spin for as long.
`passive` (OMP_WAIT_POLICY) lets them sleep instead. The other work are processes that count.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from common import CORES, BenchmarkSettings, Side, mnist, ratios, section, spread
from step_speed import SMALL

from mnist_ray.settings import main

WAYS = {  # threads, and OpenMP's environment
    "one thread": (1, {}),
    "two threads, as torch has them": (2, {}),
    "two threads, passive": (2, {"OMP_WAIT_POLICY": "passive"}),
    "two threads, spinning a little": (2, {"GOMP_SPINCOUNT": "1000"}),
}


@dataclass(frozen=True)
class ThreadsSettings(BenchmarkSettings):
    """Measure a trial's threads beside other work."""

    images: int = 1280
    """Images that a repetition trains."""
    busy: tuple[int, ...] = (0, 1, 2)
    """Other processes that count meanwhile."""


def worker(settings: ThreadsSettings, threads: int) -> Callable[[], int]:
    """A process with so many threads; a call trains `images` images."""
    import torch

    from mnist_ray.training.machine import use_threads
    from mnist_ray.training.trainer import Trainer

    use_threads(threads)
    part, train, _ = mnist(settings)
    pixels, labels = torch.from_numpy(part.images.copy()), torch.from_numpy(part.labels.copy())
    index = torch.from_numpy(train[: settings.images])
    trainer = Trainer(SMALL, epochs=1000, seed=0)
    trainer.train_epoch(pixels, labels, index[:256])

    def call() -> int:
        trainer.train_epoch(pixels, labels, index)
        return len(index)

    return call


def count() -> None:
    """Keeps a core busy."""
    while True:
        sum(range(100_000))


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Other work."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=count, daemon=True) for _ in range(processes)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.join()


@contextlib.contextmanager
def environment(names: dict[str, str]) -> Iterator[None]:
    """Variables for the processes that are started meanwhile."""
    os.environ.pop("OMP_NUM_THREADS", None)
    os.environ.update(names)
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]


def measure(settings: ThreadsSettings) -> None:
    """Every way in turn, beside every amount of other work."""
    with contextlib.ExitStack() as stack:
        sides: dict[str, Side] = {}
        for way, (threads, names) in WAYS.items():
            with environment(names):
                sides[way] = stack.enter_context(Side(worker, [(settings, threads)]))
        speeds: dict[tuple[int, str], list[float]] = {}
        for others in settings.busy:
            with busy(others):
                for _ in range(settings.repeats):
                    for way, side in sides.items():
                        seconds, trained = side()
                        speeds.setdefault((others, way), []).append(sum(trained) / seconds)
    rows: list[list[Any]] = []
    for (others, way), values in speeds.items():
        first = speeds[others, next(iter(WAYS))]
        rows.append([others, way, spread(values), ratios(values, first)])
    section(
        "A trial's threads beside other work",
        ["other processes", "trial", "images/s, median (quartiles)", "against one thread"],
        rows,
        n=f"n = {settings.repeats} repetitions in turn, {settings.images:,} images each",
        out=settings.out,
        notes=[f"The trial and the others share {CORES} cores."],
    )


if __name__ == "__main__":
    main(ThreadsSettings, measure)
