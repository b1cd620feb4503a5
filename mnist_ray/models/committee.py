"""Several networks that answer as one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Committee(nn.Module):
    """Images float32 [batch, C, H, W] -> log of the networks' mean probability, [batch, classes]."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        log_probabilities = torch.stack(
            [network(images).log_softmax(1) for network in self.networks]
        )
        return log_probabilities.logsumexp(0) - math.log(len(self.networks))
