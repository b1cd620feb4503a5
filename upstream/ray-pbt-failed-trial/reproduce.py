"""Synchronous PBT waits for ever for a trial that has failed (Ray issue 12122)."""

import sys
from unittest.mock import MagicMock

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining

scheduler = PopulationBasedTraining(
    "epoch", "accuracy", "max", 2, synch=True, hyperparam_mutations={"lr": [1]}
)
trials = [Trial("reproducer", stub=True, config={"lr": 1}) for _ in range(3)]
controller = MagicMock(search_alg=None)
controller.get_live_trials.return_value = controller.get_trials.return_value = trials
for trial in trials:
    scheduler.on_trial_add(controller, trial)
for trial in trials[:2]:  # they reach the exchange and wait for the third
    trial.status = Trial.PAUSED
    scheduler.on_trial_result(controller, trial, {"epoch": 2, "accuracy": 0.5})
scheduler.on_trial_error(controller, trials[2])
trials.pop()
if scheduler.choose_trial_to_run(controller) is None:
    sys.exit("FAULT: two trials are paused, the third has failed, and none is run any more")
