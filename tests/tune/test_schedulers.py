"""Schedulers, driven as Ray Tune drives them but without Ray: what Optuna knows afterwards, and
what a resume keeps.
"""

import json
import math
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from mnist_ray.run.records import INTERRUPTED, Record, Records
from mnist_ray.settings import SearchSettings
from mnist_ray.study.pruners import read_scheduler
from mnist_ray.study.samplers import SAMPLERS, make_sampler
from mnist_ray.study.studies import open_study
from mnist_ray.study.trials import read_trials
from mnist_ray.tune import schedulers
from mnist_ray.tune.searcher import StudySearch
from mnist_ray.tune.trial import NUMBER
from tests.support import ROOT
from tests.support.processes import own_ray
from tests.support.tune_loop import FakeTrial, TuneLoop, result

RUN = "run of the test"
# Every scheduler with options that let it stop something of the trials below.
SCHEDULERS: dict[str, tuple[str, ...]] = {
    "asha": (),
    "hyperband": (),
    "median": ("n_startup_trials=2",),
    "percentile": ("n_startup_trials=2", "percentile=40"),
    "successive-halving": (),
    "threshold": ("lower=0.3",),
    "patient": ("n_startup_trials=2", "patience=0"),
    "optuna.pruners:SuccessiveHalvingPruner": (),
}


def space(trial: optuna.Trial) -> dict[str, Any]:
    return {"x": trial.suggest_float("x", 0, 1)}


def accuracy(x: float, epoch: int) -> float:
    """Rises with the epochs where x is large, falls where it is small."""
    return round(0.5 + (x - 0.5) * epoch / 10, 6)


def row(x: float, epoch: int, epochs: int) -> dict[str, Any]:
    return result(epoch, accuracy(x, epoch), done=epoch >= epochs)


class Loop(TuneLoop):
    """The searcher's trials, whose accuracy follows from their x."""

    searcher: StudySearch

    def train(self, trial: FakeTrial) -> None:
        """The trial's next epoch."""
        trial.epoch += 1
        self.report(trial, row(trial.config["x"], trial.epoch, self.searcher.max_epochs))

    def run(self) -> None:  # type: ignore[override]
        """To the end."""
        super().run(lambda trial: row(trial.config["x"], trial.epoch, self.searcher.max_epochs))


def storage(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path / "study.journal")))


def tune(
    path: Path,
    scheduler: str,
    trials: int,
    *,
    sampler: str = "random",
    seed: int = 3,
    max_epochs: int = 9,
    **options: Any,
) -> Loop:
    """What search.py puts together, on a study in a file; what the study has already of the run is
    gone on with.
    """
    s = SearchSettings(
        scheduler=scheduler,
        scheduler_args=SCHEDULERS.get(scheduler, ()),
        max_epochs=max_epochs,
        grace_period=1,
        trials=trials,
    )
    study = open_study(
        storage(path), "s", "val_accuracy", make_sampler(sampler, seed), read_scheduler(s).pruner()
    )
    records = Records("val_accuracy", trials)
    past, continued = {}, []
    for frozen, record in read_trials(study, RUN, "val_accuracy"):
        past[record.number] = dict(frozen.intermediate_values)
        if record.state == "RUNNING":
            record.rows = {}
            continued.append(frozen)
        records.add(record)
    search_alg = StudySearch(
        study,
        space,
        records,
        run=RUN,
        max_epochs=max_epochs,
        on_settled=lambda number: None,
        continued=continued,
        **options,
    )
    return Loop(search_alg, schedulers.make_scheduler(read_scheduler(s), past, search_alg))


