"""One search, three ways: ours, Ray's own example widened to the same task (peer_ray.py), and
Optuna alone (peer_optuna.py).

    # 17 minutes of searches a repetition on two quiet cores, then their choices are retrained
    MNIST_RAY_DATA=DIR python benchmarks/search_peers.py --cache benchmarks/searches/searches.jsonl
    # what is finished is kept: it goes on
    ... benchmarks/search_peers.py --cache benchmarks/searches/searches.jsonl --repeats 1
    ... benchmarks/search_peers.py --cache benchmarks/searches/searches.jsonl --retrain 0
    ... benchmarks/search_peers.py --cache benchmarks/searches/searches.jsonl --confirm 3 --fp32
    # all sides begin with the same configurations
    ... benchmarks/search_peers.py --cache ... --points benchmarks/searches/points.yaml
    # ours alone begins with them, as it does by itself in a packaged space
    ... benchmarks/search_peers.py --cache ... --points benchmarks/searches/points.yaml --unshared

24 trials of at most 4 epochs in the space of peer_space.py, on the same 12,000 training and 5,000
validation images, drawn within each class (ours with --val-by class), and the same cores. Each side
is a command of its own, timed from its start to its end, the start of Python and of Ray included.
Ours is told nothing but the space and the sizes. No side has starting points, or all have those of
--points, or (--unshared) ours alone.

A side's choice at a moment is the trial with the best validation accuracy so far. Each choice is
trained again with fresh seeds, on the search's training images at the full budget, by this
package's trainer for all sides. It is judged after the last epoch by MNIST's training images that
the search did not see. The target that all are timed to is, in each repetition, the lowest accuracy
of these three sides' last choices.

With --confirm there is a fourth side: ours that trains its best trials again itself. Its last
choice is the one that it ends with. With --fp32 there is one that trains without bf16.
"""

import dataclasses
import functools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from common import (
    BENCHMARKS,
    CORES,
    ROOT,
    BenchmarkSettings,
    cached,
    difference,
    mnist,
    ratios,
    section,
    spread,
    started,
)
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FixedTrial
from peer_space import space

from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.run import best
from mnist_ray.settings import main
from mnist_ray.storage import RunStorage
from mnist_ray.study.points import read_points

VAL = 5_000  # validation images
PEERS = {"Ray's example": "peer_ray.py", "Optuna alone": "peer_optuna.py"}

Moment = tuple[float, float, str]  # seconds since the command began, validation accuracy, trial


class Searched(NamedTuple):
    """One side's search."""

    wall: float
    course: list[Moment]
    """After each epoch."""
    networks: dict[str, dict[str, Any]]
    """The trials' hyperparameters."""
    confirmed: Moment | None = None
    """With --confirm: the end, the chosen trial and its mean accuracy with fresh seeds."""


@dataclass(frozen=True)
class SearchPeersSettings(BenchmarkSettings):
    """Compare the wall time of a search with those of the peers."""

    trials: int = 24
    """Trials of each search."""
    epochs: int = 4
    """The most epochs of a trial."""
    train_images: int = 12_000
    """Images that trials are trained on."""
    retrain: int = 3
    """Seeds with which each choice is trained again; 0 compares the searches alone."""
    confirm: int = 0
    """Trials that ours trains again itself, as a fourth side; 0 leaves that side out."""
    fp32: bool = False
    """One more side: ours without bf16."""
    points: str | None = None
    """YAML file of configurations that every side tries first; none of them without it."""
    unshared: bool = False
    """Ours alone tries those of --points first."""
    cache: str | None = None
    """JSON-lines file that keeps finished searches of one kind of CPU; what is in it is not run
    again. Trainings are kept beside it, in a file whose name ends in -retrained."""
    workers: int = CORES
    """Choices that are trained at a time."""

    @functools.cached_property
    def started_with(self) -> list[dict[str, Any]]:
        """The configurations of --points."""
        return list(read_points(self.points, space)) if self.points else []

    def task(self, side: str) -> dict[str, Any]:
        """What a kept search of this side must have been run with."""
        sizes = {
            "trials": self.trials,
            "epochs": self.epochs,
            "train_images": self.train_images,
        }
        has_points = self.points and not (self.unshared and side in PEERS)
        split = {} if side in PEERS else {"val_by": "class"}  # as the peers' images are drawn
        return {**sizes, **split, **({"points": self.started_with} if has_points else {})}


