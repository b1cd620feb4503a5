"""The second act of a search without Ray: what a resume begins, and what it does not begin."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mnist_ray.errors import WorkError
from mnist_ray.run import layout
from mnist_ray.run.records import Record
from mnist_ray.search_job import engine
from mnist_ray.search_job.keeper import Keeper, claim
from mnist_ray.search_job.plan import Placement, Plan, prepare
from mnist_ray.settings import SearchSettings
from mnist_ray.study import trials
from mnist_ray.study.optuna_private import started
from mnist_ray.tune.trial import NUMBER
from tests.support.tune_loop import result


class Begun(Exception):
    """Raised in the place of Tune."""


def plan_of(folder: Path, **options: Any) -> Plan:
    small = {"dataset": "digits", "space_args": ("min_width=8", "max_width=16"), "name": "a"}
    plan = prepare(SearchSettings(**{**small, "storage": str(folder), "max_epochs": 2, **options}))
    claim(plan)
    return dataclasses.replace(plan, placement=Placement(0, 2, "fp32", {}))


def no_tune(*_: Any) -> None:
    raise Begun


def train(
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
    values: tuple[float, ...] = (0.95, 0.5),
    begin: Callable[..., None] = no_tune,
) -> list[str]:
    """A search that has trials with these values already: the states of its trials after it."""
    monkeypatch.setattr(engine, "_tuner", begin)
    monkeypatch.setattr("mnist_ray.cluster.Slots", lambda *_: lambda: 2)
    with engine.opened_study(plan) as (study, _):
        for value in values:
            trial = started(study, {trials.RUN: "a"}, {})
            plan.space(trial)
            record = Record(trial.number, dict(trial.params))
            record.rows[2] = result(2, value)  # type: ignore[assignment]
            trials.keep_summary(trial, record)
            study.tell(trial, value)
        restored = engine.restore(plan, study)
        keeper = Keeper(plan.storage, restored.records, {"x": "x"}, None, resumed=True)
        engine.train(plan, study, restored, keeper, [], Path(plan.storage.uri))
        return [trial.state.name for trial in study.trials]


@pytest.mark.parametrize("options", [{"target": 0.9}, {"patience": 1}])
def test_a_search_that_has_ended_itself_begins_nothing_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """The fine-tuning follows at once."""
    plan = plan_of(tmp_path, trials=5, **options)
    assert train(plan, monkeypatch) == ["COMPLETE", "COMPLETE"]


@pytest.mark.parametrize(
    "options", [{"target": 0.99}, {"patience": 2}, {"time_budget": "1h"}, {"trials": 3}]
)
def test_one_that_has_not_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    with pytest.raises(Begun):
        train(plan_of(tmp_path, **{"trials": 5, **options}), monkeypatch)


def test_a_search_without_a_trial_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dataclasses.replace(plan_of(tmp_path, trials=5), time_budget=-1.0)
    with pytest.raises(WorkError, match="^no trial of 0 succeeded: none was begun$"):
        train(plan, monkeypatch, ())


@pytest.mark.parametrize(("wanted", "remaining"), [(1, 2), (2, 2), (5, 4)])
def test_trials_that_have_begun_go_on_however_few_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: int, remaining: int
) -> None:
    """One is done, two were cut off and have a checkpoint."""
    plan, asked = plan_of(tmp_path, trials=wanted), []

    def begin(plan: Plan, searcher: Any, restored: Any, remaining: int, *_: Any) -> None:
        asked.append(remaining)
        asked.extend(searcher.suggest(str(i))[NUMBER] for i in range(2))
        raise Begun

    with engine.opened_study(plan) as (study, _):
        for number in (0, 1):
            trial = started(study, {trials.RUN: "a"}, {})
            plan.space(trial)
            plan.storage.write_bytes(f"{layout.trial_folder(number)}/latest.safetensors", b"x")
    with pytest.raises(Begun):
        train(plan, monkeypatch, (0.5,), begin)
    assert asked == [remaining, 0, 1]


def test_an_error_in_ones_own_part_names_it_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(plan: Plan, searcher: Any, *_: Any) -> Any:
        searcher.own_error = ("scheduler", "mine.py:4: KeyError: 'x'")
        return SimpleNamespace(fit=lambda: None)

    plan = plan_of(tmp_path, trials=5)
    with pytest.raises(WorkError) as caught:
        train(plan, monkeypatch, begin=begin)
    said = str(caught.value)
    assert said.startswith("--scheduler: asha failed: mine.py:4: KeyError: 'x'; to go on: ")
    assert said.endswith(plan.resume_command)
