"""A space whose network cannot be built."""


def space(trial, data):
    trial.suggest_float("x", 0, 1)
    return {"model": "broken_space:build"}


def build(hp):
    raise RuntimeError("no such network")
