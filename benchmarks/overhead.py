r"""What a search costs beside the training: until the first step, per search, per trial, and in
memory.

    MNIST_RAY_DATA=DIR python benchmarks/overhead.py                   # 8 minutes on two cores
    MNIST_RAY_DATA=DIR python benchmarks/overhead.py --parts search    # 5 minutes
    MNIST_RAY_DATA=DIR python benchmarks/overhead.py --parts trials    # 3 minutes
    # many slots: 15 minutes
    python benchmarks/overhead.py --parts trials --trials 1000 --slots 16 --floats 8 --repeats 3
    # a long study: 20 minutes
    python benchmarks/overhead.py --parts trials --trials 1000 10000 --slots 16 --floats 8 \
        --sides ours --repeats 2

search: a real search (jobs/search.py, default space, no fine-tuning) as a command of its own, in
turn with a bare Ray whose two workers import torch and ray.tune: the floor under every number. From
it come
- the time from the command to the first training step of the first trial (the network notes it
down: stamped.py);
- the command's wall time less the training's, which is the epochs' own seconds divided by the slots
(history.parquet);
- each trial process's memory (PSS, the largest of samples twice a second) less that of the bare
worker.
trials: many trials that only sleep for 0.1 s, some at a time, through the shipped search, through
the same with a training function of one's own (noop_function.py) and through stock OptunaSearch
with actors reused (noop_trial.py): wall time from the first trial's start to the last one's end,
less the sleep. A function's checkpoint is written after its sleep and counts; a network's is
written within it.
"""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    BENCHMARKS,
    CORES,
    ROOT,
    BenchmarkSettings,
    failed,
    ratios,
    section,
    spread,
    started,
)
from memory import pss

from mnist_ray.errors import SettingsError
from mnist_ray.settings import main

PARTS = ("search", "trials")
SIDES = ("ours", "function", "stock")
WORKS = {  # what a search of ours is told to train
    "ours": ["--dataset", "digits", "--space", "noop_space:space"],
    "function": [
        *("--train", "noop_function:train", "--space", "noop_function:space"),
        *("--metric", "accuracy"),
    ],
}


@dataclass(frozen=True)
class OverheadSettings(BenchmarkSettings):
    """Measure what a search costs beside the training."""

    parts: tuple[str, ...] = PARTS
    """What to measure: search, trials."""
    search_trials: int = 10
    """Trials of the real search."""
    max_epochs: int = 3
    """Its epochs."""
    train_images: int = 6000
    """Its training images."""
    trials: tuple[int, ...] = (200,)
    """Trials that only sleep; several numbers: studies of several lengths in turn."""
    seconds: float = 0.1
    """How long each sleeps."""
    slots: int = 2
    """How many sleep at a time; each holds that part of the cores."""
    floats: int = 0
    """So many real parameters instead of the default space."""
    sides: tuple[str, ...] = SIDES
    """Whose trials sleep: ours, a training function of one's own (--train), stock."""
    sampler: str = "tpe"
    """Ours; stock has TPE."""


