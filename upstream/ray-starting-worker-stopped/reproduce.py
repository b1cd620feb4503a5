"""A worker that starts for a trial is stopped when another worker becomes free.

The free one gets that very trial. If trials are over sooner than a worker has started, all of
them run one after the other, on one worker (see Ray pull request 36020).
"""

import sys
from unittest.mock import MagicMock

from ray.tune.execution.tune_controller import TuneController

trial = MagicMock()
controller = MagicMock(
    _trial_to_actor={trial: "starting"},
    _actor_to_trial={"starting": trial},
    _resetting_trials=set(),
)
controller._actor_manager.is_actor_started = "starting".__eq__
TuneController._maybe_reuse_cached_actor(controller, trial)
if controller._remove_actor.called:
    sys.exit("FAULT: the worker that starts is removed")
