"""Everything that waits for a GPU, in one command of at most ten minutes and one table.

    MNIST_RAY_DATA=DIR python benchmarks/gpu.py                  # on a machine with a GPU
    MNIST_RAY_DATA=DIR python benchmarks/gpu.py --device cpu --small    # tries it all, 2 minutes

Sections, each in a process of its own with a time limit; one that fails or is late is a row, and
the others go on:

matrix   the bf16 matrix rate, and the share of it that training three networks reaches, kernel by
         kernel and as CUDA graphs
vmap     many trials of one shape in one process, by torch.func.vmap over stacked weights
auto     the share that --gpus-per-trial auto chooses, beside the best of a longer measurement
chain    the original experiments' whole chain, 23 epochs of all 60,000 images; as many of the
         seeds as there is time for
memory   whether a trial that outgrows its share fails alone
share    trials an hour with 1, 1/2, 1/4, 1/8 and 1/16 of the card, as processes
ray      the same through Ray's fractional GPUs, where ray is installed

Wheels that a machine with PyTorch, torchvision, NumPy, SciPy, scikit-learn, pyarrow, psutil,
Pillow, safetensors and PyYAML needs besides: tyro, docstring_parser, shtab, typeguard; optuna is
not needed; ray only for the section `ray`. A whole search needs what pip installs with this
package; its fine-tuning also Ray's dashboard: aiohttp_cors, colorful, opencensus, opentelemetry
(api, sdk, proto, exporter-prometheus, semantic-conventions), smart_open, virtualenv, py-spy.
Without MNIST in the data folder the images are random, and the chain is left out.
"""

import importlib.util
import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from common import BenchmarkSettings, Side, convnet, section
from torch import Tensor, nn

from mnist_ray import data, models
from mnist_ray.errors import MnistRayError, SettingsError, first_line
from mnist_ray.settings import main
from mnist_ray.training import gpu_share
from mnist_ray.training.machine import best_precision, use_threads
from mnist_ray.training.trainer import Trainer

Row = tuple[str, str]  # a figure and its value

RECIPE: dict[str, Any] = {
    "optimizer": "sgd",
    "lr": 0.05,
    "weight_decay": 5e-4,
    "schedule": "constant",
    "label_smoothing": 0.1,
    "dropout": 0.3,
    "ema": 0.998,
}
STACKED = (1, 4, 16, 64)
BATCH = 128
TRIAL_IMAGES = 4 * 55_000  # of a trial: four epochs
# The network of the original experiments, and their stages (stages-seed.yaml).
OPTUNANET: dict[str, Any] = {
    "model": "optunanet",
    "filters": [224, 224, 224, 160],
    "kernels": [5, 7, 7, 5],
    "slopes": [0.0129, 0.1211, 0.0336, 0.0951],
    "fc": [1024],
    "dropout": 0.5,
}


@dataclass(frozen=True)
class GpuSettings(BenchmarkSettings):
    """Measure everything that waits for a GPU."""

    device: str = "cuda"
    """cuda, or cpu to try this script."""
    small: bool = False
    """Tiny sizes: only whether it runs."""
    figure: float = 4.0
    """Seconds of measuring, a figure."""
    sections: tuple[str, ...] = ()
    """Which ones (default: all)."""
    shares: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Trials at a time."""
    minutes: float = 9.5
    """In all; a section that would begin later is left out."""
    seeds: int = 5
    """Of the chain, as far as the time goes."""

    @property
    def seconds(self) -> float:
        """How long each figure is measured."""
        return 0.2 if self.small else self.figure

    @property
    def at_a_time(self) -> tuple[int, ...]:
        """Numbers of trials that share the card."""
        return self.shares[:2] if self.small else self.shares

    def network(self, blocks: int = 3, width: int = 32, **more: Any) -> dict[str, Any]:
        """A convnet's hyperparameters; by default those that the recipe default finds."""
        own = {**RECIPE, "activation": "gelu", "pooling": "blur", **more}
        own["batch_size"] = BATCH // 8 if self.small else BATCH
        return convnet(blocks, 4 if self.small else width, **own)


# ---- one process on the device


def synchronize(device: str) -> None:
    """Waits until the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def images(settings: GpuSettings, part: str = "train") -> tuple[Tensor, Tensor]:
    """MNIST's images and labels on the device; random ones where it is missing."""
    n = 1024 if settings.small else None
    try:
        found = data.load("mnist", part, settings.data_dir)
        tensors = torch.from_numpy(found.images[:n].copy()), torch.from_numpy(found.labels[:n])
    except (MnistRayError, OSError):
        n = n or 60_000
        tensors = (
            torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8),
            torch.randint(0, 10, (n,)),
        )
    return tensors[0].to(settings.device), tensors[1].clone().to(settings.device)


