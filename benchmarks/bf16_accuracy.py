"""Whether training in bfloat16 costs accuracy: the same seeds in bf16 and in fp32.

    MNIST_RAY_DATA=DIR python benchmarks/bf16_accuracy.py     # 5 minutes on two cores

conv 32-32-64-64 with the default stages' optimisation, 4 epochs on 10,000 MNIST images, judged once
at the end by the 50,000 other training images. A seed has the same split, the same first weights
and the same order in both; each run has one thread.
"""

import multiprocessing
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Bf16Settings(BenchmarkSettings):
    """Compare accuracies on unseen images after training in bf16 and in fp32."""

    repeats: int = 10
    """Seeds."""
    train_images: int = 10_000
    """Images that each run is trained on."""
    epochs: int = 4
    """Epochs of each run."""


def run(task: tuple[Bf16Settings, int, str]) -> tuple[int, str, float, float]:
    """Seed, precision, accuracy in percent and loss of one run on the images that it has not seen."""  # noqa: E501
    import torch

    from mnist_ray.training.machine import use_threads
    from mnist_ray.training.trainer import Trainer

    settings, seed, precision = task
    use_threads(1)
    part, train, _ = mnist(settings, settings.train_images, seed=seed)
    val = np.setdiff1d(np.arange(len(part.labels)), train)
    tensors: list[Any] = [
        torch.from_numpy(a.copy()) for a in (part.images, part.labels, train, val)
    ]
    trainer = Trainer(HP, epochs=settings.epochs, seed=seed, precision=precision)
    for _ in range(settings.epochs):
        trainer.train_epoch(*tensors[:3])
    loss, accuracy = trainer.evaluate(tensors[0], tensors[1], tensors[3])
    return seed, precision, 100 * accuracy, loss


def measure(settings: Bf16Settings) -> None:
    """All seeds in both precisions, in turn."""
    tasks = [
        (settings, seed, precision)
        for seed in range(settings.repeats)
        for precision in ("bf16", "fp32")
    ]
    accuracies: dict[str, dict[int, float]] = {"bf16": {}, "fp32": {}}
    losses: dict[str, dict[int, float]] = {"bf16": {}, "fp32": {}}
    with multiprocessing.get_context("spawn").Pool(CORES) as pool:
        for seed, precision, accuracy, loss in pool.imap(run, tasks):
            accuracies[precision][seed], losses[precision][seed] = accuracy, loss
            print(f"seed {seed} {precision}: {accuracy:.2f} %, loss {loss:.4f}", flush=True)
    by_seed = {p: [accuracies[p][seed] for seed in range(settings.repeats)] for p in accuracies}
    loss_by_seed = {p: [losses[p][seed] for seed in range(settings.repeats)] for p in losses}
    section(
        "Accuracy in bf16 and in fp32",
        ["precision", "accuracy, %, mean ± sd", "loss, mean ± sd"],
        [
            *([p, mean_sd(by_seed[p]), mean_sd(loss_by_seed[p], 4)] for p in by_seed),
            [
                "bf16 − fp32, the same seeds (95 % interval)",
                difference(by_seed["bf16"], by_seed["fp32"]),
                difference(loss_by_seed["bf16"], loss_by_seed["fp32"], 4),
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