def ours(settings: SearchPeersSettings, seed: int, folder: str, *options: str) -> Searched:
    """jobs/search.py as it is shipped, without fine-tuning. Its epochs' times are when they appear
    in its study.
    """
    command = [str(ROOT / "jobs" / "search.py"), "--space", "peer_space:space"]
    command += ["--dataset", "mnist", "--data-dir", os.path.abspath(settings.data_dir)]
    command += ["--train-images", str(settings.train_images), "--val-images", str(VAL)]
    command += ["--val-by", "class"]
    command += ["--trials", str(settings.trials), "--max-epochs", str(settings.epochs)]
    command += ["--seed", str(seed), "--no-finetune", "--storage", folder, "--name", "ours"]
    if settings.points:
        command += ["--points", os.path.abspath(settings.points)]
    command += options
    journal, read, course = Path(folder, "ours", "study.journal"), 0, []
    with started(command, Path(folder, "log")) as (process, start):
        while process.poll() is None:
            time.sleep(0.1)
            text = journal.read_bytes()[read:] if journal.exists() else b""
            whole = text[: text.rfind(b"\n") + 1]
            read += len(whole)
            now = time.time() - start
            entries = [json.loads(line) for line in whole.splitlines()]
            course += [
                (now, entry["intermediate_value"], str(entry["trial_id"]))
                for entry in entries
                if "intermediate_value" in entry
            ]
        wall = time.time() - start
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    trials = optuna.load_study(study_name="ours", storage=storage).trials
    networks = {str(t._trial_id): space(FixedTrial(t.params)) for t in trials}
    confirmed = None
    if found := best.read(RunStorage(str(Path(folder, "ours")))):  # the chosen one is the first
        confirmed = (wall, found[0].mean, str(trials[found[0].number]._trial_id))
    return Searched(wall, course, networks, confirmed)


def peer(side: str, settings: SearchPeersSettings, seed: int, folder: str) -> Searched:
    """A peer's script, which prints a line an epoch."""
    # The split that ours makes of the same seed with --val-by class.
    _, train, val = mnist(settings, settings.train_images, VAL, seed)
    task = {
        "data_dir": os.path.abspath(settings.data_dir),
        "train": train.tolist(),
        "val": val.tolist(),
        "trials": settings.trials,
        "epochs": settings.epochs,
        "cores": CORES,
        "seed": seed,
        "points": settings.task(side).get("points"),
    }
    path = Path(folder, "task.json")
    path.write_text(json.dumps(task))
    log = Path(folder, "log")
    with started([str(BENCHMARKS / PEERS[side]), str(path)], log) as (process, start):
        process.wait()
        wall = time.time() - start
    lines = [
        json.loads(line) for line in log.read_text().splitlines() if line.startswith('{"time"')
    ]
    course = [(line["time"] - start, line["accuracy"], line["trial"]) for line in lines]
    return Searched(wall, course, {line["trial"]: line["hp"] for line in lines})


SIDES: dict[str, Callable[[SearchPeersSettings, int, str], Searched]] = {
    "ours": ours,
    **{side: functools.partial(peer, side) for side in PEERS},
}


def sides(settings: SearchPeersSettings) -> dict[str, Callable[..., Searched]]:
    """The searches to compare, by their names in the table."""
    further = [("--confirm", str(settings.confirm))] if settings.confirm else []
    further += [("--precision", "fp32")] if settings.fp32 else []
    return SIDES | {
        f"ours, {' '.join(options)}": lambda *args, options=options: ours(*args, *options)
        for options in further
    }


