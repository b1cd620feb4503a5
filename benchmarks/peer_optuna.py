"""A search by Optuna alone, as its PyTorch example does it: one process, one trial after another,
MedianPruner, all cores' threads.

Prints a JSON line an epoch: time, accuracy, the trial's number and hyperparameters.
"""

import json
import sys
import time
from typing import Any

import optuna
import peer_loop
import torch
from peer_space import space


def main(task: dict[str, Any]) -> None:
    """The search."""
    torch.set_num_threads(task["cores"])
    torch.manual_seed(task["seed"])
    val = peer_loop.loader(task["data_dir"], task["val"], 1000, shuffle=False)

    def objective(trial: optuna.Trial) -> float:
        hp = space(trial)
        train = peer_loop.loader(task["data_dir"], task["train"], hp["batch_size"], shuffle=True)
        model = peer_loop.network(hp)
        optimizer = peer_loop.optimizer(model, hp)
        accuracy = 0.0
        for epoch in range(task["epochs"]):
            peer_loop.train_epoch(model, train, optimizer)
            accuracy = peer_loop.accuracy(model, val)
            line = {"time": time.time(), "accuracy": accuracy, "trial": str(trial.number), "hp": hp}
            print(json.dumps(line), flush=True)
            trial.report(accuracy, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return accuracy

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=task["seed"]),
        pruner=optuna.pruners.MedianPruner(),
    )
    for point in task["points"] or []:
        study.enqueue_trial(point)
    study.optimize(objective, n_trials=task["trials"])


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        main(json.load(file))
