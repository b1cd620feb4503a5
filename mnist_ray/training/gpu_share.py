"""--gpus-per-trial auto: how many trials share a GPU, found by measuring.

Runs on a node with a GPU that nobody else uses meanwhile. It starts 1, 2, 4, ... processes of its
own at a time and measures the memory and the throughput of networks of the search space.
"""

import math
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from mnist_ray import models
from mnist_ray.errors import WorkError, first_line
from mnist_ray.processes import end_with_parent
from mnist_ray.training.folds import FoldTrainer
from mnist_ray.training.machine import use_threads
from mnist_ray.training.trainer import EVALUATION_BATCH, Trainer

AT_A_TIME = (1, 2, 4, 8, 16)
SECONDS = 3.0  # of training, for each number at a time
STEPS = 10  # of training between two looks at the clock
# Of the best throughput. The fewer trials at a time, the more results a suggestion can build on.
ENOUGH = 0.95
MARGIN = 1.1  # factor of the measured memory
START_SECONDS = 300.0  # for the processes to import torch


@dataclass(frozen=True)
class Found:
    """The measurement.

    Args:
        memory: Bytes of one process with the trial that needs most; 0 on a CPU.
        total: Bytes of the device.
        images_per_second: Of all processes together, by their number.
    """

    memory: float
    total: float
    images_per_second: dict[int, float]

    @property
    def trials(self) -> int:
        """The number to run at a time."""
        return fewest(self.images_per_second)

    def __str__(self) -> str:
        rates = ", ".join(
            f"{number} at a time {rate:,.0f}" for number, rate in self.images_per_second.items()
        )
        memory, total = self.memory / 2**30, self.total / 2**30
        return f"a trial needs up to {memory:.1f} of {total:.1f} GiB; images/s: {rates}"


def fewest(images_per_second: Mapping[int, float]) -> int:
    """The fewest at a time that have ENOUGH of the best throughput."""
    best = max(images_per_second.values())
    return min(number for number, rate in images_per_second.items() if rate >= ENOUGH * best)


def numbers(memory: float, total: float, slots: float) -> list[int]:
    """The numbers at a time to try: those that memory and `slots` allow, at least one."""
    most = max(1.0, min(slots, total / (MARGIN * memory) if memory else math.inf))
    return [number for number in AT_A_TIME if number <= most]


def measure(  # noqa: PLR0913 (plain values, for a task of Ray's)
    largest: Sequence[Mapping[str, Any]],
    drawn: Sequence[Mapping[str, Any]],
    data_bytes: int,
    slots: float,
    cpus: float,
    precision: str,
    device: str = "cuda",
    folds: int = 1,
) -> Found:
    """Measures on this machine's device, in some 20 s.

    Args:
        largest: Hyperparameters of the networks that may need most memory.
        drawn: Hyperparameters as a search meets them. The one with the median number of
            parameters is trained.
        data_bytes: Bytes of the images and labels that each process holds on the device.
        slots: How many trials the CPUs and --max-concurrent allow at a time.
        cpus: CPUs of one trial.
        precision: As of `Trainer`.
        device: "cuda" or, for tests, "cpu".
        folds: Networks of a trial, which take turns and all stay in memory.

    Raises:
        WorkError: A process cannot be measured.
    """
    try:
        with _pool(1, cpus) as pool:
            typical = pool.submit(_median, drawn).result()
            memory, total = pool.submit(_memory, largest, precision, device, folds).result()
        memory += data_bytes if memory else 0
        rates: dict[int, float] = {}
        to_try = numbers(memory, total, slots)
        with _pool(to_try[-1], cpus) as pool:
            list(pool.map(_median, [drawn[:1]] * to_try[-1]))  # all have started and have torch
            for number in to_try:
                work = zip(*[(typical, precision, device)] * number, strict=True)
                rates[number] = sum(pool.map(_images_per_second, *work))
    except Exception as error:  # of the device, a process that died, a network of the user's own
        found = f"{type(error).__name__}: {first_line(error)}"
        raise WorkError(f"--gpus-per-trial: auto: {found}; give a number instead") from error
    return Found(memory, total, rates)


def _pool(processes: int, cpus: float) -> ProcessPoolExecutor:
    context = get_context("spawn")  # CUDA does not survive a fork
    return ProcessPoolExecutor(processes, context, _together, (context.Barrier(processes), cpus))


def _together(barrier: threading.Barrier, cpus: float) -> None:
    """A process begins when all are there: none works for two."""
    end_with_parent()  # else it would keep its memory on the device
    use_threads(cpus)
    barrier.wait(START_SECONDS)


def _median(drawn: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The one with the median number of parameters."""
    sizes = [models.n_parameters(models.build(hp)) for hp in drawn]
    return drawn[sizes.index(statistics.median_low(sizes))]


def _images(hp: Mapping[str, Any], device: str) -> tuple[Tensor, Tensor]:
    n = STEPS * hp["batch_size"]
    shape = (n, hp["in_channels"], *hp["image_size"])
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    return images, torch.randint(0, hp["classes"], (n,), device=device)


def _memory(
    hps: Sequence[Mapping[str, Any]], precision: str, device: str, folds: int
) -> tuple[float, float]:
    """Bytes that a trial of any of these networks takes, CUDA's own included, and the device's."""
    if device == "cpu":
        return 0.0, math.inf
    total = torch.cuda.mem_get_info()[1]
    for hp in hps:
        try:
            options = {"epochs": 2, "seed": 0, "device": device, "precision": precision}
            trainer = FoldTrainer(hp, folds=folds, **options)
            images, labels = _images(hp, device)
            train = torch.arange(len(labels), device=device)
            whole = torch.arange(EVALUATION_BATCH["cuda"], device=device) % len(labels)
            trainer.run_epoch(images, labels, *[train, whole] * folds)
            del trainer
        except torch.cuda.OutOfMemoryError:
            return total, total
    free, total = torch.cuda.mem_get_info()
    # The context and the kernels: nobody else is on the device.
    outside = total - free - torch.cuda.memory_reserved()
    return torch.cuda.max_memory_reserved() + outside, total


def _images_per_second(hp: Mapping[str, Any], precision: str, device: str) -> float:
    images, labels = _images(hp, device)
    constant = {**hp, "schedule": "constant"}
    trainer = Trainer(constant, epochs=1, seed=0, device=device, precision=precision)
    trainer.train_epoch(images, labels)  # the first steps choose kernels
    done, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < SECONDS:
        trainer.train_epoch(images, labels)
        done += len(labels)
    return done / seconds
