"""Dropout with batch normalisation: where in a layer it helps and where it hurts.

    # 6 minutes on two cores; started again, it goes on
    MNIST_RAY_DATA=DIR python benchmarks/dropout_norm.py --cache runs.jsonl

conv 32-32-64-64, 4 epochs on 10,000 MNIST images, dropout 0.2 at each place that
models.families.LAYER_DROPOUT knows, judged at the end on the same 5,000 images, the same seeds
everywhere; each run has one thread. In convolutional layers whole channels are dropped. The
activation is GELU: with ReLU, dropout before it and after it are the same function.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from common import CORES, BenchmarkSettings, cached, convnet, difference, mean_sd, mnist, section

from mnist_ray.settings import main

PLACES = {
    "none": "no dropout",
    "layer_first": "in every layer, before normalisation",
    "layer_between": "in every layer, between normalisation and activation",
    "layer": "in every layer, after both",
    "block": "after each block",
    "head": "before the last linear layer",
}
RECIPE: dict[str, Any] = {
    "activation": "gelu",
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 5e-4,
    "schedule": "one_cycle",
    "ema": 0.998,
}


@dataclass(frozen=True)
class DropoutSettings(BenchmarkSettings):
    """Measure dropout before, between and after normalisation and activation."""

    repeats: int = 5
    """Seeds at each place."""
    rate: float = 0.2
    """Share that is dropped."""
    train_images: int = 10_000
    """Images that each run is trained on."""
    epochs: int = 4
    """Epochs of each run."""
    cache: str | None = None
    """JSON-lines file that keeps finished runs; what is in it is not run again."""
    workers: int = CORES
    """Runs at a time, each with one thread."""


def run(task: tuple[DropoutSettings, dict[str, Any]]) -> dict[str, Any]:
    """One run's key with its validation loss and accuracy (in percent)."""
    import torch

    from mnist_ray.training.machine import use_threads
    from mnist_ray.training.trainer import Trainer

    settings, key = task
    use_threads(1)
    part, train, val = mnist(settings, key["train_images"])
    tensors: list[Any] = [
        torch.from_numpy(a.copy()) for a in (part.images, part.labels, train, val)
    ]
    place: dict[str, Any] = (
        {"dropout": 0.0}
        if key["place"] == "none"
        else {"dropout": key["rate"], "dropout_place": key["place"]}
    )
    trainer = Trainer(convnet(**RECIPE, **place), epochs=key["epochs"], seed=key["seed"])
    for _ in range(key["epochs"]):
        trainer.train_epoch(*tensors[:3])
    loss, accuracy = trainer.evaluate(tensors[0], tensors[1], tensors[3])
    return {"key": key, "loss": loss, "accuracy": 100 * accuracy}


def measure(settings: DropoutSettings) -> None:
    """What the cache lacks is run; then the table."""
    kept = {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if name in ("rate", "train_images", "epochs")
    }
    keys = [
        {"place": place, "seed": seed, **kept}
        for seed in range(settings.repeats)
        for place in PLACES
    ]
    found = {
        (result["key"]["place"], result["key"]["seed"]): result
        for result in cached(run, settings, keys)
    }

    def values(place: str, what: str) -> list[float]:
        return [found[place, seed][what] for seed in range(settings.repeats)]

    section(
        f"Dropout {settings.rate:g} with batch normalisation",
        [
            "dropout",
            "validation accuracy, %, mean ± sd",
            "difference to none (95 %)",
            "validation loss, mean ± sd",
            "difference (95 %)",
        ],
        [
            [
                f"`{place}`: {words}",
                mean_sd(values(place, "accuracy")),
                ""
                if place == "none"
                else difference(values(place, "accuracy"), values("none", "accuracy")),
                mean_sd(values(place, "loss"), 4),
                ""
                if place == "none"
                else difference(values(place, "loss"), values("none", "loss"), 4),
            ]
            for place, words in PLACES.items()
        ],
        n=(
            f"n = {settings.repeats} seeds each, {settings.train_images:,} training images, "
            f"{settings.epochs} epochs"
        ),
        out=settings.out,
    )


if __name__ == "__main__":
    main(DropoutSettings, measure)
