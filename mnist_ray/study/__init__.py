"""Optuna: a study's storage, a run's trials in it, samplers, pruners, importance. No Ray."""
