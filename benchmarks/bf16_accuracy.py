"""Whether a faster training costs accuracy: the same seeds in bf16 and in fp32, or by both layers.

    MNIST_RAY_DATA=DIR python benchmarks/bf16_accuracy.py     # 5 minutes on two cores
    MNIST_RAY_DATA=DIR python benchmarks/bf16_accuracy.py --compare layers

conv 32-32-64-64 with the default stages' optimisation, 4 epochs on 10,000 MNIST images, judged once
at the end by the 50,000 other training images. A seed has the same split, the same first weights
and the same order in both; each run has one thread. The layers are those of compiled.c and torch's.
"""

import multiprocessing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from common import CORES, BenchmarkSettings, convnet, difference, mean_sd, mnist, section

from mnist_ray.settings import main

HP = convnet(
    optimizer="sgd",
    lr=0.1,
    weight_decay=5e-4,
    schedule="one_cycle",
    label_smoothing=0.1,
    ema=0.998,
    dropout=0.2,
    batch_size=64,
)
# title -> variant -> changes of the network, precision, whether compiled.c is used
FOUND = {"activation": "gelu", "pooling": "blur"}  # in place of ReLU and maximum pooling
COMPARISONS: dict[str, tuple[str, dict[str, tuple[dict[str, Any], str, bool]]]] = {
    "precision": (
        "Accuracy in bf16 and in fp32",
        {"bf16": ({}, "bf16", True), "fp32": ({}, "fp32", True)},
    ),
    "layers": (
        "Accuracy by compiled.c and by torch's layers",
        {"compiled.c": (FOUND, "auto", True), "torch": (FOUND, "auto", False)},
    ),
}


@dataclass(frozen=True)
class Bf16Settings(BenchmarkSettings):
    """Compare accuracies on unseen images after two kinds of training."""

    compare: Literal["precision", "layers"] = "precision"
    """What differs."""

    repeats: int = 10
    """Seeds."""
    train_images: int = 10_000
    """Images that each run is trained on."""
    epochs: int = 4
    """Epochs of each run."""


def run(task: tuple[Bf16Settings, int, str]) -> tuple[int, str, float, float]:
    """Seed, variant, accuracy in percent and loss of one run on the images that it has not seen."""
    import torch

    from mnist_ray.models import compiled
    from mnist_ray.training.machine import use_threads
    from mnist_ray.training.trainer import Trainer

    settings, seed, variant = task
    change, precision, fast = COMPARISONS[settings.compare][1][variant]
    if not fast:
        compiled.library = lambda: None  # type: ignore[assignment]
    use_threads(1)
    part, train, _ = mnist(settings, settings.train_images, seed=seed)
    val = np.setdiff1d(np.arange(len(part.labels)), train)
    tensors: list[Any] = [
        torch.from_numpy(a.copy()) for a in (part.images, part.labels, train, val)
    ]
    trainer = Trainer({**HP, **change}, epochs=settings.epochs, seed=seed, precision=precision)
    for _ in range(settings.epochs):
        trainer.train_epoch(*tensors[:3])
    loss, accuracy = trainer.evaluate(tensors[0], tensors[1], tensors[3])
    return seed, variant, 100 * accuracy, loss


def measure(settings: Bf16Settings) -> None:
    """All seeds in both variants, in turn."""
    title, variants = COMPARISONS[settings.compare]
    tasks = [(settings, seed, variant) for seed in range(settings.repeats) for variant in variants]
    accuracies: dict[str, dict[int, float]] = {variant: {} for variant in variants}
    losses: dict[str, dict[int, float]] = {variant: {} for variant in variants}
    # A process a run: a variant's layers must not meet another's.
    with multiprocessing.get_context("spawn").Pool(CORES, maxtasksperchild=1) as pool:
        for seed, variant, accuracy, loss in pool.imap(run, tasks, chunksize=1):
            accuracies[variant][seed], losses[variant][seed] = accuracy, loss
            print(f"seed {seed} {variant}: {accuracy:.2f} %, loss {loss:.4f}", flush=True)
    by_seed = {v: [accuracies[v][seed] for seed in range(settings.repeats)] for v in variants}
    loss_by_seed = {v: [losses[v][seed] for seed in range(settings.repeats)] for v in variants}
    first, second = variants
    section(
        title,
        [settings.compare, "accuracy, %, mean ± sd", "loss, mean ± sd"],
        [
            *([v, mean_sd(by_seed[v]), mean_sd(loss_by_seed[v], 4)] for v in variants),
            [
                f"{first} − {second}, the same seeds (95 % interval)",
                difference(by_seed[first], by_seed[second]),
                difference(loss_by_seed[first], loss_by_seed[second], 4),
            ],
        ],
        n=(
            f"n = {settings.repeats} seeds each, {settings.train_images:,} training images, "
            f"{settings.epochs} epochs"
        ),
        out=settings.out,
        notes=["Judged by the training images that were not trained on."],
    )


if __name__ == "__main__":
    main(Bf16Settings, measure)
