"""A search on a study that others may share, without Ray: what it does to the study.

shared_study.py PLACE RUN TRIALS SEED PAUSE: two trials of three epochs at a time, with so many
seconds before each epoch. Prints "settled NUMBER" for each, and then "end" or the storage's error.
"""

import sys
import time
from typing import Any

import optuna

from mnist_ray.run.records import Records
from mnist_ray.study.storages import opened
from mnist_ray.study.studies import open_study
from mnist_ray.tune.schedulers import PrunerScheduler
from mnist_ray.tune.searcher import StudySearch
from tests.support.studies import space
from tests.support.tune_loop import FakeTrial, TuneLoop, result

place, run, trials, seed, pause = sys.argv[1:]
optuna.logging.set_verbosity(optuna.logging.ERROR)


def train(trial: FakeTrial) -> dict[str, Any]:
    """The trial's next epoch; after it the search ends where the storage has failed."""
    if search.storage_error:
        print(search.storage_error)
        sys.exit()
    time.sleep(float(pause))
    return result(trial.epoch, trial.config["x"] * trial.epoch / 3, done=trial.epoch == 3)


with opened(place) as storage:
    sampler, pruner = optuna.samplers.TPESampler(seed=int(seed)), optuna.pruners.MedianPruner(2)
    study = open_study(storage, "shared", "val_accuracy", sampler, pruner, {"of": "test"})
    search = StudySearch(
        study,
        space,
        Records("val_accuracy", int(trials)),
        run=run,
        max_epochs=3,
        on_settled=lambda number: print("settled", number, flush=True),
    )
    TuneLoop(search, PrunerScheduler(search)).run(train)
    print(search.storage_error or "end")
