"""A callback is told that a trial's worker is lost, not why."""

import sys
from unittest.mock import MagicMock

from ray.tune.callback import Callback, CallbackList
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

told = {}


class Listener(Callback):
    """Would show people how the worker died."""

    def on_trial_recover(self, **info):
        told.update(info)


controller = MagicMock(_callbacks=CallbackList([Listener()]))
trial = MagicMock(status=Trial.RUNNING)
TuneController._process_trial_failure(controller, trial, RuntimeError("out of memory"))
if "exception" not in told:
    sys.exit(f"FAULT: the callback gets {', '.join(told)}, but no exception")
