"""Samplers: each suggests, each repeats itself with its seed, the grid ends, and one's own is found
by its path.
"""

import itertools
import math
import warnings
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from mnist_ray.errors import SettingsError
from mnist_ray.study.samplers import SAMPLERS, TPE, TPE_OPTIONS, _place, exhausted, make_sampler
from tests.support import ROOT

ANNEALING = "examples.simulated_annealing:SimulatedAnnealing"

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def space(trial: optuna.Trial) -> float:
    """A small define-by-run space, each kind of parameter in it; best at 0."""
    kind = trial.suggest_categorical("kind", ["a", "b"])
    value = abs(trial.suggest_int("n", 1, 5) - 4) + trial.suggest_float("p", 0, 1, step=0.25)
    if kind == "a":
        return value + abs(math.log(trial.suggest_float("lr", 1e-4, 1.0, log=True) / 1e-2))
    return value + 0.5 + trial.suggest_int("m", 2, 64, log=True) / 64


def finite(trial: optuna.Trial) -> float:
    """The same without what is continuous: 5 * 5 * (1 + 3) = 100 points."""
    kind = trial.suggest_categorical("kind", ["a", "b"])
    value = trial.suggest_int("n", 1, 5) + trial.suggest_float("p", 0, 1, step=0.25)
    return value + (trial.suggest_int("m", 1, 3) if kind == "b" else 0)


def walk(
    sampler: optuna.samplers.BaseSampler, n: int, at_once: int = 1, objective: Any = space
) -> optuna.Study:
    """n trials as the search has them, some pruned; `at_once` of them under way."""
    study = optuna.create_study(sampler=sampler)
    running: list[tuple[optuna.Trial, float]] = []
    for _ in range(n):
        if exhausted(study):
            break
        trial = study.ask()
        running.append((trial, objective(trial)))
        if len(running) == at_once:
            settle(study, *running.pop(0))
    for pair in running:
        settle(study, *pair)
    return study


def settle(study: optuna.Study, trial: optuna.Trial, value: float) -> None:
    trial.report(value, 1)
    if trial.number % 3 == 2:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, value)


def params(study: optuna.Study) -> list[dict[str, Any]]:
    return [t.params for t in study.trials]


def value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


@pytest.mark.parametrize("name", [*SAMPLERS, ANNEALING])
@pytest.mark.parametrize("at_once", [1, 3])
def test_each_suggests_and_repeats_itself(name: str, at_once: int) -> None:
    args = {"n_startup_trials": "5"} if name in ("tpe", "cmaes", "gp") else {}
    objective = finite if name == "grid" else space
    with warnings.catch_warnings():
        warnings.simplefilter("error", optuna.exceptions.ExperimentalWarning)
        first = walk(make_sampler(name, 7, args), 15, at_once, objective)
    assert len(first.trials) == 15
    assert params(first) == params(walk(make_sampler(name, 7, args), 15, at_once, objective))
    assert params(first) != params(walk(make_sampler(name, 8, args), 15, at_once, objective))


