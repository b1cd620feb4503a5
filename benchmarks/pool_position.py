"""Errors on unseen writers of a convnet that pools at a block's end, or after its last or first
convolution.

    MNIST_RAY_DATA=DIR python benchmarks/pool_position.py --cache pool.jsonl  # 40 minutes

The network is the one that the recipe `default` finds: 32-32-64-64-128-128, GELU, blur pooling. It
is trained on images of four folds of writers and judged by the fifth fold; the test set is not
touched. Its speed: step_speed.py --compare pooling.
"""

from dataclasses import dataclass
from typing import Any

from common import CORES, BenchmarkSettings, cached, difference, mean_sd, section
from step_speed import COMPARISONS

from mnist_ray.settings import main

VARIANTS = {name: hp for name, (hp, *_) in COMPARISONS["pooling"].items()}


@dataclass(frozen=True)
class PoolPositionSettings(BenchmarkSettings):
    """Compare the places of a block's pooling by their errors."""

    train_images: int = 20_000
    """Images of the accuracy's training."""
    epochs: int = 4
    """Its epochs."""
    seeds: int = 3
    """Trainings of each variant."""
    workers: int = CORES
    """Trainings at a time."""
    cache: str = ""
    """A file that keeps each training's result."""


def training(task: tuple[PoolPositionSettings, dict[str, Any]]) -> dict[str, Any]:
    """One network, trained and judged by writers whom it has not seen."""
    import torch
    from crossval import CrossvalSettings, part_of

    from mnist_ray.training.machine import use_threads
    from mnist_ray.training.trainer import Trainer

    settings, key = task
    use_threads(1)
    part = part_of(CrossvalSettings(data_dir=settings.data_dir))
    pixels = torch.from_numpy(part.images.images.copy())
    labels = torch.from_numpy(part.images.labels.copy())
    seen, unseen = (torch.from_numpy((part.fold == 1) == held).nonzero()[:, 0] for held in (0, 1))
    shuffled = torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))
    train = seen[shuffled[: key["train_images"]]]
    trainer = Trainer(VARIANTS[key["variant"]], epochs=key["epochs"], seed=key["seed"])
    for _ in range(key["epochs"]):
        trainer.train_epoch(pixels, labels, train)
    loss, accuracy = trainer.evaluate(pixels, labels, unseen)
    errors = round((1 - accuracy) * len(unseen))
    return {"key": key, "errors": errors, "loss": loss, "judged": len(unseen)}


def measure(settings: PoolPositionSettings) -> None:
    """Every variant with the same seeds."""
    keys = [
        {
            "variant": name,
            "seed": seed,
            "train_images": settings.train_images,
            "epochs": settings.epochs,
        }
        for seed in range(settings.seeds)
        for name in VARIANTS
    ]
    done = {
        (run["key"]["variant"], run["key"]["seed"]): run for run in cached(training, settings, keys)
    }
    results = {name: [done[name, seed] for seed in range(settings.seeds)] for name in VARIANTS}
    first = next(iter(results.values()))

    def row(name: str, runs: list[dict[str, Any]]) -> list[str]:
        cells = [name]
        for value, digits in (("errors", 1), ("loss", 4)):
            own, base = ([run[value] for run in side] for side in (runs, first))
            cells += [
                mean_sd(own, digits),
                "" if runs is first else difference(own, base, digits),
            ]
        return cells

    section(
        "Accuracy by the place of the pooling",
        [
            "pooling",
            "errors on unseen writers, mean ± sd",
            "− the first row (95 %)",
            "log loss there",
            "− the first row (95 %)",
        ],
        [row(name, runs) for name, runs in results.items()],
        n=(
            f"n = {settings.seeds} seeds, {settings.train_images:,} training images, "
            f"{settings.epochs} epochs, judged by {first[0]['judged']:,} images"
        ),
        out=settings.out,
    )


if __name__ == "__main__":
    main(PoolPositionSettings, measure)
