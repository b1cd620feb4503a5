"""Two searches of the original experiments: model and depth (docs/original-experiments.md)."""

import math
from typing import Any

import optuna

from mnist_ray.errors import SettingsError
from mnist_ray.spaces import DataShape


def optunanet(trial: optuna.Trial, data: DataShape, width_scale: float = 1.0) -> dict[str, Any]:
    """The model search: filters, kernels and slopes of four convolutions, and a layer's width.

    The family is `optunanet`, trained with Adam at 1e-3 in batches of 32.

    Args:
        trial: Optuna's.
        data: The data set's shape.
        width_scale: Factor of all filters and neurons; the trial keeps the original numbers.

    Raises:
        SettingsError: The factor is not allowed, or the images are too small for two poolings.
    """
    data.check_side(4, "optunanet")
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


def optunanet_depth(
    trial: optuna.Trial, data: DataShape, width_scale: float = 1.0
) -> dict[str, Any]:
    """The depth search: how many linear layers, how wide, on the model search's convolutions.

    The widths are asked for layer by layer: the grid has 4 + 16 + 64 + 256 = 340 distinct networks.
    They are trained with the settings of Adam that the original search had found.

    Args:
        trial: Optuna's.
        data: The data set's shape.
        width_scale: Factor of all filters and neurons; the trial keeps the original numbers.

    Raises:
        SettingsError: As `optunanet`.
    """
    data.check_side(4, "optunanet-depth")
    depth = trial.suggest_int("n_layers_fc", 1, 4)
    widths = [
        trial.suggest_categorical(f"fc_out_{i}", [128, 256, 512, 1024]) for i in range(1, depth + 1)
    ]
    return {
        "model": "optunanet",
        **data.hyperparameters(),
        "filters": [scaled(width, width_scale) for width in (224, 224, 224, 160)],
        "kernels": [5, 7, 7, 5],
        "slopes": [0.012, 0.121, 0.033, 0.095],
        "fc": [scaled(width, width_scale) for width in widths],
        "dropout": 0.5,
        "optimizer": "adam",
        "lr": 1e-3,
        "beta1": 0.8447,
        "beta2": 0.9995,
        "eps": 4.578e-9,
        "weight_decay": 1.3e-5,
        "batch_size": 32,
    }


def scaled(width: int, width_scale: float) -> int:
    """A width times the factor, at least 8; SettingsError if the factor is not positive."""
    if not 0 < width_scale < math.inf:
        raise SettingsError(
            f"--space-args: width_scale={width_scale} is not allowed; expected more than 0"
        )
    return max(8, round(width * width_scale))