def run(
    command: list[str],
    log: Path,
    while_running: Callable[[int], None] = lambda process: None,
    **environment: str,
) -> tuple[float, float]:
    """When the command was started, and its wall time in seconds; its output goes to `log`.
    WorkError with the log's end where it fails.

    while_running: called twice a second with the process's id.
    """
    with started(command, log, **environment) as (process, start):
        while process.poll() is None:
            while_running(process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        wall = time.time() - start
    return start, wall


# ---- a real search


def real_search(settings: OverheadSettings, folder: Path) -> dict[str, Any]:
    """One search: seconds until the first step, wall and training seconds, the idle slot at its
    end, and each trial process's PSS in MB.
    """
    import pyarrow.parquet as pq

    stamp = folder / "stamp"
    command = [
        str(ROOT / "jobs" / "search.py"),
        "--dataset",
        "mnist",
        "--data-dir",
        os.path.abspath(settings.data_dir),
    ]
    command += [
        "--train-images",
        str(settings.train_images),
        "--val-images",
        "5000",
        "--trials",
        str(settings.search_trials),
    ]
    command += [
        "--max-epochs",
        str(settings.max_epochs),
        "--no-finetune",
        "--space",
        "stamped:space",
        "--space-args",
        f"stamp={stamp}",
    ]
    command += ["--storage", str(folder), "--name", "run"]
    memory: dict[int, float] = {}

    def sample(driver: int) -> None:
        for worker in trial_processes(driver):
            memory[worker] = max(memory.get(worker, 0), pss(worker))

    start, wall = run(command, folder / "log", sample)
    seconds = pq.read_table(folder / "run" / "history.parquet")["seconds"].to_numpy()
    return {
        "first": float(stamp.read_text()) - start,
        "wall": wall,
        "training": float(seconds.sum()) / CORES,
        "idle": idle_at_end(folder / "run" / "study.journal"),
        "memory": sorted(memory.values())[-CORES:],
    }


def trial_processes(driver: int) -> list[int]:
    """The processes below `driver` that are a trial's: Ray names each after what runs in it."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(path.name)] = (
                (path / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            )
        except (OSError, IndexError, ValueError):
            continue  # it has just ended
    found, level = [], [driver]
    while level:
        level = [child for child, parent in parents.items() if parent in level]
        found += level
    return [
        process
        for process in found
        if names.get(process, "").startswith("ray::") and "Train" in names[process]
    ]


def idle_at_end(journal: Path) -> float:
    """Seconds, divided by the slots, that slots had no trial left while the last ones went on."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    trials = optuna.load_study(study_name=None, storage=storage).get_trials(deepcopy=False)
    ends = sorted(t.datetime_complete.timestamp() for t in trials if t.datetime_complete)[-CORES:]
    return sum(ends[-1] - end for end in ends) / CORES


def bare_ray(folder: Path) -> dict[str, Any]:
    """Seconds until a worker of a bare Ray has torch and ray.tune, and each worker's PSS in MB."""
    log = folder / "log"
    start, _ = run([str(BENCHMARKS / "bare_ray.py"), str(CORES)], log, RAY_AUTH_MODE="disabled")
    answer = json.loads(log.read_text().splitlines()[-1])
    return {"first": answer["ready"] - start, "memory": answer["pss"]}


def measure_search(settings: OverheadSettings) -> None:
    """Real searches and bare Rays in turn."""
    searches: list[dict[str, Any]] = []
    floors: list[dict[str, Any]] = []
    for _ in range(settings.repeats):
        for results, side in (
            (searches, lambda folder: real_search(settings, folder)),
            (floors, bare_ray),
        ):
            with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
                results.append(side(Path(folder)))
        print(f"search {searches[-1]}\nbare Ray {floors[-1]}", flush=True)
    beyond = [s["wall"] - s["training"] for s in searches]
    busy = [b - s["idle"] for b, s in zip(beyond, searches, strict=True)]
    allowed = [0.05 * s["training"] + 12 for s in searches]
    trial_memory = [float(np.median(s["memory"])) for s in searches]
    bare_memory = [float(np.median(f["memory"])) for f in floors]
    section(
        "What a search costs beside the training",
        ["what", "median (quartiles)"],
        [
            ["command to the first training step, s", spread([s["first"] for s in searches], 1)],
            [
                "for comparison: command to a bare Ray worker with torch and ray.tune, s",
                spread([f["first"] for f in floors], 1),
            ],
            ["wall time of the search, s", spread([s["wall"] for s in searches], 1)],
            [
                f"its training: all epochs' seconds / {CORES} slots, s",
                spread([s["training"] for s in searches], 1),
            ],
            ["wall beyond the training, s", spread(beyond, 1)],
            [
                "of it: slots without a trial left, at the end, s",
                spread([s["idle"] for s in searches], 1),
            ],
            ["wall beyond the training and that, s", spread(busy, 1)],
            ["5 % of the training + 12 s, s", spread(allowed, 1)],
            ["memory of a trial's process (largest PSS), MB", spread(trial_memory)],
            ["memory of a bare worker with torch and ray.tune (PSS), MB", spread(bare_memory)],
            [
                "a trial beyond the bare worker, MB",
                spread([a - b for a, b in zip(trial_memory, bare_memory, strict=True)]),
            ],
        ],
        n=f"n = {settings.repeats} searches and bare Rays in turn",
        out=settings.out,
        notes=[
            f"{settings.search_trials} trials of at most {settings.max_epochs} epochs on "
            f"{settings.train_images:,} images each."
        ],
    )


# ---- trials that only sleep


def sleeping(settings: OverheadSettings, side: str, trials: int) -> tuple[float, float]:
    """Milliseconds a trial, from the first one's start to the last one's end, beyond its share of
    the ideal wall time; the driver's MB.
    """
    memory = [0.0]

    def sample(driver: int) -> None:
        memory[0] = max(memory[0], pss(driver))

    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        folder = Path(name)
        if side != "stock":
            command = [str(ROOT / "jobs" / "search.py"), "--max-epochs", "1", *WORKS[side]]
            command += [
                "--space-args",
                f"seconds={settings.seconds}",
                f"stamps={folder}",
                f"floats={settings.floats}",
            ]
            command += ["--trials", str(trials), "--max-concurrent", str(settings.slots)]
            command += [
                "--cpus-per-trial",
                str(CORES / settings.slots),
                "--sampler",
                settings.sampler,
            ]
            run(
                [*command, "--storage", name, "--name", side, "--no-finetune"],
                folder / "log",
                sample,
            )
        else:
            numbers = (trials, settings.slots, settings.seconds, settings.floats)
            command = [str(BENCHMARKS / "noop_trial.py"), *map(str, numbers), name]
            run(command, folder / "log", sample, RAY_AUTH_MODE="disabled")
        times = [
            tuple(map(float, line.split()))
            for path in folder.glob("*.stamps")
            for line in path.read_text().splitlines()
        ]
        if len(times) != trials:
            log = (folder / "log").read_text(errors="replace").splitlines()[-20:]
            raise failed(f"{side}: {len(times)} of {trials} trials ran", log)
        wall = max(end for _, end in times) - min(start for start, _ in times)
        return 1000 * (wall / trials - settings.seconds / settings.slots), memory[0]


def measure_trials(settings: OverheadSettings) -> None:
    """Both searchers and all lengths in turn."""
    lengths = [(side, trials) for trials in settings.trials for side in settings.sides]
    found: dict[tuple[str, int], list[tuple[float, float]]] = {length: [] for length in lengths}
    for _ in range(settings.repeats):
        for (side, trials), values in found.items():
            values.append(sleeping(settings, side, trials))
            print(
                (
                    f"{side}, {trials} trials: {values[-1][0]:.1f} ms a trial, driver "
                    f"{values[-1][1]:.0f} MB"
                ),
                flush=True,
            )
    beyond = {length: [ms for ms, _ in values] for length, values in found.items()}
    names = {
        "ours": "the shipped search",
        "function": "the shipped search, a training function of one's own",
        "stock": "stock OptunaSearch with TPE, actors reused",
    }
    counts = " to ".join(
        f"{trials:,}" for trials in sorted({settings.trials[0], settings.trials[-1]})
    )
    section(
        f"What a trial costs beside its work: {counts} trials, {settings.slots} at a time"
        + ("" if settings.sampler == "tpe" else f", sampler {settings.sampler}"),
        [
            "search",
            "trials",
            "wall beyond the ideal, ms a trial, median (quartiles)",
            "ratio to the first row",
            "stock / ours",
            "driver, MB (PSS)",
        ],
        [
            [
                names[side],
                f"{trials:,}",
                spread(values, 1),
                ratios(values, beyond[lengths[0]]),
                ratios(beyond["stock", trials], values)
                if side != "stock" and "stock" in settings.sides
                else "",
                spread([mb for _, mb in found[side, trials]]),
            ]
            for (side, trials), values in beyond.items()
        ],
        n=f"n = {settings.repeats} repetitions of each in turn",
        out=settings.out,
        notes=[
            f"Trials of {settings.seconds} s. "
            + (f"{settings.floats} real parameters." if settings.floats else "The default space.")
        ],
    )


def measure(settings: OverheadSettings) -> None:
    """The parts that are asked for."""
    if not settings.sides or set(settings.sides) - set(SIDES):
        raise SettingsError(
            f"--sides: {' '.join(settings.sides)!r} is not allowed; expected {', '.join(SIDES)}"
        )
    if not settings.parts or set(settings.parts) - set(PARTS):
        raise SettingsError(
            f"--parts: {' '.join(settings.parts)!r} is not allowed; expected {' or '.join(PARTS)}"
        )
    if "search" in settings.parts:
        measure_search(settings)
    if "trials" in settings.parts:
        measure_trials(settings)


if __name__ == "__main__":
    main(OverheadSettings, measure)
