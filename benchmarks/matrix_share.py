"""The share of this machine's matrix rate that training a convnet reaches, and where the rest
of the time goes.

    MNIST_RAY_DATA=DIR python benchmarks/matrix_share.py     # 3 minutes on two cores

Floating-point operations of a step are counted by torch's FlopCounterMode over forward and backward
pass; the rate that they are compared with is the best matrix product of a few sizes, measured by
the same process before each training, in the precision that trials have on this CPU. One process
with one thread while the others rest, and one on every core at the same time. The networks train
as trials of the default space do: SGD, weight average.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

from common import CORES, BenchmarkSettings, Side, convnet, mnist, section, spread, table

from mnist_ray.settings import main

RECIPE: dict[str, Any] = {
    "optimizer": "sgd",
    "lr": 0.05,
    "weight_decay": 5e-4,
    "schedule": "one_cycle",
    "label_smoothing": 0.1,
    "ema": 0.998,
}
NETWORKS = {
    "32-32-64-64": convnet(blocks=2, width=32, **RECIPE),
    "32-32-64-64-128-128": convnet(blocks=3, width=32, **RECIPE),
    "48-48-96-96": convnet(blocks=2, width=48, **RECIPE),
    "default's: six layers, GELU, blur": convnet(3, activation="gelu", pooling="blur", **RECIPE),
}
# An operator belongs to the first group one of whose words is in its name.
GROUPS = {
    "convolutions": ("convolution", "conv2d"),
    "normalisation, in compiled.c with activation": ("batch_norm", "norm_"),
    "activation": ("relu", "threshold_backward", "gelu", "silu", "elu"),
    "pooling": ("pool",),
    "optimiser and weight average": ("_fused", "_foreach"),
    "linear layers and loss": ("addmm", "aten.mm", "softmax", "nll_loss"),
    "pixels and casts": ("copy", "index", "aten.mul", "aten.sub", "aten.add"),
}


@dataclass(frozen=True)
class MatrixShareSettings(BenchmarkSettings):
    """Measure the share of the matrix rate that training reaches."""

    images: int = 5120
    """Images that each process trains in a repetition."""


def worker(settings: MatrixShareSettings) -> Callable[[str, str], Any]:
    """A process with one thread. Its calls: ("precision", ""); ("peak", "") GFLOP/s; ("train",
    network) GFLOP/s; ("profile", network) groups' shares.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    from mnist_ray.models import compiled
    from mnist_ray.training.machine import best_precision, use_threads
    from mnist_ray.training.trainer import Trainer

    use_threads(1)
    precision = best_precision(torch.device("cpu"))
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    part, train, _ = mnist(settings)
    pixels, labels, index = (
        torch.from_numpy(part.images.copy()),
        torch.from_numpy(part.labels.copy()),
        torch.from_numpy(train[: settings.images]),
    )
    trainers = {
        name: Trainer(hp, epochs=1000, seed=0, precision=precision) for name, hp in NETWORKS.items()
    }
    flops = {}
    for name, trainer in trainers.items():
        trainer.train_epoch(pixels, labels, index[:1280])
        model = copy.deepcopy(trainer.model).train()
        with FlopCounterMode(display=False) as counter:
            model(torch.rand(128, 1, 28, 28)).sum().backward()
        flops[name] = counter.get_total_flops() / 128
    matrices = {
        n: (torch.rand(n, n).to(kind), torch.rand(n, n).to(kind)) for n in (512, 1024, 2048)
    }

    def product_rate(n: int) -> float:
        """GFLOP/s of products for a third of a second."""
        a, b = matrices[n]
        a @ b
        start, products = time.perf_counter(), 0
        while (seconds := time.perf_counter() - start) < 0.33:
            a @ b
            products += 1
        return products * 2 * n**3 / seconds / 1e9

    def profile(trainer: Trainer) -> dict[str, float]:
        # Each operator is timed as it is called: torch.profiler itself makes memory-bound ones
        # several times slower here.
        seconds = dict.fromkeys([*GROUPS, "rest"], 0.0)

        def timed(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            taken = time.perf_counter() - start
            named = (
                group for group, words in GROUPS.items() if any(word in name for word in words)
            )
            seconds[next(named, "rest")] += taken
            return result

        class Timed(TorchDispatchMode):
            def __torch_dispatch__(
                self, function: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                return timed(str(function), function, *args, **(kwargs or {}))

        def call_timed(function: str, *args: Any) -> None:
            timed(function, call_compiled, function, *args)

        call_compiled = compiled._call
        with mock.patch.object(compiled, "_call", call_timed), Timed():
            trainer.train_epoch(pixels, labels, index[: 128 * 20])
        return {group: taken / sum(seconds.values()) for group, taken in seconds.items()}

    def call(what: str, name: str) -> Any:
        if what == "precision":
            return precision
        if what == "peak":
            return max(map(product_rate, matrices))
        if what == "profile":
            return profile(trainers[name])
        return (
            trainers[name].train_epoch(pixels, labels, index)["images_per_second"]
            * flops[name]
            / 1e9
        )

    return call


def measure(settings: MatrixShareSettings) -> None:
    """All networks, on one core alone and on all of them."""
    rates: dict[tuple[str, str], list[float]] = {}
    shares: dict[tuple[str, str], list[float]] = {}
    peaks: dict[str, list[float]] = {}
    with Side(worker, [(settings,)]) as alone, Side(worker, [(settings,)] * CORES) as together:
        for _ in range(settings.repeats):
            for how, side in (
                ("one core, the others at rest", alone),
                (f"{CORES} cores, a process each", together),
            ):
                for name in NETWORKS:
                    _, peak = side("peak", "")
                    _, rate = side("train", name)
                    peaks.setdefault(how, []).append(sum(peak))
                    rates.setdefault((name, how), []).append(sum(rate))
                    shares.setdefault((name, how), []).append(100 * sum(rate) / sum(peak))
        precision = alone("precision", "")[1][0]
        profiles = {name: alone("profile", name)[1][0] for name in NETWORKS}
    breakdown = table(
        ["part of the operators' time (one core)", *NETWORKS],
        [
            [group, *(f"{100 * profiles[name][group]:.1f} %" for name in NETWORKS)]
            for group in [*GROUPS, "rest"]
        ],
    )
    section(
        "Share of the matrix rate while training",
        ["network", "on", "GFLOP/s trained, median (quartiles)", "share of the matrix rate, %"],
        [
            [name, how, spread(values), spread(shares[name, how], 1)]
            for (name, how), values in rates.items()
        ],
        n=f"n = {settings.repeats} repetitions, {settings.images:,} images a process each",
        out=settings.out,
        notes=[
            f"Matrix rate in {precision}: "
            + "; ".join(f"{how}: {spread(values)} GFLOP/s" for how, values in peaks.items())
            + ".",
            breakdown,
        ],
    )


if __name__ == "__main__":
    main(MatrixShareSettings, measure)