@pytest.mark.parametrize("name", ["tpe", "cmaes", "gp", ANNEALING])
def test_the_learning_ones_learn(name: str) -> None:
    """Their best of 40 is better than the median of what random search finds, and they go where it
    is good.
    """
    args = {} if name == ANNEALING else {"n_startup_trials": "8"}
    if name == "gp":
        args["deterministic_objective"] = "true"
    late = [
        t.value for t in walk(make_sampler(name, 1, args), 40).trials[20:] if t.value is not None
    ]
    random = [t.value for t in walk(make_sampler("random", 1), 40).trials if t.value is not None]
    assert sorted(late)[len(late) // 2] < sorted(random)[len(random) // 2]


def test_cmaes_learns_from_pruned_trials() -> None:
    """With every trial but the first pruned it still leaves its first generation; told not to look
    at them, it does not.
    """

    def generation(args: dict[str, str]) -> int:
        study = optuna.create_study(sampler=make_sampler("cmaes", 0, args))
        for number in range(15):
            trial = study.ask()
            value = trial.suggest_float("x", -1, 1) ** 2 + trial.suggest_float("y", -1, 1) ** 2
            trial.report(value, 1)
            study.tell(
                trial,
                None if number else value,
                state=TrialState.PRUNED if number else TrialState.COMPLETE,
            )
        return max(t.system_attrs.get("cma:generation", 0) for t in study.trials)

    assert generation({}) >= 1
    assert generation({"consider_pruned_trials": "false"}) == 0


@pytest.mark.parametrize("at_once", [1, 4, 7])
def test_the_grid_walks_every_point_once_and_ends(at_once: int) -> None:
    study = walk(make_sampler("grid", 3), 1000, at_once, finite)
    assert len(study.trials) == 100
    assert len({tuple(p.items()) for p in params(study)}) == 100
    assert exhausted(study)


def test_the_grid_goes_on_in_another_process(tmp_path: Path) -> None:
    """As after a kill: another sampler and storage object on the same study; what was under way is
    not suggested again.
    """

    def opened(seed: int) -> optuna.Study:
        backend = JournalFileBackend(str(tmp_path / "study.journal"))
        storage = optuna.storages.JournalStorage(backend)
        return optuna.create_study(
            storage=storage, study_name="s", sampler=make_sampler("grid", seed), load_if_exists=True
        )

    study = opened(0)
    for i in range(60):
        trial = study.ask()
        value = finite(trial)
        if i % 20 != 5:
            study.tell(trial, value, state=TrialState.COMPLETE)
    assert not exhausted(study)
    study = opened(1)
    while not exhausted(study):
        trial = study.ask()
        study.tell(trial, finite(trial))
    assert len(study.trials) == 100
    assert len({tuple(p.items()) for p in params(study)}) == 100
    assert exhausted(opened(2))


def test_a_grid_smaller_than_what_runs_at_once() -> None:
    study = optuna.create_study(sampler=make_sampler("grid", 0))
    values = []
    while not exhausted(study):
        values.append(study.ask().suggest_int("n", 1, 3))
    assert sorted(values) == [1, 2, 3]


def test_only_the_grid_is_ever_exhausted() -> None:
    study = optuna.create_study(sampler=make_sampler("random", 0))
    trial = study.ask()
    study.tell(trial, trial.suggest_int("n", 1, 1))
    assert not exhausted(study)
    study.sampler = make_sampler("grid", 0)
    assert exhausted(study)


def test_the_grid_refuses_what_is_continuous() -> None:
    with pytest.raises(
        SettingsError, match="--sampler: grid cannot walk 'lr', which is continuous"
    ):
        optuna.create_study(sampler=make_sampler("grid", 0)).ask().suggest_float("lr", 0, 1)


def test_options_reach_the_sampler() -> None:
    study = walk(make_sampler("tpe", 0, {"n_startup_trials": "15"}), 15)
    random = walk(make_sampler("random", 0), 15)
    assert params(study) == params(random)  # TPE's start-up trials are random search's
    assert params(study) != params(walk(make_sampler("tpe", 0, {"n_startup_trials": "5"}), 15))


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        (
            "cma",
            {},
            (
                "--sampler: 'cma' is unknown; expected one of tpe, cmaes, gp, qmc, random, grid, "
                "nsga2 or module:attribute"
            ),
        ),
        (
            "examples.nothing:Sampler",
            {},
            "--sampler: 'examples.nothing:Sampler' cannot be imported",
        ),
        ("examples.simulated_annealing:Nothing", {}, "cannot be imported"),
        (
            "examples.simulated_annealing:REACH",
            {},
            "--sampler: 'examples.simulated_annealing:REACH' cannot be made",
        ),
        (
            f"{__name__}:NotASampler",
            {},
            "is a NotASampler; expected an optuna.samplers.BaseSampler",
        ),
        ("tpe", {"startup": "5"}, "--sampler-args: sampler 'tpe' has no option 'startup'; it has"),
        (
            "tpe",
            {"n_startup_trials": "many"},
            "--sampler-args: n_startup_trials='many' is not allowed; expected a value of type int",
        ),
        (
            "tpe",
            {"prior_weight": "nan"},
            "--sampler-args: prior_weight='nan' is not allowed; expected a value of type float",
        ),
        ("tpe", {"gamma": "x"}, "sampler 'tpe' has no option 'gamma'"),
        ("random", {"seed": "3"}, "sampler 'random' has no option 'seed'"),
        (
            "nsga2",
            {"population_size": "1"},
            "--sampler: 'nsga2' cannot be made with {'population_size': 1}",
        ),
        (f"{__name__}:Unmade", {}, "cannot be made with {}: "),
        (f"{__name__}:Unmade", {}, "test_samplers.py:"),
    ],
)
def test_what_is_wrong_is_one_line(name: str, args: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        make_sampler(name, 0, args)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


class NotASampler:
    pass


class Unseeded(optuna.samplers.RandomSampler):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__(seed=0)
        self.scale = scale


def test_ones_own_sampler_with_and_without_a_seed() -> None:
    sampler = make_sampler(f"{__name__}:Unseeded", 5, {"scale": "2.5"})
    assert isinstance(sampler, Unseeded)
    assert sampler.scale == 2.5
    assert type(make_sampler(ANNEALING, 5, {"temperature": "0.5"})).__name__ == "SimulatedAnnealing"


def test_a_large_seed_is_taken() -> None:
    for name in SAMPLERS:
        make_sampler(name, 2**32 + 5)


# ---- the example


def test_annealing_stays_near_and_cools() -> None:
    sampler: Any = make_sampler(ANNEALING, 0)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    for _ in range(30):
        before, temperature = sampler.current, sampler.temperature
        trial = study.ask()
        x, lr, n = (
            trial.suggest_float("x", 0, 10),
            trial.suggest_float("lr", 1e-4, 1, log=True),
            trial.suggest_int("n", 1, 100),
        )
        if before is not None:
            assert abs(x - before.params["x"]) <= 1 + 1e-9
            assert abs(math.log10(lr / before.params["lr"])) <= 0.4 + 1e-9
            assert abs(n - before.params["n"]) <= 10
        study.tell(trial, -((x - 3) ** 2))
        assert sampler.temperature == pytest.approx(0.9 * temperature)
    assert sampler.height > -1


def test_annealing_accepts_the_worse_by_temperature() -> None:
    """Half a temperature worse is accepted in about exp(-0.5) = 61 % of cases; a better one always;
    a failed one never.
    """
    accepted = 0
    for seed in range(300):
        sampler: Any = make_sampler(ANNEALING, seed, {"temperature": "1"})
        study = optuna.create_study(sampler=sampler, direction="minimize")
        for value in (2.0, 1.0):
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            study.tell(trial, value)
            assert sampler.height == -value
        failed = study.ask()
        failed.suggest_float("x", 0, 1)
        study.tell(failed, state=TrialState.FAIL)
        assert sampler.height == -1.0
        worse = study.ask()
        worse.suggest_float("x", 0, 1)
        study.tell(worse, 1.0 + 0.5 * 0.81)  # two trials have cooled it
        accepted += sampler.current.number == worse.number
    assert 0.5 < accepted / 300 < 0.72


def test_annealing_moves_through_small_integers_and_categories() -> None:
    sampler: Any = make_sampler(ANNEALING, 2, {"temperature": "1e9"})  # accepts everything
    study = optuna.create_study(sampler=sampler)
    for _ in range(60):
        trial = study.ask()
        study.tell(
            trial,
            trial.suggest_int("n", 1, 3)
            + len(trial.suggest_categorical("c", ["x", "yy", "zzz"]))
            + trial.suggest_int("m", 1, 64, log=True),
        )
    for name, values in (("n", {1, 2, 3}), ("c", {"x", "yy", "zzz"})):
        assert {p[name] for p in params(study)} == values
    assert len({p["m"] for p in params(study)}) > 10


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_long_study_is_looked_at_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to KEPT trials TPE is Optuna's; beyond, it sees the best, an even part of the rest and all
    that run, and its cost stays.
    """
    plain = walk(optuna.samplers.TPESampler(**TPE_OPTIONS, seed=3), 40)
    assert [t.params for t in walk(make_sampler("tpe", 3), 40).trials] == [
        t.params for t in plain.trials
    ]

    monkeypatch.setattr(TPE, "KEPT", 20)
    seen: list[list[int]] = []
    inner = optuna.samplers.TPESampler._sample

    def sample(self: Any, study: optuna.Study, *arguments: Any) -> Any:
        seen.append([t.number for t in study._get_trials(deepcopy=False)])
        return inner(self, study, *arguments)

    monkeypatch.setattr(optuna.samplers.TPESampler, "_sample", sample)
    study = walk(TPE(**TPE_OPTIONS, seed=3), 200, at_once=3)
    finished = [t for t in study.trials[:197] if t.state == TrialState.COMPLETE]
    best = min(finished, key=value)
    assert {len(numbers) for numbers in seen[-5:]} == {
        23
    }  # and the two others that run, and the trial itself
    assert best.number in seen[-1]
    assert seen[-1] == sorted(set(seen[-1]))
    gaps = [b - a for a, b in itertools.pairwise(seen[-1])]
    assert max(gaps) < 20
    # The same after a resume, when nothing is remembered of the trials before.
    again = TPE(**TPE_OPTIONS, seed=0)
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    for sampler in (again, cast(TPE, study.sampler)):
        sampler._update(study, study.get_trials(deepcopy=False))
    everything = study, study.get_trials(deepcopy=False), ()
    chosen = again._chosen(*everything)
    assert len(chosen) == 20
    assert chosen == cast(TPE, study.sampler)._chosen(*everything)
    # In TPE's own order: complete ones first, then by how far a pruned one came.
    ordered = sorted(done, key=lambda t: _place(1, t))
    assert [t.value for t in ordered if t.state == TrialState.COMPLETE] == sorted(
        value(t) for t in done if t.state == TrialState.COMPLETE
    )
    assert {t.number for t in ordered[:2]} <= set(chosen)


class Unmade(optuna.samplers.RandomSampler):
    def __init__(self) -> None:
        raise KeyError("nothing")


class Handing(optuna.samplers.RandomSampler):
    def __init__(self, temperature: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class OfHanding(Handing):
    """Has the constructor of its base class."""


class Fixed(optuna.samplers.RandomSampler):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(seed=5, **kwargs)


@pytest.mark.parametrize(
    ("name", "differ"), [("Handing", True), ("OfHanding", True), ("Fixed", False)]
)
def test_ones_own_gets_the_seed_by_its_keywords(name: str, differ: bool) -> None:
    def first(seed: int) -> float:
        sampler = make_sampler(f"{__name__}:{name}", seed)
        return optuna.create_study(sampler=sampler).ask().suggest_float("x", 0, 1)

    assert first(3) == first(3)
    assert (first(3) != first(4)) is differ
