"""The MLP search of the original experiments (docs/original-experiments.md).

It is Optuna's first PyTorch example: layers, units, dropout, optimiser and learning rate.
"""

from typing import Any

import optuna

from mnist_ray.spaces import DataShape


def mlp(trial: optuna.Trial, data: DataShape) -> dict[str, Any]:
    """Hyperparameters of the family `mlp`, trained in batches of 128; SGD is without momentum."""
    units, dropouts = [], []
    for i in range(trial.suggest_int("n_layers", 1, 3)):
        units.append(trial.suggest_int(f"n_units_l{i}", 4, 128))
        dropouts.append(trial.suggest_float(f"dropout_l{i}", 0.2, 0.5))
    return {
        "model": "mlp",
        **data.hyperparameters(),
        "units": units,
        "dropouts": dropouts,
        "optimizer": trial.suggest_categorical("optimizer", ["adam", "rmsprop", "sgd"]),
        "lr": trial.suggest_float("lr", 1e-5, 1e-1, log=True),
        "momentum": 0.0,
        "batch_size": 128,
    }
