"""OptunaSearch leaves a trial that ends with NaN RUNNING for ever.

Study.tell raises, which is only logged. With constant_liar such a trial repels TPE in all later
suggestions.
"""

import sys

import optuna
from ray.tune.search.optuna import OptunaSearch

optuna.logging.set_verbosity(optuna.logging.ERROR)


def space(trial):
    trial.suggest_float("x", 0, 1)


search = OptunaSearch(space=space, metric="loss", mode="min")
search.suggest("one")
search.on_trial_complete("one", {"loss": float("nan")})
state = search._ot_study.trials[0].state.name
if state == "RUNNING":
    sys.exit("FAULT: the trial has ended, and its study has it as RUNNING")