def choices(search: Mapping[str, Any], *, retrained: bool = True) -> list[Moment]:
    """When the search's best trial became another one, with its best accuracy; then what
    --confirm chose. Not retrained: also when the same trial became better.
    """
    found: list[Moment] = []
    for seconds, accuracy, trial in search["course"]:
        if found and accuracy <= found[-1][1]:
            continue
        if retrained and found and trial == found[-1][2]:  # the same trial has become better
            seconds = found.pop()[0]
        found.append((seconds, accuracy, trial))
    if confirmed := search.get("confirmed"):  # searches that were kept before have none
        found.append(tuple(confirmed))
    return found


def train_again(task: tuple[SearchPeersSettings, dict[str, Any]]) -> dict[str, Any]:
    """One training of a choice; its accuracy, in percent, on what the search did not see."""
    import torch

    from mnist_ray.training.machine import use_threads
    from mnist_ray.training.trainer import Trainer

    settings, key = task
    use_threads(1)
    part, train, val = mnist(settings, settings.train_images, VAL, key["repetition"])
    unseen = np.setdiff1d(np.arange(len(part.labels)), np.concatenate([train, val]))
    tensors: list[Any] = [
        torch.from_numpy(a.copy()) for a in (part.images, part.labels, train, unseen)
    ]
    trainer = Trainer(key["hp"], epochs=settings.epochs, seed=1_000 + key["seed"])
    for _ in range(settings.epochs):
        trainer.train_epoch(*tensors[:3])
    _, accuracy = trainer.evaluate(tensors[0], tensors[1], tensors[3])
    return {"key": key, "accuracy": 100 * accuracy}


def search(task: tuple[SearchPeersSettings, dict[str, Any]]) -> dict[str, Any]:
    """One search of one side: its wall time, its epochs, and the networks of its choices."""
    settings, key = task
    with tempfile.TemporaryDirectory(prefix="search-peers-") as folder:
        search = sides(settings)[key["side"]](settings, key["repetition"], folder)
    if not search.course:
        raise WorkError(f"{key['side']}: the search reported no epoch")
    found = search._asdict()
    networks = found.pop("networks")
    return {"key": key, **found, "chosen": {t: networks[t] for _, _, t in choices(found)}}


def searched(settings: SearchPeersSettings) -> dict[tuple[int, str], dict[str, Any]]:
    """Every repetition's searches, by repetition and side, the sides in turn."""
    keys = [
        {**settings.task(side), "repetition": repetition, "side": side}
        for repetition in range(settings.repeats)
        for side in sides(settings)
    ]
    found = cached(search, dataclasses.replace(settings, workers=1), keys)
    return {(each["key"]["repetition"], each["key"]["side"]): each for each in found}


def retrained(
    settings: SearchPeersSettings, searches: dict[tuple[int, str], dict[str, Any]]
) -> dict[tuple[int, str], list[float]]:
    """Mean accuracy of each search's choices, in their order, over the seeds of `retrain`."""
    keys: list[dict[str, Any]] = []
    for repetition in range(settings.repeats):
        for side in sides(settings):
            found = searches[repetition, side]
            keys += [
                {**settings.task(side), "repetition": repetition, "hp": hp, "seed": seed}
                for hp in found["chosen"].values()
                for seed in range(settings.retrain)
            ]
    keys = [key for i, key in enumerate(keys) if key not in keys[:i]]  # sides may agree
    cache = settings.cache and str(Path(settings.cache).with_suffix("")) + "-retrained.jsonl"
    results = cached(train_again, dataclasses.replace(settings, cache=cache), keys)
    return {
        (repetition, side): [
            statistics.fmean(
                result["accuracy"]
                for result in results
                if result["key"]["repetition"] == repetition
                and result["key"]["hp"] == searches[repetition, side]["chosen"][number]
            )
            for _, _, number in choices(searches[repetition, side])
        ]
        for repetition in range(settings.repeats)
        for side in sides(settings)
    }


