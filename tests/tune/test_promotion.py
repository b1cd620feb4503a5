"""--scheduler asha-promote without Ray: who is paused, who goes on, and what Optuna is told."""

import random
from pathlib import Path
from typing import Any
from unittest.mock import patch

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from mnist_ray.errors import SettingsError
from mnist_ray.run.records import Records
from mnist_ray.settings import SearchSettings
from mnist_ray.settings.objectives import direction
from mnist_ray.study.paused import SeesPaused
from mnist_ray.study.pruners import read_scheduler
from mnist_ray.study.samplers import SAMPLERS, TPE, make_sampler
from mnist_ray.study.studies import open_study
from mnist_ray.study.trials import PAUSED, read_trials
from mnist_ray.tune import schedulers
from mnist_ray.tune.promotion import PromotingSearch
from mnist_ray.tune.trial import NUMBER, ended
from tests.support.tune_loop import FakeTrial, TuneLoop, result

optuna.logging.set_verbosity(optuna.logging.ERROR)
RUN, EPOCHS = "r", 9


def space(trial: optuna.Trial) -> dict[str, Any]:
    return {"x": trial.suggest_float("x", 0, 1)}


def accuracy(x: float, epoch: int) -> float:
    return round(x * (0.5 + epoch / 20), 6)


class Loop(TuneLoop):
    """Tune's loop; a trial that is handed out again reports its last epoch first."""

    searcher: PromotingSearch

    def __init__(self, path: Path, trials: int, slots: int = 2, **options: Any) -> None:
        sampler = options.pop("sampler", "random")
        s = SearchSettings(
            scheduler="asha-promote", max_epochs=EPOCHS, grace_period=1, trials=trials
        )
        storage = JournalStorage(JournalFileBackend(str(path / "study.journal")))
        study = open_study(storage, "s", s.metric, make_sampler(sampler, 1))
        records, past, continued = Records(s.metric, trials), {}, []
        for frozen, record in read_trials(study, RUN, "val_accuracy"):
            past[record.number] = dict(frozen.intermediate_values)
            if record.state == "RUNNING":
                continued.append(frozen)
            records.add(record)
        scheduler = read_scheduler(s)
        searcher = PromotingSearch(
            study, space, records, run=RUN, max_epochs=EPOCHS, on_settled=lambda number: None,
            continued=continued, slots=lambda: slots, past=past, **options,
            rungs=scheduler.rungs(maximize=direction(s.metric) == "maximize"),
        )  # fmt: skip
        super().__init__(searcher, schedulers.make_scheduler(scheduler, past, searcher), slots)
        self.trained: list[tuple[int, int]] = []  # number and epoch, in their order
        self.fails: set[int] = set()

    def step(self, trial: FakeTrial) -> None:
        """An epoch of a trial, or its last one again."""
        done = self.searcher.records.trials[trial.number].rows
        if trial.epoch == 0 and done:
            trial.epoch = max(done)
        else:
            trial.epoch += 1
            self.trained.append((trial.number, trial.epoch))
        if trial.number in self.fails:
            self.report(trial, {**ended(reason="broken"), "done": True})
            return
        value = accuracy(trial.config["x"], trial.epoch)
        self.report(trial, result(trial.epoch, value, done=trial.epoch == EPOCHS))

    def to_the_end(self) -> None:
        while self.fill():
            for trial in list(self.live):
                self.step(trial)
        self.searcher.close()


def states(loop: Loop) -> list[str]:
    return [trial.state.name for trial in loop.searcher.study.get_trials()]


def test_the_best_go_on_and_the_others_are_told_once_at_the_end(tmp_path: Path) -> None:
    loop = Loop(tmp_path, 27)
    study = loop.searcher.study
    with patch.object(study, "tell", wraps=study.tell) as tell:
        loop.to_the_end()
    assert sorted(call.args[0].number for call in tell.call_args_list) == list(range(27))
    assert set(states(loop)) == {"COMPLETE", "PRUNED"}
    assert states(loop).count("COMPLETE") >= 1
    for trial in study.get_trials():
        curve = {e: accuracy(trial.params["x"], e) for e in range(1, EPOCHS + 1)}
        assert trial.intermediate_values == {e: curve[e] for e in trial.intermediate_values}
    # No epoch was trained twice; the best configuration was trained to its end.
    assert len(set(loop.trained)) == len(loop.trained)
    best = max(study.get_trials(), key=lambda trial: trial.params["x"])
    assert best.state == TrialState.COMPLETE
    assert loop.searcher.records.settled() == 27


