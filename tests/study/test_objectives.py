"""Several objectives: refusals, the study and the tables, the front, resumption, a real search."""

import io
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest
from optuna.trial import TrialState

from mnist_ray.errors import SettingsError
from mnist_ray.run.records import Records
from mnist_ray.run.tables import trials_table
from mnist_ray.settings import SearchSettings, check_search, objectives, parse
from mnist_ray.study import objectives as optuna_objectives
from mnist_ray.study.objectives import curve, single
from mnist_ray.study.pruners import read_scheduler
from mnist_ray.study.samplers import make_sampler
from mnist_ray.study.studies import open_study
from mnist_ray.study.trials import RUN, read_trials
from mnist_ray.study.warm_start import older_trials
from mnist_ray.tune.deterministic import OrderedSearch
from mnist_ray.tune.searcher import StudySearch
from tests.support import ROOT
from tests.support.tune_loop import TuneLoop
from tests.support.tune_loop import result as epoch_result

optuna.logging.set_verbosity(optuna.logging.ERROR)

BOTH = ("accuracy", "parameters")
PURPOSE = {"dataset": "d", "space": "s", "metric": "val_accuracy", "objectives": list(BOTH)}


def space(trial: optuna.Trial) -> dict[str, Any]:
    return {"x": trial.suggest_int("x", 0, 9)}


def a_study(
    storage: Any = None, asked: tuple[str, ...] = BOTH, name: str = "s", sampler: str = "random"
) -> optuna.Study:
    purpose = {**PURPOSE, "objectives": list(asked)} if asked else None
    return open_study(
        storage or optuna.storages.InMemoryStorage(),
        name,
        "val_accuracy",
        make_sampler(sampler, 0),
        None,
        purpose,
        objectives=asked,
    )


def searcher(study: optuna.Study, asked: tuple[str, ...] = BOTH, **options: Any) -> StudySearch:
    return StudySearch(
        study,
        space,
        Records("val_accuracy", 9, asked),
        run="r",
        max_epochs=3,
        on_settled=lambda number: None,
        **options,
    )


def result(
    epoch: int, accuracy: float, loss: float = 1.0, size: int = 7, **others: Any
) -> dict[str, Any]:
    return epoch_result(epoch, accuracy, val_loss=loss, n_parameters=size, **others)


def train(search: StudySearch, accuracies: list[float], **others: Any) -> int:
    """A trial with these epochs, the last of which ends it."""
    loop = TuneLoop(search)
    trial = loop.start()
    assert trial is not None
    for epoch, accuracy in enumerate(accuracies, start=1):
        loop.report(trial, result(epoch, accuracy, done=epoch == len(accuracies), **others))
    return trial.number


# ---- what is refused


@pytest.mark.parametrize(
    "text", ["accuracy", "accuracy,", "accuracy,speed", "accuracy,accuracy", "parameters"]
)
def test_two_or_more_known_objectives_each_once(text: str) -> None:
    with pytest.raises(
        SettingsError,
        match=r"--objectives: '.*' is not allowed; expected two or more of accuracy, loss",
    ):
        check_search(SearchSettings(objectives=text))


def test_the_metric_must_be_among_them() -> None:
    check_search(SearchSettings(objectives="latency,accuracy"))
    check_search(SearchSettings(objectives="parameters, loss", metric="val_loss"))
    for settings in (
        SearchSettings(objectives="latency,parameters"),
        SearchSettings(objectives="accuracy,latency", metric="val_loss"),
    ):
        with pytest.raises(SettingsError, match=r"--objectives: .* lacks"):
            check_search(settings)


def test_a_measured_time_is_never_deterministic() -> None:
    check_search(SearchSettings(objectives="accuracy,parameters", deterministic=True))
    with pytest.raises(SettingsError, match="--objectives: latency"):
        check_search(SearchSettings(objectives="accuracy,latency", deterministic=True))


def check_parts(**options: Any) -> None:
    settings = SearchSettings(**{"objectives": "accuracy,parameters", **options})
    optuna_objectives.check_parts(
        objectives.names(settings.objectives),
        lambda: make_sampler(settings.sampler, 0),
        read_scheduler(settings).pruner(),
        sampler_name=settings.sampler,
        scheduler_name=settings.scheduler,
        constrained=bool(settings.constraint),
    )


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", f"{__name__}:Mine"])
def test_samplers_that_learn_from_limits(sampler: str) -> None:
    check_parts(sampler=sampler, objectives=None, constraint=("parameters<=5",))