def check(path: Path, trials: int, max_epochs: int = 9) -> list[optuna.trial.FrozenTrial]:
    """What Optuna must know of every trial, read through a storage of its own."""
    study = optuna.load_study(study_name="s", storage=storage(path))
    assert len(study.trials) == trials
    for trial in study.trials:
        epochs = len(trial.intermediate_values)
        assert trial.intermediate_values == {
            e: accuracy(trial.params["x"], e) for e in range(1, epochs + 1)
        }
        if trial.state.name == "COMPLETE":
            assert epochs == max_epochs
            assert trial.value == max(trial.intermediate_values.values())
        else:
            assert trial.state.name == "PRUNED"
            assert 1 <= epochs < max_epochs
            assert trial.value == trial.intermediate_values[epochs]
    return study.trials


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_stopped_trials_are_pruned_with_their_values(tmp_path: Path, scheduler: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # Optuna warns of a step that is reported twice
        tune(tmp_path, scheduler, 12).run()
    states = [trial.state.name for trial in check(tmp_path, 12)]
    assert "PRUNED" in states
    assert "COMPLETE" in states


def test_none_stops_nothing(tmp_path: Path) -> None:
    tune(tmp_path, "none", 6).run()
    assert {trial.state.name for trial in check(tmp_path, 6)} == {"COMPLETE"}


@pytest.mark.parametrize("scheduler", [*SCHEDULERS, "none"])
def test_a_restarted_trial_counts_each_epoch_once(tmp_path: Path, scheduler: str) -> None:
    """After a worker's death a trial reports its checkpoint's epoch again, with all before it (see
    trial.py).
    """
    loop = tune(tmp_path, scheduler, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        while loop.fill():
            for trial in list(loop.live):
                loop.train(trial)
                if trial in loop.live and trial.epoch in (2, 5):
                    rows = [row(trial.config["x"], e, 9) for e in range(1, trial.epoch + 1)]
                    loop.report(trial, {**rows[-1], "rows": rows})
    check(tmp_path, 8)


@pytest.mark.parametrize("scheduler", [*SCHEDULERS, "none"])
def test_a_failed_trial_is_fail_and_disturbs_nobody(tmp_path: Path, scheduler: str) -> None:
    loop = tune(tmp_path, scheduler, 6)
    broken = {"val_accuracy": math.nan, "val_loss": math.nan, "epoch": 0}
    while loop.fill():
        for trial in list(loop.live):
            if trial.config[NUMBER] in (0, 3) and trial.epoch == 1:
                loop.report(
                    trial, {**broken, "done": False, "reason": "RuntimeError: first"}
                )  # not yet the end
                loop.report(trial, {**broken, "done": True, "reason": "RuntimeError: of the test"})
            else:
                loop.train(trial)
    trials = optuna.load_study(study_name="s", storage=storage(tmp_path)).trials
    failed = [t for t in trials if t.state.name == "FAIL"]
    assert {t.number for t in failed} <= {0, 3}
    assert failed
    for ended in failed:
        assert list(ended.intermediate_values) == [1]
        assert loop.searcher.records.trials[ended.number].reason == "RuntimeError: of the test"
    assert all(t.state.is_finished() for t in trials)


@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name != "threshold"])
def test_what_was_seen_survives_a_resume(tmp_path: Path, scheduler: str) -> None:
    """One process finds good trials and is killed while others are under way; the next stops a bad
    one as the first would have.
    """
    good = [(i, {"x": 0.99 - i / 100}) for i in range(5)] + [(5, {"x": 1.0})]
    options: dict[str, Any] = {"max_epochs": 27}
    first = tune(tmp_path, scheduler, 9, points=good, **options)
    first.slots = 1
    while first.fill() and first.live[0].config[NUMBER] < 5:
        first.train(first.live[0])
    for _ in range(3):
        first.train(first.live[0])
    cut = first.live[0].config[NUMBER] if first.live else None

    bad = [(9, {"x": 0.01}), (10, {"x": 0.02})]
    second = tune(tmp_path, scheduler, 9, points=bad, **options)
    second.slots = 1
    while second.fill():
        trial = second.live[0]
        if trial.config[NUMBER] == cut and not trial.epoch:
            trial.epoch = 3  # its checkpoint: reported again
            rows = [row(trial.config["x"], e, 27) for e in (1, 2, 3)]
            second.report(trial, {**rows[-1], "rows": rows})
        else:
            second.train(trial)
    stopped = {t.params["x"]: t for t in check(tmp_path, 9, 27) if t.params["x"] in (0.01, 0.02)}
    assert [t.state.name for t in stopped.values()] == ["PRUNED", "PRUNED"]
    limit = 9 if scheduler == "hyperband" else 4  # its brackets begin at 1, 3, 9 and 27 epochs
    assert min(len(t.intermediate_values) for t in stopped.values()) <= limit


