"""Images trained a second by variants of one training, in turn on the same cores.

    MNIST_RAY_DATA=DIR python benchmarks/step_speed.py --compare precision pooling  # 5 minutes

Each variant trains in one process a core with one thread, as trials do. A comparison is a row of
COMPARISONS: its first variant is the one that the others are compared with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common import CORES, BenchmarkSettings, Side, convnet, mnist, ratios, section, spread

from mnist_ray.errors import SettingsError
from mnist_ray.settings import main

RECIPE: dict[str, Any] = {
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 5e-4,
    "schedule": "one_cycle",
    "label_smoothing": 0.1,
    "dropout": 0.3,
    "ema": 0.998,
}
SMALL = convnet(2, 32, **RECIPE)  # 32-32-64-64, ReLU, maximum pooling
FOUND = convnet(3, 32, **RECIPE, activation="gelu", pooling="blur")  # that the recipe default finds

# title -> variant -> (hyperparameters, precision, whether compiled.c is used)
COMPARISONS: dict[str, dict[str, tuple[dict[str, Any], str, bool]]] = {
    "layers": {
        "32-32-64-64, ReLU, max: torch's": (SMALL, "auto", False),
        "32-32-64-64, ReLU, max: compiled.c": (SMALL, "auto", True),
        "32-32-64-64-128-128, GELU, blur: torch's": (FOUND, "auto", False),
        "32-32-64-64-128-128, GELU, blur: compiled.c": (FOUND, "auto", True),
        "the same with jitter: torch's": ({**FOUND, "pool_jitter": 1}, "auto", False),
        "the same with jitter: compiled.c": ({**FOUND, "pool_jitter": 1}, "auto", True),
    },
    "precision": {
        "32-32-64-64, fp32": (SMALL, "fp32", True),
        "32-32-64-64, bf16": (SMALL, "bf16", True),
    },
    "pooling": {
        "end, width 32": (FOUND, "auto", True),
        "conv, width 32": ({**FOUND, "pool_position": "conv"}, "auto", True),
        "first, width 32": ({**FOUND, "pool_position": "first"}, "auto", True),
        "first, width 48": ({**FOUND, "pool_position": "first", "width": 48}, "auto", True),
    },
}


@dataclass(frozen=True)
class StepSpeedSettings(BenchmarkSettings):
    """Compare variants of a training by their images a second."""

    compare: tuple[str, ...] = tuple(COMPARISONS)
    """The comparisons."""
    images: int = 2560
    """Images that each process trains in a repetition."""


def worker(settings: StepSpeedSettings, comparison: str) -> Callable[[str], int]:
    """A process with one thread; a call trains `images` images of that variant."""
    import torch

    from mnist_ray.models import compiled
    from mnist_ray.training.machine import use_threads
    from mnist_ray.training.trainer import Trainer

    use_threads(1)
    found = compiled.library()
    part, train, _ = mnist(settings)
    pixels, labels = torch.from_numpy(part.images.copy()), torch.from_numpy(part.labels.copy())
    index = torch.from_numpy(train[: settings.images])
    trainers = {
        name: Trainer(hp, epochs=1000, seed=0, precision=precision)
        for name, (hp, precision, _) in COMPARISONS[comparison].items()
    }
    for trainer in trainers.values():
        trainer.train_epoch(pixels, labels, index[: trainer.hp["batch_size"]])

    def call(name: str) -> int:
        _, _, fast = COMPARISONS[comparison][name]
        compiled.library = lambda: found if fast else None  # type: ignore[assignment]
        trainers[name].train_epoch(pixels, labels, index)
        return len(index)

    return call


def measure(settings: StepSpeedSettings) -> None:
    """Each comparison, its variants in turn."""
    unknown = sorted(set(settings.compare) - set(COMPARISONS))
    if unknown:
        raise SettingsError(
            f"--compare: {unknown[0]!r} is not known; expected {', '.join(COMPARISONS)}"
        )
    for comparison in settings.compare:
        speeds: dict[str, list[float]] = {name: [] for name in COMPARISONS[comparison]}
        with Side(worker, [(settings, comparison)] * CORES) as side:
            for _ in range(settings.repeats):
                for name, values in speeds.items():
                    seconds, trained = side(name)
                    values.append(sum(trained) / seconds)
        first = next(iter(speeds.values()))
        section(
            f"Training speed by {comparison}",
            [comparison, "images/s, median (quartiles)", "against the first row"],
            [[name, spread(values), ratios(values, first)] for name, values in speeds.items()],
            n=(
                f"n = {settings.repeats} repetitions in turn, "
                f"{settings.images:,} images a process each"
            ),
            out=settings.out,
        )


if __name__ == "__main__":
    main(StepSpeedSettings, measure)
