"""A search in the manner of Ray's own example (ray.tune.examples.mnist_pytorch), widened to the
task of search_peers.py.

As there: a function trainable that makes its DataLoaders and reports after every epoch,
AsyncHyperBandScheduler. As Ray's documents add: OptunaSearch. Everything else is the default; one
CPU a trial, as our search has it. Prints a JSON line an epoch: time, accuracy, the trial's
id and hyperparameters.
"""

import json
import os
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.optuna import OptunaSearch

HERE = os.path.dirname(os.path.abspath(__file__))


def train_mnist(config: dict[str, Any], task: dict[str, Any]) -> None:
    """One trial."""
    sys.path.insert(0, HERE)
    import peer_loop

    train = peer_loop.loader(task["data_dir"], task["train"], config["batch_size"], shuffle=True)
    val = peer_loop.loader(task["data_dir"], task["val"], 1000, shuffle=False)
    model = peer_loop.network(config)
    optimizer = peer_loop.optimizer(model, config)
    for _ in range(task["epochs"]):
        peer_loop.train_epoch(model, train, optimizer)
        tune.report({"mean_accuracy": peer_loop.accuracy(model, val)})


class Printer(tune.Callback):
    """A line for every result."""

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        line = {
            "time": time.time(),
            "accuracy": result["mean_accuracy"],
            "trial": trial.trial_id,
            "hp": trial.config,
        }
        print(json.dumps(line), flush=True)


def main(task: dict[str, Any]) -> None:
    """The search."""
    from peer_space import space

    ray.init(address="local", num_cpus=task["cores"], log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(train_mnist, task=task), {"cpu": 1}),
            tune_config=tune.TuneConfig(
                metric="mean_accuracy",
                mode="max",
                search_alg=OptunaSearch(
                    space=space,
                    points_to_evaluate=task["points"],
                    metric="mean_accuracy",
                    mode="max",
                    seed=task["seed"] + 1,
                ),
                scheduler=AsyncHyperBandScheduler(max_t=task["epochs"]),
                num_samples=task["trials"],
                max_concurrent_trials=task["cores"],
            ),
            run_config=tune.RunConfig(
                name="peer", storage_path=folder, verbose=0, callbacks=[Printer()]
            ),
        ).fit()
    ray.shutdown()


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        main(json.load(file))
