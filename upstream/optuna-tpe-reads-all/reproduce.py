"""TPE reads every trial for each suggestion, so that a study of n trials costs n² (issue 2172)."""

import inspect
import sys

import optuna
from optuna.samplers._tpe import sampler as tpe

optuna.logging.set_verbosity(optuna.logging.ERROR)
bounded = "max_trials" in inspect.signature(optuna.samplers.TPESampler).parameters
options = {"max_trials": 20} if bounded else {}  # with the change
read, plain = [], tpe._split_trials


def counting(study, trials, *rest):
    read.append(len(trials))
    return plain(study, trials, *rest)


tpe._split_trials = counting
study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, **options))
study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=60)
if max(read) > 20:
    sys.exit(f"FAULT: the last suggestion has read {max(read)} trials of 60, and nothing bounds it")