def common_accuracy(side: str, seconds: list[float], ours: list[float]) -> list[str]:
    """The cells of a side's time to the common accuracy."""
    if math.inf in seconds:
        found = sum(each < math.inf for each in seconds)
        return [f"reached in {found} of {len(seconds)}", ""]
    return [spread(seconds, 1), "" if side == "ours" else ratios(seconds, ours)]


def measure(settings: SearchPeersSettings) -> None:
    """Searches, retrained choices, and the table."""
    if settings.unshared and not settings.points:
        raise SettingsError("--unshared: is for --points, which is not given")
    searches = searched(settings)
    seeds, names = range(settings.repeats), list(sides(settings))
    chosen = {
        key: choices(search, retrained=bool(settings.retrain))
        for key, search in searches.items()
        if key[0] in seeds
    }
    # A choice's accuracy, in percent: retrained, or what the search saw of it.
    values = (
        retrained(settings, searches)
        if settings.retrain
        else {key: [100 * accuracy for _, accuracy, _ in each] for key, each in chosen.items()}
    )
    last = {side: [values[seed, side][-1] for seed in seeds] for side in names}
    # The three sides set the target. Of the others, one may end below it.
    target = [min(accuracies) for accuracies in zip(*(last[side] for side in SIDES), strict=True)]
    reached = {
        side: [
            next(
                (
                    seconds
                    for (seconds, _, _), value in zip(
                        chosen[seed, side], values[seed, side], strict=True
                    )
                    if value >= target[seed]
                ),
                math.inf,
            )
            for seed in seeds
        ]
        for side in names
    }
    walls = {side: [searches[seed, side]["wall"] for seed in seeds] for side in names}
    seen = {side: [100 * chosen[seed, side][-1][1] for seed in seeds] for side in names}
    epochs = {side: [len(searches[seed, side]["course"]) for seed in seeds] for side in names}
    header = ["side", "wall time, s", "peer / ours", "s to the common accuracy", "peer / ours"]
    header += ["accuracy of the choice, %", "− ours (95 %)", "chosen by − it, points"]
    header += ["epochs trained"]
    section(
        "One search against the peers"
        + (", shared starting points" if settings.points and not settings.unshared else "")
        + (", starting points for ours" if settings.unshared else "")
        + (", choices retrained" if settings.retrain else ""),
        header,
        [
            [
                side,
                spread(walls[side], 1),
                "" if side == "ours" else ratios(walls[side], walls["ours"]),
                *common_accuracy(side, reached[side], reached["ours"]),
                spread(last[side], 2),
                "" if side == "ours" else difference(last[side], last["ours"], 2),
                difference(seen[side], last[side], 2),
                spread(epochs[side]),
            ]
            for side in names
        ],
        n=f"n = {settings.repeats} searches of each side in turn, medians (quartiles)",
        out=settings.out,
        notes=[
            f"{settings.trials} trials of at most {settings.epochs} epochs on "
            f"{settings.train_images:,} images, {CORES} cores. "
            + (
                f"Every choice is trained again with {settings.retrain} seeds and judged by "
                f"{60_000 - settings.train_images - VAL:,} training images that the search did "
                "not see; its accuracy is their mean. "
                if settings.retrain
                else ""
            )
            + (
                f"{'Ours alone' if settings.unshared else 'Every side'} begins with the "
                f"{len(settings.started_with)} configurations of "
                f"{Path(settings.points).name}. "
                if settings.points
                else ""
            )
            + "The common accuracy of a repetition is the lowest of the three sides' choices: "
            f"{spread(target, 2)} %. Wall time counts from the command's start to its end."
            + (" Searches that the cache has were not run again." if settings.cache else "")
        ],
    )


if __name__ == "__main__":
    main(SearchPeersSettings, measure)
