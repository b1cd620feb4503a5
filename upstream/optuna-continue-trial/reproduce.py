"""A trial that an earlier process has begun can be ended, but not gone on with."""

import sys

import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)
storage = optuna.storages.InMemoryStorage()
study = optuna.create_study(storage=storage, study_name="killed")
trial = study.ask()
x = trial.suggest_float("x", 0, 1)
trial.report(0.5, step=1)
del study, trial  # the process is killed; its checkpoint is on the disk

study = optuna.load_study(storage=storage, study_name="killed")
public = [name for name in dir(study) if not name.startswith("_")]
if "continue_trial" not in public:
    sys.exit(f"FAULT: nothing of these gives the running trial back: {', '.join(public)}")
again = study.continue_trial(0)
again.report(0.6, step=2)
same = again.suggest_float("x", 0, 1) == x
if not same or study.trials[0].intermediate_values != {1: 0.5, 2: 0.6}:
    sys.exit("FAULT: it is another trial")
