"""Ray Tune's loop without Ray: it asks the searcher and the scheduler in the controller's order.

Nothing is trained: the caller says what each trial reports, and when. (The order is that of
ray.tune.execution.tune_controller, `_process_trial_result` and `stop_trial`, Ray 2.60.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from mnist_ray.run.tables import HISTORY
from mnist_ray.tune.trial import NUMBER


@dataclass(eq=False)
class FakeTrial:
    """As much of Tune's trial as searchers and schedulers look at."""

    trial_id: str
    config: dict[str, Any]
    epoch: int = 0  # the last one that was trained
    experiment_tag: str = ""

    @property
    def number(self) -> int:
        """The trial's number in the study."""
        return self.config[NUMBER]

    def is_finished(self) -> bool:
        """The loop drops a trial that has ended."""
        return False


class TuneLoop:
    """The controller: `slots` trials at a time, an epoch of one of them after the other."""

    def __init__(
        self,
        searcher: Any,
        scheduler: TrialScheduler | None = None,
        slots: int = 2,
        metric: str = "val_accuracy",
        mode: str = "max",
    ) -> None:
        self.searcher, self.scheduler = searcher, scheduler or FIFOScheduler()
        self.slots = slots
        self.scheduler.set_search_properties(metric, mode)
        self.live: list[FakeTrial] = []
        self.asked = 0

    def start(self) -> FakeTrial | None:
        """The next trial; None where the searcher has none now or will have none any more."""
        trial_id = f"id{self.asked}"
        self.asked += 1
        config = self.searcher.suggest(trial_id)
        if config is None or config == Searcher.FINISHED:
            return None
        trial = FakeTrial(trial_id, config)
        self.scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        self.live.append(trial)
        return trial

    def fill(self) -> bool:
        """Starts trials until no slot is free; whether any trial is there."""
        while len(self.live) < self.slots and self.start():
            pass
        return bool(self.live)

    def report(self, trial: FakeTrial, result: dict[str, Any]) -> bool:
        """Takes a trial's result; whether the trial ends with it."""
        done = bool(result.get("done"))
        if not done:
            decision = self.scheduler.on_trial_result(None, trial, result)  # type: ignore[arg-type]
            done = decision == TrialScheduler.STOP
        if done:
            self.live.remove(trial)
            self.scheduler.on_trial_complete(None, trial, result)  # type: ignore[arg-type]
            self.searcher.on_trial_complete(trial.trial_id, result)
        else:
            self.searcher.on_trial_result(trial.trial_id, result)
        return done

    def stop_all(self) -> None:
        """Ends all live trials as the controller does when a Stopper says so: nobody is told."""
        self.live.clear()

    def run(self, train: Callable[[FakeTrial], dict[str, Any]]) -> None:
        """Trains to the end. train: gives the result of a trial's next epoch, `trial.epoch`."""
        while self.fill():
            for trial in list(self.live):
                trial.epoch += 1
                self.report(trial, train(trial))


def result(epoch: int, accuracy: float = 0.5, **others: Any) -> dict[str, Any]:
    """An epoch's result as a worker reports it; the loss follows the accuracy."""
    return {
        **dict.fromkeys(HISTORY, 0.25),
        "epoch": epoch,
        "training_iteration": epoch,
        "val_accuracy": accuracy,
        "val_loss": 1 - accuracy,
        "n_parameters": 7,
        "node": "n",
        "done": False,
        **others,
    }
