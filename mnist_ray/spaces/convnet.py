"""The default space: a convolutional network and how it is trained.

Blocks x layers x width x kernel size, the activation and its place, the pooling and its place, dropout and its place, and the
optimisation. The ranges are wide enough for a search to matter and leave out what cannot win at this image size.
"""

from typing import Any

import optuna

from mnist_ray.errors import SettingsError
from mnist_ray.spaces import DataShape


def convnet(
    trial: optuna.Trial,
    data: DataShape,
    min_width: int = 16,
    max_width: int = 32,
    min_layers: int = 2,
    max_layers: int = 2,
    max_kernel: int = 5,
    max_fc: int = 0,
    l1: bool = False,
    layer_dropout: bool = False,
) -> dict[str, Any]:
    """Hyperparameters of `models.convnet` and of its training.

    Options: `min_width`, `max_width`: channels of the first block, in steps of 4 (the next blocks double them).
    `min_layers`, `max_layers`: convolutions a block. `max_kernel`: of the first block's convolutions, 3 or 5. `max_fc`: hidden linear
    layers. `l1`: whether to search L1 regularisation too (`weight_decay` is L2). `layer_dropout`: whether dropout may also be in every
    layer, where batch normalisation does not bear it (benchmarks/dropout_norm.py). These three are off by default: a wider space
    costs trials.
    """
    limits = {
        "min_width": (min_width, 1),
        "max_width": (max_width, min_width),
        "min_layers": (min_layers, 1),
        "max_layers": (max_layers, min_layers),
        "max_kernel": (max_kernel, 3),
        "max_fc": (max_fc, 0),
    }
    for option, (value, least) in limits.items():
        if value < least:
            raise SettingsError(
                f"--space-args: {option}={value} is too small; expected at least {least}"
            )
    # Each block halves the image: three take 28x28 to 3x3.
    most_blocks = max(1, min(3, data.most_halvings() - 1))
    optimizer = trial.suggest_categorical("optimizer", ["sgd", "adamw"])
    hp: dict[str, Any] = {
        "model": "convnet",
        **data.hyperparameters(),
        "blocks": trial.suggest_int("blocks", min(2, most_blocks), most_blocks),
        "layers_per_block": min_layers
        if min_layers == max_layers
        else trial.suggest_int("layers_per_block", min_layers, max_layers),
        "width": trial.suggest_int("width", min_width, max_width, step=4),
        "kernel_size": trial.suggest_categorical("kernel_size", [3, 5]) if max_kernel >= 5 else 3,
        "activation": trial.suggest_categorical(
            "activation", ["relu", "leaky_relu", "gelu", "silu"]
        ),
        "activation_position": trial.suggest_categorical(
            "activation_position", ["after_norm", "before_norm"]
        ),
        "pooling": trial.suggest_categorical("pooling", ["blur", "max"]),
        "pool_position": trial.suggest_categorical("pool_position", ["end", "conv"]),
        # Never none: the few epochs of a trial do not need it, the many of the stages after the search do.
        "dropout": trial.suggest_float("dropout", 0.1, 0.5, step=0.05),
        "dropout_place": trial.suggest_categorical(
            "dropout_place", ["head", "block", *(["layer"] if layer_dropout else [])]
        ),
        "batch_size": trial.suggest_categorical("batch_size", [64, 128, 256]),
        "optimizer": optimizer,
        # A good rate depends on the optimiser by two orders of magnitude, so each has its own parameter.
        "lr": trial.suggest_float("lr_sgd", 1e-2, 3e-1, log=True)
        if optimizer == "sgd"
        else trial.suggest_float("lr_adamw", 3e-4, 1e-2, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-5, 1e-2, log=True),
        "label_smoothing": trial.suggest_float("label_smoothing", 0.0, 0.15, step=0.05),
        "schedule": trial.suggest_categorical("schedule", ["one_cycle", "cosine"]),
        "ema": 0.998,
    }
    if max_fc:
        hidden = trial.suggest_int("fc_layers", 0, max_fc)
        hp["fc"] = (
            [trial.suggest_categorical("fc_width", [64, 128, 256])] * hidden if hidden else []
        )
    if l1:
        hp["l1"] = trial.suggest_float("l1", 1e-8, 1e-4, log=True)
    return hp
