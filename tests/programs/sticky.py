"""A network after whose error the GPU fails for the whole process: a flag plays that on a CPU."""

import torch
from torch import nn

BROKEN: list[bool] = []
SAID = "CUDA error: device-side assert triggered"


def space(trial, data):
    return {
        "model": "sticky:network",
        "kind": trial.suggest_categorical("kind", ["fine", "bad", "fine again"]),
        "lr": 0.01,
        "schedule": "constant",
        "optimizer": "sgd",
        "batch_size": 64,
        **data.hyperparameters(),
    }


class Network(nn.Module):
    def __init__(self, hp):
        super().__init__()
        self.kind, self.layer = hp["kind"], nn.Linear(784, hp["classes"])

    def forward(self, images):
        if self.kind == "bad" and images.is_cuda:
            ten = torch.full((8,), 10, device="cuda")
            torch.zeros(4, device="cuda")[ten].sum().item()
        elif self.kind == "bad":
            BROKEN.append(True)
            raise RuntimeError(SAID)
        return self.layer(images.flatten(1))


def network(hp):
    if BROKEN:
        raise RuntimeError(SAID)
    return Network(hp)
