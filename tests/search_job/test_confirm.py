"""--confirm without Ray: which trials are trained again, and which of them is chosen."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import mnist_ray as mr
from mnist_ray import report
from mnist_ray.run import best, layout
from mnist_ray.run.records import Record, Records
from mnist_ray.search_job import confirm, engine
from mnist_ray.search_job.keeper import Keeper, claim
from mnist_ray.search_job.plan import Placement, Plan, prepare
from mnist_ray.settings import SearchSettings
from mnist_ray.storage import RunStorage
from mnist_ray.study import studies, trials
from mnist_ray.study.journal import journal_file
from mnist_ray.study.optuna_private import started
from mnist_ray.tune.trainable import EpochTrial
from mnist_ray.tune.trial import NUMBER, RETRAINS, TrialContext
from tests.support.tune_loop import FakeTrial, TuneLoop, result

FOUND = {0: 0.90, 1: 0.95, 2: 0.93, 3: 0.91}  # by the search
AGAIN = {(1, 1): 0.90, (1, 2): 0.92, (2, 1): 0.925, (2, 2): 0.935}  # by trial and seed
EPOCHS = 2


class Interrupted(Exception):
    """Ends the retrainings in the middle."""


def searched(folder: Path, **options: Any) -> tuple[Plan, Records]:
    """A plan with --confirm 2, and its trials as the search leaves them."""
    small = {"dataset": "digits", "space_args": ("min_width=8", "max_width=16"), "name": "a"}
    settings = {**small, "trials": 4, "max_epochs": EPOCHS, "confirm": 2, **options}
    plan = prepare(SearchSettings(**{"storage": str(folder), **settings}))
    plan = dataclasses.replace(plan, placement=Placement(0, 2, "fp32", {}))
    claim(plan)
    (folder / "a").mkdir(exist_ok=True)
    study = studies.open_study(
        journal_file(folder / "a" / layout.JOURNAL),
        plan.study_name,
        plan.settings.goal,
        plan.sampler(0),
        purpose=plan.purpose,
    )
    records = Records(plan.settings.goal, 4)
    for value in FOUND.values():
        trial = started(study, {trials.RUN: "a"}, {})
        plan.space(trial)
        record = records.add(Record(trial.number, dict(trial.params)))
        records.report(trial.number, result(EPOCHS, value, seconds=2.0))
        records.end(trial.number, "COMPLETE")
        trial.set_user_attr(trials.SUMMARY, record.summary())
        study.tell(trial, value)
    Keeper(plan.storage, records, {"best.bin": "model.bin"}, None, resumed=True).save()
    return plan, records


def fake_fit(
    monkeypatch: pytest.MonkeyPatch,
    values: Mapping[tuple[int, int], float] = AGAIN,
    most: int = 99,
    ending: str | None = None,
) -> list[tuple[int, int, int]]:
    """Retrainings without Ray; what was trained: trial, seed and epoch. most: epochs in all."""
    trained: list[tuple[int, int, int]] = []

    def fit(plan: Plan, study: Any, restored: Any, keeper: Any, progress: Any, *_: Any) -> None:
        if restored.records.settled() == plan.settings.trials:
            return
        searcher = engine._searcher(plan, study, restored, progress.settled, keeper)

        def train(trial: FakeTrial) -> dict[str, Any]:
            if len(trained) == most:
                if ending is None:
                    raise Interrupted
                searcher.ending = ending
                return result(0, done=True)
            number = trial.config[RETRAINS][0]
            trained.append((number, seed(trial), trial.epoch))
            for file in ("latest.safetensors", "best.safetensors", "optimizer.safetensors"):
                content = f"{number} seed {seed(trial)}".encode()
                plan.storage.write_bytes(f"{layout.trial_folder(trial.number)}/{file}", content)
            last = trial.epoch == plan.settings.max_epochs
            value = values[number, seed(trial)] - (0 if last else 0.1)
            return result(trial.epoch, value, done=last, seconds=1.0)

        def seed(trial: FakeTrial) -> int:
            seeds = [confirm.further_seed(plan.settings.seed, k) for k in (1, 2)]
            return seeds.index(trial.config[RETRAINS][1]) + 1

        TuneLoop(searcher).run(train)
        searcher.close()

    monkeypatch.setattr(engine, "_fit", fit)
    monkeypatch.setattr("mnist_ray.cluster.Slots", lambda *_: lambda: 2)
    return trained


def again(plan: Plan, records: Records) -> tuple[best.Confirmed, ...]:
    return engine.train_again(plan, records, None, lambda: False)


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_best_mean_is_chosen_not_the_best_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    plan, records = searched(tmp_path, deterministic=deterministic)
    trained = fake_fit(monkeypatch)
    confirmed = again(plan, records)
    assert {t[:2] for t in trained} == set(AGAIN)
    assert [each.number for each in confirmed] == [2, 1]
    chosen = mr.open_run(plan.storage.uri).best
    assert (chosen.number, chosen.value, chosen.epoch) == (2, 0.93, EPOCHS)
    assert chosen.params == records.trials[2].params
    assert chosen.confirmed is not None
    assert chosen.confirmed.values == (0.925, 0.935)
    assert chosen.confirmed.mean == pytest.approx(0.93)
    assert chosen.confirmed.spread == pytest.approx(0.00707, abs=1e-5)
    assert chosen.confirmed.difference == pytest.approx(0, abs=1e-9)
    assert confirmed[1].difference == pytest.approx(0.04)
    assert plan.storage.read_bytes(layout.BEST_NETWORK) == b"2 seed 2"
    kept = plan.storage.below(layout.CONFIRM).list(layout.CHECKPOINTS)
    contents = {plan.storage.below(layout.CONFIRM).read_bytes(name) for name in kept}
    assert contents == {b"2 seed 1", b"2 seed 2"}
    text = confirm.text(records, confirmed)
    assert text.endswith("best: trial 2")
    assert "+0.0400" in text
    page = Path(report.write(plan.storage)).read_text()
    assert "With fresh seeds" in page
    assert "best of 2 trained again" in page


def test_a_resume_trains_only_the_missing_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, records = searched(tmp_path)
    first = fake_fit(monkeypatch, most=5)
    with pytest.raises(Interrupted):
        again(plan, records)
    assert mr.open_run(plan.storage.uri).best.number == 1  # as the search says
    second = fake_fit(monkeypatch)
    confirmed = again(plan, records)
    assert confirmed[0].number == 2
    complete = {t[:2] for t in first if t[2] == EPOCHS}
    assert complete
    assert {t[:2] for t in second} == set(AGAIN) - complete
    third = fake_fit(monkeypatch)
    assert again(plan, records) == confirmed
    assert not third


def test_retrainings_that_the_time_budget_cut_off_are_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, records = searched(tmp_path)
    first = fake_fit(monkeypatch, most=3, ending="stopped by --time-budget")
    assert again(plan, records) == ()
    assert "the best stays the search's" in confirm.text(records, ())
    assert mr.open_run(plan.storage.uri).best.number == 1
    assert not plan.storage.exists(layout.BEST_NETWORK)
    second = fake_fit(monkeypatch)
    assert again(plan, records)[0].number == 2
    complete = {t[:2] for t in first if t[2] == EPOCHS}
    assert {t[:2] for t in second} == set(AGAIN) - complete


def test_a_better_trial_of_a_longer_search_is_confirmed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, records = searched(tmp_path)
    fake_fit(monkeypatch)
    again(plan, records)
    new = records.add(Record(4, {**records.trials[0].params, "lr": 0.0123}))
    records.report(4, result(EPOCHS, 0.99))
    records.end(4, "COMPLETE")
    trained = fake_fit(monkeypatch, {(4, 1): 0.91, (4, 2): 0.91})
    confirmed = again(plan, records)
    assert new in confirm.wanted(plan, records)
    assert {t[0] for t in trained} == {4}
    assert [each.number for each in confirmed] == [2, 1, 4]
    assert plan.storage.read_bytes(layout.BEST_NETWORK) == b"2 seed 2"


def test_the_confirmed_stays_until_best_is_another_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume may be interrupted at any moment: best/ and the best are the same trial's."""
    plan, records = searched(tmp_path)
    fake_fit(monkeypatch)
    again(plan, records)
    keeper = Keeper(plan.storage, records, engine.best_files(plan), None, resumed=True)
    records.add(Record(4, dict(records.trials[0].params)))
    records.report(4, result(1, 0.5))
    keeper.save()
    run = mr.open_run(plan.storage.uri)
    assert (run.best.number, run.best.confirmed is None) == (2, False)
    assert plan.storage.read_bytes(layout.BEST_NETWORK) == b"2 seed 2"
    for file in engine.best_files(plan):
        plan.storage.write_bytes(f"{layout.trial_folder(4)}/{file}", b"of trial 4")
    records.report(4, result(2, 0.99))
    keeper.save()
    run = mr.open_run(plan.storage.uri)
    assert (run.best.number, run.best.confirmed) == (4, None)
    assert plan.storage.read_bytes(layout.BEST_NETWORK) == b"of trial 4"


