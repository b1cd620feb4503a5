"""Workers that hang, and how often a trial may lose its worker: Tune leaves both open."""

import time
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.experiment import Trial

from mnist_ray.tune.patches import NotPickled, end_worker, forget_failures

if TYPE_CHECKING:
    from mnist_ray.tune.searcher import StudySearch

# Workers that a trial may lose in a row without a new epoch; one more, and it is given up.
DEATHS = 8
# Seconds of a step of Tune's that count as waiting. In a longer one the driver itself was busy or
# asleep.
_LONGEST_STEP = 1.0


class Watch(NotPickled, tune.Callback):
    """Ends a trial that hangs, and lets one that makes progress lose any number of workers.

    Args:
        search_alg: the search's.
        timeout: seconds without an epoch after which a trial hangs; None: never.
        text: the timeout as a person gave it, for the reason.
    """

    def __init__(self, search_alg: "StudySearch", timeout: float | None, text: str | None) -> None:
        self.search_alg, self.timeout, self.text = search_alg, timeout, text
        self.waited: dict[Trial, float] = {}
        self.furthest: dict[str, int] = {}
        self.last = time.monotonic()

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Begins to wait."""
        self.waited[trial] = 0.0
        self.search_alg.begun(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Begins to wait anew. A new epoch makes up for lost workers."""
        self.waited[trial] = 0.0
        if result.get("epoch", 0) > self.furthest.get(trial.trial_id, 0):
            self.furthest[trial.trial_id] = result["epoch"]
            forget_failures(trial)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Waits no more."""
        self.waited.pop(trial, None)
        self.furthest.pop(trial.trial_id, None)

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Waits no more until the trial starts again."""
        self.waited.pop(trial, None)

    on_trial_error = on_trial_complete

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Gives up trials that have reported nothing for too long."""
        now = time.monotonic()
        passed, self.last = min(now - self.last, _LONGEST_STEP), now
        if self.timeout is None:
            return
        for trial in list(self.waited):
            self.waited[trial] += passed
            if self.waited[trial] > self.timeout and trial.status == Trial.RUNNING:
                del self.waited[trial]
                why = f"reported no epoch for {self.text} (--trial-timeout)"
                self.search_alg.give_up(trial.trial_id, why)
                end_worker(trial)
