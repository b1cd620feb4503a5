"""Optimisers, learning-rate schedules and the average of the weights."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def constant(progress: float) -> float:
    """The same rate throughout."""
    return 1.0


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0 (Loshchilov & Hutter 2017, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def one_cycle(progress: float) -> float:
    """Up from 1/25 in the first quarter, then down to 0, both as cosines (Smith & Topin 2018)."""
    if progress < 0.25:
        return 1 - (1 - 1 / 25) * cosine(progress / 0.25)
    return cosine((progress - 0.25) / 0.75)


def linear(progress: float) -> float:
    """Straight from 1 to 0."""
    return 1 - progress


def step(progress: float) -> float:
    """A tenth for the last sixth: over six epochs this is torch's StepLR(5, gamma=0.1)."""
    return 1.0 if progress < 5 / 6 else 0.1


# The learning rate's factor as a function of progress in [0, 1]. It has no state: a checkpoint
# needs only the number of the step.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": constant,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "linear": linear,
    "step": step,
}


def make_optimizer(model: nn.Module, hp: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimiser that `hp`, as `hyperparameters.training` returned it, describes."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    common = {"lr": hp["lr"], "weight_decay": hp["weight_decay"]}
    if hp["optimizer"] == "sgd":
        momentum, nesterov = hp["momentum"], hp["nesterov"]
        return torch.optim.SGD(
            parameters, momentum=momentum, nesterov=nesterov, fused=True, **common
        )
    if hp["optimizer"] == "muon":
        return Muon(parameters, momentum=hp["momentum"], **common)
    if hp["optimizer"] == "rmsprop":
        return torch.optim.RMSprop(parameters, foreach=True, **common)
    adam = torch.optim.Adam if hp["optimizer"] == "adam" else torch.optim.AdamW
    betas = (hp["beta1"], hp["beta2"])
    return adam(parameters, betas=betas, eps=hp["eps"], fused=True, **common)


class Muon(torch.optim.SGD):
    """SGD whose steps are orthogonal matrices for the kernels of convolutions (Jordan 2024).

    A kernel [out, in, height, width] is a matrix [out, in * height * width] here. All directions of
    it learn at one speed, which saves epochs. Other parameters learn as by SGD with Nesterov's
    momentum. torch.optim.Muon takes matrices alone, and a second optimiser beside it.

    Args:
        parameters: Those of a network.
        lr: Of both kinds. A kernel's step has singular values of about lr.
        momentum: Of both kinds.
        weight_decay: As SGD's.
    """

    def __init__(
        self, parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        kernels = [p for p in parameters if p.ndim == 4]
        others = [p for p in parameters if p.ndim != 4]
        # SGD adds no momentum to the kernels' steps: they have it already.
        groups: list[dict[str, Any]] = [
            {"params": kernels, "momentum": 0.0, "nesterov": False},
            {"params": others},
        ]
        super().__init__(
            [group for group in groups if group["params"]],
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=momentum > 0,
            fused=True,
        )
        self._kernels, self._momentum = kernels, momentum
        for kernel in kernels:
            self.state[kernel]["momentum_buffer"] = torch.zeros_like(kernel)

    @torch.no_grad()
    def orthogonalize(self) -> None:
        """Replaces the kernels' gradients by their orthogonal steps; `step` then takes them.

        Apart from `step`, as a CUDA graph can hold these many small products, but no learning rate.
        """
        for kernel in self._kernels:
            gradient = kernel.grad
            if gradient is None:
                continue
            mean = self.state[kernel]["momentum_buffer"]
            mean.lerp_(gradient, 1 - self._momentum)
            gradient.copy_(orthogonal(gradient.lerp(mean, self._momentum)))


def orthogonal(kernel: Tensor) -> Tensor:
    """The orthogonal matrix [out, in * h * w] nearest to a kernel [out, in, h, w], in its shape.

    Five Newton-Schulz iterations with Jordan's coefficients: singular values become 0.7 to 1.2. A
    matrix with more rows than columns is then multiplied by the root of their quotient.
    """
    matrix = kernel.flatten(1)
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.addmm(x, polynomial, x, beta=3.4445)
    x = x.T * math.sqrt(matrix.shape[0] / matrix.shape[1]) if tall else x
    return x.reshape(kernel.shape)


class WeightAverage:
    """The exponential average of a network's parameters and of BatchNorm's statistics.

    As the statistics are averaged too, no second pass over the data is needed.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        live = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
        self._live = list(live.values())  # they share memory with the network
        self.tensors: dict[str, Tensor] = {name: tensor.clone() for name, tensor in live.items()}
        self._mean = list(self.tensors.values())

    def update(self, step: int) -> None:
        """Takes in the weights after step number `step`, counted from 0 over all epochs."""
        # A short warm-up, or the average would remember the random start (as in
        # torch.optim.swa_utils' examples).
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mean, self._live, 1 - decay)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from a checkpoint's average."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