def rate(step: Callable[[], int], seconds: float, device: str) -> float:
    """What calls of `step` return, a second, after two that warm up."""
    step()
    step()
    synchronize(device)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        done += step()
    synchronize(device)
    return done / (time.perf_counter() - start)


def epoch_step(
    settings: GpuSettings, hp: Mapping[str, Any], graph: bool = True
) -> Callable[[], int]:
    """A call trains 20 batches as a trial does; each kernel by itself if `graph` is not set."""
    x, y = images(settings)
    batch = hp["batch_size"]
    index = torch.arange((2 if settings.small else 20) * batch, device=settings.device) % len(y)
    trainer = Trainer(hp, epochs=10**6, seed=0, device=settings.device)
    trainer.step.graphs &= graph

    def call() -> int:
        trainer.train_epoch(x, y, index)
        return len(index)

    return call


# ---- sections


def matrix(settings: GpuSettings) -> Iterator[Row]:
    """The matrix rate and the networks' share of it."""
    from torch.utils.flop_counter import FlopCounterMode

    device = settings.device
    kind = torch.bfloat16 if best_precision(torch.device(device)) == "bf16" else torch.float32
    peaks = []
    for n in (128,) if settings.small else (2048, 4096, 8192):
        a, b = (torch.rand(n, n, device=device).to(kind) for _ in range(2))

        def product(a: Tensor = a, b: Tensor = b, n: int = n) -> int:
            torch.mm(a, b)
            return 2 * n**3

        peaks.append(rate(product, settings.seconds / 4, device))
    yield f"matrix product, {str(kind).partition('.')[2]}", f"{max(peaks) / 1e12:.3g} TFLOP/s"
    networks = {
        "32-32-64-64, ReLU, max, batch 128": settings.network(2, activation="relu", pooling="max"),
        "six layers, GELU, blur, batch 128": settings.network(),
        "the same, batch 1024": {
            **settings.network(),
            "batch_size": 32 if settings.small else 1024,
        },
        "the same, pooling first, batch 128": settings.network(pool_position="first"),
    }
    for name, hp in networks.items():
        model = models.build(hp).train()
        with FlopCounterMode(display=False) as counter:
            model(torch.rand(8, 1, 28, 28)).sum().backward()
        flops = counter.get_total_flops() / 8
        for how in ("eager", "graph"):
            speed = rate(epoch_step(settings, hp, how == "graph"), settings.seconds, device)
            share = 100 * speed * flops / max(peaks)
            yield f"{name}, {how}", f"{speed:,.0f} images/s, {share:.1f} % of the rate"


def share_worker(settings: GpuSettings, index: int) -> Callable[[int, bool], float]:
    """A trial's process: call(n, graph) gives images/s if it is one of the first n, else 0."""
    use_threads(1)
    made: dict[bool, Callable[[], int]] = {}

    def call(n: int, graph: bool) -> float:
        if index >= n:
            return 0.0
        if graph not in made:
            step = epoch_step(settings, settings.network(), graph)
            step()
            made[graph] = step
        return rate(made[graph], settings.seconds, settings.device)

    return call


def trials_an_hour(images_per_second: float) -> str:
    """As the table has it."""
    an_hour = 3600 * images_per_second / TRIAL_IMAGES
    return f"{an_hour:,.0f} trials/h ({images_per_second:,.0f} images/s)"


def share(settings: GpuSettings) -> Iterator[Row]:
    """Processes that share the card, without Ray."""
    most = settings.at_a_time[-1]
    with Side(share_worker, [(settings, i) for i in range(most)]) as side:
        for graph in (False, True):
            side(most, graph)  # all kernels are chosen
            for n in settings.at_a_time:
                rates = side(n, graph)[1]
                how = "CUDA graphs" if graph else "eager"
                yield f"1/{n} of the card, {how}", trials_an_hour(sum(rates))


class Actor:
    """A trial of Ray's."""

    def __init__(self, settings: GpuSettings, part: float) -> None:
        if settings.device == "cuda" and part < 1:
            torch.cuda.set_per_process_memory_fraction(part)
        self.call = share_worker(settings, 0)

    def images_per_second(self) -> float:
        """Of this actor."""
        return self.call(1, True)