LONGER = {(1, 1): 0.97, (1, 2): 0.98, (2, 1): 0.96, (2, 2): 0.96}


@pytest.mark.parametrize("shorter", [False, True])
def test_more_epochs_train_the_best_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shorter: bool
) -> None:
    plan, records = searched(tmp_path, **({} if shorter else {"confirm_epochs": EPOCHS + 2}))
    fake_fit(monkeypatch)
    if shorter:
        assert again(plan, records)[0].number == 2
    longer = dataclasses.replace(
        plan, settings=dataclasses.replace(plan.settings, confirm_epochs=EPOCHS + 2)
    )
    assert confirm.begins(longer).endswith(f"for {EPOCHS + 2} epochs")
    trained = fake_fit(monkeypatch, LONGER)
    confirmed = again(longer, records)
    assert {(*each, EPOCHS + 2) for each in LONGER} <= set(trained)
    assert [(each.number, each.mean) for each in confirmed] == [(1, 0.975), (2, 0.96)]
    assert plan.storage.read_bytes(layout.BEST_NETWORK) == b"1 seed 2"
    kept = plan.storage.below("confirm/epochs-4")
    contents = {kept.read_bytes(name) for name in kept.list(layout.CHECKPOINTS)}
    assert contents == {b"1 seed 1", b"1 seed 2"}
    page = Path(report.write(plan.storage)).read_text()
    assert ("best of 2 trained again for 4 epochs" in page) != shorter
    third = fake_fit(monkeypatch)
    assert again(longer, records) == confirmed
    assert not third


