"""What the benchmarks share: processes that work at the same time, medians with quartiles, and the
sections of RESULTS.md.

Every script measures its sides in turn, repetition by repetition, so that a machine that slows down
slows down all of them.
"""

import contextlib
import json
import multiprocessing
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mnist_ray import data
from mnist_ray.errors import WorkError
from mnist_ray.settings import default_data_dir

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
sys.path.append(str(ROOT))  # for tests.support
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class BenchmarkSettings:
    """What every benchmark can be told."""

    repeats: int = 5
    """Repetitions of every side."""
    out: str = str(ROOT / "benchmarks" / "RESULTS.md")
    """The Markdown file whose section of the same title is replaced."""
    data_dir: str = field(default_factory=default_data_dir)
    """torchvision's root, where MNIST lies (default: from MNIST_RAY_DATA)."""


# ---- sides that work at the same time


class Side:
    """One process for each of `arguments`; all of them call, whenever told, the function that
    `make(*arguments[i])` returned.

    make: a function of a script's top level that loads and warms up what it needs, in a fresh
    interpreter. A side that is not called waits and costs nothing.
    """

    def __init__(
        self, make: Callable[..., Callable[..., Any]], arguments: Sequence[tuple[Any, ...]]
    ) -> None:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self._pipes, self._processes = [], []
        for each in arguments:
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, make, each), daemon=False)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        self._answers()  # ready

    def __call__(self, *args: Any) -> tuple[float, list[Any]]:
        """Seconds from the first start to the last end, and what each process returned."""
        for pipe in self._pipes:
            pipe.send(args)
        answers = self._answers()
        return max(end for _, end, _ in answers) - min(start for start, _, _ in answers), [
            result for _, _, result in answers
        ]

    def _answers(self) -> list[Any]:
        try:
            return [pipe.recv() for pipe in self._pipes]
        except (EOFError, ConnectionResetError) as error:
            raise WorkError(
                "a process of the benchmark has died; its own message stands above"
            ) from error

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _serve(pipe: Any, make: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...]) -> None:
    from time import perf_counter  # one clock for all processes of the machine

    call = make(*arguments)
    pipe.send(None)
    while True:
        try:
            message = pipe.recv()
        except EOFError:
            return
        start = perf_counter()
        result = call(*message)
        pipe.send((start, perf_counter(), result))


def mnist(
    settings: BenchmarkSettings,
    train_images: int | None = None,
    val_images: int = 5000,
    seed: int = 0,
) -> tuple[data.Images, np.ndarray, np.ndarray]:
    """MNIST's training part and its split by class, as the kept figures were measured."""
    images, train, val, *_ = data.load_split(
        "mnist",
        settings.data_dir,
        train_images=train_images,
        val_images=val_images,
        seed=seed,
        val_by="class",
    )
    return images, train, val


def convnet(blocks: int = 2, width: int = 32, **more: Any) -> dict[str, Any]:
    """Hyperparameters of the convnet 32-32-64-64 for MNIST, or of others by name."""
    return {
        "model": "convnet",
        "in_channels": 1,
        "image_size": [28, 28],
        "classes": 10,
        "mean": [0.1307],
        "std": [0.3081],
        "blocks": blocks,
        "layers_per_block": 2,
        "width": width,
        "kernel_size": 3,
        "activation": "relu",
        "activation_position": "after_norm",
        "pooling": "max",
        "pool_position": "end",
        "dropout": 0.0,
        "dropout_place": "head",
        "batch_size": 128,
        "optimizer": "adam",
        "lr": 1e-3,
        **more,
    }


# ---- runs


def failed(what: str, lines: Sequence[str]) -> WorkError:
    """Prints the last lines of a log, and returns the error to raise."""
    print(*lines[-20:], sep="\n", file=sys.stderr)
    return WorkError(f"{what}; the end of its log stands above")


