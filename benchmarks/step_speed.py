"""Images trained a second by variants of one training, in turn on the same cores.

    MNIST_RAY_DATA=DIR python benchmarks/step_speed.py --compare precision pooling  # 5 minutes

Each variant trains in one process a core with one thread, as trials do. A comparison is a row of
COMPARISONS: its first variant is the one that the others are compared with. `--against DIR`
compares this checkout with another one (`git worktree add DIR COMMIT`).
"""

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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

Variant = tuple[dict[str, Any], str, bool]
# title -> variant -> (hyperparameters, precision, whether compiled.c is used)
COMPARISONS: dict[str, dict[str, Variant]] = {
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
    "layout": {  # of PyTorch's MNIST example, as somebody's own network
        "x.view: the usual layout": ({**SMALL, "model": "example_network:Viewed"}, "auto", True),
        "x.flatten: channels last": ({**SMALL, "model": "example_network:Example"}, "auto", True),
    },
}


@dataclass(frozen=True)
class StepSpeedSettings(BenchmarkSettings):
    """Compare variants of a training by their images a second."""

    compare: tuple[str, ...] | None = None
    """The comparisons; all of them unless `--against` is given."""
    against: Path | None = None
    """A checkout of another commit."""
    images: int = 2560
    """Images that each process trains in a repetition."""


def worker(
    settings: StepSpeedSettings, variants: dict[str, Variant], checkout: Path | None = None
) -> Callable[[str], int]:
    """A process with one thread; a call trains `images` images of that variant."""
    import torch

    from mnist_ray.models import compiled
    from mnist_ray.training.machine import use_threads

    use_threads(1)
    found = compiled.library()
    if checkout is not None:
        sys.path.insert(0, str(checkout.resolve()))
        for name in [name for name in sys.modules if name.split(".")[0] == "mnist_ray"]:
            del sys.modules[name]
    try:
        trainer_module = importlib.import_module("mnist_ray.training.trainer")
    except ModuleNotFoundError:  # where it was until 2026-11-24
        trainer_module = importlib.import_module("mnist_ray.training")
    part, train, _ = mnist(settings)
    pixels, labels = torch.from_numpy(part.images.copy()), torch.from_numpy(part.labels.copy())
    index = torch.from_numpy(train[: settings.images])
    trainers = {
        name: trainer_module.Trainer(hp, epochs=1000, seed=0, precision=precision)
        for name, (hp, precision, _) in variants.items()
    }
    for trainer in trainers.values():
        trainer.train_epoch(pixels, labels, index[: trainer.hp["batch_size"]])

    def call(name: str) -> int:
        _, _, fast = variants[name]  # of this checkout; another one has its own
        compiled.library = lambda: found if fast else None  # type: ignore[assignment]
        trainers[name].train_epoch(pixels, labels, index)
        return len(index)

    return call


def measure(settings: StepSpeedSettings) -> None:
    """Each comparison, its variants in turn."""
    chosen = settings.compare
    if chosen is None:
        chosen = () if settings.against else tuple(COMPARISONS)
    unknown = sorted(set(chosen) - set(COMPARISONS))
    if unknown:
        raise SettingsError(
            f"--compare: {unknown[0]!r} is not known; expected {', '.join(COMPARISONS)}"
        )
    for comparison in chosen:
        variants = COMPARISONS[comparison]
        speeds: dict[str, list[float]] = {name: [] for name in variants}
        with Side(worker, [(settings, variants)] * CORES) as side:
            for _ in range(settings.repeats):
                for name, values in speeds.items():
                    seconds, trained = side(name)
                    values.append(sum(trained) / seconds)
        first = next(iter(speeds.values()))
        section(
            f"Training speed by {comparison}",
            [comparison, "images/s, median (quartiles)", "against the first row"],
            [[name, spread(values), ratios(values, first)] for name, values in speeds.items()],
            n=repetitions(settings),
            out=settings.out,
        )
    if settings.against is not None:
        compare_commits(settings, settings.against)


def repetitions(settings: StepSpeedSettings) -> str:
    """What a section says about its n."""
    return f"n = {settings.repeats} repetitions in turn, {settings.images:,} images a process each"


def compare_commits(settings: StepSpeedSettings, checkout: Path) -> None:
    """This checkout and the other one train the same networks, in turn."""
    described = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(
            described, check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise SettingsError(f"--against {checkout}: not a checkout of git") from error
    if not (checkout / "mnist_ray" / "__init__.py").is_file():
        raise SettingsError(f"--against {checkout}: it has no package mnist_ray")
    variants = {
        name.removesuffix(": compiled.c"): variant
        for name, variant in COMPARISONS["layers"].items()
        if name.endswith(": compiled.c")
    }
    before: dict[str, list[float]] = {name: [] for name in variants}
    now: dict[str, list[float]] = {name: [] for name in variants}
    with (
        Side(worker, [(settings, variants, checkout)] * CORES) as old,
        Side(worker, [(settings, variants)] * CORES) as new,
    ):
        for _ in range(settings.repeats):
            for name in variants:
                for side, speeds in ((old, before), (new, now)):
                    seconds, trained = side(name)
                    speeds[name].append(sum(trained) / seconds)
    section(
        f"Training speed against commit {commit}",
        ["network", f"{commit}, images/s", "now, images/s", "now / before"],
        [
            [name, spread(before[name]), spread(now[name]), ratios(now[name], before[name])]
            for name in variants
        ],
        n=repetitions(settings),
        out=settings.out,
    )


if __name__ == "__main__":
    main(StepSpeedSettings, measure)
