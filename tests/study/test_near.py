"""After starting configurations a search goes on near the best of them, and not at random."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from mnist_ray.study.near import ANY, near
from mnist_ray.study.optuna_private import started
from mnist_ray.study.samplers import make_sampler
from mnist_ray.study.trials import POINT

optuna.logging.set_verbosity(optuna.logging.ERROR)

DISTRIBUTIONS: dict[str, Any] = {
    "log": FloatDistribution(1e-4, 1.0, log=True),
    "step": FloatDistribution(0.0, 0.5, step=0.1),
    "plain": FloatDistribution(-2.0, 3.0),
    "int": IntDistribution(3, 40),
    "eighths": IntDistribution(8, 64, step=8),
    "logint": IntDistribution(2, 64, log=True),
    "one": IntDistribution(5, 5),
    "choice": CategoricalDistribution(["a", "b", None, 3]),
}
CENTRE: dict[str, Any] = {
    "log": 0.01, "step": 0.3, "plain": 1.0, "int": 20, "eighths": 32, "logint": 8, "one": 5,
    "choice": "b",
}  # fmt: skip


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_values_are_allowed_and_near(name: str) -> None:
    distribution, rng = DISTRIBUTIONS[name], np.random.RandomState(0)
    values = [near(CENTRE, name, distribution, rng) for _ in range(2000)]
    kept = np.mean([value == CENTRE[name] for value in values])
    if name == "choice":
        assert 0.7 < kept < 0.8
        assert {value for value in values if value != CENTRE[name]} == {ANY}
        return
    for value in values:
        # Exactly: what Optuna would keep of it.
        assert distribution.to_external_repr(distribution.to_internal_repr(value)) == value
        assert distribution._contains(distribution.to_internal_repr(value))
    if name == "one":
        return
    assert 0.45 < kept < 0.75  # a small step may end where it began
    scale = math.log if "log" in name else float
    low, high = scale(distribution.low), scale(distribution.high)
    away = np.abs([scale(value) - scale(CENTRE[name]) for value in values]) / (high - low)
    assert np.mean(away < 0.25) > 0.8
    assert away.max() > 0.3


def test_what_the_centre_has_not_is_drawn_anew() -> None:
    rng = np.random.RandomState(0)
    for centre in ({}, {"x": 7.0}, {"x": None}):
        assert near(centre, "x", FloatDistribution(0, 1), rng) is ANY
    assert near({"x": "c"}, "x", CategoricalDistribution(["a", "b"]), rng) is ANY
    kept = [near({"x": None}, "x", CategoricalDistribution([None, 1]), rng) for _ in range(100)]
    assert 60 < kept.count(None) < 90


def space(trial: optuna.Trial) -> None:
    kind = trial.suggest_categorical("kind", ["a", "b", "c", "d"])
    trial.suggest_float(f"lr_{kind}", 1e-5, 1.0, log=True)
    trial.suggest_int("n", 0, 100)


BEST = {"kind": "b", "lr_b": 0.02, "n": 90}


def after(
    points: list[tuple[dict[str, Any], float, TrialState]],
    attributes: Mapping[str, Any],
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What eight trials under way at once suggest after these."""
    study = optuna.create_study(direction="maximize", sampler=make_sampler("tpe", seed))
    for params, value, state in points:
        trial = started(study, attributes, params)
        space(trial)
        trial.report(value, 1)
        study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
    trials = [study.ask() for _ in range(8)]
    for trial in trials:
        space(trial)
    return [trial.params for trial in trials]


ENDED = [
    ({"kind": "a", "lr_a": 0.5, "n": 1}, 0.5, TrialState.COMPLETE),
    (BEST, 0.9, TrialState.COMPLETE),
    ({"kind": "c", "lr_c": 0.5, "n": 1}, 0.95, TrialState.PRUNED),
]


def test_a_search_goes_on_near_its_best_starting_configuration() -> None:
    led = after(ENDED, {POINT: ["r", 0]})
    free = after(ENDED, {})
    assert sum(params["kind"] == "b" for params in led) >= 5
    assert sum(params["kind"] == "b" for params in free) <= 4
    assert np.median([params["n"] for params in led]) > 75
    assert led == after(ENDED, {POINT: ["r", 0]})  # of the same seed
    assert led != after(ENDED, {POINT: ["r", 0]}, seed=1)
    # As Optuna's own where nothing led.
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    space(trial)
    assert after([], {})[0] == trial.params


def test_it_ends_with_the_random_beginning_of_tpe() -> None:
    many = [({"kind": "a", "lr_a": 0.5, "n": i}, 0.1, TrialState.COMPLETE) for i in range(9)]
    led, free = (after([*many, ENDED[1]], attributes) for attributes in ({POINT: ["r", 0]}, {}))
    assert led == free


def test_a_best_one_beyond_a_limit_leads_nobody() -> None:
    def suggested(limit: float) -> str:
        study = optuna.create_study(direction="maximize", sampler=make_sampler("tpe", 0))
        trial = started(study, {POINT: ["r", 0]}, BEST)
        space(trial)
        trial.set_constraint("n", limit)
        study.tell(trial, 0.9)
        kinds = []
        for _ in range(8):
            trial = study.ask()
            space(trial)
            kinds.append(trial.params["kind"])
        return "".join(kinds)

    assert suggested(-1.0).count("b") >= 5
    assert suggested(1.0).count("b") <= 4
