"""The next trials of a run: those that go on, those to try again, points, the sampler's."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FixedTrial, FrozenTrial

from mnist_ray.run.records import Record, Records
from mnist_ray.study.journal import on_disk, together
from mnist_ray.study.optuna_private import is_lacking, reopened, started, suggest_anew
from mnist_ray.study.samplers import exhausted
from mnist_ray.study.suggestions import Refusal, Space, suggested
from mnist_ray.study.trials import AGAIN, POINT, RUN

# Suggestions that take more than this part of a trial are made while the trials before them still
# run: slots that waited would lose more than the suggestions gain by knowing a trial more.
ASK_AHEAD_FROM = 0.05
# The same holds where the suggestions for all slots take more than this part of a trial: trials
# that end together would wait for each other's suggestions.
ALL_AHEAD_FROM = 0.25

Numbered = tuple[int, dict[str, Any]]  # a trial's number, or a point's place, and values


@dataclass(frozen=True)
class Suggestion:
    """A trial of the study, and its hyperparameters or why the space gave none."""

    trial: optuna.Trial
    hp: dict[str, Any] | Refusal


class Suggestions:
    """Asks a study for the trials of a run.

    Args:
        study: the run's.
        space: a function of an optuna.Trial that returns the flat dict of hyperparameters.
        records: the run's trials so far; new ones are added.
        run: the run's name.
        continued: trials of an earlier process that have a checkpoint: they come first.
        retried: numbers and values of trials that were cut off before their first checkpoint:
            tried again next, under new numbers.
        points: known good configurations, with their places in the list that names them.
        keep: called when the study has a new trial: brings it to where the run is kept.
    """

    def __init__(  # noqa: PLR0913 (made once)
        self,
        study: optuna.Study,
        space: Space,
        records: Records,
        run: str,
        continued: Sequence[FrozenTrial] = (),
        retried: Sequence[Numbered] = (),
        points: Sequence[Numbered] = (),
        keep: Callable[[], None] = lambda: None,
    ) -> None:
        self.keep = keep
        self.study, self.space, self.records, self.run = study, space, records, run
        self.continued, self.retried, self.points = list(continued), list(retried), list(points)
        self.ahead: list[Suggestion] = []  # not handed out yet
        self._seconds = 0.0  # that the last suggestion took

    def next(self) -> Suggestion | None:
        """The next trial, perhaps a refused one; None if none is to come."""
        return self.ahead.pop(0) if self.ahead else self._ask()

    def ask_ahead(self, slots: float, mean_seconds: float) -> None:
        """Makes one suggestion for each slot in advance, if trials are that short.

        Not if suggestions could not keep up with the trials anyway.

        Args:
            slots: trials at a time.
            mean_seconds: of a trial; 0 if it is not known.
        """
        least = min(ASK_AHEAD_FROM, ALL_AHEAD_FROM / slots) * mean_seconds
        if least < self._seconds < mean_seconds / slots:
            while len(self.ahead) < slots and (found := self._ask()):
                self.ahead.append(found)

    def _ask(self) -> Suggestion | None:
        start = time.perf_counter()
        trial = self._trial()
        if trial is None:
            return None
        with together(self.study):
            hp = suggested(self.space, trial)
        # Before a worker writes the trial's checkpoints.
        on_disk(self.study)
        self.keep()
        known = self.records.trials.get(trial.number)
        record = known or self.records.add(Record(trial.number, {}))
        record.params = dict(
            trial.params
        )  # one that is known may have been killed before it had any
        self._seconds = time.perf_counter() - start
        return Suggestion(trial, hp)

    def _trial(self) -> optuna.Trial | None:
        if self.continued:
            return self._reopened(self.continued.pop(0))
        asked = len(self.records.trials) - self.records.tried_again
        if asked >= self.records.total:
            return None
        # A grid counts the points that were begun, also those to be tried again.
        if not self.retried and exhausted(self.study):
            return None
        values: dict[str, Any] = {}
        attributes: dict[str, Any] = {RUN: self.run}
        if self.retried:
            attributes[AGAIN], values = self.retried.pop(0)
        elif self.points:
            place, values = self.points.pop(0)
            attributes[POINT] = [self.run, place]
        return started(self.study, attributes, values)

    def _reopened(self, frozen: FrozenTrial) -> optuna.Trial:
        trial = reopened(self.study, frozen)
        found = suggested(self.space, FixedTrial(frozen.params, frozen.number))
        if isinstance(found, Refusal) and is_lacking(found.error):
            # Killed while the values were being suggested. With --deterministic the sampler begins
            # anew: it gives those that are known again, and only then the others.
            suggest_anew(trial)
        return trial
