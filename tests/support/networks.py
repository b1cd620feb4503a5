"""A small network with weights that no two layers share, for the tests of export."""

from typing import Any

import torch
from torch import nn

from mnist_ray import models

HP = {
    "model": "convnet",
    "in_channels": 1,
    "image_size": [28, 28],
    "classes": 10,
    "mean": [0.1],
    "std": [0.3],
    "blocks": 2,
    "layers_per_block": 1,
    "width": 4,
    "kernel_size": 3,
    "activation": "gelu",
    "activation_position": "after_norm",
    "pooling": "max",
    "pool_position": "end",
    "dropout": 0.2,
    "dropout_place": "head",
}


def network(hp: dict[str, Any], seed: int = 0) -> nn.Module:
    """A network whose BatchNorm layers change their input: else a mistake in folding them would not
    show.
    """
    torch.manual_seed(seed)
    model = models.build(hp)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low in (
                (layer.running_mean, -0.5),
                (layer.running_var, 0.5),
                (layer.weight, 0.5),
                (layer.bias, -0.5),
            ):
                assert tensor is not None
                nn.init.uniform_(tensor, low, low + 1)
    return model.eval()


# What a trainer trains, on four classes.
TRAINED = {
    **HP,
    "image_size": [12, 12],
    "classes": 4,
    "mean": [0.5],
    "std": [0.5],
    "width": 8,
    "activation": "relu",
    "batch_size": 16,
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 0.0001,
    "label_smoothing": 0.1,
    "schedule": "one_cycle",
    "ema": 0.9,
}
# The network of a search, as the stages find it, and the row of its epoch.
SEARCHED = {
    **HP,
    "mean": [0.1578],
    "std": [0.2933],
    "width": 2,
    "activation": "relu",
    "dropout": 0.5,
    "batch_size": 32,
    "optimizer": "adam",
    "lr": 0.01,
    "label_smoothing": 0.3,
}
EPOCH = {"epoch": 1, "val_loss": 2.0, "val_accuracy": 0.25}
