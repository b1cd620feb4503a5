"""S1, the model search of the seed documents: filters, kernels and slopes of four convolutions, and a linear layer's width."""

import math
from typing import Any

import optuna

from mnist_ray.errors import SettingsError
from mnist_ray.spaces import DataShape


def optunanet(trial: optuna.Trial, data: DataShape, width_scale: float = 1.0) -> dict[str, Any]:
    """Hyperparameters of `models.optunanet`, trained with Adam at 1e-3 in batches of 32.

    Options: `width_scale`: factor of all filters and neurons; the trial keeps the document's own numbers.
    """
    layers = range(1, 5)
    return {
        "model": "optunanet",
        **data.hyperparameters(),
        "filters": [
            scaled(trial.suggest_int(f"layer{i}_conv2d_filter", 128, 256, step=32), width_scale)
            for i in layers
        ],
        "kernels": [trial.suggest_int(f"layer{i}_conv2d_kernel", 5, 7, step=2) for i in layers],
        "slopes": [
            trial.suggest_float(f"layer{i}_leakyrelu", 1e-3, 2e-1, log=True) for i in layers
        ],
        "fc": [scaled(trial.suggest_int("layer6_fc2_neurons", 512, 1024, step=128), width_scale)],
        "dropout": 0.5,
        "optimizer": "adam",
        "lr": 1e-3,
        "batch_size": 32,
    }


def scaled(width: int, width_scale: float) -> int:
    """A width times the factor, at least 8. Raises SettingsError where the factor is not a positive number."""
    if not 0 < width_scale < math.inf:
        raise SettingsError(
            f"--space-args: width_scale={width_scale} is not allowed; expected more than 0"
        )
    return max(8, round(width * width_scale))
