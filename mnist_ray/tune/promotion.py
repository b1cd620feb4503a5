"""--scheduler asha-promote: asynchronous successive halving whose trials wait (Li et al. 2020).

At a rung a trial goes on if it is among the best 1 in `reduction_factor` there. Otherwise it is
paused: its worker takes another trial, its checkpoint stays. A free worker first takes the paused
trial that has come into the best meanwhile, of the highest rung, and a new trial only if there is
none. When no new trials are left and workers are idle, the best paused trials go on out of turn,
for as long as a trial in turn runs.

To Tune a paused trial has ended; one that goes on is another trial of Tune's with the same number,
and begins with its checkpoint as after a restart. In Optuna it is RUNNING until the end of the
search, which tells it as PRUNED. To the sampler it is one that was pruned at its rung.
"""

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from ray.tune.search import Searcher

from mnist_ray.run.records import Record, value_of
from mnist_ray.study.optuna_private import reopened
from mnist_ray.study.paused import SeesPaused
from mnist_ray.study.rungs import Rungs
from mnist_ray.study.suggestions import Refusal, suggested
from mnist_ray.study.trials import PAUSED
from mnist_ray.tune.searcher import StudySearch
from mnist_ray.tune.trial import NUMBER


class PromotingSearch(StudySearch):
    """StudySearch that pauses trials at rungs, and hands them out again.

    Args:
        args: as StudySearch takes them.
        rungs: empty ones.
        past: trial number -> {epoch: value of the metric}, of each trial that the run has already.
        on_paused: called after the study knows that a trial is paused.
        kwargs: as StudySearch takes them.
    """

    def __init__(
        self,
        *args: Any,
        rungs: Rungs,
        past: Mapping[int, Mapping[int, float]],
        on_paused: Callable[[], None] = lambda: None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.rungs, self.on_paused = rungs, on_paused
        continued = self.suggestions.continued
        # Those of an earlier process are opened when they go on.
        self.paused: dict[int, optuna.Trial | FrozenTrial] = {
            frozen.number: frozen for frozen in continued if frozen.user_attrs.get(PAUSED)
        }
        going_on = [frozen for frozen in continued if frozen.number not in self.paused]
        self.suggestions.continued = going_on
        self._hyperparameters: dict[int, dict[str, Any]] = {}  # as they were handed out
        self._pausing: set[int] = set()  # end their step now, and are paused then
        self._out_of_turn: set[int] = set()  # run because a worker was idle
        undecided = {frozen.number for frozen in going_on if PAUSED not in frozen.user_attrs}
        for number, curve in past.items():
            rungs.restore(number, curve, waits=number in self.paused, runs=number in undecided)
        self.records.paused = self.paused
        self.study.sampler = SeesPaused.over(self.study.sampler)

    # ---- suggestions

    def _next(self, trial_id: str) -> dict[str, Any] | str | None:
        while place := self.rungs.candidate(self.paused):
            self.rungs.passed(*place)
            if config := self._go_on(trial_id, place[0]):
                return config
        found = super()._next(trial_id)
        if isinstance(found, dict):
            values = {key: value for key, value in found.items() if key != NUMBER}
            self._hyperparameters[found[NUMBER]] = values
        if found != Searcher.FINISHED or not self.trials:
            return found
        while self._in_turn() and (place := self.rungs.candidate(self.paused, out_of_turn=True)):
            if config := self._go_on(trial_id, place[0]):
                self._out_of_turn.add(place[0])
                return config
        return None

    def _in_turn(self) -> set[int]:
        """The trials that run and not merely because a worker was idle."""
        return {trial.number for trial in self.trials.values()} - self._out_of_turn

    def _go_on(self, trial_id: str, number: int) -> dict[str, Any] | None:
        """Hands out a paused trial; None if the space refuses it now, which ends it."""
        trial = self._opened(number)
        hp = self._hyperparameters.get(number) or suggested(self.suggestions.space, trial)
        if isinstance(hp, Refusal):
            self._refused(trial, hp)
            return None
        self._hyperparameters[number] = hp
        trial.set_user_attr(PAUSED, 0)
        self.suggestions.keep()
        self._hand_out(trial_id, trial)
        return {**hp, NUMBER: number}

    def _opened(self, number: int) -> optuna.Trial:
        """Takes a trial out of the paused ones."""
        trial = self.paused.pop(number)
        return reopened(self.study, trial) if isinstance(trial, FrozenTrial) else trial

    # ---- results

    def should_stop(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether the trial is paused after this result; the study gets the result first."""
        self.on_trial_result(trial_id, result)
        record = self._record(trial_id)
        if self.silent or record.reason or "unfit" in result:
            return False
        pauses = self._pauses(record)
        if pauses:
            self._pausing.add(record.number)
        return pauses

    def _pauses(self, record: Record) -> bool:
        number, metric = record.number, self.records.metric
        # After the loss of a host several epochs may come at once.
        entered = [
            rung
            for rung in self.rungs.rungs
            if rung in record.rows
            and self.rungs.enter(number, rung, value_of(record.rows[rung], metric))
        ]
        if not entered:
            return number in self._out_of_turn and not self._in_turn()
        self._out_of_turn.discard(number)
        if self.rungs.candidate({number}) is None:
            return True
        self.rungs.passed(number, entered[-1])
        return False

    # ---- ends

    def _ended(self, trial: optuna.Trial, error: bool) -> None:
        number, record = trial.number, self.records.trials[trial.number]
        self._out_of_turn.discard(number)
        pauses = number in self._pausing and not (error or record.reason or self.ending)
        self._pausing.discard(number)
        if pauses:
            self.outcomes.pause(trial)
            self.paused[number] = trial
            self.on_paused()
        else:
            self._hyperparameters.pop(number, None)
            super()._ended(trial, error)

    def close(self) -> None:
        """Ends the trials that are paused, and those that were suggested ahead."""
        super().close()
        while self.paused and not self.silent:
            with self._errors():
                super()._ended(self._opened(min(self.paused)), error=False)
