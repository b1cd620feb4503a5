"""S2, the depth search of the seed documents: how many linear layers and how wide, on the winning convolutions of S1.

The widths are asked for layer by layer, so the points are the 4 + 16 + 64 + 256 = 340 distinct networks and no more.
"""

from typing import Any

import optuna

from mnist_ray.spaces import DataShape
from mnist_ray.spaces.optunanet import scaled


def optunanet_depth(
    trial: optuna.Trial, data: DataShape, width_scale: float = 1.0
) -> dict[str, Any]:
    """Hyperparameters of `models.optunanet`, trained with the Adam that the document had found.

    Options: `width_scale`: factor of all filters and neurons; the trial keeps the document's own numbers.
    """
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
