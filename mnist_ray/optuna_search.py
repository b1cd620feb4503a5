"""Ray Tune's OptunaSearch, telling Optuna the truth.

Stock OptunaSearch reports a trial that the scheduler stopped as COMPLETE with its low-fidelity value, leaves one whose value is NaN
RUNNING for ever, cannot continue a study's trials, and pickles the storage's URL, password included, into the experiment's directory.
Here a stopped trial is PRUNED with all its intermediate values, a failed one FAIL, and the study alone says what has been done.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.records import HISTORY, INTERRUPTED, Record, Records, rows_from
from mnist_ray.samplers import exhausted
from mnist_ray.trial import NUMBER

RUN = "mnist_ray:run"  # user attribute of every trial: the run that it belongs to (several may share a study)
SUMMARY = "mnist_ray:summary"  # user attribute of every settled trial: Record.summary()


def open_study(storage: optuna.storages.BaseStorage, name: str, metric: str, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    """The study of that name, made if there is none. Raises SettingsError where it optimises the other way."""
    direction: Literal["minimize", "maximize"] = "minimize" if metric == "val_loss" else "maximize"
    study = optuna.create_study(storage=storage, study_name=name, sampler=sampler, load_if_exists=True, direction=direction)
    if study.direction.name.lower() != direction:
        raise SettingsError(f"--metric: {metric} is to {direction}, but study {name!r} is there already to {study.direction.name.lower()}")
    return study


class StudySearch(OptunaSearch):
    """Suggests from a study and tells it how each trial ended; keeps `records` for the reader.

    space: a function of an optuna.Trial that returns the flat dict of hyperparameters.
    on_settled: called with a trial's number after the study knows of its end.
    continued: trials of an earlier process, still RUNNING in the study, that have a checkpoint: they are handed out first.
    retried: values of trials that were cut off before their first checkpoint: tried again, under new numbers.
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
        continued: list[FrozenTrial] | None = None,
        retried: list[dict[str, Any]] | None = None,
    ) -> None:
        mode = "min" if records.metric == "val_loss" else "max"
        super().__init__(space=None, metric=records.metric, mode=mode)
        self._space, self._ot_study = space, study
        self.records, self.run, self.max_epochs, self.on_settled = records, run, max_epochs, on_settled
        self.continued, self.retried = list(continued or []), list(retried or [])
        self._steps: dict[int, set[int]] = {}  # trial number -> the epochs that the study has
        self.ending: str | None = None  # why the search as a whole is being ended, e.g. "time budget"
        self.storage_error: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles the searcher into the experiment's directory. The study is the state; its URL may hold a password.
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is the state, and Tune's snapshots are not resumed from."""

    def restore(self, checkpoint_path: str) -> None:
        """See save."""

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        return True  # all given to __init__

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Tune's config of the next trial: its hyperparameters and its number."""
        study = self._ot_study
        if self.continued:
            frozen = self.continued.pop(0)
            trial = optuna.Trial(study, frozen._trial_id)  # a running trial gives its stored values again
            self._steps[trial.number] = set(frozen.intermediate_values)
        elif len(self.records.trials) - self._tried_again() >= self.records.total or exhausted(study):
            return Searcher.FINISHED
        else:
            if self.retried:
                study.enqueue_trial(self.retried.pop(0))
            trial = study.ask()
            trial.set_user_attr(RUN, self.run)
        try:
            hp = self._space(trial)
        except ValueError as error:
            raise SettingsError(f"--study: the study {study.study_name!r} contradicts the space: {error}") from error
        if trial.number not in self.records.trials:
            self.records.add(Record(trial.number, dict(trial.params)))
        self._ot_trials[trial_id] = trial
        self._steps.setdefault(trial.number, set())
        return {NUMBER: trial.number, **hp}

    def _tried_again(self) -> int:
        return sum(record.reason == INTERRUPTED for record in self.records.trials.values())

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Takes a result; one that was reported already, before a restart, changes nothing."""
        trial = self._ot_trials[trial_id]
        record = self.records.trials[trial.number]
        if "storage_error" in result:
            self.storage_error = result["storage_error"]
        if "reason" in result:
            record.reason = result["reason"]
        if record.reason or self.storage_error:
            return
        record.n_parameters, record.node = result["n_parameters"], result["node"]
        for row in [*result.get("rows", []), result]:
            self.records.report(trial.number, {name: row[name] for name in HISTORY})
            if row["epoch"] not in self._steps[trial.number]:
                self._steps[trial.number].add(row["epoch"])
                trial.report(row[self.metric], step=row["epoch"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the study how the trial ended. Only one that trained all its epochs is COMPLETE."""
        trial = self._ot_trials.get(trial_id)
        if trial is None:
            return
        if result:
            self.on_trial_result(trial_id, result)
        del self._ot_trials[trial_id]
        if self.storage_error:
            return  # it stays RUNNING in the study, to be continued by --resume
        record = self.records.trials[trial.number]
        best = record.best(self.metric)
        if error:
            record.reason = record.reason or "its worker died too often"
        if record.reason or best is None:
            record.state = "FAIL"
            record.reason = record.reason or f"ended before its first epoch ({self.ending or 'stopped'})"
        elif len(record.rows) >= self.max_epochs:
            record.state = "COMPLETE"
        else:
            record.state = "PRUNED"
            record.reason = f"{self.ending or 'stopped by the scheduler'} after epoch {max(record.rows)}"
        value = best[self.metric] if record.state == "COMPLETE" and best is not None else None
        try:
            trial.set_user_attr(SUMMARY, record.summary())
            self._ot_study.tell(trial, value, state=TrialState[record.state])
            self.on_settled(trial.number)
        except (WorkError, OSError) as storage_failure:  # Tune would log and go on: the search must end instead
            self.storage_error = str(storage_failure)


def read_trials(study: optuna.Study, run: str) -> list[tuple[FrozenTrial, Record]]:
    """The run's trials in a study, with what the study knows of them."""
    pairs = []
    for frozen in study.get_trials(deepcopy=False):
        if frozen.user_attrs.get(RUN) != run:
            continue
        summary: Mapping[str, Any] = frozen.user_attrs.get(SUMMARY, {})
        record = Record(
            frozen.number,
            dict(frozen.params),
            state=frozen.state.name if frozen.state.is_finished() else "RUNNING",
            reason=summary.get("reason", ""),
            n_parameters=summary.get("n_parameters"),
            node=summary.get("node", ""),
            rows=rows_from(summary),
        )
        if not summary:  # cut off: of its epochs the study has the metric alone
            empty = dict.fromkeys(HISTORY, math.nan)
            metric = "val_loss" if study.direction.name == "MINIMIZE" else "val_accuracy"
            record.rows = {e: {**empty, "epoch": e, metric: v} for e, v in frozen.intermediate_values.items()}
        pairs.append((frozen, record))
    return pairs


def close_interrupted(study: optuna.Study, frozen: FrozenTrial, record: Record) -> None:
    """A trial that a killed run left RUNNING without a checkpoint: FAIL in the study, with the reason."""
    record.state, record.reason = "FAIL", INTERRUPTED
    trial = optuna.Trial(study, frozen._trial_id)
    trial.set_user_attr(SUMMARY, record.summary())
    study.tell(trial, state=TrialState.FAIL)
