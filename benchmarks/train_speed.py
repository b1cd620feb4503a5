"""Images trained a second with all cores busy: trials side by side against the original
experiments' loop on all cores.

    MNIST_RAY_DATA=DIR python benchmarks/train_speed.py     # 3 minutes on two cores

Ours: a Trainer a core, each with one thread, started together, as a search runs its trials. Peer:
one process with all cores' threads (peer_loop.py), its DataLoader with 0 or 2 workers, whichever
was faster in the warm-up. Both train the same layers with Adam in batches of 128; our network
normalises its pixels itself. What a trial of the default space does besides, averaging its weights,
is a row of its own.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common import CORES, BenchmarkSettings, Side, convnet, mnist, ratios, section, spread

from mnist_ray.settings import main

CONV = convnet()
MLP = {
    key: CONV[key]
    for key in (
        "in_channels",
        "image_size",
        "classes",
        "mean",
        "std",
        "batch_size",
        "optimizer",
        "lr",
    )
}
MLP |= {"model": "mlp", "units": [128, 128], "dropouts": [0.25, 0.25]}


@dataclass(frozen=True)
class TrainSpeedSettings(BenchmarkSettings):
    """Measure images trained a second, ours against the original experiments' loop."""

    conv_images: int = 12_800
    """Images that each process trains in a repetition of the convolutional network."""
    mlp_images: int = 51_200
    """The same for the MLP."""
    loader_workers: int | None = None
    """DataLoader workers of the peer (default: 0 or 2, measured)."""


def ours(settings: TrainSpeedSettings, hp: dict[str, Any], images: int) -> Callable[[], int]:
    """A process of our side; a call trains `images` images."""
    import torch

    from mnist_ray.training.machine import use_threads
    from mnist_ray.training.trainer import Trainer

    use_threads(1)
    part, train, _ = mnist(settings)
    pixels, labels, index = (
        torch.from_numpy(part.images.copy()),
        torch.from_numpy(part.labels.copy()),
        torch.from_numpy(train[:images]),
    )
    trainer = Trainer(hp, epochs=1, seed=0)
    trainer.train_epoch(pixels, labels, index[: max(256, images // 4)])

    def call() -> int:
        trainer.train_epoch(pixels, labels, index)
        return len(index) // hp["batch_size"] * hp["batch_size"]

    return call


def peer(
    settings: TrainSpeedSettings, hp: dict[str, Any], images: int
) -> Callable[[], tuple[int, int]]:
    """The peer's process; a call trains `images` images and returns their number and that of the
    DataLoader's workers.
    """
    import peer_loop
    import torch

    torch.set_num_threads(CORES)
    torch.manual_seed(0)
    _, train, _ = mnist(settings)
    model = peer_loop.network(hp)
    adam = peer_loop.optimizer(model, hp)

    def seconds(workers: int) -> float:
        """A warm-up."""
        start = time.perf_counter()
        peer_loop.train_epoch(
            model,
            peer_loop.loader(settings.data_dir, train[:images], 128, shuffle=True, workers=workers),
            adam,
        )
        return time.perf_counter() - start

    workers = settings.loader_workers
    if workers is None:
        peer_loop.train_epoch(
            model, peer_loop.loader(settings.data_dir, train[:1280], 128, shuffle=True), adam
        )
        workers = min((0, 2), key=seconds)
    batches = peer_loop.loader(
        settings.data_dir, train[:images], 128, shuffle=True, workers=workers
    )

    def call() -> tuple[int, int]:
        peer_loop.train_epoch(model, batches, adam)
        return images, workers

    return call


def measure(settings: TrainSpeedSettings) -> None:
    """Both networks, both sides in turn."""
    rows, notes = [], []
    for name, hp, images in (
        ("conv 32-32-64-64", CONV, settings.conv_images),
        ("MLP 128-128", MLP, settings.mlp_images),
    ):
        variants = {"ours": hp, "ours, with weight average": {**hp, "ema": 0.998}}
        sides = {
            variant: Side(ours, [(settings, values, images)] * CORES)
            for variant, values in variants.items()
        }
        sides["peer"] = Side(peer, [(settings, hp, images)])
        speeds: dict[str, list[float]] = {side: [] for side in sides}
        workers = 0
        for _ in range(settings.repeats):
            for side, call in sides.items():
                seconds, results = call()
                if side == "peer":
                    (trained, workers), seconds = results[0], seconds
                else:
                    trained = sum(results)
                speeds[side].append(trained / seconds)
        for call in sides.values():
            call.close()
        for side, values in speeds.items():
            rows.append(
                [
                    name,
                    side,
                    spread(values),
                    "" if side == "peer" else ratios(values, speeds["peer"]),
                ]
            )
        notes.append(
            f"{name}: the peer's DataLoader had {workers} workers; {images:,} images a process "
            f"and repetition."
        )
    section(
        "Training speed, all cores busy",
        ["network", "side", "images/s, median (quartiles)", "ours / peer"],
        rows,
        n=f"n = {settings.repeats} repetitions of each side in turn",
        out=settings.out,
        notes=notes,
    )


if __name__ == "__main__":
    main(TrainSpeedSettings, measure)
