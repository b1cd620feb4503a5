"""A contradiction of a study's parameters is a plain ValueError, as any fault of an objective."""

import sys

import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study()
study.ask().suggest_float("lr", 0, 1)
try:
    study.ask().suggest_categorical("lr", ["low", "high"])
except ValueError as error:
    if type(error) is ValueError:
        sys.exit(f"FAULT: its type does not tell it from any other ValueError: {error}")
