"""Schedulers stop trials early: Ray's ASHA, which survives a resume, and Optuna's pruners."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.stopper import Stopper

from mnist_ray.run.records import INTERRUPTED, value_of
from mnist_ray.settings.objectives import direction
from mnist_ray.study.pruners import Scheduler
from mnist_ray.tune.patches import NotPickled, OpenASHA
from mnist_ray.tune.population import StudyPBT
from mnist_ray.tune.trial import NUMBER

if TYPE_CHECKING:
    from mnist_ray.tune.searcher import StudySearch


class FirstInFirstOut(FIFOScheduler):
    """Ray's order of trials, found among those that are alive.

    Ray's own walks over all trials that ever were, at every event. That took 5 % of the driver's
    time after 3,500 of them, and more with each.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The first trial that waits; one that was paused only if none is new."""
        live = tune_controller.get_live_trials()
        for status in (Trial.PENDING, Trial.PAUSED):
            waiting = [trial for trial in live if trial.status == status]
            if waiting:
                return min(waiting, key=lambda trial: trial.config[NUMBER])
        return None


class ResumableASHA(FirstInFirstOut, OpenASHA):
    """Asynchronous successive halving (Li et al. 2020) with the rungs of the run.

    Args:
        past: trial number -> {epoch: value of the metric}, of each trial that the run has already.
        kwargs: as Ray's scheduler takes them.
    """

    def __init__(self, past: Mapping[int, Mapping[int, float]], **kwargs: Any) -> None:
        super().__init__(time_attr="epoch", **kwargs)
        self._past = dict(past)
        self._rungs_rebuilt = False

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Fills the rungs first: only now the scheduler knows the metric."""
        super().on_trial_add(tune_controller, trial)
        number = trial.config[NUMBER]
        if not self._rungs_rebuilt:
            self._rungs_rebuilt = True
            for other, curve in self._past.items():
                self.enter(f"number {other}", curve)
        if number in self._past:
            # It goes on under a new id of Tune's; its place in the rungs goes with it.
            self.leave(f"number {number}")
            self.enter(trial.trial_id, self._past[number])

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """As Ray's. A failed trial has no value, and NaN would stay in the rung.

        A trial that breaks a limit does not count as a comparison for others.
        """
        if _failed(result):
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """As Ray's, but for failed trials."""
        if not _failed(result):
            super().on_trial_complete(tune_controller, trial, result)


class PrunerScheduler(NotPickled, FirstInFirstOut):
    """Asks the searcher after every epoch: its study's pruner, or its rungs (promotion.py).

    Pruners read everything from the study.
    """

    def __init__(self, search_alg: "StudySearch") -> None:
        super().__init__()
        self.search_alg = search_alg

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """STOP or CONTINUE."""
        if self.search_alg.should_stop(trial.trial_id, result):
            return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)


def _failed(result: Mapping[str, Any]) -> bool:
    return not result.keys().isdisjoint(("reason", "storage_error", "unfit"))


def make_scheduler(
    scheduler: Scheduler,
    past: Mapping[int, Mapping[int, float]],
    search_alg: "StudySearch",
    seed: int = 0,
) -> TrialScheduler:
    """Tune's scheduler. If `scheduler` is a pruner, the study has it.

    Args:
        scheduler: read from the settings.
        past: see ResumableASHA.
        search_alg: the search's.
        seed: of pbt's random numbers.
    """
    if scheduler.name == "none":
        return FirstInFirstOut()
    if scheduler.name == "pbt":
        # Before `grace_period` epochs nobody is exploited.
        first = scheduler.grace_period
        return StudyPBT(search_alg, seed, burn_in_period=first, **scheduler.options)
    if scheduler.name == "asha" and search_alg.front is None:
        return ResumableASHA(
            past,
            max_t=scheduler.max_epochs,
            grace_period=scheduler.grace_period,
            reduction_factor=scheduler.reduction_factor,
        )
    return PrunerScheduler(search_alg)


class Ending(NotPickled, Stopper):
    """Ends the search: it has what it should have, or the storage failed, or it lost the run.

    Args:
        search_alg: told the reason.
        budget: seconds, or None.
        lost: whether another process has taken over the run.
        reserve: the seconds of the budget that are kept for later work.
        target: a value of the metric that is good enough, or None.
        patience: trials in a row without a better value, or None.
    """

    def __init__(
        self,
        search_alg: "StudySearch",
        budget: float | None,
        lost: Callable[[], bool] = lambda: False,
        *,
        reserve: Callable[[], float] = lambda: 0.0,
        target: float | None = None,
        patience: int | None = None,
    ) -> None:
        self.search_alg, self.budget, self.lost = search_alg, budget, lost
        self.reserve, self.target, self.patience = reserve, target, patience
        self.start = time.monotonic()
        # With --resume: trials that go on, and have not reported the epochs of before again. The
        # best value may be theirs.
        self.unread = [r for r in search_alg.records.running() if not r.rows]
        self._look_back()

    def _look_back(self) -> None:
        """Counts the trials after the best one, by number: they have brought nothing better."""
        records = self.search_alg.records
        self.best = records.best
        number = records.best[0] if records.best else -1
        later = [
            r
            for r in records.trials.values()
            if r.number > number
            and r.reason != INTERRUPTED
            and (r.state != "RUNNING" or r.number in records.paused)
        ]
        self.settled = records.judged() - len(later)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial ends alone."""
        return False

    def stop_all(self) -> bool:
        """Whether all trials end now."""
        if self.lost():
            self.search_alg.taken_over = True
        elif self._spent():
            self.search_alg.ending = "stopped by --time-budget"
        elif self._waits():
            pass
        elif self._reached():
            self.search_alg.ending = "stopped by --target"
        elif self.patience is not None and self._fruitless() >= self.patience:
            self.search_alg.ending = "stopped by --patience"
        return self.search_alg.ending is not None or self.search_alg.silent

    def _spent(self) -> bool:
        """Whether the budget is used up, but for the reserve."""
        if self.budget is None:
            return False
        return time.monotonic() - self.start > self.budget - self.reserve()

    def _waits(self) -> bool:
        """Whether a trial that goes on has neither reported nor ended yet."""
        if self.unread and not any(r.state == "RUNNING" and not r.rows for r in self.unread):
            self.unread = []
            self._look_back()
        return bool(self.unread)

    def _reached(self) -> bool:
        """Whether the best value is as good as the target."""
        records = self.search_alg.records
        if self.target is None or records.best is None:
            return False
        value = value_of(records.best[1], records.metric)
        if direction(records.metric) == "maximize":
            return value >= self.target
        return value <= self.target

    def _fruitless(self) -> int:
        """Trials that have ended or were paused since the best value was found."""
        records = self.search_alg.records
        settled = records.judged()
        if records.best is not self.best:
            self.best, self.settled = records.best, settled
        return settled - self.settled
