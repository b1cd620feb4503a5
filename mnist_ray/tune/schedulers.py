"""What stops the hopeless early: Ray's ASHA, made to survive a resume, and any of Optuna's pruners (see pruners.py)."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.stopper import Stopper

from mnist_ray.settings import SearchSettings
from mnist_ray.study.pruners import Scheduler, read_scheduler
from mnist_ray.tune import population
from mnist_ray.tune.trainable import NUMBER

if TYPE_CHECKING:
    from mnist_ray.tune.searcher import StudySearch


class FirstInFirstOut(FIFOScheduler):
    """Ray's order of trials, found among those that are alive: Ray's own walks over all trials that ever were, at every event, which
    took 5 % of the driver's time after 3,500 of them, and more with each."""

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The first trial that waits; one that was paused only where none is new."""
        live = tune_controller.get_live_trials()
        for status in (Trial.PENDING, Trial.PAUSED):
            waiting = [trial for trial in live if trial.status == status]
            if waiting:
                return min(waiting, key=lambda trial: trial.config[NUMBER])
        return None


class ResumableASHA(FirstInFirstOut, ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2020) whose rungs are those of the run, not of the process.

    past: trial number -> {epoch: value of the metric}, of every trial that the run has already. Ray's own scheduler starts with
    empty rungs after a restart, and lets through what would have been stopped.
    """

    def __init__(self, past: Mapping[int, Mapping[int, float]], **kwargs: Any) -> None:
        super().__init__(time_attr="epoch", **kwargs)
        self._past = dict(past)
        self._rungs_rebuilt = False

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        number = trial.config[NUMBER]
        if not self._rungs_rebuilt:
            self._rungs_rebuilt = True
            for other in self._past:
                self._record(f"number {other}", other)
        if number in self._past:
            # It goes on under a new id of Tune's; its place in the rungs goes with it.
            self._forget(f"number {number}")
            self._record(trial.trial_id, number)

    def _record(self, key: str, number: int) -> None:
        """Enters the trial's value at each rung that it has reached."""
        for milestone, recorded in self._brackets[0]._rungs:
            reached = [epoch for epoch in self._past[number] if epoch >= milestone]
            if reached:
                recorded[key] = self._metric_op * self._past[number][min(reached)]

    def _forget(self, key: str) -> None:
        for _, recorded in self._brackets[0]._rungs:
            recorded.pop(key, None)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        # A failed trial has no value; NaN would stay in the rung.
        return (
            TrialScheduler.CONTINUE
            if _failed(result)
            else super().on_trial_result(tune_controller, trial, result)
        )

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if not _failed(result):
            super().on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._trial_info.pop(trial.trial_id, None)


class PrunerScheduler(FirstInFirstOut):
    """Asks the study's pruner after every epoch. It keeps nothing itself: what pruners know they read from the study."""

    def __init__(self, search_alg: "StudySearch") -> None:
        super().__init__()
        self.search_alg = search_alg

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it into the experiment's directory, where nothing reads it

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return (
            TrialScheduler.STOP
            if self.search_alg.should_stop(trial.trial_id, result)
            else TrialScheduler.CONTINUE
        )


def _failed(result: Mapping[str, Any]) -> bool:
    return "reason" in result or "storage_error" in result


def make_scheduler(
    scheduler: Scheduler,
    past: Mapping[int, Mapping[int, float]],
    search_alg: "StudySearch",
    seed: int = 0,
) -> TrialScheduler:
    """Tune's scheduler. `past` as in ResumableASHA; seed: of pbt's random numbers.

    Where the scheduler is a pruner the study has it.
    """
    if scheduler.name == "none":
        return FirstInFirstOut()
    if scheduler.name == "pbt":
        return population.make(scheduler, search_alg, seed)
    if scheduler.name == "asha":
        return ResumableASHA(
            past,
            max_t=scheduler.max_epochs,
            grace_period=scheduler.grace_period,
            reduction_factor=scheduler.reduction_factor,
        )
    return PrunerScheduler(search_alg)


def make(
    settings: SearchSettings, past: Mapping[int, Mapping[int, float]], search_alg: "StudySearch"
) -> TrialScheduler:
    """The scheduler that the settings name."""
    return make_scheduler(read_scheduler(settings), past, search_alg, settings.seed)


class Ending(Stopper):
    """Ends the search when its time is up or the storage has failed, and tells the searcher why. budget: seconds, or None."""

    def __init__(self, search_alg: "StudySearch", budget: float | None) -> None:
        self.search_alg, self.budget, self.start = search_alg, budget, time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its settings into the experiment's directory; this one is of no use there

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self.budget is not None and time.monotonic() - self.start > self.budget:
            self.search_alg.ending = "stopped by --time-budget"
        return self.search_alg.ending is not None or self.search_alg.storage_error is not None
