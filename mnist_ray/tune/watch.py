"""What Tune leaves open about workers: one that hangs, how often a trial may lose its worker, and one that dies between two trials."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.air._internal import usage as air_usage
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

if TYPE_CHECKING:
    from mnist_ray.tune.searcher import StudySearch

DEATHS = (
    8  # workers that a trial may lose in a row without a new epoch; one more, and it is given up
)
_LONGEST_STEP = 1.0  # seconds of a step of Tune's that count as waiting: in a longer one the driver was busy or asleep itself


class Watch(tune.Callback):
    """Ends a trial that reports nothing for `timeout` seconds (None: never), and lets one that gets on lose any number of workers."""

    def __init__(self, search_alg: "StudySearch", timeout: float | None, text: str | None) -> None:
        self.search_alg, self.timeout, self.text = search_alg, timeout, text
        self.waited: dict[Trial, float] = {}
        self.furthest: dict[str, int] = {}
        self.last = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles callbacks into the experiment's directory, where nothing reads them

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self.waited[trial] = 0.0
        self.search_alg.begun(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self.waited[trial] = 0.0
        if result.get("epoch", 0) > self.furthest.get(trial.trial_id, 0):
            self.furthest[trial.trial_id] = result["epoch"]
            trial.run_metadata.num_failures = 0

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self.waited.pop(trial, None)
        self.furthest.pop(trial.trial_id, None)

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self.waited.pop(trial, None)

    on_trial_error = on_trial_complete

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        now = time.monotonic()
        passed, self.last = min(now - self.last, _LONGEST_STEP), now
        if self.timeout is None:
            return
        for trial in list(self.waited):
            self.waited[trial] += passed
            if self.waited[trial] > self.timeout and trial.status == Trial.RUNNING:
                del self.waited[trial]
                self.search_alg.give_up(
                    trial.trial_id, f"reported no epoch for {self.text} (--trial-timeout)"
                )
                trial.max_failures, trial.run_metadata.num_failures = 0, 1  # not started again
                ray.kill(trial.temporary_state.ray_actor)


@contextlib.contextmanager
def patched_tune(worker_lost: Callable[[str, str], None]) -> Iterator[None]:
    """Three changes to Tune's controller, and one to what stands before it.

    A worker that dies while it is made ready for its next trial: Tune handles that death twice, and gives the trial up at the second
    time. Here it is started again as any other is. And `worker_lost` is told, with the trial's id, how a worker was lost.

    A worker that becomes free while another one starts: Tune gives it the trial for which that one is started, and stops the start. With
    trials that are over sooner than a worker has started, all of them would run one after the other. Here it gets the next trial, where
    the other one has its resources already; a trial that waits for them gets the free worker, which may be holding them.

    And callbacks are not counted for Ray's usage statistics: to name its own, Ray imports every tracker that is installed (1.5 s for
    MLflow and wandb, which leaves folders behind when it is killed).
    """
    tag_callbacks = air_usage.tag_callbacks
    actor_failed, trial_failed = TuneController._actor_failed, TuneController._process_trial_failure
    reuse = TuneController._maybe_reuse_cached_actor

    def patched_actor_failed(
        self: TuneController, tracked_actor: Any, exception: Exception
    ) -> None:
        trial = self._actor_to_trial[tracked_actor]
        if trial in self._resetting_trials:
            self._resetting_trials.discard(trial)
            self._unstage_trial_with_resources(trial)
            # As a running trial it is handled once, by what comes next: the failure of the call that was to make the worker ready.
            self._set_trial_status(trial, Trial.RUNNING)
        actor_failed(self, tracked_actor, exception)

    def patched_trial_failed(self: TuneController, trial: Trial, exception: Exception) -> None:
        worker_lost(trial.trial_id, _how(exception))
        trial_failed(self, trial, exception)

    def patched_reuse(self: TuneController, trial: Trial) -> bool:
        own = self._trial_to_actor.get(trial)
        if (
            own
            and trial not in self._resetting_trials
            and self._actor_manager.is_actor_started(own)
        ):
            return False
        return reuse(self, trial)

    TuneController._actor_failed, TuneController._process_trial_failure = (
        patched_actor_failed,
        patched_trial_failed,
    )
    TuneController._maybe_reuse_cached_actor = patched_reuse
    air_usage.tag_callbacks = lambda callbacks: False
    try:
        yield
    finally:
        air_usage.tag_callbacks = tag_callbacks
        TuneController._actor_failed, TuneController._process_trial_failure = (
            actor_failed,
            trial_failed,
        )
        TuneController._maybe_reuse_cached_actor = reuse


def _how(exception: Exception) -> str:
    """Ray's explanation in a line: the part that says how the process ended."""
    text = " ".join(str(exception).split())
    for beginning in ("The actor is dead because", "Worker exit detail:"):
        text = text.partition(beginning)[2] or text
    return text.partition("There are some potential root causes")[0].strip(" .")[:300]
