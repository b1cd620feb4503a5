"""LightGBM on the pixels: gradient-boosted trees (Ke et al. 2017) instead of a network."""

import importlib.util
from typing import Any

import optuna

from mnist_ray.errors import SettingsError
from mnist_ray.spaces import DataShape

TRAINABLE = "mnist_ray.trials.boosting:LightGBMTrial"


def lightgbm(trial: optuna.Trial, data: DataShape) -> dict[str, Any]:
    """LightGBM's parameters under their own names; an epoch is ten rounds of boosting.

    Raises:
        SettingsError: LightGBM is not installed.
    """
    if importlib.util.find_spec("lightgbm") is None:
        raise SettingsError(
            "--space: lightgbm needs the package of that name; pip install 'mnist_ray[lightgbm]'"
        )
    return {
        "model": "lightgbm",
        **data.hyperparameters(),
        "learning_rate": trial.suggest_float("learning_rate", 0.03, 0.5, log=True),
        "num_leaves": trial.suggest_int("num_leaves", 7, 63, log=True),
        "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 5, 100, log=True),
        "feature_fraction": trial.suggest_float("feature_fraction", 0.1, 1.0),
        "bagging_fraction": trial.suggest_float("bagging_fraction", 0.4, 1.0),
        "lambda_l1": trial.suggest_float("lambda_l1", 1e-8, 10.0, log=True),
        "lambda_l2": trial.suggest_float("lambda_l2", 1e-8, 10.0, log=True),
    }
