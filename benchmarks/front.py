"""Searches of 24 trials on digits with two objectives, and with a limit: does the rule that stops
trials know the objectives, and does the winner keep the limit?

    python benchmarks/front.py      # a few minutes on one core

The networks are trained; Ray is not started. The searcher and the scheduler are asked as Tune asks
them, two trials at a time (tests/support/tune_loop.py). Every side has the same seeds, and so the
same first ten suggestions.

The hypervolume is the area that a front dominates in the plane of the error and of the logarithm of
the parameters, as a share of the rectangle from error 0 to WORST and from the smallest to the
largest network of all searches. Only complete trials are on a front: the others have no network.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common import BenchmarkSettings, section, spread

from mnist_ray.settings import main
from mnist_ray.tune.trial import NUMBER
from tests.support.tune_loop import FakeTrial, TuneLoop

BOTH = ("accuracy", "parameters")
TRIALS, EPOCHS, WORST = 24, 9, 0.2
LIMIT = "parameters<=50000"
SIDES = {"front": "non-dominated rank", "accuracy": "accuracy alone"}


@dataclass(frozen=True)
class FrontSettings(BenchmarkSettings):
    """Compare what stops trials, on digits."""

    repeats: int = 10
    """Seeds of every side."""


class Networks:
    """Trains, and keeps the epochs of every configuration: the sides begin with the same ones."""

    def __init__(self) -> None:
        import torch

        from mnist_ray import data

        torch.set_num_threads(1)
        self.images, train, val, *_ = data.load_split("digits", val_images=400)
        self.tensors = [
            torch.from_numpy(array)
            for array in (self.images.images, self.images.labels, train, val)
        ]
        self.trainers: dict[str, Any] = {}

    def epoch(self, hp: Mapping[str, Any], epoch: int) -> tuple[dict[str, Any], int]:
        """That epoch's row, and the network's parameters."""
        from mnist_ray.models import n_parameters
        from mnist_ray.training.trainer import Trainer

        key = json.dumps(hp, sort_keys=True)
        if key not in self.trainers:
            made = Trainer(hp, epochs=EPOCHS, seed=0, precision="fp32")
            self.trainers[key] = (made, n_parameters(made.model))
        trainer, size = self.trainers[key]
        while len(trainer.rows) < epoch:
            trainer.run_epoch(*self.tensors)
        return dict(trainer.rows[epoch - 1]), size


def search(networks: Networks, side: str, seed: int) -> Any:
    """The records of one search. side: front, accuracy or limited."""
    import optuna

    from mnist_ray.models import build, n_parameters
    from mnist_ray.run.records import Records
    from mnist_ray.search_job.work import data_shape
    from mnist_ray.settings.constraints import read, unfit, violation
    from mnist_ray.spaces.mlp import mlp
    from mnist_ray.study.front import FrontHalving
    from mnist_ray.study.pruners import Scheduler
    from mnist_ray.study.samplers import make_sampler
    from mnist_ray.study.studies import open_study
    from mnist_ray.tune.schedulers import make_scheduler
    from mnist_ray.tune.searcher import StudySearch
    from mnist_ray.tune.trial import ended

    objectives = BOTH if side in SIDES else ()
    limits = read([LIMIT] if side == "limited" else [])
    study = open_study(
        optuna.storages.InMemoryStorage(), "s", "val_accuracy", make_sampler("tpe", seed),
        objectives=objectives,
    )  # fmt: skip
    searcher = StudySearch(
        study,
        lambda trial: mlp(trial, data_shape(networks.images)),
        Records("val_accuracy", TRIALS, objectives),
        run="r",
        max_epochs=EPOCHS,
        on_settled=lambda number: None,
        limits=limits,
        front=FrontHalving(BOTH, EPOCHS, 1, 3) if side == "front" else None,
    )

    def train(trial: FakeTrial) -> dict[str, Any]:
        hp = {key: value for key, value in trial.config.items() if key != NUMBER}
        size = n_parameters(build(hp))
        known = {"n_parameters": size, "node": "here", "training_iteration": trial.epoch}
        if beyond := unfit(limits, {"parameters": size}):
            return {**known, "unfit": beyond, **ended()}
        row, _ = networks.epoch(hp, trial.epoch)
        if not math.isfinite(row["val_loss"]):
            return {**known, **ended(reason="the loss is not finite")}
        if limits:
            row["violation"] = violation(limits, {"parameters": size})
        return {**row, **known, "done": trial.epoch >= EPOCHS}

    TuneLoop(searcher, make_scheduler(Scheduler("asha", EPOCHS), {}, searcher)).run(train)
    return searcher.records


def hypervolume(front: list[list[float]], low: float, high: float) -> float:
    """Of (accuracy, parameters) pairs; low, high: the smallest and the largest network's."""
    area, best = 0.0, 0.0
    span = math.log(high / low)
    ordered = sorted(front, key=lambda pair: pair[1])
    for i, (accuracy, size) in enumerate(ordered):
        best = max(best, 1 - (1 - accuracy) / WORST)
        until = ordered[i + 1][1] if i + 1 < len(ordered) else high
        area += max(0.0, best) * math.log(until / size) / span
    return area


def run(settings: FrontSettings) -> None:
    """Searches with every side and seed; writes the section."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    networks = Networks()
    found: dict[str, list[Any]] = {}
    for seed in range(settings.repeats):
        for side in (*SIDES, "limited"):
            records = search(networks, side, seed)
            found.setdefault(side, []).append(records)
            print(seed, side, list(records.front().values()) or records.best, flush=True)
    every = [
        r.n_parameters
        for each in found.values()
        for records in each
        for r in records.trials.values()
        if r.n_parameters
    ]
    low, high = min(every), max(every)
    rows = []
    for side, name in SIDES.items():
        fronts = [list(records.front().values()) for records in found[side]]
        epochs = [sum(len(r.rows) for r in records.trials.values()) for records in found[side]]
        areas = [hypervolume(front, low, high) for front in fronts]
        sizes = [len(front) for front in fronts]
        rows.append([name, spread(sizes), min(sizes), spread(areas, 3), spread(epochs)])
    wins = []
    for side, name in (("limited", f"With the limit {LIMIT}"), ("accuracy", "Without")):
        winners = [(records.trials[records.best[0]].n_parameters, records.best[1]["val_accuracy"])
                   for records in found[side]]  # fmt: skip
        limit = float(LIMIT.partition("<=")[2])
        beyond = sum(size > limit for size, _ in winners)
        accuracies = [100 * accuracy for _, accuracy in winners]
        wins.append(
            f"{name}: {beyond} of {len(winners)} winners beyond {LIMIT}; their parameters "
            f"{spread([size for size, _ in winners])}, validation accuracy "
            f"{spread(accuracies, 2)} %."
        )
    section(
        "Pareto fronts",
        ["trials are stopped by", "points on the front, median (quartiles)", "fewest",
         "hypervolume", "epochs trained"],
        rows,
        n=f"n = {settings.repeats} seeds, {TRIALS} trials of at most {EPOCHS} epochs on digits "
        "with the space mlp and 400 validation images",
        out=settings.out,
        notes=[
            f"Networks of {low:,} to {high:,} parameters; the hypervolume is the share of the "
            f"plane of error (up to {WORST:.0%}) and logarithm of the parameters that the front "
            "dominates.",
            *wins,
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main(FrontSettings, run)
