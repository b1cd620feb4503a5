"""The optimiser search of the original experiments (docs/original-experiments.md).

It searches how to train a trained network (--onnx) further. Nothing of the network is searched: it
comes from the file with its weights, and keeps its dropout.
"""

from collections.abc import Mapping
from typing import Any

import optuna

from mnist_ray.errors import SettingsError
from mnist_ray.hyperparameters import TRAINING, misfit
from mnist_ray.spaces import DataShape


def optimizer(
    trial: optuna.Trial,
    data: DataShape,
    start: Mapping[str, Any],
    script: str = "a",
    normalize: bool = False,
) -> dict[str, Any]:
    """Hyperparameters of the file's network, trained with Adam at a constant learning rate.

    Args:
        trial: Optuna's.
        data: The data set's shape.
        start: The file's own hyperparameters.
        script: a or b, the original's two sets of ranges.
        normalize: The file is not ours, and its input is normalised by the data set's mean and
            standard deviation.

    Raises:
        SettingsError: The file's network does not fit the data set, or an option is not allowed.
    """
    if script not in ("a", "b"):
        raise SettingsError(f"--space-args: script={script!r} is not allowed; expected a or b")
    if found := misfit(start, (data.in_channels, *data.image_size), data.classes):
        raise SettingsError(f"--onnx: {found}; give --dataset the model's own")
    if normalize and start["model"] != "foreign":
        raise SettingsError(
            "--space-args: normalize=true is for ONNX files that are not of mnist_ray; "
            "ours normalise by themselves"
        )
    a = script == "a"
    own = data.hyperparameters()
    return {
        **{key: value for key, value in start.items() if key not in TRAINING},
        **({"mean": own["mean"], "std": own["std"]} if normalize else {}),
        "optimizer": "adam",
        "batch_size": trial.suggest_categorical("batch_size", [32, 64, 128, 256])
        if a
        else trial.suggest_int("batch_size", 32, 256),
        "lr": trial.suggest_float("lr", *((1e-6, 1e-3) if a else (1e-5, 1e-2)), log=True),
        "beta1": trial.suggest_float("beta1", 0.1, 0.99),
        "beta2": trial.suggest_float("beta2", 0.999, 0.999999),
        "eps": trial.suggest_float("eps", 1e-10, 1e-6, log=a),
        "weight_decay": trial.suggest_float(
            "weight_decay", *((1e-8, 1e-1) if a else (1e-6, 1e-2)), log=True
        ),
    }
