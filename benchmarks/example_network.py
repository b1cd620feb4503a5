"""For step_speed.py: the network of PyTorch's MNIST example, as somebody's own.

https://github.com/pytorch/examples/blob/main/mnist/main.py has its sizes.
"""

from typing import Any

from torch import Tensor, nn


class Example(nn.Module):
    """Two convolutions and two linear layers; any layout of the maps will do."""

    def __init__(self, hp: dict[str, Any]) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.head = nn.Sequential(
            nn.Dropout(0.25), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        """float32 [n, 1, 28, 28] -> logits [n, 10]."""
        logits: Tensor = self.head(self.features(x).flatten(1))
        return logits


class Viewed(Example):
    """`view` takes the usual layout alone."""

    def forward(self, x: Tensor) -> Tensor:
        """float32 [n, 1, 28, 28] -> logits [n, 10]."""
        logits: Tensor = self.head(self.features(x).view(len(x), -1))
        return logits
