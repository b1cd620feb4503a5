"""A trial without a cluster: its hyperparameters, its tiny data set, and its trainable."""

import numpy as np

from mnist_ray.trials.network import TrainTrial
from mnist_ray.tune.trial import TrialContext

HP = {
    "model": "convnet",
    "in_channels": 1,
    "image_size": [8, 8],
    "classes": 2,
    "mean": [0.5],
    "std": [0.5],
    "blocks": 1,
    "layers_per_block": 1,
    "width": 4,
    "kernel_size": 3,
    "activation": "relu",
    "activation_position": "after_norm",
    "pooling": "max",
    "pool_position": "end",
    "dropout": 0.0,
    "dropout_place": "head",
    "batch_size": 8,
    "optimizer": "sgd",
    "lr": 0.05,
    "schedule": "cosine",
    "ema": 0.9,
}

IMAGES = np.random.default_rng(0).integers(0, 256, (120, 1, 8, 8), dtype=np.uint8)
LABELS = (IMAGES.mean((1, 2, 3)) > 127).astype(np.int64)
for array in (IMAGES, LABELS):
    array.flags.writeable = False  # as they come from the object store


class Here(TrainTrial):
    """TrainTrial with the data that tune.with_parameters gives it in a search."""

    context_of_test: TrialContext

    def setup(self, config: dict) -> None:  # type: ignore[override]
        super().setup(
            config, self.context_of_test, IMAGES, LABELS, np.arange(90), np.arange(90, 120)
        )
