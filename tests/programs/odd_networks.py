"""Networks as people write them, right and wrong; each is a space's, NAME:space_of_it."""

import sys

import torch.nn.functional as F
from torch import nn


def space(name, trial, data):
    lr = trial.suggest_float("lr", 1e-3, 1e-2)
    hp = {"model": f"odd_networks:{name}", "optimizer": "adam", "batch_size": 32, "lr": lr}
    return {**hp, **data.hyperparameters()}


class OldExample(nn.Module):
    """PyTorch's MNIST example of 2017."""

    def __init__(self, hp):
        super().__init__()
        self.conv1 = nn.Conv2d(hp["in_channels"], 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.fc1 = nn.Linear(320, 50)
        self.fc2 = nn.Linear(50, hp["classes"])

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = x.view(-1, 320)
        x = F.dropout(F.relu(self.fc1(x)), training=self.training)
        return F.log_softmax(self.fc2(x), dim=1)


class Flattened(OldExample):
    """The same without x.view: any layout of the maps will do."""

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class TrainedByView(Flattened):
    """It needs the usual layout while it trains, and then alone."""

    def forward(self, x):
        if self.training:
            return OldExample.forward(self, x)
        return super().forward(x)


class Conv3d(nn.Module):
    def __init__(self, hp):
        super().__init__()
        self.conv = nn.Conv3d(1, 4, (1, 3, 3))
        self.fc = nn.Linear(4 * 26 * 26, hp["classes"])

    def forward(self, x):
        return self.fc(self.conv(x[:, None]).flatten(1))


class Flat(nn.Module):
    def __init__(self, hp):
        super().__init__()
        self.fc = nn.Linear(784, hp["classes"])

    def forward(self, x):
        return self.fc(x.flatten(1))


class Random(Flat):
    def forward(self, x):
        return F.dropout(super().forward(x))


class Branching(Flat):
    def forward(self, x):
        return super().forward(x if x.mean() > 0.5 else 1 - x)


class Transposed(Flat):
    def forward(self, x):
        return super().forward(x).T


class Failing(Flat):
    def forward(self, x):
        return super().forward(x.view(-1, 100))


class Tied(Flat):
    """Two of its layers share their weights."""

    def __init__(self, hp):
        super().__init__(hp)
        classes = hp["classes"]
        self.one, self.two = nn.Linear(classes, classes), nn.Linear(classes, classes)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(F.relu(self.one(F.relu(super().forward(x)))))


class Remembering(Flat):
    """Its state dict holds what is no tensor."""

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


class Leaving(Flat):
    """As a script that checks for what it needs."""

    def forward(self, x):
        sys.exit(1)


class OfThisBatch(Flat):
    """Its answer to an image depends on the images beside it."""

    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))


NETWORKS = (
    OldExample, Flattened, TrainedByView, Conv3d, Flat, Random, Branching, Transposed, Failing,
    Tied, Remembering, Leaving, OfThisBatch,
)  # fmt: skip
for network in NETWORKS:

    def own(trial, data, name=network.__name__):
        return space(name, trial, data)

    globals()[f"space_of_{network.__name__}"] = own
