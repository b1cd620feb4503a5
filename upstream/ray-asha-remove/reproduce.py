"""ASHA fails when a trial is removed that has reported its end before."""

import sys
from types import SimpleNamespace

from ray.tune.schedulers import ASHAScheduler

scheduler = ASHAScheduler("epoch", "accuracy", "max", max_t=9)
trial = SimpleNamespace(trial_id="one")
scheduler.on_trial_add(None, trial)
scheduler.on_trial_complete(None, trial, {"epoch": 1, "accuracy": 0.5})
try:
    scheduler.on_trial_remove(None, trial)
except KeyError as error:
    sys.exit(f"FAULT: removing a completed trial raises KeyError: {error}")
