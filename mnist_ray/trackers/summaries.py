"""What TensorBoard shows of a trial: one event file for each epoch, in `tensorboard/<number>/` of the run's directory.

An event file that grows could neither be kept in an object store nor survive a trial that is started again: its curve would be drawn
twice. A file for each epoch can: whole or not there, and written again it replaces itself. TensorBoard reads them by name, in order.
"""

import functools
import json
import math
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from mnist_ray.storage import RunStorage
from mnist_ray.trackers import tensorboard_folder

if TYPE_CHECKING:
    from mnist_ray.training.trainer import Trainer

ACTIVATION_IMAGES = 64  # enough for a histogram, and little beside an epoch of training
BINS = 64


def write(
    storage: RunStorage,
    number: int,
    trainer: "Trainer",
    row: Mapping[str, Any],
    images: Tensor,
    activations: bool,
) -> None:
    """Writes the epoch of `row`, which `trainer` has just finished, replacing what was written of it before.

    Scalars are the row's; histograms are of the weights that are judged (averaged ones, where there is an average) and, if asked for,
    of what every layer makes of `images` (uint8 [n, C, H, W], on the trainer's device). The first epoch also has the network's graph
    and the hyperparameters as a text. Changes nothing of the training.
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
        (file,) = os.listdir(local)
        data = Path(local, file).read_bytes()
    storage.write_bytes(f"{tensorboard_folder(number)}/events.out.tfevents.{epoch:06d}", data)


def _histogram(writer: SummaryWriter, tag: str, values: Tensor, epoch: int) -> None:
    values = values.detach().float()
    values = values[values.isfinite()]
    if len(values):
        writer.add_histogram(tag, values, epoch, bins=BINS)


def _activations(writer: SummaryWriter, network: nn.Module, pixels: Tensor, epoch: int) -> None:
    """Histograms of what each module without children returns, taken at once: the next layer may change it in place."""
    seen: set[str] = set()  # a module that is called twice keeps its first

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
            )  # TensorBoard's writer traces, which torch would rather not be asked for
            writer.add_graph(network, pixels)
    except Exception as error:  # a network of the user's own need not be traceable
        writer.add_text(
            "graph",
            f"cannot be drawn: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            0,
        )


def _table(hp: Mapping[str, Any]) -> str:
    """A Markdown table of the hyperparameters."""
    return "\n".join(
        [
            "| name | value |",
            "| --- | --- |",
            *(f"| {name} | `{json.dumps(value)}` |" for name, value in hp.items()),
        ]
    )
