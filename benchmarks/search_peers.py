"""One search, three ways: ours, Ray's own example widened to the same task (peer_ray.py), and
Optuna alone (peer_optuna.py).

    # 21 minutes a repetition on two cores, 105 for five
    MNIST_RAY_DATA=DIR python benchmarks/search_peers.py --cache searches.jsonl
    # finished searches are kept: it goes on
    MNIST_RAY_DATA=DIR python benchmarks/search_peers.py --cache searches.jsonl --repeats 1

24 trials of at most 4 epochs in the space of peer_space.py, on the same 12,000 training and 5,000
validation images and the same cores. Each side is a command of its own, timed from its start to its
end, the start of Python and of Ray included. The target that all are timed to is, in each
repetition, the lowest of the three sides' best validation accuracies. Ours is told nothing but the
space and the sizes.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common import CORES, ROOT, BenchmarkSettings, difference, mnist, ratios, section, spread

from mnist_ray.errors import WorkError
from mnist_ray.settings import main

BENCHMARKS = ROOT / "benchmarks"

Course = list[
    tuple[float, float]
]  # seconds since the command was started, validation accuracy: one pair an epoch


@dataclass(frozen=True)
class SearchPeersSettings(BenchmarkSettings):
    """Compare the wall time of a search with those of the peers."""

    trials: int = 24
    """Trials of each search."""
    epochs: int = 4
    """The most epochs of a trial."""
    train_images: int = 12_000
    """Images that trials are trained on."""
    cache: str | None = None
    """JSON-lines file that keeps finished searches; what is in it is not run again."""


def ours(settings: SearchPeersSettings, seed: int, folder: str) -> tuple[float, Course]:
    """jobs/search.py as it is shipped, without fine-tuning. Its epochs' times are when they appear
    in its study.
    """
    command = [
        sys.executable,
        str(ROOT / "jobs" / "search.py"),
        "--space",
        "peer_space:space",
        "--dataset",
        "mnist",
    ]
    command += [
        "--data-dir",
        os.path.abspath(settings.data_dir),
        "--train-images",
        str(settings.train_images),
        "--val-images",
        "5000",
    ]
    command += [
        "--trials",
        str(settings.trials),
        "--max-epochs",
        str(settings.epochs),
        "--seed",
        str(seed),
        "--no-finetune",
    ]
    command += ["--storage", folder, "--name", "ours"]
    journal, read, course = Path(folder, "ours", "study.journal"), 0, []
    with _started(command, Path(folder, "log")) as (process, start):
        while process.poll() is None:
            time.sleep(0.1)
            text = journal.read_bytes()[read:] if journal.exists() else b""
            whole = text[: text.rfind(b"\n") + 1]
            read += len(whole)
            now = time.time() - start
            entries = [json.loads(line) for line in whole.splitlines()]
            course += [
                (now, entry["intermediate_value"])
                for entry in entries
                if "intermediate_value" in entry
            ]
        return time.time() - start, course


def peer(
    script: str, settings: SearchPeersSettings, seed: int, folder: str
) -> tuple[float, Course]:
    """A peer's script, which prints a line an epoch."""
    _, train, val = mnist(
        settings, settings.train_images, seed=seed
    )  # the split that ours makes of the same seed
    task = {
        "data_dir": os.path.abspath(settings.data_dir),
        "train": train.tolist(),
        "val": val.tolist(),
        "trials": settings.trials,
        "epochs": settings.epochs,
        "cores": CORES,
        "seed": seed,
    }
    path = Path(folder, "task.json")
    path.write_text(json.dumps(task))
    log = Path(folder, "log")
    with _started([sys.executable, str(BENCHMARKS / script), str(path)], log) as (process, start):
        process.wait()
        wall = time.time() - start
    lines = [
        json.loads(line) for line in log.read_text().splitlines() if line.startswith('{"time"')
    ]
    return wall, [(line["time"] - start, line["accuracy"]) for line in lines]


