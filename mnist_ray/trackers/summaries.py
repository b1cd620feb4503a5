"""TensorBoard: one event file for each epoch, in `tensorboard/<number>/` of the run's directory.

A growing event file could not be kept in an object store, and a restarted trial would draw its
curve twice. A file for each epoch is whole or missing, and writing it again replaces it.
TensorBoard reads the files by name, in order.
"""

import functools
import json
import math
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from mnist_ray.errors import first_line
from mnist_ray.run.layout import tensorboard_folder
from mnist_ray.storage import RunStorage
from mnist_ray.training.trainer import Trainer

ACTIVATION_IMAGES = 64  # enough for a histogram, and little beside an epoch of training
BINS = 64


def write(
    storage: RunStorage,
    number: int,
    trainer: Trainer,
    row: Mapping[str, Any],
    images: Tensor,
    activations: bool,
) -> None:
    """Writes one epoch of a trial, in place of an earlier file of that epoch.

    It holds the row's numbers and histograms of the judged weights (averaged ones, if there is
    an average). The first epoch also has the network's graph and the hyperparameters as text. The
    training is not changed.

    Args:
        storage: The run's directory.
        number: The trial's number.
        trainer: It has just finished the epoch.
        row: The epoch's row.
        images: uint8 [n, C, H, W] on the trainer's device.
        activations: Also write histograms of each layer's output for `images`.
    """
    epoch = int(row["epoch"])
    with tempfile.TemporaryDirectory(prefix="mray-events-") as local:
        with SummaryWriter(local) as writer:
            for name, value in row.items():
                if name != "epoch" and math.isfinite(value):
                    writer.add_scalar(name, value, epoch)
            for name, tensor in trainer.weights().items():
                if tensor.is_floating_point():
                    _histogram(writer, f"weights/{name}", tensor, epoch)
            if activations or epoch == 1:
                network = trainer.eval_model()
                pixels = images.float().div(255)
                if activations:
                    _activations(writer, network, pixels, epoch)
                if epoch == 1:
                    _graph(writer, network, pixels[:1])
            if epoch == 1:
                writer.add_text("conditions", _table(trainer.hp), 0)
        (file,) = Path(local).iterdir()
        data = file.read_bytes()
    storage.write_bytes(f"{tensorboard_folder(number)}/events.out.tfevents.{epoch:06d}", data)


def _histogram(writer: SummaryWriter, tag: str, values: Tensor, epoch: int) -> None:
    values = values.detach().float()
    values = values[values.isfinite()]
    if len(values):
        writer.add_histogram(tag, values, epoch, bins=BINS)


def _activations(writer: SummaryWriter, network: nn.Module, pixels: Tensor, epoch: int) -> None:
    """Histograms of each layer's output, taken at once: the next layer may change it in place."""
    seen: set[str] = set()  # of a module that is called twice the first output counts

    def record(tag: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and tag not in seen:
            seen.add(tag)
            _histogram(writer, tag, output, epoch)

    hooks = [
        module.register_forward_hook(
            functools.partial(record, f"activations/{name or 'network'} {type(module).__name__}")
        )
        for name, module in network.named_modules()
        if not any(module.children())
    ]
    try:
        with torch.inference_mode():
            network(pixels)
    finally:
        for hook in hooks:
            hook.remove()


def _graph(writer: SummaryWriter, network: nn.Module, pixels: Tensor) -> None:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter(
                "ignore"
            )  # torch deprecates tracing; TensorBoard's writer needs it
            writer.add_graph(network, pixels)
    except Exception as error:  # a network of the user's own need not be traceable
        text = f"cannot be drawn: {type(error).__name__}: {first_line(error)}"
        writer.add_text("graph", text, 0)


def _table(hp: Mapping[str, Any]) -> str:
    """A Markdown table of the hyperparameters."""
    rows = [f"| {name} | `{json.dumps(value)}` |" for name, value in hp.items()]
    return "\n".join(["| name | value |", "| --- | --- |", *rows])
