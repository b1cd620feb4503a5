"""For overhead.py: trials that only sleep, for our search and for stock OptunaSearch, which this
script runs.

python noop_trial.py TRIALS SLOTS SECONDS FLOATS FOLDER     # stock: TPE, actors reused
"""

import functools
import os
import platform
import random
import sys
import time
from collections.abc import Mapping
from typing import Any

from noop_space import slept, space
from ray import tune

from mnist_ray.run.layout import trial_folder
from mnist_ray.spaces import DataShape
from mnist_ray.storage import RunStorage
from mnist_ray.trials.network import TrainTrial
from mnist_ray.tune.trainable import EpochTrial
from mnist_ray.tune.trial import Result, TrialContext


def sleep(hp: Mapping[str, Any], start: float) -> Any:
    """As noop_space.slept; gives a row with a random accuracy."""
    slept(hp, start)
    accuracy = random.random()
    row = {
        "epoch": 1,
        "train_loss": 0.0,
        "train_accuracy": 0.0,
        "val_loss": 1 - accuracy,
        "val_accuracy": accuracy,
    }
    return {
        **row,
        "lr": 0.0,
        "images_per_second": 0.0,
        "seconds": hp["seconds"],
        "n_parameters": 0,
        "node": platform.node(),
        "done": True,
    }


class NoOpTrial(EpochTrial):
    """For our search. The checkpoints that it expects are written within the trial's own time: they
    are its work.
    """

    LATEST, BEST = TrainTrial.LATEST, TrainTrial.BEST

    def setup(
        self, config: dict[str, Any], context: TrialContext | None = None, **data: Any
    ) -> None:
        assert context is not None
        self.context, self.storage = context, RunStorage(context.run)
        self.begin_config(config)

    def epoch(self) -> Result:
        start = time.time()
        for name in (*self.BEST, self.LATEST):
            self.storage.write_bytes(f"{trial_folder(self.number)}/{name}", b"nothing")
        return sleep(self.hp, start)


class StockTrial(tune.Trainable):
    """For stock OptunaSearch."""

    def setup(self, config: dict[str, Any]) -> None:
        self.hp = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.hp = new_config
        return True

    def step(self) -> dict[str, Any]:
        return sleep(self.hp, time.time())


def stock(trials: int, slots: int, seconds: float, floats: int, folder: str) -> None:
    """The search with what Ray ships."""
    import ray
    from ray.tune.search.optuna import OptunaSearch

    shape = DataShape(
        1, (8, 8), 10, (0.3053,), (0.3761,)
    )  # that of digits, which our side is given
    configured = functools.partial(
        space, data=shape, seconds=seconds, stamps=folder, floats=floats
    )  # Ray pickles it, so no lambda
    ray.init(address="local", log_to_driver=False, logging_level="ERROR")
    results = tune.Tuner(
        tune.with_resources(StockTrial, {"cpu": len(os.sched_getaffinity(0)) / slots}),
        tune_config=tune.TuneConfig(
            metric="val_accuracy",
            mode="max",
            search_alg=OptunaSearch(space=configured, metric="val_accuracy", mode="max"),
            num_samples=trials,
            max_concurrent_trials=slots,
            reuse_actors=True,
        ),
        # A trial that only sleeps has nothing to keep.
        run_config=tune.RunConfig(
            name="stock",
            storage_path=folder,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()
    if results.errors:
        raise results.errors[0]
    ray.shutdown()


if __name__ == "__main__":
    stock(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