def test_a_trial_goes_on_before_a_new_one_begins(tmp_path: Path) -> None:
    loop = Loop(tmp_path, 27, slots=1)
    begun: list[int] = []
    while loop.fill():
        begun.append(loop.live[0].number)
        loop.step(loop.live[0])
        while loop.live:
            loop.step(loop.live[0])
    again = [i for i, number in enumerate(begun) if number in begun[:i]]
    assert again
    # As algorithm 2 has it: after three trials at the first rung one goes on.
    assert min(again) >= 2
    assert all(number <= 27 for number in begun)


def test_no_more_workers_than_slots_and_no_paused_trial_holds_one(tmp_path: Path) -> None:
    loop = Loop(tmp_path, 20, slots=3)
    most = 0
    while loop.fill():
        most = max(most, len(loop.live))
        assert len(loop.searcher.trials) == len(loop.live)
        for trial in list(loop.live):
            loop.step(trial)
    assert most == 3


def test_idle_workers_take_the_next_in_rank_while_a_trial_runs(tmp_path: Path) -> None:
    """And no longer: the search ends when the last trial in turn has ended."""
    loop = Loop(tmp_path, 6, slots=3)
    out_of_turn: set[int] = set()
    while loop.fill():
        out_of_turn |= loop.searcher._out_of_turn
        in_turn = loop.searcher._in_turn()
        assert in_turn or loop.searcher._out_of_turn
        for trial in list(loop.live):
            loop.step(trial)
    assert out_of_turn
    loop.searcher.close()
    assert set(states(loop)) <= {"COMPLETE", "PRUNED"}


@pytest.mark.parametrize("steps", [3, 10, 25, 40])
def test_a_resume_goes_on_as_if_nothing_had_happened(tmp_path: Path, steps: int) -> None:
    """Cut off at a moment: paused trials stay paused, running ones go on, no epoch comes twice."""
    first = Loop(tmp_path, 12)
    for _ in range(steps):
        assert first.fill()
        first.step(first.live[0])
        first.live = [*first.live[1:], *first.live[:1]]
    paused, running = set(first.searcher.paused), {trial.number for trial in first.live}
    rows = {n: dict(first.searcher.records.trials[n].rows) for n in paused}
    second = Loop(tmp_path, 12)
    assert set(second.searcher.paused) == paused
    assert {t.number for t in second.searcher.suggestions.continued} == running
    for number in paused:
        assert second.searcher.records.trials[number].rows == rows[number]
    second.to_the_end()
    assert sorted(n for n, _ in {*first.trained, *second.trained}) == sorted(
        n for n, _ in [*first.trained, *second.trained]
    )
    assert len(states(second)) == 12
    assert set(states(second)) == {"COMPLETE", "PRUNED"}
    for record in second.searcher.records.trials.values():
        assert sorted(record.rows) == list(range(1, len(record.rows) + 1))


def test_a_trial_that_fails_is_no_longer_a_candidate(tmp_path: Path) -> None:
    loop = Loop(tmp_path, 12)
    loop.fails = {2, 5}
    loop.to_the_end()
    assert [i for i, state in enumerate(states(loop)) if state == "FAIL"] == [2, 5]


def test_the_end_of_the_search_is_the_reason(tmp_path: Path) -> None:
    """Of all trials: those that are paused, and those that run, of which Tune says nothing."""
    loop = Loop(tmp_path, 12)
    for _ in range(6):
        loop.fill()
        loop.step(loop.live[0])
    paused, running = set(loop.searcher.paused), {trial.number for trial in loop.live}
    loop.searcher.ending = "stopped by --time-budget"
    loop.stop_all()
    loop.searcher.close()
    assert running
    for number in paused | {n for n in running if loop.searcher.records.trials[n].rows}:
        record = loop.searcher.records.trials[number]
        assert record.state == "PRUNED"
        assert record.reason.startswith("stopped by --time-budget after epoch")
    assert "RUNNING" not in states(loop)