def test_equal_configurations_are_confirmed_once(tmp_path: Path) -> None:
    plan, records = searched(tmp_path)
    records.trials[2].params = dict(records.trials[1].params)
    assert [record.number for record in confirm.wanted(plan, records)] == [1, 3]


def test_a_diverged_retraining_rules_its_trial_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, records = searched(tmp_path)
    fake_fit(monkeypatch, {**AGAIN, (2, 2): float("nan")})
    assert [each.number for each in again(plan, records)] == [1]


def test_a_part_of_the_time_budget_is_kept(tmp_path: Path) -> None:
    plan, records = searched(tmp_path, time_budget="100s")
    # 4 retrainings of 2 epochs in 2 slots, 2 s an epoch
    assert confirm.Reserve(plan, records)() == confirm.STARTING + 8
    plan = dataclasses.replace(plan, time_budget=20.0)
    assert confirm.Reserve(plan, records)() == 10
    nothing = Records(records.metric, 4)
    assert confirm.Reserve(plan, nothing)() == 0


def test_a_retraining_has_its_own_seed_and_the_trials_number(tmp_path: Path) -> None:
    run = RunStorage(str(tmp_path))
    context = TrialContext(run.uri, "val_accuracy", 2, 7, "fp32", 1, 0, folder=layout.CONFIRM)
    config = {NUMBER: 3, RETRAINS: (17, 99), "x": 1}
    trial = EpochTrial.__new__(EpochTrial)
    trial.take(context)
    trial.begin_config(config)
    assert (trial.number, trial.shown, trial.context.seed) == (3, 17, 99)
    assert trial.hp == {"x": 1}
    assert trial.storage.uri == run.join(layout.CONFIRM)


Change = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize(
    ("change", "damaged"),
    [
        (lambda row: {**row, "value": None}, True),
        (lambda row: {**row, "found": float("inf")}, True),
        (lambda row: {**row, "number": -1}, True),
        (lambda row: {**row, "confirmed": None}, False),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, change: Change, damaged: bool) -> None:
    storage = RunStorage(str(tmp_path))
    row = {
        "number": 1, "seed": 1, "state": "COMPLETE", "value": 0.5, "found": 0.6, "best_epoch": 1,
        "epochs": 1, "seconds": 1.0, "reason": "", "confirmed": True, "chosen": True,
    }  # fmt: skip
    best.write(storage, [row])
    assert [each.number for each in best.read(storage)] == [1]
    best.write(storage, [change(row)])
    if damaged:
        with pytest.raises(mr.MnistRayError, match=r"confirmed\.parquet is"):
            best.read(storage)
    else:
        assert best.read(storage) == ()
