"""A network of one's own, a small ResNet (He et al. 2015), and the space to search it in.

python jobs/search.py --dataset digits --space examples.residual:space --space-args max_depth=2
"""

from typing import Any

import optuna
from torch import Tensor, nn

from mnist_ray import DataShape


def space(trial: optuna.Trial, data: DataShape, max_depth: int = 3) -> dict[str, Any]:
    """The hyperparameters of network and training, see docs/hyperparameters.md.

    Args:
        trial: Optuna's.
        data: The data set's shape.
        max_depth: Most residual blocks.
    """
    return {
        "model": "examples.residual:network",
        **data.hyperparameters(),
        "width": trial.suggest_int("width", 8, 32, step=8),
        "depth": trial.suggest_int("depth", 1, max_depth),
        "optimizer": "sgd",
        "lr": trial.suggest_float("lr", 1e-2, 3e-1, log=True),
        "weight_decay": 5e-4,
        "batch_size": 64,
        "schedule": "one_cycle",
    }


def network(hp: dict[str, Any]) -> nn.Module:
    """From the dict above to a module: float32 [batch, C, H, W] in [0, 1] -> logits."""
    blocks = [Residual(hp["width"]) for _ in range(hp["depth"])]
    return nn.Sequential(
        nn.Conv2d(hp["in_channels"], hp["width"], 3, stride=2, padding=1),
        *blocks,
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(hp["width"] * 16, hp["classes"]),
    )


class Residual(nn.Module):
    """x + f(x), with two convolutions in f."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)  # type: ignore[no-any-return]