def through_ray(settings: GpuSettings) -> Iterator[Row]:
    """Actors with a fraction of the GPU."""
    if importlib.util.find_spec("ray") is None:
        yield "through Ray", "ray is not installed here"
        return
    import ray

    cuda = settings.device == "cuda"
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    here = os.path.dirname(os.path.abspath(__file__))
    path = [here, os.path.dirname(here), *filter(None, [os.environ.get("PYTHONPATH")])]
    ray.init(
        address="local",
        num_cpus=settings.at_a_time[-1],
        num_gpus=1 if cuda else 0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(path)}},
    )
    try:
        for n in settings.at_a_time:
            kind = ray.remote(num_cpus=1, num_gpus=1 / n if cuda else 0)(Actor)
            actors = [kind.remote(settings, 1 / n) for _ in range(n)]
            ray.get([a.images_per_second.remote() for a in actors])  # all have started
            rates = ray.get([a.images_per_second.remote() for a in actors])
            yield f"1/{n} of the card, through Ray", trials_an_hour(sum(rates))
            for actor in actors:
                ray.kill(actor)
    finally:
        ray.shutdown()


def auto(settings: GpuSettings) -> Iterator[Row]:
    """The choice of --gpus-per-trial auto, which measures for 3 s each."""
    hp = settings.network()
    found = gpu_share.measure(
        [{**hp, "width": hp["width"] * 2, "batch_size": 256}],
        [hp],
        47_000_000,
        settings.at_a_time[-1],
        1,
        "auto",
        settings.device,
    )
    best = max(found.images_per_second, key=lambda n: found.images_per_second[n])
    yield "--gpus-per-trial auto", f"1/{found.trials}; the fastest is 1/{best}"
    yield "its measurement", str(found) if found.memory else f"no memory to measure; {found}"


def memory_worker(settings: GpuSettings, part: float, greedy: bool) -> Callable[[], str]:
    """A trial with a part of the card's memory; the greedy one asks for more than that."""
    if settings.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(part)
    step = epoch_step(settings, settings.network())

    def call() -> str:
        if greedy and settings.device == "cuda":
            total = torch.cuda.mem_get_info()[1]
            try:
                torch.empty(int(2 * part * total), dtype=torch.uint8, device="cuda")
            except torch.cuda.OutOfMemoryError as error:
                return first_line(error)[:80]
            return "it got the memory: no limit"
        return f"{rate(step, settings.seconds, settings.device):,.0f} images/s"

    return call


def memory(settings: GpuSettings) -> Iterator[Row]:
    """Two trials of an eighth each, of which one asks for a quarter."""
    with Side(memory_worker, [(settings, 1 / 8, greedy) for greedy in (True, False)]) as side:
        greedy, other = side()[1]
    yield "a trial that outgrows its eighth", greedy
    yield "the one beside it", other


def stacked_step(settings: GpuSettings, networks: int) -> Callable[[], int]:
    """A call trains one batch of each of so many networks of one shape, with rates of their own."""
    from torch.func import functional_call, grad_and_value, stack_module_state, vmap

    device = settings.device
    hp = settings.network()
    torch.manual_seed(0)
    made = [models.build(hp).to(device) for _ in range(networks)]
    for model in made:  # vmap cannot update statistics in place
        torch.func.replace_all_batch_norm_modules_(model)
    parameters, buffers = stack_module_state([*made])
    skeleton: nn.Module = made[0]
    velocity = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
    rates = torch.linspace(0.01, 0.1, networks, device=device)
    x, y = images(settings)
    bf16 = best_precision(torch.device(device)) == "bf16"
    kind = torch.bfloat16 if bf16 else torch.float32

    def loss(p: Any, b: Any, batch: Tensor, labels: Tensor) -> Tensor:
        # Under vmap autocast mixes the types of a convolution's gradients.
        p, b = ({name: tensor.to(kind) for name, tensor in each.items()} for each in (p, b))
        logits = functional_call(skeleton, (p, b), (batch.to(kind),))
        return F.cross_entropy(logits.float(), labels, label_smoothing=hp["label_smoothing"])

    gradients = vmap(grad_and_value(loss), randomness="different")

    def call() -> int:
        chosen = torch.randint(len(y), (networks, hp["batch_size"]), device=device)
        batch = x[chosen].float().mul_(1 / 255)
        found, _ = gradients(parameters, buffers, batch, y[chosen])
        with torch.no_grad():
            for name, tensor in parameters.items():
                lr = rates.view(-1, *[1] * (tensor.ndim - 1))
                velocity[name].mul_(0.9).add_(found[name])
                tensor.sub_(lr * velocity[name])
        return networks * hp["batch_size"]

    return call


def stacked(settings: GpuSettings) -> Iterator[Row]:
    """Networks of one shape in one process."""
    for n in STACKED[:2] if settings.small else STACKED:
        try:
            speed = rate(stacked_step(settings, n), settings.seconds, settings.device)
        except torch.cuda.OutOfMemoryError:
            yield f"{n} networks in one process, vmap", "out of memory"
            break
        yield f"{n} networks in one process, vmap", trials_an_hour(speed)


