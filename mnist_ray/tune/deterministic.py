"""--deterministic: the same seed gives the same search, also with several trials at a time, and after a kill and a resume.

What a search suggests and stops depends on what it knows at that moment, which in parallel depends on which trial happens to be faster.
Here it depends on numbers alone. With c trials at a time, trial k is suggested when exactly the trials up to k - c are known, and its
epochs are judged against exactly those; whatever else has ended by then is kept back. The price: a worker that is done early waits.
"""

import copy
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from mnist_ray.errors import SettingsError
from mnist_ray.run.records import Row
from mnist_ray.study.samplers import exhausted
from mnist_ray.tune.searcher import StudySearch
from mnist_ray.tune.trainable import NUMBER, TrainTrial


@dataclass
class Held:
    """A trial of which the study does not know the epochs yet."""

    trial: optuna.Trial
    frozen: FrozenTrial  # a copy for the pruner: with the epochs so far, and what the pruner itself notes
    rows: dict[int, Row] = field(default_factory=dict)
    stop: bool = False
    over: bool = False
    error: bool = False


class OrderedSearch(StudySearch):
    """StudySearch that asks, judges and tells by the order of the trials' numbers.

    window: c of the module's docstring. sampler: the sampler for the run's k-th trial, seeded with k: a sampler whose random numbers
    went on from trial to trial would begin anew at a resume. Nobody else may write to the study.
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
        self.first = min(
            own, default=len(self._ot_study.get_trials(deepcopy=False))
        )  # number of the run's first trial
        self.told = sum(
            record.state != "RUNNING" for record in own.values()
        )  # of the run's trials, from the first on
        self._held: dict[int, Held] = {}

    def _next(self, trial_id: str) -> dict[str, Any] | str | None:
        place = (
            self.continued[0].number - self.first if self.continued else len(self.records.trials)
        )
        if not self.continued and place < self.records.total:
            self._tell_in_order()
            if self.told <= place - self.window:
                return None  # Tune asks again
        self._ot_study.sampler = self.sampler(place)
        config = super()._next(trial_id)
        if isinstance(config, dict):
            if config[NUMBER] != self.first + place:
                raise SettingsError(
                    f"--deterministic: another search writes to study {self._ot_study.study_name!r}; give a --study-name of its own"
                )
            trial = self._ot_trials[trial_id]
            frozen = copy.deepcopy(self._ot_study._storage.get_trial(trial._trial_id))
            # Of a trial that was cut off while it was told, the study has some epochs and notes already: they are judged again.
            frozen.intermediate_values, frozen.system_attrs = {}, {}
            self._held[trial.number] = Held(trial, frozen)
        return config

    def _take(self, trial: optuna.Trial, rows: Iterable[Row]) -> None:
        """Judges each epoch once, and keeps it back. After a restart a trial reports all its epochs: they are judged one by one."""
        held = self._held[trial.number]
        for row in rows:
            if row["epoch"] not in held.rows:
                held.rows[row["epoch"]] = row
                held.frozen.intermediate_values[row["epoch"]] = row[self.metric]
                if row["epoch"] < self.max_epochs and not held.stop:
                    held.stop = self._judge(held.frozen)

    def _judge(self, frozen: FrozenTrial) -> bool:
        study = self._ot_study
        known = max(frozen.number - self.window, self.first - 1)
        storage = cast(BaseStorage, AsOf(study._storage, known, frozen))
        view = optuna.Study(study.study_name, storage, sampler=study.sampler, pruner=study.pruner)
        return study.pruner.prune(view, frozen)

    def should_stop(self, trial_id: str, result: dict[str, Any]) -> bool:
        self.on_trial_result(trial_id, result)
        number = self._ot_trials[trial_id].number
        return self._held[number].stop and not (
            self.storage_error or self.records.trials[number].reason
        )

    def _ended(self, trial: optuna.Trial, error: bool) -> None:
        held = self._held[trial.number]
        held.over, held.error = True, error
        self._tell_in_order()

    def _tell_in_order(self) -> None:
        """Makes known what the next suggestion may know; when there is none to come, everything."""
        asked = len(self.records.trials)
        last = asked >= self.records.total or exhausted(self._ot_study)
        while (
            (held := self._held.get(self.first + self.told))
            and held.over
            and (last or self.told <= asked - self.window)
        ):
            super()._take(held.trial, held.rows.values())
            for key, value in held.frozen.system_attrs.items():
                self._ot_study._storage.set_trial_system_attr(held.trial._trial_id, key, value)
            super()._ended(held.trial, held.error)
            del self._held[held.trial.number]
            self.told += 1


class AsOf:
    """A storage as it was when only trials up to number `known` had ended. What is noted about the trial in question stays with it."""

    def __init__(self, storage: BaseStorage, known: int, frozen: FrozenTrial) -> None:
        self._storage, self._known, self._frozen = storage, known, frozen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Any = None
    ) -> list[FrozenTrial]:
        trials = self._storage.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        own = (
            [copy.deepcopy(self._frozen)] if states is None or TrialState.RUNNING in states else []
        )
        return [trial for trial in trials if trial.number <= self._known] + own

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id != self._frozen._trial_id:
            raise SettingsError(
                "--scheduler: with --deterministic a pruner may note nothing about other trials"
            )
        self._frozen.system_attrs[key] = value


class DeterministicTrial(TrainTrial):
    """TrainTrial with torch's deterministic kernels. On a CPU all kernels in use are, for a fixed number of threads."""

    def setup(self, *args: Any, **kwargs: Any) -> None:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        import torch

        # A warning only: the backward pass of pooling is on torch's list, though windows that do not overlap are summed in no order.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        super().setup(*args, **kwargs)
