"""Every private part of Ray that this package changes or relies on, each with its reason.

Seen to work with Ray 2.60. To lift `ray<2.61` in pyproject.toml: install the new version and run
tests/tune/test_patches.py and tests/faults/test_workers.py. Each patch has a test that shows the
fault on the stock version. If such a test fails, Ray has mended the fault, and the patch goes;
if another test fails, Ray has moved the patched code. Nothing outside this module
touches a private name of Ray's.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray.air._internal import usage as air_usage
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from ray.tune.schedulers.pbt import _PBTTrialState

from mnist_ray.errors import printable

COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@contextlib.contextmanager
def patched_tune(worker_lost: Callable[[str, str, str], None]) -> Iterator[None]:
    """All changes of Tune's controller. worker_lost: see `worker_deaths_told`."""
    with (
        deaths_between_trials_handled_once(),
        worker_deaths_told(worker_lost),
        starting_workers_kept(),
        no_usage_tags(),
    ):
        yield


@contextlib.contextmanager
def deaths_between_trials_handled_once() -> Iterator[None]:
    """A worker that dies while it is made ready for its next trial costs one failure, not two.

    Tune handles that death twice, by `_actor_failed` and by the failure of the reset's task, and
    gives the trial up at the second time. Here the trial counts as running, so that the task's
    failure alone is handled: the trial is started again as any other. No issue is known.
    """
    stock = TuneController._actor_failed

    def actor_failed(self: TuneController, tracked_actor: Any, exception: Exception) -> None:
        trial = self._actor_to_trial[tracked_actor]
        if trial in self._resetting_trials:
            self._resetting_trials.discard(trial)
            self._unstage_trial_with_resources(trial)
            self._set_trial_status(trial, Trial.RUNNING)
        stock(self, tracked_actor, exception)

    with _replaced(TuneController, "_actor_failed", actor_failed):
        yield


@contextlib.contextmanager
def worker_deaths_told(worker_lost: Callable[[str, str, str], None]) -> Iterator[None]:
    """Calls `worker_lost` with a trial's id, a line that says how its worker died, and a traceback.

    That is "" unless the worker could not begin: all later errors are results.
    Tune's callbacks are told of a failure without its exception. No issue is known.
    """
    stock = TuneController._process_trial_failure

    def trial_failed(self: TuneController, trial: Trial, exception: Exception) -> None:
        text = COLOURS.sub("", str(exception))
        could_begin = not getattr(exception, "actor_init_failed", False)
        worker_lost(trial.trial_id, how_it_died(exception), "" if could_begin else text)
        stock(self, trial, exception)

    with _replaced(TuneController, "_process_trial_failure", trial_failed):
        yield


@contextlib.contextmanager
def starting_workers_kept() -> Iterator[None]:
    """A worker that starts for a trial keeps it, though another worker becomes free meanwhile.

    Tune gives the free worker that very trial and stops the start (see Ray pull request 36020).
    With trials that are over sooner than a worker has started, all of them run one after the
    other. Here the free worker gets the next trial. A trial that waits for resources still gets
    it: the free worker may be holding them.
    """
    stock = TuneController._maybe_reuse_cached_actor

    def reuse(self: TuneController, trial: Trial) -> bool:
        own = self._trial_to_actor.get(trial)
        starts = own is not None and self._actor_manager.is_actor_started(own)
        if starts and trial not in self._resetting_trials:
            return False
        return bool(stock(self, trial))

    with _replaced(TuneController, "_maybe_reuse_cached_actor", reuse):
        yield