def test_asha_has_the_rungs_of_the_whole_run(tmp_path: Path) -> None:
    first = tune(tmp_path, "asha", 10)
    first.slots = 10
    first.fill()
    for trial in list(first.live):
        first.train(trial)
    rungs = {m: sorted(r.values()) for m, r in first.scheduler.rungs().items()}  # type: ignore[attr-defined]
    second = tune(tmp_path, "asha", 10)
    second.slots = 10
    second.fill()
    rebuilt = {m: sorted(r.values()) for m, r in second.scheduler.rungs().items()}  # type: ignore[attr-defined]
    assert rebuilt == rungs
    assert len(rungs[1]) == 10


def test_hyperband_shows_the_sampler_its_bracket_from_the_first_question_on(tmp_path: Path) -> None:
    """Also right after a resume, when no trial of this process has reported yet."""
    seen: list[tuple[int, list[int]]] = []

    class Watching(optuna.samplers.RandomSampler):
        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            seen.append((trial.number, [t.number for t in study.get_trials(deepcopy=False)]))
            return super().sample_independent(study, trial, name, distribution)

    for trials in (8, 16):
        loop = tune(tmp_path, "hyperband", trials)
        loop.searcher.study.sampler = Watching(seed=1)
        loop.run()
    pruner = loop.searcher.study.pruner
    assert isinstance(pruner, optuna.pruners.HyperbandPruner)
    bracket = {
        t.number: pruner._get_bracket_id(loop.searcher.study, t) for t in check(tmp_path, 16)
    }
    assert len(set(bracket.values())) > 1
    for number, shown in seen:
        assert {bracket[n] for n in shown} == {bracket[number]}


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "grid"])
def test_every_sampler_works_within_brackets(tmp_path: Path, sampler: str) -> None:
    tune(tmp_path, "hyperband", 14, sampler=sampler).run()
    check(tmp_path, 14)


def test_pickles_hold_neither_study_nor_history(tmp_path: Path) -> None:
    loop = tune(tmp_path, "median", 4)
    loop.run()
    for thing in (loop.scheduler, loop.searcher, schedulers.Ending(loop.searcher, None)):
        data = pickle.dumps(thing)
        assert b"journal" not in data
        assert len(data) < 300


def test_the_search_ends_when_its_time_is_up_or_the_storage_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(schedulers, "time", SimpleNamespace(monotonic=lambda: now))
    loop = tune(tmp_path, "none", 4)
    ending = schedulers.Ending(loop.searcher, 60)
    now = 160.0
    assert not ending.stop_all()
    now = 160.1
    assert ending.stop_all()
    assert loop.searcher.ending == "stopped by --time-budget"
    loop = tune(tmp_path, "none", 4)
    ending = schedulers.Ending(loop.searcher, None)
    assert not ending.stop_all()
    loop.searcher.storage_error = "gone"
    assert ending.stop_all()


def searcher_of(metric: str, values: list[float], known: int = 0) -> tuple[Any, Any]:
    """What Ending looks at, with `known` trials settled; and a function that settles the next."""
    searcher = SimpleNamespace(records=Records(metric, len(values)), ending=None, silent=False)

    def settle() -> None:
        number = len(searcher.records.trials)
        searcher.records.add(Record(number, {}))
        searcher.records.report(number, result(1, values[number], val_loss=values[number]))
        searcher.records.end(number, "COMPLETE")

    for _ in range(known):
        settle()
    return searcher, settle