@contextlib.contextmanager
def started(
    script: Sequence[str], log: Path, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """A Python script as a process that ends with the block, and when it was started; its output
    goes to `log`. It makes a Ray of its own, whatever else runs on this machine.

    WorkError with the log's end where it fails.
    """
    # The workers find the modules of this folder.
    path = os.pathsep.join([str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])])
    ours = {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": path}
    with log.open("wb") as file:
        start = time.time()
        process = subprocess.Popen(
            [sys.executable, *script],
            cwd=BENCHMARKS,
            env={**os.environ, **ours, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process, start
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()
    if process.returncode:
        lines = log.read_text(errors="replace").splitlines()
        raise failed(f"{Path(script[0]).name} ended with {process.returncode}", lines)


def cached(
    run: Callable[[Any], dict[str, Any]], settings: Any, keys: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What run((settings, key)) returns for each key, its "key" included; what the file
    settings.cache holds is not run again.

    settings.workers run at a time, in processes of their own.
    """
    cache = Path(settings.cache) if settings.cache else None
    done = (
        [json.loads(line) for line in cache.read_text().splitlines()]
        if cache and cache.exists()
        else []
    )
    done = [result for result in done if result["key"] in keys]
    missing = [key for key in keys if key not in [result["key"] for result in done]]
    print(f"{len(keys) - len(missing)} runs are there, {len(missing)} to do", flush=True)
    with multiprocessing.get_context("spawn").Pool(
        max(1, min(settings.workers, len(missing)))
    ) as pool:
        for result in pool.imap_unordered(run, [(settings, key) for key in missing]):
            done.append(result)
            print(json.dumps(result), flush=True)
            if cache:
                with cache.open("a") as file:
                    file.write(json.dumps(result) + "\n")
    return done


# ---- figures


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median and, in brackets, the quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def ratios(above: Sequence[float], below: Sequence[float]) -> str:
    """The spread of the ratios of what was measured in the same repetition."""
    return spread([a / b for a, b in zip(above, below, strict=True)], 2) + " ×"


def mean_sd(values: Sequence[float], digits: int = 3) -> str:
    """Mean and, of more than one value, the standard deviation."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def difference(ours: Sequence[float], theirs: Sequence[float], digits: int = 3) -> str:
    """Mean of the paired differences with its 95 % interval (Student's t); needs two pairs."""
    from scipy.stats import t

    pairs = [a - b for a, b in zip(ours, theirs, strict=True)]
    middle = statistics.fmean(pairs)
    if len(pairs) < 2:
        return f"{middle:+.{digits}f}"
    half = float(t.ppf(0.975, len(pairs) - 1)) * statistics.stdev(pairs) / len(pairs) ** 0.5
    return f"{middle:+.{digits}f} ({middle - half:+.{digits}f} to {middle + half:+.{digits}f})"


# ---- RESULTS.md


def section(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    n: str,
    out: str,
    notes: Sequence[str] = (),
    by_cpu: bool = True,
) -> None:
    """Prints a section and puts it into the file `out`: in place of the one with the same title, or
    at the end. The title names the CPU's matrix units: results of each kind stay beside each other.

    n: how much was repeated, in words. notes: paragraphs (or further tables) below the table.
    by_cpu: False for what does not depend on the CPU, as a table of kept runs.
    """
    if by_cpu:
        title = f"{title} ({matrix_units()})"
    body = [
        f"## {title}",
        "",
        table(header, rows),
        "",
        *(line for note in notes for line in (note, "")),
        f"{machine()} · {datetime.now(UTC):%Y-%m-%d} · {n}",
        "",
        f"`{command()}`",
        "",
    ]
    text = "\n".join(body)
    print(text, flush=True)
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    old = (
        path.read_text(encoding="utf-8")
        if path.exists()
        else "# Measured results\n\nEach section is written by the command below it.\n"
    )
    parts = re.split(r"^(?=## )", old, flags=re.MULTILINE)
    same = [i for i, part in enumerate(parts) if part.splitlines()[:1] == [f"## {title}"]]
    if same:
        parts[same[0]] = text
    else:
        parts.append(text)
    path.write_text("\n\n".join(part.strip("\n") for part in parts) + "\n", encoding="utf-8")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def matrix_units(cpuinfo: str = "/proc/cpuinfo") -> str:
    """The CPU's fastest instructions for matrices; speeds of two kinds do not compare."""
    flags = [
        line.partition(":")[2].split()
        for line in _lines(cpuinfo)
        if line.startswith(("flags", "Features"))
    ]
    has = set(flags[0] if flags else ())
    kinds = {
        "amx_bf16": "AMX",
        "avx512_bf16": "AVX-512 bf16",
        "avx512f": "AVX-512",
        "avx2": "AVX2",
    }
    return next((kind for flag, kind in kinds.items() if flag in has), "no matrix units known")


def machine() -> str:
    """Processor, matrix units, cores and versions, in one line."""
    names = [
        line.partition(":")[2].strip()
        for line in _lines("/proc/cpuinfo")
        if line.startswith("model name")
    ]
    versions = ", ".join(
        f"{name} {version(name)}"
        for name in ("torch", "ray", "optuna", "onnxruntime")
        if find_spec(name)  # a machine with a GPU may have torch alone
    )
    processor = f"{names[0] if names else platform.machine()} with {matrix_units()}"
    return f"{processor}, {CORES} cores, Python {platform.python_version()}, {versions}"


def command() -> str:
    """The command line, without the places of this machine."""
    words = []
    for word in sys.argv[1:]:
        flag, equals, value = word.rpartition("=")
        words.append(flag + equals + Path(value).name if os.path.isabs(value) else word)
    data_dir = "MNIST_RAY_DATA=DIR " if os.environ.get("MNIST_RAY_DATA") else ""
    return data_dir + shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
