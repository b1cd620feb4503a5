"""A step's way through the network and back: the loss of a batch and its gradients.

On a GPU it is one CUDA graph. A step of a small network is hundreds of kernels, each of which takes
Python longer to start than the GPU to run. A graph holds them all and is started at once. It
repeats what the GPU did while it was captured, at the same addresses: so nothing in it may depend
on Python. https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_ray import hyperparameters
from mnist_ray.errors import CaptureError, first_line
from mnist_ray.training import augment
from mnist_ray.training.optimizers import Muon

Backward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""The places of a batch's images, int64 [batch] -> its loss and how many are right."""
SWITCH = "MNIST_RAY_CUDA_GRAPHS"  # an environment variable
WARM_UP = 3  # steps before the capture, in which libraries choose kernels and take memory


class Step:
    """Forward and backward pass of a network in training.

    Args:
        model: the network.
        optimizer: of its parameters.
        training: the hyperparameters, with the defaults.
        layout: of the images in memory.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        training: Mapping[str, Any],
        layout: torch.memory_format,
    ) -> None:
        self.model, self.optimizer, self.training = model, optimizer, training
        self.layout = layout
        self.change = augment.change_of(training["augment"])
        wanted = os.environ.get(SWITCH) != "0" and repeatable(training)
        self.graphs = wanted and next(model.parameters()).is_cuda
        self._captured: tuple[Any, Backward, Any] | None = None

    def of(
        self, images: Tensor, labels: Tensor, weights: Tensor | None, batch: int, precision: str
    ) -> Backward:
        """`backward` for batches of these images; a graph, if `graphs` is set.

        Args:
            images: uint8 [n, C, H, W].
            labels: int64 [n].
            weights: float32 [n], of the images in the loss; None: all alike.
            batch: images of a batch.
            precision: "bf16" or "fp32".
        """
        backward = functools.partial(self.backward, images, labels, weights, precision)
        if not self.graphs:
            return backward
        same = (id(images), id(labels), id(weights), batch, precision)
        if self._captured is None or self._captured[0] != same:
            self.model.train()
            replay = captured(backward, batch, self.model, self.optimizer)
            # The graph reads their memory: they stay as long as it does.
            self._captured = same, replay, (images, labels, weights)
        return self._captured[1]

    def forget(self) -> None:
        """Has `of` capture anew: what the graph refers to has moved."""
        self._captured = None

    def backward(
        self,
        images: Tensor,
        labels: Tensor,
        weights: Tensor | None,
        precision: str,
        chosen: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Leaves a batch's gradients in the parameters; its loss and how many are right."""
        self.optimizer.zero_grad()
        x, y = images[chosen], labels[chosen]
        if self.change is not None:
            x = self.change(x)
        with autocast(x.device, precision):
            logits = self.model(pixels(x, self.layout))
        loss = mean_loss(logits.float(), y, self.training["label_smoothing"], weights, chosen)
        if l1 := self.training["l1"]:
            norms = torch.stack([p.abs().sum() for p in self.model.parameters()])
            loss = loss + l1 * norms.sum()
        loss.backward()
        if isinstance(self.optimizer, Muon):
            self.optimizer.orthogonalize()
        return loss.detach(), (logits.detach().argmax(1) == y).sum()


def repeatable(training: Mapping[str, Any]) -> bool:
    """Whether a graph may hold a step with these hyperparameters.

    A person's own code may do what a graph would not repeat. The operators that a file of another
    program is made of look at values, as shapes: they wait for the GPU.
    """
    model = str(training["model"])
    own = ":" in model or hyperparameters.own_function(training["augment"]) is not None
    return not own and model != "foreign"


def pixels(images: Tensor, layout: torch.memory_format) -> Tensor:
    """Values from 0 to 255 -> float32 in [0, 1], in the network's layout.

    Every uint8 value is exact in bfloat16; the division is not, so it stays float32.
    """
    return images.to(torch.float32, memory_format=layout).mul_(1 / 255)


def mean_loss(
    logits: Tensor, labels: Tensor, smoothing: float, weights: Tensor | None, chosen: Tensor
) -> Tensor:
    """Mean cross-entropy of a batch: the chosen images, each with its weight."""
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    each = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    return (each * weights[chosen]).mean()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass in "bf16" or "fp32"."""
    # A cached copy of a weight would lie in the memory of the graph that made it.
    cached = device.type == "cpu"
    return torch.autocast(
        device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=cached
    )


def captured(
    step: Backward, batch: int, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Backward:
    """The same step as a graph.

    Args:
        step: leaves gradients in the model's parameters. It must depend on no other random numbers
            than torch's on the GPU.
        batch: images of a batch.
        model: in training mode; its weights and buffers are afterwards as before.
        optimizer: of the model; its state, too.

    Raises:
        CaptureError: the step does what a graph cannot hold. torch is not fit for use after that.
    """
    device = next(model.parameters()).device
    chosen = torch.zeros(batch, dtype=torch.int64, device=device)
    live = [*model.state_dict().values(), *_tensors(optimizer)]
    before = [tensor.clone() for tensor in live]
    aside, main = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    aside.wait_stream(main)
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            step(chosen)
    main.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = step(chosen)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise CaptureError(
            f"a step cannot be captured as a CUDA graph: {first_line(error)}; "
            f"with {SWITCH}=0 in Ray's environment it trains without, and slower"
        ) from error
    with torch.no_grad():
        for tensor, value in zip(live, before, strict=True):
            tensor.copy_(value)

    def replay(places: Tensor) -> tuple[Tensor, Tensor]:
        chosen.copy_(places)
        graph.replay()
        return result

    return replay


def _tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    states = optimizer.state.values()
    return [value for state in states for value in state.values() if torch.is_tensor(value)]