def test_paused_trials_and_fewer_trials_are_ended(tmp_path: Path) -> None:
    """As --resume --trials of those that were begun: those in turn go on, and no new one begins."""
    first = Loop(tmp_path, 12)
    for _ in range(12):
        first.fill()
        first.step(first.live[0])
    begun = len(states(first))
    assert len(first.searcher.paused) > 1
    second = Loop(tmp_path, 1)
    second.to_the_end()
    assert len(states(second)) == begun
    assert set(states(second)) <= {"COMPLETE", "PRUNED"}


def test_a_space_that_refuses_a_trial_now_ends_that_trial_alone(tmp_path: Path) -> None:
    first = Loop(tmp_path, 12)
    for _ in range(8):
        first.fill()
        first.step(first.live[0])
    assert first.searcher.paused
    second = Loop(tmp_path, 12)
    stock = second.searcher.suggestions.space

    def edited(trial: optuna.Trial) -> dict[str, Any]:
        if trial.number in first.searcher.paused:
            raise optuna.TrialPruned
        return stock(trial)

    second.searcher.suggestions.space = edited
    second.to_the_end()
    assert len(states(second)) == 12
    assert set(states(second)) <= {"COMPLETE", "PRUNED"}
    reasons = [second.searcher.records.trials[n].reason for n in first.searcher.paused]
    assert "pruned by the space" in reasons


def test_epochs_that_come_at_once_are_entered_at_each_rung(tmp_path: Path) -> None:
    """As after the loss of a host, whose checkpoint was ahead of the study."""
    loop = Loop(tmp_path, 6)
    loop.fill()
    trial = loop.live[0]
    rows = [result(epoch, 0.1) for epoch in (1, 2, 3)]
    assert loop.report(trial, {**result(4, 0.1), "rows": rows})  # paused
    assert set(loop.searcher.paused) == {trial.number}
    for rung in (1, 3):
        assert not loop.searcher.rungs.enter(trial.number, rung, 0.1)


def test_the_storage_s_failure_at_the_end_is_noted(tmp_path: Path) -> None:
    loop = Loop(tmp_path, 12)
    for _ in range(8):
        loop.fill()
        loop.step(loop.live[0])
    with patch.object(loop.searcher.study, "tell", side_effect=OSError("disk full")):
        loop.searcher.close()
    assert loop.searcher.storage_error == "disk full"


def test_patience_counts_paused_trials_after_the_best_one_alone(tmp_path: Path) -> None:
    first = Loop(tmp_path, 30, slots=1)
    while len(first.searcher.paused) < 8:
        first.fill()
        first.step(first.live[0])
    second = Loop(tmp_path, 30, slots=1)
    best = second.searcher.records.best
    assert best is not None
    ending = schedulers.Ending(second.searcher, None, patience=5)
    waiting = [number for number in second.searcher.paused if number > best[0]]
    assert ending._fruitless() == len(waiting)


def test_a_pause_is_told_and_its_seconds_count(tmp_path: Path) -> None:
    told: list[int] = []
    loop = Loop(tmp_path, 12, on_paused=lambda: told.append(1))
    assert loop.searcher.outcomes.mean_seconds() == 0
    while not loop.searcher.paused:
        loop.fill()
        loop.step(loop.live[0])
    assert told == [1]
    assert loop.searcher.outcomes.mean_seconds() == 0.25
    loop.to_the_end()
    seconds = sum(row["seconds"] for r in loop.searcher.records.trials.values()
                  for row in r.rows.values())  # fmt: skip
    assert loop.searcher.outcomes._seconds == pytest.approx(seconds)


def test_after_the_storage_has_failed_nothing_is_told(tmp_path: Path) -> None:
    loop = Loop(tmp_path, 12)
    for _ in range(6):
        loop.fill()
        loop.step(loop.live[0])
    loop.searcher.storage_error = "disk full"
    before = states(loop)
    loop.searcher.close()
    assert states(loop) == before
    assert "RUNNING" in before


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_a_sampler_sees_paused_trials_as_pruned(tmp_path: Path, name: str) -> None:
    loop = Loop(tmp_path, 12, sampler=name)
    for _ in range(12):
        loop.fill()
        loop.step(loop.live[0])
    sampler = loop.searcher.study.sampler
    assert isinstance(sampler, SeesPaused)
    study = loop.searcher.study
    view = sampler._seen(study, study.get_trials()[-1])
    seen = {t.number: t for t in view.get_trials(deepcopy=False)}
    paused = set(loop.searcher.paused)
    assert paused
    assert {n for n, t in seen.items() if t.state == TrialState.PRUNED} == paused
    assert all(seen[n].intermediate_values for n in paused)
    stored = {t.number: t.state for t in study.get_trials()}
    assert all(stored[n] == TrialState.RUNNING for n in paused)  # the study itself is not changed


