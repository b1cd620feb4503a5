"""--deterministic: the same seed gives the same search, also in parallel and after a resume.

A search's suggestions and stops depend on the results known at that moment. In parallel they depend
on which trial happens to be faster. Here it depends on numbers alone. With c trials at a time,
trial k is suggested when exactly the trials up to k - c are known, and its epochs are judged
against exactly those; all other ended trials are kept back. The price: a worker that is
done early waits.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from mnist_ray.errors import SettingsError
from mnist_ray.run.records import EpochRow, value_of
from mnist_ray.study.optuna_private import set_note, storage_of, trial_id_of
from mnist_ray.study.samplers import exhausted
from mnist_ray.study.suggestions import Refusal
from mnist_ray.tune.searcher import StudySearch


@dataclass(kw_only=True)
class Held:
    """A trial of which the study does not know the epochs yet."""

    trial: optuna.Trial
    rows: dict[int, EpochRow] = field(default_factory=dict)
    over: bool = False
    error: bool = False
    refusal: Refusal | None = None


@dataclass(kw_only=True)
class Judged(Held):
    """One that a pruner judges."""

    frozen: FrozenTrial  # a copy for the pruner: with the epochs so far, and the pruner's own notes
    stop: bool = False


class OrderedSearch(StudySearch):
    """StudySearch that asks, judges and tells by the order of the trials' numbers.

    Nobody else may write to the study.

    Args:
        args: as StudySearch takes them.
        window: c of the module's docstring.
        sampler: gives the sampler for the run's k-th trial, seeded with k: a sampler with random
            numbers that went on from trial to trial would begin anew at a resume.
        kwargs: as StudySearch takes them.
    """

    def __init__(
        self,
        *args: Any,
        window: int,
        sampler: Callable[[int], optuna.samplers.BaseSampler],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.window, self.sampler = window, sampler
        own = self.records.trials
        # Number of the run's first trial.
        self.first = min(own, default=len(self.study.get_trials(deepcopy=False)))
        # How many of the run's trials the study knows, from the first on.
        self.known = sum(record.state != "RUNNING" for record in own.values())
        self._held: dict[int, Judged] = {}
        self._place = 0  # of the trial that is suggested now

    def _may_ask(self) -> bool:
        continued, asked = self.suggestions.continued, len(self.records.trials)
        self._place = continued[0].number - self.first if continued else asked
        if not continued and self._place < self.records.total:
            self._tell_in_order()
            if self.known <= self._place - self.window:
                return False  # Tune asks again
        self.study.sampler = self.sampler(self._place)
        return True

    def _hand_out(self, trial_id: str, trial: optuna.Trial) -> None:
        super()._hand_out(trial_id, trial)
        self._hold(trial)

    def _hold(self, trial: optuna.Trial) -> Judged:
        check_number(self.study, trial.number, self.first + self._place)
        frozen = copy.deepcopy(storage_of(self.study).get_trial(trial_id_of(trial)))
        # Of a trial that was cut off while it was told, the study has some epochs and notes
        # already: they are judged again.
        frozen.intermediate_values, frozen.system_attrs = {}, {}
        held = self._held[trial.number] = Judged(trial=trial, frozen=frozen)
        return held

    def _refused(self, trial: optuna.Trial, refusal: Refusal) -> None:
        held = self._hold(trial)
        held.refusal, held.over = refusal, True
        self._tell_in_order()

    def _take(self, trial: optuna.Trial, rows: Iterable[EpochRow]) -> None:
        """Judges each epoch once, and keeps it back.

        After a restart a trial reports all its epochs: they are judged one by one.
        """
        held = self._held[trial.number]
        for row in rows:
            if row["epoch"] not in held.rows:
                held.rows[row["epoch"]] = row
                held.frozen.intermediate_values[row["epoch"]] = value_of(row, self.records.metric)
                if row["epoch"] < self.max_epochs and not held.stop:
                    held.stop = self._judge(held, row["epoch"])

    def _judge(self, held: Judged, epoch: int) -> bool:
        study, frozen = self.study, held.frozen
        known = max(frozen.number - self.window, self.first - 1)
        record = self.records.trials[frozen.number]
        if self.outcomes.unfit(record):
            return False
        if self.front:
            own = dataclasses.replace(record, rows=held.rows)
            others = [other for other in self.outcomes.fit() if other.number <= known]
            return self.front.stops(own, epoch, others)
        view = optuna.load_study(
            study_name=study.study_name,
            storage=cast(BaseStorage, AsOf(storage_of(study), known, frozen)),
            sampler=study.sampler,
            pruner=study.pruner,
        )
        with self._errors("scheduler"):
            return study.pruner.prune(view, frozen)
        return False

    def should_stop(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether the pruner stops the trial after this result."""
        self.on_trial_result(trial_id, result)
        number = self.trials[trial_id].number
        return self._held[number].stop and not (self.silent or self.records.trials[number].reason)

    def _ended(self, trial: optuna.Trial, error: bool) -> None:
        held = self._held[trial.number]
        held.over, held.error = True, error
        self._tell_in_order()

    def _tell_in_order(self) -> None:
        """Makes known the results for the next suggestion; after the last one, everything."""
        asked = len(self.records.trials)
        last = asked >= self.records.total or exhausted(self.study)
        while (
            (held := self._held.get(self.first + self.known))
            and held.over
            and (last or self.known <= asked - self.window)
        ):
            super()._take(held.trial, held.rows.values())
            for key, value in held.frozen.system_attrs.items():
                set_note(self.study, held.trial, key, value)
            if held.refusal:
                super()._refused(held.trial, held.refusal)
            else:
                super()._ended(held.trial, held.error)
            del self._held[held.trial.number]
            self.known += 1


def check_number(study: optuna.Study, found: int, expected: int) -> None:
    """SettingsError if a new trial has not the number that follows the run's last."""
    if found != expected:
        raise SettingsError(
            f"--deterministic: another search writes to study {study.study_name!r}; "
            "give a --study-name of its own"
        )


class AsOf:
    """A storage as it was when only trials up to number `known` had ended.

    Notes about the trial in question stay with it.
    """

    def __init__(self, storage: BaseStorage, known: int, frozen: FrozenTrial) -> None:
        self._storage, self._known, self._frozen = storage, known, frozen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Any = None
    ) -> list[FrozenTrial]:
        """As of a BaseStorage."""
        trials = self._storage.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        shown = states is None or TrialState.RUNNING in states
        own = [copy.deepcopy(self._frozen)] if shown else []
        return [trial for trial in trials if trial.number <= self._known] + own

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As of a BaseStorage."""
        if trial_id != trial_id_of(self._frozen):
            raise SettingsError(
                "--scheduler: with --deterministic a pruner may note nothing about other trials"
            )
        self._frozen.system_attrs[key] = value
