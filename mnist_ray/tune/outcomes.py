"""A trial's results, made known to the study and to the records that a person reads."""

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState

from mnist_ray.run.records import EpochRow, Record, Records, value_of
from mnist_ray.settings.constraints import Constraint, excesses, unfit
from mnist_ray.study.objectives import CURVE
from mnist_ray.study.suggestions import Refusal
from mnist_ray.study.trials import PAUSED, keep_summary

EXPLOITS = "mnist_ray:exploits"  # user attribute of a trial: Record.exploits


class Outcomes:
    """Writes epochs and ends of trials.

    Args:
        study: the run's.
        records: the run's trials.
        max_epochs: a trial with fewer is not complete.
        on_settled: called with a trial's number after the study knows of its end.
        keep_error: called with number and traceback of a trial on which the space failed.
        known: trial number -> the epochs that the study has already.
        limits: of --constraint; the study is told how far each trial is beyond them.
        best_row: the epoch whose files a trial keeps as its best ones, by its number; None if it
            has none.
    """

    def __init__(  # noqa: PLR0913 (made once)
        self,
        study: optuna.Study,
        records: Records,
        max_epochs: int,
        on_settled: Callable[[int], None],
        keep_error: Callable[[int, str], None],
        known: Mapping[int, set[int]],
        limits: Sequence[Constraint] = (),
        best_row: Callable[[int], EpochRow | None] = lambda number: None,
    ) -> None:
        self.study, self.records, self.max_epochs = study, records, max_epochs
        self.on_settled, self.keep_error = on_settled, keep_error
        self.limits, self.best_row = limits, best_row
        self._known = dict(known)
        self._seconds, self._trials = 0.0, 0  # of all trials that have ended or paused here
        self._counted: dict[int, float] = {}  # trial number -> seconds until its last pause

    def mean_seconds(self) -> float:
        """Seconds of training until a trial ends or pauses here; 0 if none has."""
        return self._seconds / max(1, self._trials)

    def take(self, trial: optuna.Trial, rows: Iterable[EpochRow]) -> None:
        """Takes epochs; one that was reported before changes nothing."""
        metric = self.records.metric
        known = self._known.setdefault(trial.number, set())
        for row in rows:
            self.records.report(trial.number, row)
            if row["epoch"] in known:
                continue
            known.add(row["epoch"])
            if self.records.objectives:
                own = self.records.trials[trial.number].rows
                values = {epoch: value_of(own[epoch], metric) for epoch in sorted(own)}
                trial.set_user_attr(CURVE, values)
            elif not self.unfit(self.records.trials[trial.number]):  # else it is no measure
                trial.report(value_of(row, metric), step=row["epoch"])

    def unreported(self, number: int) -> list[EpochRow]:
        """The epoch that a trial's worker has kept, if it was ended before it could report it.

        Without it best/ would hold the files of an epoch that no table knows.
        """
        row, rows = self.best_row(number), self.records.trials[number].rows
        return [row] if row and row["epoch"] == max(rows, default=0) + 1 else []

    def worker_died(self, number: int, how: str, text: str) -> None:
        """Notes why Tune has given a trial up. text: the traceback, if it could not begin."""
        record = self.records.trials[number]
        if record.reason:
            return
        record.reason = f"its worker died too often{how and f': {how}'}"
        if text:
            self.keep_error(number, text)

    def unfit(self, record: Record) -> str:
        """Why the network breaks a limit that training cannot change; "" if it breaks none."""
        return unfit(self.limits, record.measured(self.records.metric))

    def fit(self) -> list[Record]:
        """The trials whose networks break no such limit."""
        return [record for record in self.records.trials.values() if not self.unfit(record)]

    def exploited(self, trial: optuna.Trial, exploit: dict[str, Any]) -> None:
        """Notes that a trial goes on with another's weights (see population.py)."""
        record = self.records.trials[trial.number]
        record.exploits.append(exploit)
        trial.set_user_attr(EXPLOITS, record.exploits)

    def refuse(self, trial: optuna.Trial, refusal: Refusal) -> None:
        """Ends a trial for which the space gave no hyperparameters: PRUNED, or FAIL by an error."""
        self.records.trials[trial.number].reason = refusal.reason
        if refusal.error is not None:
            text = "".join(traceback.format_exception(refusal.error))
            self.keep_error(trial.number, text)
        self._settle(trial, "PRUNED" if refusal.pruned else "FAIL")

    def pause(self, trial: optuna.Trial) -> None:
        """Saves a paused trial's rows and last epoch in the study (see promotion.py)."""
        record = self.records.trials[trial.number]
        self._count(record)
        keep_summary(trial, record)
        trial.set_user_attr(PAUSED, max(record.rows))

    def _count(self, record: Record) -> None:
        self._seconds += record.seconds - self._counted.get(record.number, 0.0)
        self._counted[record.number] = record.seconds
        self._trials += 1

    def end(self, trial: optuna.Trial, ending: str | None) -> None:
        """Ends a trial. Only one that trained all its epochs, or ended by itself, is COMPLETE.

        ending: why the search as a whole is being ended.
        """
        record = self.records.trials[trial.number]
        self._count(record)
        state = "FAIL"
        beyond = self.unfit(record)
        if beyond and not (record.reason or record.rows):
            state, record.reason = "PRUNED", f"not trained: {beyond}"
        elif not record.reason and record.best(self.records.metric) is None:
            record.reason = f"ended before its first epoch ({ending or 'stopped'})"
        elif not record.reason and (record.complete or len(record.rows) >= self.max_epochs):
            state = "COMPLETE"
        elif not record.reason:
            state = "PRUNED"
            why = ending or "stopped by the scheduler"
            record.reason = f"{why} after epoch {max(record.rows)}"
        self._settle(trial, state)

    def _settle(self, trial: optuna.Trial, state: str) -> None:
        record, names = self.records.trials[trial.number], self.records.objectives
        value: float | list[float] | None = None
        if state == "COMPLETE":
            best = record.best(self.records.metric)
            assert best is not None
            value = value_of(best, self.records.metric)
            if names:
                value = record.values(names, self.records.metric)
            if value is None:
                state, record.reason = "FAIL", "its best epoch lacks a value of --objectives"
        self.records.end(trial.number, state)
        if state != "FAIL":
            found = excesses(self.limits, record.measured(self.records.metric))
            for name, excess in found.items():
                trial.set_constraint(name, excess)
        keep_summary(trial, record)
        self.study.tell(trial, value, state=TrialState[state])
        self.on_settled(trial.number)