def chain(settings: GpuSettings) -> Iterator[Row]:
    """The original experiments' chain: test accuracy and seconds of each seed."""
    from mnist_ray.finetune_job.recipe import read_stages

    (x, y), (test_x, test_y) = (images(settings, part) for part in ("train", "test"))
    data.load("mnist", "test", settings.data_dir)  # random images would say nothing
    grey = {key: convnet()[key] for key in ("in_channels", "image_size", "classes", "mean", "std")}
    hp = {**OPTUNANET, **grey}
    if settings.small:
        hp |= {"filters": [8, 8, 8, 8], "fc": [16]}
    start = time.perf_counter()
    for seed in range(1, 2 if settings.small else settings.seeds + 1):
        begun, weights = time.perf_counter(), None
        for _, stage in read_stages("seed").numbered(member=seed):
            epochs = 1 if settings.small else stage.epochs
            own = stage.hyperparameters(hp)
            trainer = Trainer(
                own, epochs=epochs, seed=stage.seed, device=settings.device, weights=weights
            )
            for _ in range(epochs):
                trainer.train_epoch(x, y)
            weights = {name: tensor.clone() for name, tensor in trainer.weights().items()}
        every = torch.arange(len(test_y), device=settings.device)
        accuracy = trainer.evaluate(test_x, test_y, every)[1]
        taken = time.perf_counter() - begun
        yield f"chain, seed {seed}", f"{100 * accuracy:.2f} % in {taken:.0f} s"
        if time.perf_counter() - start + taken > LIMITS["chain"]:
            break


# ---- all of them

SECTIONS: dict[str, Callable[[GpuSettings], Iterator[Row]]] = {
    "matrix": matrix,
    "vmap": stacked,
    "auto": auto,
    "chain": chain,
    "memory": memory,
    "share": share,
    "ray": through_ray,
}
LIMITS = {  # seconds; on an H200 `matrix` took 30, `vmap` 22, and `share` more than 120
    "matrix": 60.0,
    "vmap": 45.0,
    "auto": 60.0,
    "chain": 150.0,
    "memory": 45.0,
    "share": 200.0,
    "ray": 150.0,
}


def _run(name: str, settings: GpuSettings, answers: Any) -> None:
    os.setsid()  # with its processes it can be ended
    try:
        for row in SECTIONS[name](settings):
            answers.put(row)
    except Exception as error:
        answers.put(("failed", f"{type(error).__name__}: {first_line(error)[:200]}"))
    answers.put(None)


def run(name: str, settings: GpuSettings, limit: float) -> list[Row]:
    """A section's rows; where it fails or takes longer than `limit` seconds, the last says so."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_run, args=(name, settings, answers))
    process.start()
    ends, rows = time.monotonic() + limit, list[Row]()
    try:
        while True:
            try:
                row = answers.get(timeout=0.5)
            except queue.Empty:
                if not process.is_alive() and answers.empty():
                    return [*rows, ("failed", f"its process ended with {process.exitcode}")]
                if time.monotonic() > ends:
                    return [*rows, ("failed", f"not done after {limit:.0f} s")]
                continue
            if row is None:
                return rows
            print(f"  {row[0]}: {row[1]}", flush=True)
            rows.append(row)
    finally:
        process.join(5 if time.monotonic() < ends else 0)
        if process.is_alive() and process.pid:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()


def measure(settings: GpuSettings) -> None:
    """Every section in turn, and the table."""
    unknown = sorted(set(settings.sections) - set(SECTIONS))
    if unknown:
        raise SettingsError(
            f"--sections: {unknown[0]!r} is not known; expected {', '.join(SECTIONS)}"
        )
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device: cuda is wanted, but torch sees no GPU; cpu tries the script")
    ends = time.monotonic() + 60 * settings.minutes
    rows: list[list[str]] = []
    for name in settings.sections or tuple(SECTIONS):
        start = time.monotonic()
        print(f"{name} ...", flush=True)
        left = min(LIMITS[name], ends - start)
        found = run(name, settings, left) if left > 5 else [("left out", "no time was left")]
        taken = f"{time.monotonic() - start:.0f} s"
        rows += [[name, *row, taken if row is found[0] else ""] for row in found]
    device = torch.cuda.get_device_name() if settings.device == "cuda" else "a CPU, to try it"
    section(
        f"Everything on {device}",
        ["section", "figure", "value", "took"],
        rows,
        n=f"n = 1, {settings.seconds:g} s a figure",
        out=settings.out,
    )


if __name__ == "__main__":
    import gpu  # by its name: Ray's workers find no class of the main module

    main(gpu.GpuSettings, gpu.measure)