@pytest.mark.parametrize("sampler", ["cmaes", "qmc", "random", "grid", f"{__name__}:OneOnly"])
def test_samplers_that_ignore_limits_are_refused_in_one_line(sampler: str) -> None:
    with pytest.raises(
        SettingsError, match=f"^--sampler: '{sampler}' ignores --constraint; give tpe, gp or nsga2$"
    ):
        check_parts(sampler=sampler, objectives=None, constraint=("parameters<=5",))


class Mine(optuna.samplers.TPESampler):
    """A person's own sampler that learns from limits as TPE does."""


@pytest.mark.parametrize("sampler", ["tpe", "gp", "qmc", "random", "grid", "nsga2"])
def test_samplers_that_can(sampler: str) -> None:
    check_parts(sampler=sampler)


@pytest.mark.parametrize(
    "sampler",
    ["cmaes", "tests.study.test_objectives:OneOnly", "tests.study.test_objectives:Silent"],
)
def test_samplers_that_cannot_are_refused_in_one_line(sampler: str) -> None:
    with pytest.raises(
        SettingsError, match=f"--sampler: '{sampler}' cannot do several --objectives"
    ) as refused:
        check_parts(sampler=sampler)
    assert "\n" not in str(refused.value)
    check_parts(sampler=sampler, objectives=None)


class Silent(optuna.samplers.RandomSampler):
    """A person's own sampler that refuses several objectives without a word."""

    def before_trial(self, study: optuna.Study, trial: Any) -> None:
        if len(study.directions) > 1:
            raise NotImplementedError


class OneOnly(optuna.samplers.RandomSampler):
    """A person's own sampler that asks for the study's one direction."""

    def after_trial(self, study: optuna.Study, trial: Any, state: TrialState, values: Any) -> None:
        assert study.direction


@pytest.mark.parametrize(
    "scheduler", ["median", "hyperband", "patient", "optuna.pruners:NopPruner"]
)
def test_pruners_are_refused_in_one_line(scheduler: str) -> None:
    with pytest.raises(SettingsError, match=r"--scheduler: .*; give asha or none"):
        check_parts(scheduler=scheduler)


def test_schedulers_that_can() -> None:
    check_parts(scheduler="asha")
    for scheduler in ("asha", "none"):
        check_parts(scheduler=scheduler, deterministic=True)


# ---- the study


def test_a_study_is_told_the_truth() -> None:
    study = a_study()
    search = searcher(study)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == list(BOTH)
    train(search, [0.5, 0.9, 0.7], size=100)
    train(search, [0.4])
    failed = search.suggest("c")
    search.on_trial_complete(
        "c", {"val_accuracy": float("nan"), "val_loss": float("nan"), "epoch": 0, "reason": "no"}
    )
    assert failed
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert study.trials[0].values == [0.9, 100]
    assert curve(study.trials[0]) == {1: 0.5, 2: 0.9, 3: 0.7}
    assert curve(study.trials[1]) == {1: 0.4}
    assert [t.number for t in study.best_trials] == [0]


def test_a_deterministic_search_tells_it_too_in_its_order() -> None:
    study = a_study()
    records = Records("val_accuracy", 3, BOTH)
    search = OrderedSearch(
        study,
        space,
        records,
        run="r",
        max_epochs=3,
        on_settled=lambda number: None,
        window=2,
        sampler=lambda place: make_sampler("tpe", place),
    )
    search.suggest("a")
    train(search, [0.7, 0.8, 0.6])
    assert study.trials[1].state == TrialState.RUNNING  # kept back until its turn
    search.on_trial_complete(
        "a", {**result(3, 0.9, size=9), "rows": [result(1, 0.5), result(2, 0.6)]}
    )
    train(search, [0.5, 0.5, 0.5])
    assert [t.values for t in study.trials] == [[0.9, 9], [0.8, 7], [0.5, 7]]
    assert [curve(t) for t in study.trials][:2] == [
        {1: 0.5, 2: 0.6, 3: 0.9},
        {1: 0.7, 2: 0.8, 3: 0.6},
    ]


