"""The small space that search_peers.py searches on every side. Nothing heavy is imported: our
search starts without torch.
"""

from typing import Any

from mnist_ray.spaces import DataShape

MNIST = DataShape(1, (28, 28), 10, (0.1307,), (0.3081,))


def space(trial: Any, data: DataShape = MNIST) -> dict[str, Any]:
    """A convnet of two blocks, trained at a constant learning rate without weight average: what
    every side can do.
    """
    optimizer = trial.suggest_categorical("optimizer", ["adam", "sgd"])
    return {
        "model": "convnet",
        **data.hyperparameters(),
        "blocks": 2,
        "layers_per_block": trial.suggest_int("layers_per_block", 1, 2),
        "width": trial.suggest_int("width", 16, 32, step=8),
        "kernel_size": 3,
        "activation": "relu",
        "activation_position": trial.suggest_categorical(
            "activation_position", ["after_norm", "before_norm"]
        ),
        "pooling": "max",
        "pool_position": "end",
        "dropout": trial.suggest_float("dropout", 0.0, 0.5, step=0.1),
        "dropout_place": "head",
        "batch_size": trial.suggest_categorical("batch_size", [64, 128, 256]),
        "optimizer": optimizer,
        "nesterov": False,  # of SGD, as torch has it
        "lr": trial.suggest_float("lr_adam", 1e-4, 1e-2, log=True)
        if optimizer == "adam"
        else trial.suggest_float("lr_sgd", 1e-3, 1e-1, log=True),
    }
