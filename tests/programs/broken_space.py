"""A space whose network cannot be built."""


def space(trial, data):
    trial.suggest_float("x", 0, 1)
    hp = {"model": "broken_space:build", "optimizer": "adam", "batch_size": 8, "lr": 0.1}
    return {**hp, **data.hyperparameters()}


def build(hp):
    raise RuntimeError("no such network")