def test_the_table_names_values_and_front() -> None:
    search = searcher(a_study())
    train(search, [0.5, 0.9, 0.7], size=100)
    train(search, [0.8, 0.8, 0.8], size=50)
    train(search, [0.7, 0.7, 0.7], size=60)
    train(search, [0.99])
    rows = trials_table(search.records).to_pylist()
    assert [row["values_accuracy"] for row in rows] == [0.9, 0.8, 0.7, 0.99]
    assert [row["values_parameters"] for row in rows] == [100, 50, 60, 7]
    assert [row["pareto"] for row in rows] == [True, True, False, False]
    assert [row["value"] for row in rows] == [0.9, 0.8, 0.7, 0.99]
    assert "pareto" not in trials_table(Records("val_accuracy", 1)).column_names


def test_latency_is_the_first_that_was_measured_and_outlives_the_process() -> None:
    asked = ("accuracy", "latency")
    study = a_study(asked=asked)
    search = searcher(study, asked)
    search.suggest("a")
    search.on_trial_result("a", result(1, 0.5, latency_ms=0.25))
    search.on_trial_result("a", result(2, 0.6, latency_ms=0.75))
    search.on_trial_complete("a", result(3, 0.7, latency_ms=0.75))
    assert study.trials[0].values == [0.7, 0.25]
    [(_, record)] = read_trials(study, "r", "val_accuracy")
    assert (record.latency_ms, record.n_parameters, len(record.rows)) == (0.25, 7, 3)


def test_a_cut_off_trial_is_read_back_with_its_curve_and_goes_on() -> None:
    study = a_study()
    first = searcher(study)
    config = first.suggest("a")
    first.on_trial_result("a", result(1, 0.4))
    [(frozen, record)] = read_trials(study, "r", "val_accuracy")
    assert curve(frozen) == {1: 0.4}
    assert record.rows[1]["val_accuracy"] == 0.4
    record.rows = {}
    second = searcher(study, continued=[frozen])
    second.records.add(record)
    assert second.suggest("b") == config
    second.on_trial_result("b", result(2, 0.5, rows=[result(1, 0.4)]))
    second.on_trial_complete("b", result(3, 0.6))
    assert study.trials[0].values == [0.6, 7]
    assert curve(study.trials[0]) == {1: 0.4, 2: 0.5, 3: 0.6}


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ((), BOTH),
        (BOTH, ()),
        (BOTH, ("parameters", "accuracy")),
        (BOTH, ("accuracy", "parameters", "loss")),
    ],
)
def test_a_study_with_other_directions_is_refused(
    there: tuple[str, ...], here: tuple[str, ...]
) -> None:
    storage = optuna.storages.InMemoryStorage()
    a_study(storage, there)
    with pytest.raises(SettingsError, match=r"--objectives: .* study 's' is to"):
        a_study(storage, here)


def test_other_objectives_of_the_same_directions_are_refused_too() -> None:
    storage = optuna.storages.InMemoryStorage()
    a_study(storage, ("accuracy", "parameters"))
    with pytest.raises(SettingsError, match="objectives="):
        a_study(storage, ("accuracy", "latency"))
    a_study(storage, ("accuracy", "parameters"))  # and the same again is shared


def test_warm_start_takes_values_and_refuses_a_mismatch(tmp_path: Path) -> None:
    place = tmp_path / "old.journal"
    journal = optuna.storages.journal
    storage = optuna.storages.JournalStorage(journal.JournalFileBackend(str(place)))
    search = searcher(a_study(storage))
    train(search, [0.5, 0.9, 0.7], size=100)
    train(search, [0.4])
    found = older_trials(str(place), "val_accuracy", PURPOSE, space, BOTH)
    assert [(t.state.name, t.values) for t in found] == [("COMPLETE", [0.9, 100]), ("PRUNED", None)]
    new = a_study()
    new.add_trials(found)
    assert [t.number for t in new.best_trials] == [0]
    assert RUN not in new.trials[0].user_attrs
    with pytest.raises(SettingsError, match="--objectives"):
        older_trials(
            str(place),
            "val_accuracy",
            {k: v for k, v in PURPOSE.items() if k != "objectives"},
            space,
        )
    other = {**PURPOSE, "objectives": ["accuracy", "latency"]}
    with pytest.raises(SettingsError, match=r"--warm-start: .*objectives"):
        older_trials(str(place), "val_accuracy", other, space, ("accuracy", "latency"))


