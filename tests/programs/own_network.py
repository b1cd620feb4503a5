"""A space and a network of one's own."""

from torch import nn


def space(trial, data):
    lr = trial.suggest_float("lr", 1e-3, 1e-2)
    hp = {"model": "own_network:network", "optimizer": "adam", "batch_size": 32, "lr": lr}
    return {**hp, **data.hyperparameters()}


def network(hp):
    head = nn.Linear(32, hp["classes"])
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), head)
