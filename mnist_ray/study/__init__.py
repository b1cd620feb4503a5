"""Optuna: where a study lives, a run's trials in it, samplers, pruners, importance. No Ray."""
