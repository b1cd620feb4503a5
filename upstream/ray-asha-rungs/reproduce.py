"""ASHA has empty rungs after a restart, and a bad trial goes on (Ray issue 30838)."""

import sys
from types import SimpleNamespace

from ray.tune.schedulers import ASHAScheduler

CURVES = {"good": {1: 0.9, 2: 0.95}, "better": {1: 0.92, 2: 0.97}}


def restarted():
    """Tuner.restore makes the scheduler anew: nothing tells it of trials that have ended."""
    scheduler = ASHAScheduler("epoch", "accuracy", "max", max_t=9, reduction_factor=2)
    if hasattr(scheduler, "enter"):  # with the change
        for trial, curve in CURVES.items():
            scheduler.enter(trial, curve)
    return scheduler


bad = SimpleNamespace(trial_id="bad")
scheduler = restarted()
scheduler.on_trial_add(None, bad)
decision = scheduler.on_trial_result(None, bad, {"epoch": 1, "accuracy": 0.1})
if decision == "CONTINUE":
    sys.exit("FAULT: after a restart a trial with 0.1 continues, where others had 0.9 and 0.92")
