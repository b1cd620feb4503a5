"""A run's trials in a study: read back, closed, and tried again."""

import json
from typing import Any

import optuna
import pytest

from mnist_ray.errors import CorruptFileError
from mnist_ray.run.records import INTERRUPTED, Record
from mnist_ray.study.optuna_private import started
from mnist_ray.study.trials import (
    AGAIN,
    ROWS,
    RUN,
    SUMMARY,
    close_interrupted,
    keep_summary,
    read_trials,
    to_try_again,
)
from tests.support.studies import MOST_BYTES, long_record, new_study, space


def test_only_the_run_s_own_trials_are_read_and_closed() -> None:
    study = new_study(optuna.storages.InMemoryStorage())
    for run in ("mine", "yours", "mine"):
        trial = study.ask()
        space(trial)
        trial.set_user_attr(RUN, run)
        trial.report(0.5, 1)
    pairs = read_trials(study, "mine", "val_accuracy")
    assert [(frozen.number, record.state, list(record.rows)) for frozen, record in pairs] == [
        (0, "RUNNING", [1]),
        (2, "RUNNING", [1]),
    ]
    close_interrupted(study, *pairs[0])
    assert [t.state.name for t in study.get_trials()] == ["FAIL", "RUNNING", "RUNNING"]
    assert read_trials(study, "mine", "val_accuracy")[0][1].reason == INTERRUPTED
    # its values are tried again once, and not twice where the run is cut off before they are handed
    # out
    assert to_try_again(study, "yours") == []
    assert to_try_again(study, "mine") == [(0, study.trials[0].params)]
    started(study, {AGAIN: 0}, study.trials[0].params)
    assert to_try_again(study, "mine") == []


def kept(study: optuna.Study) -> Record:
    [(_, record)] = read_trials(study, "r", "val_accuracy")
    return record


def sizes(study: optuna.Study) -> list[int]:
    return [len(json.dumps(value)) for value in study.trials[0].user_attrs.values()]


@pytest.mark.parametrize("metrics", [0, 100])
def test_a_long_summary_is_kept_in_several_attributes(metrics: int) -> None:
    study = new_study(optuna.storages.InMemoryStorage())
    trial = started(study, {RUN: "r"}, {})
    record = long_record(0, 1000, metrics)
    keep_summary(trial, record)
    study.tell(trial, 0.5)
    assert max(sizes(study)) < MOST_BYTES
    assert f"{ROWS}:1" in study.trials[0].user_attrs
    found = kept(study)
    assert found.summary() == record.summary()
    assert list(found.rows) == list(range(1, 1001))


def test_a_short_summary_is_one_attribute_as_before() -> None:
    study = new_study(optuna.storages.InMemoryStorage())
    trial = started(study, {RUN: "r"}, {})
    record = long_record(0, 100)
    keep_summary(trial, record)
    assert study.trials[0].user_attrs == {RUN: "r", SUMMARY: record.summary()}


def test_an_older_summary_is_read_whatever_its_length() -> None:
    study = new_study(optuna.storages.InMemoryStorage())
    trial = started(study, {RUN: "r"}, {})
    record = long_record(0, 1000)
    trial.set_user_attr(SUMMARY, record.summary())
    study.tell(trial, 0.5)
    assert kept(study).summary() == record.summary()


def test_a_kill_between_two_attributes_loses_no_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A paused trial is kept again and again; the older SUMMARY goes with the newer ROWS."""
    study = new_study(optuna.storages.InMemoryStorage())
    trial = started(study, {RUN: "r"}, {})
    keep_summary(trial, long_record(0, 700))
    stock = trial.set_user_attr

    def killed(key: str, value: Any) -> None:
        if key == SUMMARY:
            raise KeyboardInterrupt
        stock(key, value)

    monkeypatch.setattr(trial, "set_user_attr", killed)
    with pytest.raises(KeyboardInterrupt):
        keep_summary(trial, long_record(0, 1000))
    found = kept(study)
    assert list(found.rows) == list(range(1, 701))
    assert found.rows == long_record(0, 700).rows


@pytest.mark.parametrize(("parts", "rows"), [(9, []), (1, "x"), ("1", []), (10**12, []), (1, [7])])
def test_a_damaged_long_summary_is_named(parts: Any, rows: Any) -> None:
    study = new_study(optuna.storages.InMemoryStorage())
    trial = started(study, {RUN: "r"}, {})
    trial.set_user_attr(f"{ROWS}:0", rows)
    trial.set_user_attr(SUMMARY, {"parts": parts, "rows": []})
    with pytest.raises(CorruptFileError, match="study 's' is damaged: trial 0: "):
        kept(study)
