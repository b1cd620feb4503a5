"""A space of one's own: it names its keys as it likes, and depends on its suggestions alone."""

import dataclasses
from pathlib import Path
from typing import Any

import optuna
import pytest

from mnist_ray.errors import SettingsError
from mnist_ray.run.records import Record, Records
from mnist_ray.search_job import confirm, engine, job
from mnist_ray.search_job.keeper import Keeper, claim
from mnist_ray.search_job.plan import Placement, Plan, prepare
from mnist_ray.settings import SearchSettings
from mnist_ray.tune import schedulers
from mnist_ray.tune.trial import NUMBER, RETRAINS
from tests.support.tune_loop import FakeTrial, TuneLoop, result

TRIALS, EPOCHS = 6, 4


def planned(folder: Path, replaced: Any = None, **options: Any) -> Plan:
    """A plan on digits whose space is replaced."""
    common = {"dataset": "digits", "name": "a", "trials": TRIALS, "max_epochs": EPOCHS}
    plan = prepare(SearchSettings.of(**{**common, "storage": folder, **options}))
    placed = dataclasses.replace(plan, placement=Placement(0, 2, "fp32", {}))
    return dataclasses.replace(placed, space=replaced) if replaced else placed


def numbered(trial: optuna.Trial) -> dict[str, Any]:
    """A key `number`, as of layers."""
    return {"number": trial.suggest_int("number", 1, 3), "x": trial.suggest_float("x", 0, 1)}


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("scheduler", ["asha", "asha-promote"])
def test_a_space_may_have_a_key_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str, deterministic: bool
) -> None:
    monkeypatch.setattr("mnist_ray.cluster.Slots", lambda *_: lambda: 2)
    plan = planned(tmp_path, numbered, scheduler=scheduler, deterministic=deterministic)
    claim(plan)
    names: set[str] = set()
    epochs = dict.fromkeys(range(TRIALS), 0)

    def train(trial: FakeTrial) -> dict[str, Any]:
        number = trial.config[NUMBER]
        suggested = study.trials[number].params
        assert {key: trial.config[key] for key in ("number", "x")} == suggested
        names.add(engine._trial_name(trial))
        epochs[number] += 1
        value = suggested["x"] * epochs[number] / 10
        return result(epochs[number], value, done=epochs[number] == EPOCHS)

    with engine.opened_study(plan) as (study, _):
        restored = engine.restore(plan, study)
        keeper = Keeper(plan.storage, restored.records, {}, None)
        searcher = engine._searcher(plan, study, restored, lambda number: None, keeper)
        TuneLoop(searcher, schedulers.make_scheduler(plan.scheduler, {}, searcher)).run(train)
        searcher.close()
        states = [trial.state.name for trial in study.trials]
    assert names == {f"trial-{number:05d}" for number in range(TRIALS)}
    assert set(states) == {"COMPLETE", "PRUNED"}
    assert sorted(restored.records.trials) == list(range(TRIALS))


def of_its_number(trial: Any) -> dict[str, Any]:
    return {"model": f"mine:net{trial.number}", "x": trial.suggest_int("x", 0, 9)}


def test_a_trial_is_trained_again_under_its_number(tmp_path: Path) -> None:
    plan = planned(tmp_path, of_its_number, confirm=1)
    records = Records(plan.settings.goal, 4)
    for number in range(4):
        records.add(Record(number, {"x": 5}))
    again = confirm.plan_of(plan, records, None)
    drawn: Any = optuna.trial.FixedTrial({confirm.TRIAL: 3, confirm.SEED: 1})
    found = again.space(drawn)
    assert {key: found[key] for key in found if key != RETRAINS} == {"model": "mine:net3", "x": 5}
    words = job._finetune_arguments(plan, records.trials[2])
    assert words[words.index("--network") + 1] == "mine:net2"


def test_a_space_that_depends_on_more_is_refused_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_study(trial: optuna.Trial, data: Any) -> dict[str, Any]:
        size = 8 + len(trial.study.trials)
        common = {"model": "m:n", "optimizer": "adam", "lr": 0.1, "batch_size": size}
        return {**common, **data.hyperparameters()}

    monkeypatch.setattr("mnist_ray.spaces.find", lambda name, **_: by_study)
    with pytest.raises(SettingsError, match="^--space: 'odd:by_study' depends on more than its"):
        planned(tmp_path, space="odd:by_study")
    assert not (tmp_path / "a").exists()
