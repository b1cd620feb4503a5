"""Ray Tune's OptunaSearch, telling Optuna the truth.

Stock OptunaSearch reports a trial that the scheduler stopped as COMPLETE with its low-fidelity value, leaves one whose value is NaN
RUNNING for ever, cannot continue a study's trials, and pickles the storage's URL, password included, into the experiment's directory.
Here a stopped trial is PRUNED with all its intermediate values, a failed one FAIL, and the study alone says what has been done.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.run.records import HISTORY, Record, Records, Row, rank
from mnist_ray.settings import objectives
from mnist_ray.study.objectives import CURVE, curve
from mnist_ray.study.optuna_private import started as ask
from mnist_ray.study.samplers import exhausted
from mnist_ray.study.storages import on_disk
from mnist_ray.study.trials import AGAIN, POINT, RUN, SUMMARY
from mnist_ray.tune.trainable import NUMBER

EXPLOITS = "mnist_ray:exploits"  # user attribute of a trial: Record.exploits
# Suggestions that take more than this part of a trial are made while the trials before them still run: slots that waited for them would
# lose more than the suggestions gain by knowing a trial more.
ASK_AHEAD_FROM = 0.05

Suggestion = tuple[optuna.Trial, dict[str, Any]]  # a trial of the study and its hyperparameters


class StudySearch(OptunaSearch):
    """Suggests from a study and tells it how each trial ended; keeps `records` for the reader.

    space: a function of an optuna.Trial that returns the flat dict of hyperparameters.
    on_settled: called with a trial's number after the study knows of its end.
    slots: how many trials may run at this moment; no more are handed out.
    continued: trials of an earlier process, still RUNNING in the study, that have a checkpoint: they are handed out first.
    retried: numbers and values of trials that were cut off before their first checkpoint: tried again, under new numbers.
    points: known good configurations, with their places in the list that names them: tried before the sampler is asked.

    Where the study's storage fails (`storage_error` says how) no more is suggested, and trials stay RUNNING in the study, to be
    continued by --resume: the search must end.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Callable[[optuna.Trial], dict[str, Any]],
        records: Records,
        *,
        run: str,
        max_epochs: int,
        on_settled: Callable[[int], None],
        slots: Callable[[], float] = lambda: math.inf,
        continued: Sequence[FrozenTrial] = (),
        retried: Sequence[tuple[int, dict[str, Any]]] = (),
        points: Sequence[tuple[int, dict[str, Any]]] = (),
    ) -> None:
        mode = "min" if records.metric == "val_loss" else "max"
        super().__init__(space=None, metric=records.metric, mode=mode)
        self._space, self._ot_study = space, study
        self.records, self.run, self.max_epochs, self.on_settled, self.slots = (
            records,
            run,
            max_epochs,
            on_settled,
            slots,
        )
        self.continued, self.retried, self.points = list(continued), list(retried), list(points)
        self._steps: dict[int, set[int]] = {}  # trial number -> the epochs that the study has
        self._ahead: list[Suggestion] = []  # not handed out yet
        self._starting: set[str] = set()  # handed out, but not begun yet
        self._asking = 0.0  # seconds that the last suggestion took
        self._trained, self._ended_here = (
            0.0,
            0,
        )  # seconds of all trials that have ended, and how many they are
        self.ending: str | None = (
            None  # why the search as a whole is being ended, e.g. "time budget"
        )
        self.storage_error: str | None = None
        self.lost: dict[int, str] = {}  # trial number -> how its last worker was lost

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles the searcher into the experiment's directory. The study is the state; its URL may hold a password.
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is the state, and Tune's snapshots are not resumed from."""

    def restore(self, checkpoint_path: str) -> None:
        """See save."""

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict, **spec: Any
    ) -> bool:
        return True  # all given to __init__

    # ---- suggestions

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Tune's config of the next trial: its hyperparameters and its number. None while all slots are taken: Tune asks again."""
        if self.storage_error:
            return None
        try:
            if len(self._ot_trials) < self.slots():
                return self._next(trial_id)
            self._ask_ahead()
        except (WorkError, OSError) as error:  # Tune would end with a traceback
            self.storage_error = str(error)
        return None

    def _next(self, trial_id: str) -> dict[str, Any] | str | None:
        suggestion = self._ahead.pop(0) if self._ahead else self._ask()
        if suggestion is None:
            return Searcher.FINISHED
        trial, hp = suggestion
        self._ot_trials[trial_id] = trial
        self._starting.add(trial_id)
        return {NUMBER: trial.number, **hp}

    def begun(self, trial_id: str) -> None:
        """Notes that a trial trains now."""
        self._starting.discard(trial_id)

    def _ask_ahead(self) -> None:
        """One suggestion for each slot, where trials are that short; not while a trial waits to be started, and not where suggestions
        could not keep up with the trials anyway."""
        if self._starting or not self._ended_here:
            return
        mean = self._trained / self._ended_here
        if ASK_AHEAD_FROM * mean < self._asking < mean / self.slots():
            while len(self._ahead) < self.slots() and (suggestion := self._ask()):
                self._ahead.append(suggestion)

    def _ask(self) -> Suggestion | None:
        """The next one; None when there is none to come."""
        study, start = self._ot_study, time.perf_counter()
        if self.continued:
            frozen = self.continued.pop(0)
            trial = optuna.Trial(
                study, frozen._trial_id
            )  # a running trial gives its stored values again
            self._steps[trial.number] = set(curve(frozen))
        elif len(self.records.trials) - self.records.tried_again >= self.records.total or exhausted(
            study
        ):
            return None
        else:
            values: dict[str, Any] = {}
            attributes: dict[str, Any] = {RUN: self.run}
            if self.retried:
                attributes[AGAIN], values = self.retried.pop(0)
            elif self.points:
                place, values = self.points.pop(0)
                attributes[POINT] = [self.run, place]
            trial = ask(study, attributes, values)
        try:
            hp = self._space(trial)
        except ValueError as error:
            raise SettingsError(
                f"--study: the study {study.study_name!r} contradicts the space: {error}"
            ) from error
        on_disk(study)  # before a worker writes the trial's checkpoints
        if trial.number not in self.records.trials:
            self.records.add(Record(trial.number, dict(trial.params)))
        self._steps.setdefault(trial.number, set())
        self._asking = time.perf_counter() - start
        return trial, hp

    # ---- results

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Takes a result; one that was reported already, before a restart, changes nothing."""
        try:
            self._take(self._ot_trials[trial_id], self._rows(trial_id, result))
        except (WorkError, OSError) as error:
            self.storage_error = str(error)

    def _rows(self, trial_id: str, result: dict[str, Any]) -> list[Row]:
        """The epochs that a result tells of; none where the trial or the storage has failed."""
        record = self.records.trials[self._ot_trials[trial_id].number]
        if "storage_error" in result:
            self.storage_error = result["storage_error"]
        if "reason" in result:
            record.reason = result["reason"]
        if record.reason or self.storage_error:
            return []
        record.node, best = result["node"], record.best(self.metric)
        if best is None or rank(result, self.metric) > rank(best, self.metric):
            record.n_parameters = result[
                "n_parameters"
            ]  # of the network of its best epoch: with pbt a trial may have several
        if record.latency_ms is None:  # a worker that was started again has measured anew
            record.latency_ms = result.get("latency_ms")
        return [{name: row[name] for name in HISTORY} for row in [*result.get("rows", []), result]]

    def _take(self, trial: optuna.Trial, rows: Iterable[Row]) -> None:
        """Makes epochs known to the reader and to the study."""
        for row in rows:
            self.records.report(trial.number, row)
            if row["epoch"] not in self._steps[trial.number]:
                self._steps[trial.number].add(row["epoch"])
                if not self.records.objectives:
                    trial.report(row[self.metric], step=row["epoch"])
                else:
                    own = self.records.trials[trial.number].rows
                    trial.set_user_attr(
                        CURVE, {epoch: own[epoch][self.metric] for epoch in sorted(own)}
                    )

    def exploited(self, trial_id: str, story: dict[str, Any]) -> None:
        """Notes that a trial goes on with another's weights: after which epoch, from which trial, and its new values (see pbt.py)."""
        trial = self._ot_trials[trial_id]
        record = self.records.trials[trial.number]
        record.exploits.append(story)
        try:
            trial.set_user_attr(EXPLOITS, record.exploits)
        except (WorkError, OSError) as error:
            self.storage_error = str(error)

    def should_stop(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether the study's pruner stops the trial after this result, which the study has by then. (Tune asks a scheduler first and
        tells the searcher afterwards.)"""
        self.on_trial_result(trial_id, result)
        trial = self._ot_trials[trial_id]
        if self.storage_error or self.records.trials[trial.number].reason:
            return False
        try:
            return trial.should_prune()
        except (WorkError, OSError) as error:
            self.storage_error = str(error)
            return False

    def give_up(self, trial_id: str, reason: str) -> None:
        """Notes why a trial is about to be ended from outside."""
        self.records.trials[self._ot_trials[trial_id].number].reason = reason

    def worker_lost(self, trial_id: str, how: str) -> None:
        """Notes how a trial's worker was lost: the trial may be started again, or it ends with this reason."""
        if trial_id in self._ot_trials:
            self.lost[self._ot_trials[trial_id].number] = how

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tells the study how the trial ended. Only one that trained all its epochs is COMPLETE."""
        trial = self._ot_trials.get(trial_id)
        if trial is None:
            return
        if result:
            self.on_trial_result(trial_id, result)
        del self._ot_trials[trial_id]
        self._starting.discard(trial_id)
        if self.storage_error:
            return  # it stays RUNNING in the study, to be continued by --resume
        try:
            self._ended(trial, error)
        except (
            WorkError,
            OSError,
        ) as storage_failure:  # Tune would log and go on: the search must end instead
            self.storage_error = str(storage_failure)

    def _ended(self, trial: optuna.Trial, error: bool) -> None:
        """Tells the study. error: Tune has given up on the trial."""
        record = self.records.trials[trial.number]
        self._trained += sum(row.get("seconds") or 0.0 for row in record.rows.values())
        self._ended_here += 1
        best = record.best(self.metric)
        if error:
            why = self.lost.get(trial.number)
            record.reason = record.reason or "its worker died too often" + (
                f": {why}" if why else ""
            )
        if record.reason or best is None:
            state = "FAIL"
            record.reason = (
                record.reason or f"ended before its first epoch ({self.ending or 'stopped'})"
            )
        elif len(record.rows) >= self.max_epochs:
            state = "COMPLETE"
        else:
            state = "PRUNED"
            record.reason = (
                f"{self.ending or 'stopped by the scheduler'} after epoch {max(record.rows)}"
            )
        self.records.end(trial.number, state)
        value: float | list[float] | None = None
        if state == "COMPLETE" and best is not None:
            asked = self.records.objectives
            value = objectives.values(asked, record, self.metric) if asked else best[self.metric]
        trial.set_user_attr(SUMMARY, record.summary())
        self._ot_study.tell(trial, value, state=TrialState[state])
        self.on_settled(trial.number)

    def close(self) -> None:
        """After the search: trials that were suggested ahead, and that will not run any more, end."""
        while self._ahead and not self.storage_error:
            self._ended(self._ahead.pop(0)[0], error=False)