@pytest.mark.parametrize(
    ("metric", "values", "options", "ends_after"),
    [
        ("val_accuracy", [0.5, 0.7, 0.6, 0.9], {"target": 0.7}, 2),
        ("val_loss", [0.5, 0.7, 0.3, 0.2], {"target": 0.3}, 3),
        ("val_accuracy", [0.5, 0.7, 0.6, 0.65, 0.8], {"patience": 2}, 4),
        ("val_accuracy", [0.5, 0.6, 0.7, 0.8], {"patience": 2}, None),
    ],
)
@pytest.mark.parametrize("known", [0, 1, 3])
def test_the_search_ends_at_its_target_or_when_patience_is_out(
    metric: str, values: list[float], options: Any, ends_after: int | None, known: int
) -> None:
    """Also in a search that goes on: it knows the first trials from the start."""
    searcher, settle = searcher_of(metric, values, known)
    ending = schedulers.Ending(searcher, None, **options)
    ended = None
    for n in range(known, len(values) + 1):
        if ending.stop_all():
            ended = n
            break
        if n < len(values):
            settle()
    assert ended == (None if ends_after is None else max(ends_after, known))
    assert searcher.ending == (ended and f"stopped by --{next(iter(options))}")


def test_trials_that_were_cut_off_are_no_failed_attempts_of_patience() -> None:
    searcher, _ = searcher_of("val_accuracy", [0.9, 0.8, 0.7, 0.6], known=2)
    for number in (2, 3):
        searcher.records.add(Record(number, {}, state="FAIL", reason=INTERRUPTED))
    searcher.records.resumed()
    assert not schedulers.Ending(searcher, None, patience=3).stop_all()


def test_patience_and_target_wait_for_the_trials_that_go_on() -> None:
    """After --resume the best value may be one that a running trial has not reported again."""
    for options in ({"patience": 3}, {"target": 0.8}):
        searcher, _ = searcher_of("val_accuracy", [0.9, 0.8, 0.8, 0.8], known=4)
        for number in (4, 5):
            searcher.records.add(Record(number, {}))
        ending = schedulers.Ending(searcher, None, **options)
        assert not ending.stop_all()
        searcher.records.end(5, "FAIL")
        assert not ending.stop_all()
        searcher.records.report(4, result(1, 0.95))
        assert ending.stop_all() == ("target" in options)
    searcher.ending = None
    assert not schedulers.Ending(searcher, None, patience=3).stop_all()
    assert schedulers.Ending(searcher, None, patience=1).stop_all()  # trial 5


def test_a_time_budget_waits_for_nobody() -> None:
    searcher, _ = searcher_of("val_accuracy", [0.9], known=1)
    searcher.records.add(Record(1, {}))
    assert schedulers.Ending(searcher, -1.0, patience=3).stop_all()
    assert searcher.ending == "stopped by --time-budget"


def test_trials_that_tune_ends_without_a_word_are_told_as_stopped(tmp_path: Path) -> None:
    """When a Stopper says so: the one that reached the target is among them."""
    settled: list[int] = []
    loop = tune(tmp_path, "none", 6, best_row=lambda number: None)
    loop.searcher.outcomes.on_settled = settled.append
    loop.slots = 3
    ending = schedulers.Ending(loop.searcher, None, target=0.0)
    loop.fill()
    for trial in loop.live[:2]:
        loop.train(trial)
    assert ending.stop_all()
    assert loop.start() is None  # nothing new begins
    loop.stop_all()
    loop.searcher.close()
    records = loop.searcher.records
    assert settled == [0, 1, 2]
    assert records.settled() == 3
    assert [record.state for record in records.trials.values()] == ["PRUNED", "PRUNED", "FAIL"]
    assert [record.reason for record in records.trials.values()] == [
        *["stopped by --target after epoch 1"] * 2,
        "ended before its first epoch (stopped by --target)",
    ]
    study = optuna.load_study(study_name="s", storage=storage(tmp_path))
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "PRUNED", "FAIL"]


def test_one_that_has_not_reported_again_keeps_its_epochs(tmp_path: Path) -> None:
    """Its checkpoint has them: a resume with more time goes on with it."""
    first = tune(tmp_path, "none", 4)
    first.fill()
    for trial in first.live:
        first.train(trial)
    second = tune(tmp_path, "none", 4)
    second.fill()
    assert [trial.number for trial in second.live] == [0, 1]
    second.train(second.live[1])
    second.searcher.ending = "stopped by --time-budget"
    second.stop_all()
    second.searcher.close()
    states = [record.state for record in second.searcher.records.trials.values()]
    assert states == ["RUNNING", "PRUNED"]


