"""--constraint in a search without Ray: what samplers learn, who is stopped, and who wins."""

from typing import Any

import optuna
import pytest

from mnist_ray.run.records import Record, Records, epoch_row, keeps_limits
from mnist_ray.settings.constraints import excesses, read, unfit, violation
from mnist_ray.study.front import FrontHalving
from mnist_ray.study.pruners import Scheduler
from mnist_ray.study.samplers import make_sampler
from mnist_ray.study.studies import open_study
from mnist_ray.study.trials import read_trials
from mnist_ray.tune import schedulers
from mnist_ray.tune.outcomes import Outcomes
from mnist_ray.tune.searcher import StudySearch
from mnist_ray.tune.trial import ended
from tests.support.tune_loop import FakeTrial, TuneLoop, result

optuna.logging.set_verbosity(optuna.logging.ERROR)
LIMITS = read(["parameters<=40"])
EPOCHS = 9
BOTH = ("accuracy", "parameters")


def space(trial: optuna.Trial) -> dict[str, Any]:
    return {"x": trial.suggest_float("x", 0, 1), "n": trial.suggest_int("n", 1, 100)}


def searched(
    sampler: str, objectives: tuple[str, ...] = (), trials: int = 24, seed: int = 0
) -> tuple[StudySearch, optuna.Study]:
    """A search in which more parameters are more accurate."""
    storage = optuna.storages.InMemoryStorage()
    args = {"n_startup_trials": "6"} if sampler == "tpe" else {}
    made = make_sampler(sampler, seed, args)
    study = open_study(storage, "s", "val_accuracy", made, objectives=objectives)
    search = StudySearch(
        study,
        space,
        Records("val_accuracy", trials, objectives),
        run="r",
        max_epochs=EPOCHS,
        on_settled=lambda number: None,
        limits=LIMITS,
        front=FrontHalving(objectives, EPOCHS, 1, 3) if objectives else None,
    )
    scheduler = schedulers.make_scheduler(Scheduler("asha", EPOCHS), {}, search)

    def train(trial: FakeTrial) -> dict[str, Any]:
        n, x = trial.config["n"], trial.config["x"]
        known: dict[str, Any] = {"n_parameters": n, "node": "here"}
        beyond = unfit(LIMITS, {"parameters": n})
        if beyond and sampler == "tpe":
            return {**known, "unfit": beyond, **ended()}
        accuracy = 0.5 + n / 400 - 0.2 * (x - 0.5) ** 2 + trial.epoch / 100
        known["violation"] = violation(LIMITS, {"parameters": n})
        if beyond:
            known["unfit"] = beyond
        done = trial.epoch >= EPOCHS
        return result(trial.epoch, min(1.0, accuracy), done=done, **known)

    TuneLoop(search, scheduler).run(train)
    return search, study


@pytest.mark.parametrize(
    ("sampler", "objectives"),
    [
        ("tpe", ()),
        ("tpe", BOTH),
        ("gp", ()),
        pytest.param("gp", BOTH, marks=pytest.mark.slow),  # two Gaussian processes a suggestion
        ("nsga2", ()),
        ("nsga2", BOTH),
    ],
)
def test_the_winner_keeps_the_limits(sampler: str, objectives: tuple[str, ...]) -> None:
    search, study = searched(sampler, objectives)
    records = search.records
    assert records.best is not None
    assert (records.trials[records.best[0]].n_parameters or 99) <= 40
    assert [t.state.is_finished() for t in study.trials] == [True] * 24
    for trial in study.trials:
        n = trial.params["n"]
        assert trial.constraints == pytest.approx(excesses(LIMITS, {"parameters": n}))
    assert all(t.params["n"] <= 40 for t in study.best_trials)
    beyond = [t for t in study.trials if t.params["n"] > 40]
    assert beyond
    states = {t.state.name for t in beyond}
    assert states == ({"PRUNED"} if sampler == "tpe" else {"COMPLETE"})
    reason = records.trials[beyond[0].number].reason
    assert reason.startswith("not trained: parameters=") == (sampler == "tpe")
    assert {number for number in records.front()} <= {
        r.number for r in records.trials.values() if (r.n_parameters or 99) <= 40
    } or not objectives
    restored = read_trials(study, "r", "val_accuracy")
    assert [keeps_limits(row) for _, r in restored for row in r.rows.values()] == [
        keeps_limits(row) for r in records.trials.values() for row in r.rows.values()
    ]


def test_tpe_learns_to_keep_them() -> None:
    kept = [
        t.params["n"] <= 40
        for seed in range(3)
        for t in searched("tpe", trials=60, seed=seed)[1].trials[30:]
    ]
    assert sum(kept) / len(kept) > 0.5  # 0.4 at random, though larger ones are more accurate


def test_trials_beyond_a_limit_are_no_measure_for_others() -> None:
    """Larger networks are more accurate here, and yet stop none that keeps the limit."""
    _, study = searched("nsga2", trials=60)
    fit = [t.state.name for t in study.trials if t.params["n"] <= 40]
    assert (fit[0], "PRUNED" in fit, fit.count("COMPLETE") >= 3) == ("COMPLETE", True, True)


def test_a_trial_beyond_a_limit_reports_no_value_to_the_study() -> None:
    """So no pruner of Optuna's compares others with it."""
    study = optuna.create_study(direction="maximize")
    records = Records("val_accuracy", 2)
    for number, parameters in enumerate((99, 4)):
        trial = study.ask()
        records.add(Record(number, {}, n_parameters=parameters))
        outcomes = Outcomes(
            study, records, EPOCHS, lambda _: None, lambda *_: None, {}, read(["parameters<=5"])
        )
        outcomes.take(trial, [epoch_row(result(1, 0.5))])
    assert [t.intermediate_values for t in study.get_trials()] == [{}, {1: 0.5}]


def test_a_front_of_several_points_comes_out_of_the_rungs() -> None:
    sizes = []
    for seed in range(5):
        search, study = searched("tpe", BOTH, seed=seed)
        states = [t.state.name for t in study.trials if t.params["n"] <= 40]
        assert "PRUNED" in states
        sizes.append(len(search.records.front()))
    assert min(sizes) >= 3