@contextlib.contextmanager
def no_usage_tags() -> Iterator[None]:
    """Callbacks are not counted for Ray's usage statistics.

    To name its own, Ray imports every tracker that is installed (pull request 34904): 1.5 s for
    MLflow and wandb, which leaves folders behind when it is killed.
    """
    with _replaced(air_usage, "tag_callbacks", lambda callbacks: False):
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, new: Any) -> Iterator[None]:
    stock = getattr(owner, name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        setattr(owner, name, stock)


def how_it_died(exception: Exception) -> str:
    """Ray's explanation in a line: the part that says how the process ended."""
    if getattr(exception, "actor_init_failed", False):
        line = _raised(COLOURS.sub("", str(exception)))
        return f"it could not begin: {printable(line)}"[:300]
    text = " ".join(str(exception).split())
    for beginning in ("The actor is dead because", "Worker exit detail:"):
        text = text.partition(beginning)[2] or text
    return text.partition("There are some potential root causes")[0].strip(" .")[:300]


def _raised(text: str) -> str:
    """The line of a traceback that names the error; its message may go on in others."""
    lines = [line for line in text.splitlines() if line.strip()]
    frames = [n for n, line in enumerate(lines) if line.lstrip().startswith('File "')]
    after = lines[frames[-1] + 1 :] if frames else []
    return next((line for line in after if not line.startswith(" ")), lines[-1])


# ---- the experiment's directory


class NotPickled:
    """Leaves a pickle without state; it must be the first base.

    Tune pickles searcher, scheduler, stopper and callbacks into the experiment's directory. Nothing
    reads them, and the study's URL may hold a password.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {}


# ---- trials


def forget_failures(trial: Trial) -> None:
    """The trial may lose as many workers again as in its beginning.

    Tune counts the failures of a trial's whole life, so that one that trains for days on machines
    that come and go is given up at last. No issue is known.
    """
    trial.run_metadata.num_failures = 0


def end_worker(trial: Trial) -> None:
    """Kills the trial's worker and gives the trial up: Tune has no timeout for one that hangs."""
    trial.max_failures, trial.run_metadata.num_failures = 0, 1  # not started again
    ray.kill(trial.temporary_state.ray_actor)


# ---- schedulers


class OpenASHA(ASHAScheduler):
    """Ray's ASHA with rungs that can be filled from outside.

    Ray's scheduler has empty rungs after a restart, and stops too few trials
    (Ray issue 30838). It has one bracket here.
    """

    def enter(self, key: str, curve: Mapping[int, float]) -> None:
        """Enters a trial's values, epoch -> value of the metric, at each rung it has reached."""
        for milestone, recorded in self._brackets[0]._rungs:
            reached = [epoch for epoch in curve if epoch >= milestone]
            if reached:
                recorded[key] = self._metric_op * curve[min(reached)]

    def leave(self, key: str) -> None:
        """Takes a trial out of all rungs."""
        for _, recorded in self._brackets[0]._rungs:
            recorded.pop(key, None)

    def rungs(self) -> dict[float, dict[str, float]]:
        """Epochs -> trial -> value, larger is better."""
        return {milestone: dict(recorded) for milestone, recorded in self._brackets[0]._rungs}

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """As Ray's, which fails for a trial that has reported its end before."""
        self._trial_info.pop(trial.trial_id, None)


class OpenPBT(PopulationBasedTraining):
    """Ray's synchronous PBT beside a searcher, with hooks for new configurations.

    Ray refuses a searcher here, since it would learn from results of configurations that it did
    not suggest. Ours suggests at random and learns nothing. And Ray compares the trials when the
    last of them reports: if that one fails instead, all others wait for ever (Ray issue 12122).
    """

    def explored(self, trial: Trial, donor: Trial) -> dict[str, Any]:
        """The configuration with which `trial` goes on from the state of `donor`."""
        raise NotImplementedError

    def exploited(self, trial: Trial, donor: Trial, after: int) -> None:
        """Called when `trial` has taken the state that `donor` had after so many epochs."""

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """As Ray's, without its refusal of searchers."""
        self._trial_state[trial] = _PBTTrialState(trial)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """As Ray's; the others go on without the trial."""
        super().on_trial_complete(tune_controller, trial, result)
        self._go_on_without(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """As Ray's; the others go on without the trial."""
        super().on_trial_error(tune_controller, trial)
        self._go_on_without(tune_controller, trial)

    def _go_on_without(self, tune_controller: Any, gone: Trial) -> None:
        waiting = [t for t in tune_controller.get_live_trials() if t is not gone]
        if waiting and all(
            self._trial_state[t].last_train_time >= self._next_perturbation_sync for t in waiting
        ):
            self._next_perturbation_sync += self._perturbation_interval

    def _get_new_config(
        self, trial: Trial, trial_to_clone: Trial
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.explored(trial, trial_to_clone), {}

    def _exploit(self, tune_controller: Any, trial: Trial, trial_to_clone: Trial) -> None:
        super()._exploit(tune_controller, trial, trial_to_clone)
        after = int(self._trial_state[trial_to_clone].last_train_time)
        self.exploited(trial, trial_to_clone, after)
