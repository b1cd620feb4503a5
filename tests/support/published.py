"""A run with a published model, trained for seconds; and what a light command must not import."""

import hashlib
from pathlib import Path

import torch

from mnist_ray import data
from mnist_ray.export.write import export
from mnist_ray.run.publication import publish
from mnist_ray.storage import RunStorage
from mnist_ray.training.trainer import Trainer

HEAVY = ("torch", "ray", "optuna", "sklearn", "scipy", "onnxruntime", "onnxscript", "pandas")
HP = {
    "model": "convnet",
    "in_channels": 1,
    "image_size": [28, 28],
    "classes": 10,
    "mean": [0.1578],
    "std": [0.2933],
    "blocks": 2,
    "layers_per_block": 1,
    "width": 8,
    "kernel_size": 3,
    "activation": "relu",
    "activation_position": "after_norm",
    "pooling": "max",
    "pool_position": "end",
    "dropout": 0.0,
    "dropout_place": "head",
    "batch_size": 64,
    "optimizer": "adam",
    "lr": 0.01,
    "schedule": "one_cycle",
}


def published(folder: Path) -> Path:
    """A run's directory with a small network, trained for seconds, as its published model."""
    train = data.load("digits", "train")
    trainer = Trainer(HP, epochs=5, seed=0, precision="fp32")
    for _ in range(5):
        trainer.train_epoch(torch.tensor(train.images), torch.tensor(train.labels))
    model = export(
        trainer.eval_model(),
        HP,
        {"dataset": "digits", "classes": '["0","1","2","3","4","five","6","7","8","9"]'},
    )
    publish(
        RunStorage(str(folder)),
        {"model.onnx": model},
        {"file": "model.onnx", "sha256": hashlib.sha256(model).hexdigest()},
    )
    return folder
