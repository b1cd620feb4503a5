"""--scheduler pbt: Population Based Training (Jaderberg et al. 2017), Ray's scheduler with the study's random configurations.

All --trials configurations are drawn at random and trained in turns, epoch by epoch. Whenever all have trained another
`perturbation_interval` epochs, each of the worst `quantile_fraction` goes on with the weights, the optimiser and the network of one of
the best, and with its learning rate, weight decay and label smoothing changed a little. All wait for each other there (Ray's `synch`):
so a trial's epochs are counted as everywhere else, and its curve has no gaps.

What the study and the tables hold as a trial's parameters is what it began with; what became of them is its `mnist_ray:exploits`.
"""

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pbt import _PBTTrialState

from mnist_ray.study.pruners import Scheduler
from mnist_ray.tune.trainable import NUMBER

if TYPE_CHECKING:
    from mnist_ray.tune.searcher import StudySearch

PERTURBED = (
    "lr",
    "weight_decay",
    "label_smoothing",
)  # all others, dropout too, are the network's or would change what was learnt
FACTORS = (0.8, 1.2)
MOST_SMOOTHING = 0.5


class StudyPBT(PopulationBasedTraining):
    """Ray's scheduler beside a searcher, which Ray refuses: a searcher would learn from results of configurations that it did not suggest.

    Ours suggests at random and learns nothing, and is told of every exploitation (StudySearch.exploited).
    """

    def __init__(self, search_alg: "StudySearch", seed: int, **kwargs: Any) -> None:
        super().__init__(
            time_attr="epoch", synch=True, log_config=False, custom_explore_fn=dict, **kwargs
        )
        self.search_alg, self.random = search_alg, random.Random(seed)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it into the experiment's directory, where nothing reads it

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._trial_state[trial] = _PBTTrialState(trial)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, trial, result)
        self._go_on_without(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_error(tune_controller, trial)
        self._go_on_without(tune_controller, trial)

    def _go_on_without(self, tune_controller: Any, gone: Trial) -> None:
        """Ray compares the trials when the last of them reports; where that one fails instead, all others would wait for ever."""
        waiting = [t for t in tune_controller.get_live_trials() if t is not gone]
        if waiting and all(
            self._trial_state[t].last_train_time >= self._next_perturbation_sync for t in waiting
        ):
            self._next_perturbation_sync += self._perturbation_interval

    def _get_new_config(
        self, trial: Trial, trial_to_clone: Trial
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        return {**perturbed(trial_to_clone.config, self.random), NUMBER: trial.config[NUMBER]}, {}

    def _exploit(self, tune_controller: Any, trial: Trial, trial_to_clone: Trial) -> None:
        super()._exploit(tune_controller, trial, trial_to_clone)
        epoch = int(self._trial_state[trial_to_clone].last_train_time)
        values = {key: trial.config[key] for key in PERTURBED if key in trial.config}
        self.search_alg.exploited(
            trial.trial_id, {"after_epoch": epoch, "from": trial_to_clone.config[NUMBER], **values}
        )


def perturbed(config: Mapping[str, Any], generator: random.Random) -> dict[str, Any]:
    """The hyperparameters with each of PERTURBED that they have 0.8 or 1.2 times as large."""
    changed = {key: config[key] * generator.choice(FACTORS) for key in PERTURBED if config.get(key)}
    if "label_smoothing" in changed:
        changed["label_smoothing"] = min(changed["label_smoothing"], MOST_SMOOTHING)
    return {**config, **changed}


def make(scheduler: Scheduler, search_alg: "StudySearch", seed: int) -> StudyPBT:
    """The scheduler; before `grace_period` epochs nobody is exploited."""
    return StudyPBT(search_alg, seed, burn_in_period=scheduler.grace_period, **scheduler.options)