def test_tpe_learns_from_such_a_study_with_trials_of_every_state() -> None:
    study = a_study(sampler="tpe")
    search = searcher(study)
    with warnings.catch_warnings():
        warnings.simplefilter("error", optuna.exceptions.ExperimentalWarning)
        for i in range(9):
            train(search, [0.1 * i] * (1 if i % 3 == 2 else 3), size=100 - i)
    study.sampler = make_sampler("tpe", 0, {"n_startup_trials": "2"})
    assert 0 <= space(study.ask())["x"] <= 9


def test_of_one_objective_a_trial_stays_as_it_is_and_of_several_it_becomes_the_metric_s() -> None:
    study = a_study()
    search = searcher(study)
    train(search, [0.5, 0.9, 0.7])
    train(search, [0.5])
    whole, stopped = (single(t, BOTH, "val_accuracy") for t in study.trials)
    assert (whole.value, whole.intermediate_values) == (0.9, {1: 0.5, 2: 0.9, 3: 0.7})
    assert (stopped.value, stopped.intermediate_values) == (None, {1: 0.5})
    assert study.trials[0].values == [0.9, 7]
    assert single(study.trials[0], (), "val_accuracy").values == [0.9, 7]


def test_yaml_and_flag(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("objectives: accuracy,parameters\n")
    assert (
        parse(SearchSettings, ["--config", str(tmp_path / "s.yaml")]).objectives
        == "accuracy,parameters"
    )


# ---- a real search

SMALL = [
    "--dataset",
    "digits",
    "--space-args",
    "min_width=8",
    "max_width=16",
    "--train-images",
    "400",
    "--val-images",
    "200",
]


@pytest.mark.slow
def test_a_search_for_accuracy_and_latency_and_its_report(
    ray_head: dict[str, str], tmp_path: Path
) -> None:
    def search(*arguments: str) -> str:
        command = [
            sys.executable,
            str(ROOT / "jobs/search.py"),
            "--storage",
            str(tmp_path),
            "--name",
            "two",
            "--no-finetune",
            *arguments,
        ]
        done = subprocess.run(
            command, cwd=ROOT, env=ray_head, capture_output=True, text=True, timeout=480
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    output = search(
        *SMALL, "--trials", "5", "--max-epochs", "3", "--objectives", "accuracy,latency"
    )
    assert "Pareto front of the complete trials:" in output
    rows = pq.read_table(io.BytesIO((tmp_path / "two" / "trials.parquet").read_bytes())).to_pylist()
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "two" / "study.journal"))
    )
    study = optuna.load_study(study_name="two", storage=storage)
    assert study.metric_names == ["accuracy", "latency"]
    assert {t.number for t in study.best_trials} == {row["number"] for row in rows if row["pareto"]}
    for trial, row in zip(study.trials, rows, strict=True):
        assert trial.state.name == row["state"]
        if trial.state == TrialState.COMPLETE:
            assert trial.values == [row["values_accuracy"], row["values_latency"]]
        if row["state"] != "FAIL":
            assert 0.001 < row["values_latency"] < 100
    page = (tmp_path / "two" / "report.html").read_text()
    assert "Latency against value" in page
    assert "on the Pareto front of accuracy, latency" in page
    # two more trials, with the first five as the study has them
    again = search("--resume", "--trials", "7")
    assert "5 of 7 trials are done" in again
    rows_again = pq.read_table(
        io.BytesIO((tmp_path / "two" / "trials.parquet").read_bytes())
    ).to_pylist()
    assert [{**row, "pareto": None} for row in rows_again[:5]] == [
        {**row, "pareto": None} for row in rows
    ]
    assert (
        json.loads((tmp_path / "two" / "run.json").read_text())["settings"]["objectives"]
        == "accuracy,latency"
    )
