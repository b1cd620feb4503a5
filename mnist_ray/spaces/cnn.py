"""The CNN search of the original experiments (docs/original-experiments.md).

Two convolutions and two linear layers. Searched are hidden units, two dropouts and the training.
"""

from typing import Any

import optuna

from mnist_ray.spaces import DataShape


def cnn(trial: optuna.Trial, data: DataShape) -> dict[str, Any]:
    """Hyperparameters of the family `cnn`; SGD is without momentum, torch's default.

    Raises:
        SettingsError: The images are too small for its two poolings.
    """
    data.check_side(4, "cnn")
    return {
        "model": "cnn",
        **data.hyperparameters(),
        "conv_dropout": trial.suggest_float("conv_dropout", 0.0, 0.5, step=0.1),
        "fc_units": trial.suggest_int("fc_units", 32, 256, step=32),
        "fc_dropout": trial.suggest_float("fc_dropout", 0.0, 0.3, step=0.1),
        "batch_size": trial.suggest_int("batch_size", 64, 256, step=64),
        "optimizer": trial.suggest_categorical("optimizer", ["adam", "rmsprop", "sgd"]),
        "lr": trial.suggest_float("lr", 1e-4, 1e-1, log=True),
        "momentum": 0.0,
    }