def test_an_epoch_that_a_worker_kept_and_did_not_report_is_taken(tmp_path: Path) -> None:
    """Its files are the trial's best ones: best/ would hold an epoch that no table knows."""
    kept = {0: row(0.5, 2, 9), 1: row(0.5, 3, 9)}  # of trial 1: no next epoch of one with none
    loop = tune(tmp_path, "none", 4, best_row=kept.get)
    loop.fill()
    loop.train(loop.live[0])
    loop.searcher.ending = "stopped by --target"
    loop.stop_all()
    loop.searcher.close()
    records = loop.searcher.records.trials
    assert list(records[0].rows) == [1, 2]
    assert records[0].reason == "stopped by --target after epoch 2"
    assert records[1].state == "FAIL"
    frozen = optuna.load_study(study_name="s", storage=storage(tmp_path)).trials[0]
    assert list(frozen.intermediate_values) == [1, 2]


def test_the_search_ends_silently_when_the_run_is_another_s(tmp_path: Path) -> None:
    lost: list[bool] = []
    loop = tune(tmp_path, "none", 4)
    ending = schedulers.Ending(loop.searcher, None, lambda: bool(lost))
    loop.fill()
    loop.train(loop.live[0])
    assert not ending.stop_all()
    lost.append(True)
    before = (tmp_path / "study.journal").read_bytes()
    assert ending.stop_all()
    assert loop.searcher.taken_over
    for trial in list(loop.live):  # as Tune ends them
        loop.report(trial, row(trial.config["x"], 2, 2))
    loop.searcher.close()
    assert loop.start() is None
    assert (tmp_path / "study.journal").read_bytes() == before


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "none"])
def test_the_first_that_waits_is_started_and_ended_trials_are_not_looked_at(
    tmp_path: Path, scheduler: str
) -> None:
    chosen = tune(tmp_path, scheduler, 1).scheduler

    def choose(*statuses: str) -> int | None:
        live = [
            SimpleNamespace(status=status, config={NUMBER: number})
            for number, status in enumerate(statuses)
        ][::-1]
        trial = chosen.choose_trial_to_run(SimpleNamespace(get_live_trials=lambda: live))
        return None if trial is None else trial.config[NUMBER]

    assert choose("RUNNING", "PAUSED", "PENDING", "PENDING") == 2
    assert choose("RUNNING", "PAUSED", "RUNNING", "PAUSED") == 1
    assert choose("RUNNING") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheduler",
    ["asha", "hyperband", "median", "percentile", "successive-halving", "threshold", "patient"],
)
def test_on_a_real_ray(tmp_path: Path, scheduler: str) -> None:
    two = ["n_startup_trials=2"]
    args = {
        "median": two,
        "percentile": two,
        "threshold": ["lower=0.15"],
        "patient": ["wraps=none", "patience=0"],
    }
    command = [
        sys.executable,
        "jobs/search.py",
        "--dataset",
        "digits",
        "--train-images",
        "300",
        "--val-images",
        "150",
        "--space-args",
        "max_width=24",
        "--trials",
        "8",
        "--max-epochs",
        "6",
        "--storage",
        str(tmp_path),
        "--name",
        "real",
        "--no-finetune",
        "--seed",
        "1",
        "--scheduler",
        scheduler,
        "--grace-period",
        "4" if scheduler == "threshold" else "1",
    ]
    if scheduler in args:
        command += ["--scheduler-args", *args[scheduler]]
    env = own_ray()
    out = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert out.returncode == 0, out.stdout + out.stderr
    assert (
        json.loads((tmp_path / "real" / "run.json").read_text())["settings"]["scheduler"]
        == scheduler
    )
    trials = optuna.load_study(study_name="real", storage=storage(tmp_path / "real")).trials
    assert {t.state.name for t in trials} == {"COMPLETE", "PRUNED"}
    for trial in trials:
        epochs = len(trial.intermediate_values)
        assert list(trial.intermediate_values) == list(range(1, epochs + 1))
        assert (trial.state.name == "COMPLETE") == (epochs == 6)
