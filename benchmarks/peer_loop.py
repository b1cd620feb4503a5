"""The training loop that the peers share, in the manner of the original experiments and of the
frameworks' own examples.

torchvision's data set, ToTensor and Normalize for every image in every epoch, a DataLoader, float32
in the plain layout, `.item()` at every step. It is written as its users write it, neither slowed
down nor tuned.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from mnist_ray import models


def loader(
    data_dir: str, indices: Any, batch_size: int, *, shuffle: bool, workers: int = 0
) -> DataLoader:
    """Batches of the images of MNIST's training part that `indices` names."""
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    images = datasets.MNIST(data_dir, train=True, transform=transform)
    return DataLoader(
        Subset(images, [int(i) for i in indices]),
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=workers,
    )


def network(hp: Mapping[str, Any]) -> nn.Module:
    """The layers of `models.build` without the first, which normalises: the transform does that
    here.
    """
    model = models.build(hp)
    if not (isinstance(model, nn.Sequential) and isinstance(model[0], models.Normalize)):
        raise TypeError("expected a network that begins with Normalize")
    return model[1:]


def optimizer(model: nn.Module, hp: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Adam, or SGD with momentum 0.9, as hp["optimizer"] says."""
    if hp["optimizer"] == "adam":
        return torch.optim.Adam(model.parameters(), lr=hp["lr"])
    return torch.optim.SGD(model.parameters(), lr=hp["lr"], momentum=0.9)


def train_epoch(model: nn.Module, batches: DataLoader, adam: torch.optim.Optimizer) -> float:
    """One epoch; the mean loss."""
    model.train()
    total = 0.0
    for images, labels in batches:
        adam.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        adam.step()
        total += loss.item()
    return total / len(batches)


def accuracy(model: nn.Module, batches: DataLoader) -> float:
    """Share of the images that the network names rightly."""
    model.eval()
    right = seen = 0
    with torch.no_grad():
        for images, labels in batches:
            right += (model(images).argmax(1) == labels).sum().item()
            seen += len(labels)
    return right / seen
