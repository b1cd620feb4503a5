"""--gpus-per-trial auto: how many trials share a GPU, by the memory of the space's largest networks and by what is measured.

Runs on a node with a GPU that nobody else has meanwhile: measured are processes of its own, 1, 2, 4, ... of them at a time.
"""

import math
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from mnist_ray.errors import WorkError, first_line

if TYPE_CHECKING:
    from torch import Tensor

AT_A_TIME = (1, 2, 4, 8, 16)
SECONDS = 3.0  # of training, for each number at a time
STEPS = 10  # of training between two looks at the clock
ENOUGH = 0.95  # of the best throughput: the fewer trials at a time, the more the searcher knows when it suggests the next
MARGIN = 1.1  # by which the memory is taken to be more than measured
START_SECONDS = 300.0  # for the processes to import torch


@dataclass(frozen=True)
class Found:
    """What was measured. images_per_second: of all processes together, by their number."""

    memory: float  # bytes of one process with the hungriest network; 0 on a CPU
    total: float  # bytes of the device
    images_per_second: dict[int, float]

    @property
    def trials(self) -> int:
        """The number to run at a time."""
        return fewest(self.images_per_second)

    def __str__(self) -> str:
        rates = ", ".join(
            f"{number} at a time {rate:,.0f}" for number, rate in self.images_per_second.items()
        )
        return f"a trial needs up to {self.memory / 2**30:.1f} of {self.total / 2**30:.1f} GiB; images/s: {rates}"


def fewest(images_per_second: Mapping[int, float]) -> int:
    """The fewest at a time that have ENOUGH of the best throughput."""
    best = max(images_per_second.values())
    return min(number for number, rate in images_per_second.items() if rate >= ENOUGH * best)


def numbers(memory: float, total: float, slots: float) -> list[int]:
    """How many at a time are worth a try: no more than the device's bytes hold and than `slots`, but one always."""
    most = max(1.0, min(slots, total / (MARGIN * memory) if memory else math.inf))
    return [number for number in AT_A_TIME if number <= most]


def measure(
    largest: Sequence[Mapping[str, Any]],
    drawn: Sequence[Mapping[str, Any]],
    data_bytes: int,
    slots: float,
    cpus: float,
    precision: str,
    device: str = "cuda",
) -> Found:
    """Measures on this machine's device, in some 20 s.

    largest: hyperparameters of the networks that may need most memory; drawn: of networks as a search meets them, of which the one with
    the median number of parameters is trained. data_bytes: of the images and labels that each process holds on the device. slots: how many
    trials the CPUs and --max-concurrent allow at a time; cpus: of one trial. Raises WorkError where a process cannot be measured.
    """
    try:
        with _pool(1, cpus) as pool:
            typical = pool.submit(_median, drawn).result()
            memory, total = pool.submit(_memory, largest, precision, device).result()
        memory += data_bytes if memory else 0
        rates: dict[int, float] = {}
        worth = numbers(memory, total, slots)
        with _pool(worth[-1], cpus) as pool:
            list(pool.map(_median, [drawn[:1]] * worth[-1]))  # all of them are there, with torch
            for number in worth:
                rates[number] = sum(
                    pool.map(
                        _images_per_second,
                        *zip(*[(typical, precision, device)] * number, strict=True),
                    )
                )
    except (
        Exception
    ) as error:  # of the device, of a process that died, of a network of the user's own
        raise WorkError(
            f"--gpus-per-trial: auto: {type(error).__name__}: {first_line(error)}; give a number instead"
        ) from error
    return Found(memory, total, rates)


def _pool(processes: int, cpus: float) -> ProcessPoolExecutor:
    context = get_context("spawn")  # CUDA does not survive a fork
    return ProcessPoolExecutor(processes, context, _together, (context.Barrier(processes), cpus))


def _together(barrier: threading.Barrier, cpus: float) -> None:
    """A process begins when all are there: none works for two."""
    from mnist_ray.training.trainer import use_threads

    use_threads(cpus)
    barrier.wait(START_SECONDS)


def _median(drawn: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The one with the median number of parameters."""
    from mnist_ray import models

    sizes = [models.n_parameters(models.build(hp)) for hp in drawn]
    return drawn[sizes.index(statistics.median_low(sizes))]


def _images(hp: Mapping[str, Any], device: str) -> "tuple[Tensor, Tensor]":
    import torch

    n = STEPS * hp["batch_size"]
    images = torch.randint(
        0, 256, (n, hp["in_channels"], *hp["image_size"]), dtype=torch.uint8, device=device
    )
    return images, torch.randint(0, hp["classes"], (n,), device=device)


def _memory(hps: Sequence[Mapping[str, Any]], precision: str, device: str) -> tuple[float, float]:
    """Bytes that a process needs to train and judge the hungriest of these networks, CUDA's own among them, and the device's bytes."""
    import torch

    from mnist_ray.training.trainer import Trainer

    if device == "cpu":
        return 0.0, math.inf
    total = torch.cuda.mem_get_info()[1]
    for hp in hps:
        try:
            trainer = Trainer(hp, epochs=2, seed=0, device=device, precision=precision)
            images, labels = _images(hp, device)
            trainer.train_epoch(images, labels)
            trainer.evaluate(images, labels, torch.arange(len(labels), device=device))
            del trainer
        except torch.cuda.OutOfMemoryError:
            return total, total
    free, total = torch.cuda.mem_get_info()
    outside = (
        total - free - torch.cuda.memory_reserved()
    )  # the context and the kernels: nobody else is on the device
    return torch.cuda.max_memory_reserved() + outside, total


def _images_per_second(hp: Mapping[str, Any], precision: str, device: str) -> float:
    from mnist_ray.training.trainer import Trainer

    images, labels = _images(hp, device)
    trainer = Trainer(
        {**hp, "schedule": "constant"}, epochs=1, seed=0, device=device, precision=precision
    )
    trainer.train_epoch(images, labels)  # the first steps choose kernels
    done, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < SECONDS:
        trainer.train_epoch(images, labels)
        done += len(labels)
    return done / seconds
