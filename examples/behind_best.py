"""A pruner of one's own: it stops a trial that is far behind the best one at the same epoch.

python jobs/search.py --dataset digits --scheduler examples.behind_best:BehindBest
    --scheduler-args margin=0.1

It needs nothing of mnist_ray: any Optuna study can use it.
"""

import optuna
from optuna.trial import FrozenTrial


class BehindBest(optuna.pruners.BasePruner):
    """Compares a trial's last value with the best value of all other trials at that epoch.

    Args:
        margin: How far behind a trial may be, in the metric's unit.
        n_startup_trials: Trials that must have reached the epoch before any is stopped there.
    """

    def __init__(self, margin: float = 0.05, n_startup_trials: int = 2) -> None:
        self.margin, self.n_startup_trials = margin, n_startup_trials

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        epoch = trial.last_step
        if epoch is None:
            return False
        others = [
            other.intermediate_values[epoch]
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and epoch in other.intermediate_values
        ]
        if len(others) < self.n_startup_trials:
            return False
        value = trial.intermediate_values[epoch]
        if study.direction == optuna.study.StudyDirection.MAXIMIZE:
            return value < max(others) - self.margin
        return value > min(others) + self.margin