@contextlib.contextmanager
def _started(command: list[str], log: Path) -> Iterator[tuple[subprocess.Popen, float]]:
    """A command whose output goes to a file, and when it was started. WorkError with the output's
    end where it fails.
    """
    environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    with log.open("wb") as file:
        start = time.time()
        process = subprocess.Popen(
            command, cwd=BENCHMARKS, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield process, start
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()
    if process.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise WorkError(f"{Path(command[1]).name} ended with {process.returncode}:\n{end}")


SIDES: dict[str, Callable[[SearchPeersSettings, int, str], tuple[float, Course]]] = {
    "ours": ours,
    "Ray's example": lambda *args: peer("peer_ray.py", *args),
    "Optuna alone": lambda *args: peer("peer_optuna.py", *args),
}


def measure(settings: SearchPeersSettings) -> None:
    """What the cache lacks is run, the sides in turn; then the table."""
    kept = {
        key: value
        for key, value in dataclasses.asdict(settings).items()
        if key in ("trials", "epochs", "train_images")
    }
    cache = Path(settings.cache) if settings.cache else None
    lines = (
        [json.loads(line) for line in cache.read_text().splitlines()]
        if cache and cache.exists()
        else []
    )
    done = {(line["seed"], line["side"]): line for line in lines if line["settings"] == kept}
    for seed in range(settings.repeats):
        for side, search in SIDES.items():
            if (seed, side) in done:
                continue
            with tempfile.TemporaryDirectory(prefix="search-peers-") as folder:
                wall, course = search(settings, seed, folder)
            if not course:
                raise WorkError(f"{side}: the search reported no epoch")
            done[seed, side] = {
                "settings": kept,
                "seed": seed,
                "side": side,
                "wall": wall,
                "course": course,
            }
            top = max(accuracy for _, accuracy in course)
            print(
                (
                    f"repetition {seed + 1}, {side}: {wall:.1f} s, {len(course)} epochs, best "
                    f"{top:.4f}"
                ),
                flush=True,
            )
            if cache:
                with cache.open("a") as file:
                    file.write(json.dumps(done[seed, side]) + "\n")

    seeds = range(settings.repeats)
    courses = {side: [done[seed, side]["course"] for seed in seeds] for side in SIDES}
    best = {
        side: [100 * max(accuracy for _, accuracy in course) for course in courses[side]]
        for side in SIDES
    }
    target = [min(bests) for bests in zip(*best.values(), strict=True)]
    walls = {side: [done[seed, side]["wall"] for seed in seeds] for side in SIDES}
    reached = {
        side: [
            min(t for t, accuracy in course if 100 * accuracy >= aim)
            for course, aim in zip(courses[side], target, strict=True)
        ]
        for side in SIDES
    }
    section(
        "One search against the peers",
        [
            "side",
            "wall time, s",
            "peer / ours",
            "s to the common accuracy",
            "peer / ours",
            "best validation accuracy, %",
            "− ours (95 %)",
            "epochs trained",
        ],
        [
            [
                side,
                spread(walls[side], 1),
                "" if side == "ours" else ratios(walls[side], walls["ours"]),
                spread(reached[side], 1),
                "" if side == "ours" else ratios(reached[side], reached["ours"]),
                spread(best[side], 2),
                "" if side == "ours" else difference(best[side], best["ours"], 2),
                spread([len(course) for course in courses[side]]),
            ]
            for side in SIDES
        ],
        n=f"n = {settings.repeats} searches of each side in turn, medians (quartiles)",
        out=settings.out,
        notes=[
            f"{settings.trials} trials of at most {settings.epochs} epochs on "
            f"{settings.train_images:,} images, {CORES} cores. The common "
            f"accuracy of a repetition is the lowest of the three bests: {spread(target, 2)} %. "
            "Wall time counts from the command's start to its end."
        ],
    )


if __name__ == "__main__":
    main(SearchPeersSettings, measure)
