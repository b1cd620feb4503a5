"""The published model in onnxruntime against the same network in eager torch.

    # a minute; the conv 32-32-64-64 with random weights, exported as the jobs export it
    python benchmarks/serving.py
    python benchmarks/serving.py --model DIR/first     # a run's published model

Latency of one image and images a second in batches of 256, in float32 (as the file is), with all
cores' threads and with one. Each side lives in a process of its own and is asked in turn.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from common import CORES, BenchmarkSettings, Side, convnet, ratios, section, spread

from mnist_ray.settings import main


@dataclass(frozen=True)
class ServingSettings(BenchmarkSettings):
    """Measure latency and throughput of the published model."""

    model: str | None = None
    """An ONNX file of ours or a run's directory (default: conv 32-32-64-64 with random weights)."""
    calls: int = 300
    """Single images in a repetition."""
    batches: int = 20
    """Batches of 256 in a repetition."""


def published(settings: ServingSettings) -> bytes:
    """The model's file."""
    import torch

    from mnist_ray import models
    from mnist_ray.export.read import read_model
    from mnist_ray.export.write import export

    if settings.model:
        return read_model(settings.model)
    torch.manual_seed(0)
    hp = convnet()
    model = models.build(hp)
    model(torch.rand(64, 1, 28, 28))  # statistics of BatchNorm that are not the initial ones
    return export(model.eval(), hp, {})


def runtime(model: bytes, threads: int) -> Callable[[int, int], float]:
    """onnxruntime; a call gives the seconds for so many images, in batches of that size."""
    from mnist_ray.export.session import Session

    session = Session(model, "the model", threads)
    return _timed(session.run, session.image_shape)


def eager(model: bytes, threads: int) -> Callable[[int, int], float]:
    """torch."""
    import torch

    from mnist_ray.export.write import rebuild

    torch.set_num_threads(threads)
    network, hp = rebuild(model, "the model")

    def predict(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(pixels)).numpy()

    return _timed(predict, (hp["in_channels"], *hp["image_size"]))


def _timed(
    predict: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]
) -> Callable[[int, int], float]:
    random = np.random.default_rng(0)

    def call(batches: int, size: int) -> float:
        """The median seconds of a batch."""
        pixels = random.random((size, *shape), dtype=np.float32)
        time.sleep(
            0.1
        )  # onnxruntime's threads of the call before may still wait for work, using a core
        times = []
        for _ in range(5 + batches):
            start = time.perf_counter()
            predict(pixels)
            times.append(time.perf_counter() - start)
        return float(np.median(times[5:]))

    return call


def measure(settings: ServingSettings) -> None:
    """Both sides with all cores' threads and with one."""
    model = published(settings)
    rows = []
    for where, threads in {f"{CORES} threads": CORES, "1 thread": 1}.items():
        with Side(runtime, [(model, threads)]) as ours, Side(eager, [(model, threads)]) as peer:
            latency: dict[Side, list[float]] = {ours: [], peer: []}
            speed: dict[Side, list[float]] = {ours: [], peer: []}
            for _ in range(settings.repeats):
                for side in (ours, peer):
                    latency[side].append(1e6 * side(settings.calls, 1)[1][0])
                    speed[side].append(256 / side(settings.batches, 256)[1][0])
        rows.append(
            [
                f"one image, {where}, µs",
                spread(latency[ours]),
                spread(latency[peer]),
                ratios(latency[peer], latency[ours]),
            ]
        )
        rows.append(
            [
                f"images/s in batches of 256, {where}",
                spread(speed[ours]),
                spread(speed[peer]),
                ratios(speed[ours], speed[peer]),
            ]
        )
    section(
        "Serving the published model",
        ["what", "onnxruntime, median (quartiles)", "eager torch", "gain"],
        rows,
        n=(
            f"n = {settings.repeats} repetitions of {settings.calls} single images and "
            f"{settings.batches} batches, their median each"
        ),
        out=settings.out,
        notes=[
            f"The model: "
            f"{'a published one' if settings.model else 'conv 32-32-64-64 with random weights'}, "
            f"{len(model) / 1e6:.2f} MB."
        ],
    )


if __name__ == "__main__":
    main(ServingSettings, measure)
