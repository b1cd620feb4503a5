"""CmaEsSampler unpickles its state from the study: who writes a trial runs code in others."""

import contextlib
import pickle
import sys

import optuna
from optuna.distributions import FloatDistribution

CODE = b"cbuiltins\nexec\n(S'import sys; sys.owned = True'\ntR."

study = optuna.create_study(sampler=optuna.samplers.CmaEsSampler(n_startup_trials=1))
space = {name: FloatDistribution(0, 1) for name in "xy"}
# As a journal or a database has it that others can write to.
attrs = {"cma:optimizer:0": CODE.hex()}
values = {"x": 0.5, "y": 0.5}
study.add_trial(
    optuna.trial.create_trial(params=values, distributions=space, value=0.0, system_attrs=attrs)
)
with contextlib.suppress(pickle.UnpicklingError):  # with the change
    study.ask(space)
if hasattr(sys, "owned"):
    sys.exit("FAULT: the state of a trial has run code")
