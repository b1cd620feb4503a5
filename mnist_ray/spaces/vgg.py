"""The VGG search of the original experiments (docs/original-experiments.md).

Searched are the optimiser, its learning rate, and the numbers of blocks and layers.
"""

from typing import Any

import optuna

from mnist_ray.spaces import DataShape


def vgg(trial: optuna.Trial, data: DataShape) -> dict[str, Any]:
    """Hyperparameters of the family `vgg`, trained in batches of 128.

    The learning rate falls to a tenth for the last of six epochs. The first two blocks have one
    convolution; a trial is asked only for values that its network has.

    Raises:
        SettingsError: The images are too small for the poolings of two blocks.
    """
    data.check_side(4, "vgg")
    optimizer = trial.suggest_categorical("optimizer", ["adam", "sgd"])
    low, high = (1e-5, 1e-2) if optimizer == "adam" else (1e-4, 1e-1)
    lr = trial.suggest_float(f"lr_{optimizer}", low, high, log=True)
    blocks = trial.suggest_int("num_conv_blocks", 2, min(4, data.most_halvings()))
    layers = trial.suggest_int("num_conv_layers_per_block", 1, 2) if blocks > 2 else 1
    hidden = trial.suggest_int("num_fc_layers", 1, 3) - 1  # the last linear layer gives the logits
    width = trial.suggest_categorical("fc_hidden_size", [256, 512, 1024]) if hidden else 0
    return {
        "model": "vgg",
        **data.hyperparameters(),
        "block_layers": [1, 1, layers, layers][:blocks],
        "fc": [width] * hidden,
        "optimizer": optimizer,
        "lr": lr,
        "momentum": 0.9,
        "nesterov": False,
        "schedule": "step",
        "batch_size": 128,
    }
