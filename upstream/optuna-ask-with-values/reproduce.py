"""Values that one process enqueues are taken by whichever process asks next.

There is no way to ask for a trial that has given values (Optuna issues 2925, 4621).
"""

import inspect
import sys

import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)
storage = optuna.storages.InMemoryStorage()
mine = optuna.create_study(storage=storage, study_name="shared")
others = optuna.load_study(storage=storage, study_name="shared")


def asked(values):
    """My trial with these values."""
    if "fixed_params" in inspect.signature(mine.ask).parameters:  # with the change
        return mine.ask(fixed_params=values)
    mine.enqueue_trial(values)
    others.ask()  # another process is a moment faster
    return mine.ask()


x = asked({"x": 0.125}).suggest_float("x", 0, 1)
if x != 0.125:
    sys.exit(f"FAULT: I enqueued x=0.125 and my trial has x={x:.3f}")
