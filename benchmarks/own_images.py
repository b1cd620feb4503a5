"""How long a folder of small pictures takes to be read, the first time and again, and in how much
memory.

    python benchmarks/own_images.py      # two minutes on two cores

Each reading is a process of its own. The first decodes the pictures into the cached file; the
second finds it. The pictures are in the file system's cache, as they have just been written. Memory
is the growth of the process's proportional set to its peak, against the arrays' bytes; the mapped
file counts as it lies in memory, once.
"""

import multiprocessing
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import BenchmarkSettings, section, spread
from memory import pss

from mnist_ray.settings import main


@dataclass(frozen=True)
class OwnImagesSettings(BenchmarkSettings):
    """Read a folder of pictures."""

    repeats: int = 3
    """Times that the folder is read anew, and again."""
    pictures: int = 60_000
    """Number of pictures, in ten classes."""
    size: int = 32
    """Their height and width."""


def write(root: Path, settings: OwnImagesSettings) -> None:
    """The folder: RGB pictures of noise and gradients, as PNG."""
    import numpy as np
    from PIL import Image

    for label in range(10):
        (root / f"class {label}").mkdir(parents=True)

    def one(i: int) -> None:
        shape = (settings.size // 4, settings.size // 4, 3)
        small = np.random.default_rng(i).integers(0, 256, shape, np.uint8)
        picture = Image.fromarray(small).resize(
            (settings.size, settings.size), Image.Resampling.BICUBIC
        )
        picture.save(root / f"class {i % 10}" / f"{i:05d}.png", compress_level=1)

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, range(settings.pictures)))


def read(folder: str) -> dict[str, Any]:
    """Reads both parts, as a search does: seconds, growth of memory and bytes of the arrays."""
    from mnist_ray.data import load

    before, peak, done = pss(os.getpid()), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], pss(os.getpid()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, cpu = time.perf_counter(), time.process_time()
    train, test = (load(f"folder:{folder}", part) for part in ("train", "test"))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    done.set()
    watcher.join()
    size = sum(part.images.nbytes + part.labels.nbytes for part in (train, test))
    growth = (peak[0] - before) * 2**20
    return {"seconds": seconds, "cpu": cpu, "growth": growth, "size": size}


def run(settings: OwnImagesSettings) -> None:
    """Writes the folder, reads it, writes the section."""
    first: list[dict[str, Any]] = []
    second: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "pictures")
        write(folder, settings)
        context = multiprocessing.get_context("spawn")
        for i in range(settings.repeats):
            os.environ["XDG_CACHE_HOME"] = str(Path(place, f"cache-{i}"))
            for found in (first, second):
                with context.Pool(1) as pool:
                    found.append(pool.apply(read, (str(folder),)))
                    print(found[-1], flush=True)
    rows = [
        [
            name,
            spread([each["seconds"] for each in found], 1),
            spread([each["cpu"] for each in found], 1),
            spread([each["growth"] / each["size"] for each in found], 2),
        ]
        for name, found in (("the first time", first), ("again", second))
    ]
    section(
        f"Reading {settings.pictures:,} pictures of one's own",
        ["reading", "seconds, median (quartiles)", "CPU seconds", "memory, times the arrays"],
        rows,
        n=f"n = {settings.repeats} of each",
        out=settings.out,
        notes=[
            f"PNG files of {settings.size} × {settings.size} RGB pixels in ten folders; the arrays "
            f"are {first[0]['size'] / 1e6:,.0f} MB."
        ],
    )


if __name__ == "__main__":
    main(OwnImagesSettings, run)
