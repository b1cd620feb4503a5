"""A worker that dies while it is reset for its next trial counts as two failures.

The failure of the reset's task is handled too (TuneController._trial_task_failure): the trial is
given up after half of max_failures.
"""

import sys
from unittest.mock import MagicMock

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

worker = MagicMock()
controller = MagicMock(
    _actor_to_trial={worker: "trial"},
    _resetting_trials={"trial"},
    _pending_trials={"trial"},
    _paused_trials=set(),
)
controller._set_trial_status.side_effect = lambda trial, status: (
    controller._pending_trials.discard(trial) if status == Trial.RUNNING else None
)
TuneController._actor_failed(controller, worker, RuntimeError("it died"))
if controller._trial_task_failure.called:
    sys.exit("FAULT: the death counts here, and again by the failure of the reset's task")