def test_tpe_suggests_what_it_would_after_pruned_trials() -> None:
    """The very suggestions of a study in which the paused trials are told as pruned."""

    def suggestion(tell: bool) -> float:
        study = optuna.create_study(direction="maximize", sampler=make_sampler("random", 0))
        chance = random.Random(1)
        for _ in range(30):
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            trial.report(chance.random(), 1)
            if tell:
                study.tell(trial, state=TrialState.PRUNED)
            else:
                trial.set_user_attr(PAUSED, 1)
        # The same random numbers for both from here on.
        study.sampler = SeesPaused.over(make_sampler("tpe", 5))
        return study.ask().suggest_float("x", 0, 1)

    assert suggestion(tell=True) == suggestion(tell=False)


def test_tpe_looks_again_at_a_paused_trial_that_has_gone_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beyond KEPT trials, of which it keeps a list: a paused one is in it with its last value."""
    monkeypatch.setattr(TPE, "KEPT", 20)
    study = optuna.create_study(direction="maximize", sampler=make_sampler("random", 0))
    trials = []
    for number in range(60):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.report(0.5 + number / 1000, 1)
        trial.set_user_attr(PAUSED, 1)
        trials.append(trial)
    tpe = make_sampler("tpe", 5)
    study.sampler = SeesPaused.over(tpe)
    assert isinstance(tpe, TPE)

    def seen() -> dict[int, TrialState]:
        study.ask().suggest_float("x", 0, 1)
        assert tpe._view is not None
        view = tpe._view[1].get_trials(deepcopy=False)
        return {t.number: t.state for t in view if t.number < 60}

    before = seen()
    assert len(before) == 20
    assert set(before.values()) == {TrialState.PRUNED}
    assert 0 not in before or 59 in before
    trials[0].set_user_attr(PAUSED, 0)
    assert seen()[0] == TrialState.RUNNING  # the constant liar must know
    study.tell(trials[0], 0.99)
    assert seen()[0] == TrialState.COMPLETE  # the best


def test_samplers_that_do_not_look_at_running_trials_are_left_alone() -> None:
    for name in set(SAMPLERS) - {"tpe", "gp"}:
        sampler = make_sampler(name, 0)
        assert SeesPaused.over(sampler) is sampler


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objectives": "accuracy,parameters"}, r"^--objectives: .*asha-promote.*; give asha$"),
        ({"constraint": ("accuracy>=0.9",)}, r"^--constraint: .*asha-promote.*; give asha$"),
        ({"sampler": "cmaes"}, r"^--sampler: cmaes .*asha-promote.*; give asha$"),
        ({"train": "mine:train"}, r"^--train: .*asha-promote.*; give asha$"),
        ({"wandb": "project"}, r"^--wandb: .*asha-promote.*; give asha$"),
        ({"scheduler_args": ("x=1",)}, r"^--scheduler-args: .*no options, but 'x' was given$"),
    ],
)
def test_what_it_cannot_is_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        read_scheduler(SearchSettings(scheduler="asha-promote", **options))


def test_its_first_rung_is_asha_s() -> None:
    found = [
        read_scheduler(SearchSettings(scheduler=name, max_epochs=52)).grace_period
        for name in ("asha", "asha-promote")
    ]
    assert found == [5, 5]


def test_a_paused_trial_is_marked_in_the_study(tmp_path: Path) -> None:
    loop = Loop(tmp_path, 12)
    for _ in range(8):
        loop.fill()
        loop.step(loop.live[0])
    marks = {t.number: t.user_attrs.get(PAUSED, 0) for t in loop.searcher.study.get_trials()}
    assert {n for n, epoch in marks.items() if epoch} == set(loop.searcher.paused)
    assert NUMBER in loop.live[0].config
