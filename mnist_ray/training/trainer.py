"""One network's training: the hot loop, evaluation, and its state as bytes.

Images are uint8 [n, C, H, W] tensors that stay on the device; a batch is gathered by index and
converted on the way into the network. Every epoch seeds its own random numbers from (seed, epoch):
a training that was interrupted and resumed gives the weights of one that was not.
"""

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_ray import hyperparameters, models
from mnist_ray.models import compiled
from mnist_ray.run import checkpoint
from mnist_ray.run.records import EpochRow, checked_row
from mnist_ray.training.machine import best_precision
from mnist_ray.training.metrics import Score
from mnist_ray.training.optimizers import SCHEDULES, WeightAverage, make_optimizer
from mnist_ray.training.step import Step, autocast, pixels

# Images. Most of a trial's memory are the activations of a batch; larger batches are no faster on
# a CPU, and their arrays would find no room in the memory that training has freed. A GPU would wait
# for Python.
EVALUATION_BATCH = {"cpu": 125, "cuda": 500}


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed of its own for each epoch; SeedSequence keeps neighbouring pairs apart."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)


class Trainer:
    """A network in training: weights, optimiser, weight average and the number of finished epochs.

    Args:
        hp: The flat dict of hyperparameters of network and training (see `hyperparameters`).
        epochs: How many epochs the schedule is laid out for.
        seed: Of the initial weights, the order of the images and everything else that is random.
        device: Of the network; the images must lie there too.
        precision: "bf16", "fp32" or "auto" (see `machine.best_precision`). In bf16 the weights and
            the optimiser stay in float32.
        weights: A state dict to begin with, instead of random weights.

    Raises:
        SettingsError: A hyperparameter is missing or not allowed.
    """

    def __init__(
        self,
        hp: Mapping[str, Any],
        *,
        epochs: int,
        seed: int,
        device: torch.device | str = "cpu",
        precision: str = "auto",
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.hp: dict[str, Any] = hyperparameters.plain(hp, "the hyperparameters' dict")
        self.training = hyperparameters.training(hp)  # with the defaults; files carry `hp`
        self.layout = layout_of(self.hp)
        self.epochs, self.seed = epochs, seed
        self.device = torch.device(device)
        self.precision = best_precision(self.device) if precision == "auto" else precision
        torch.manual_seed(epoch_seed(seed, 0))
        self.model = self._new_model(weights)
        self.optimizer = make_optimizer(self.model, self.training)
        decay = self.training["ema"]
        self.average = WeightAverage(self.model, decay) if decay else None
        self.epoch = 0
        self.rows: list[EpochRow] = []
        self.score: Score | None = None  # gives the rows' `val_metric`
        self.image_weights: Tensor | None = None  # float32 [n], in the loss; None: all alike
        self.step = Step(self.model, self.optimizer, self.training, self.layout)

    # ---- training

    def train_epoch(self, images: Tensor, labels: Tensor, index: Tensor | None = None) -> EpochRow:
        """Trains one epoch. The last, incomplete batch is left out.

        Args:
            images: uint8 [n, C, H, W], on the device.
            labels: int64 [n], on the device.
            index: int64, the images to use (None: all).

        Returns:
            The epoch's row, without validation (NaN). `train_loss` is the loss as optimised, with
            label smoothing and L1; `lr` is that of the last step.
        """
        hp = self.training
        n = len(labels) if index is None else len(index)
        batch = min(hp["batch_size"], n)
        steps = n // batch
        start = time.perf_counter()
        backward = self.step.of(images, labels, self.image_weights, batch, self.precision)
        torch.manual_seed(epoch_seed(self.seed, self.epoch + 1))
        order = torch.randperm(n)[: steps * batch].to(self.device)
        if index is not None:
            order = index[order]
        factor = SCHEDULES[hp["schedule"]]
        loss_sum = torch.zeros((), device=self.device)
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        self.model.train()
        for step, chosen in enumerate(order.split(batch), start=self.epoch * steps):
            lr = hp["lr"] * factor(step / (self.epochs * steps))
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            loss, hits = backward(chosen)
            self.optimizer.step()
            if self.average is not None:
                self.average.update(step)
            loss_sum += loss
            right += hits
        loss_mean = loss_sum.item() / steps  # waits for the device: the clock is read after it
        seconds = time.perf_counter() - start
        self.epoch += 1
        return EpochRow(
            epoch=self.epoch,
            train_loss=loss_mean,
            train_accuracy=right.item() / (steps * batch),
            lr=lr,
            images_per_second=steps * batch / seconds,
            seconds=seconds,
            val_loss=math.nan,
            val_accuracy=math.nan,
        )

    def run_epoch(
        self, images: Tensor, labels: Tensor, train: Tensor | None, val: Tensor | None
    ) -> EpochRow:
        """Trains an epoch, validates on the images that `val` (int64) points at, keeps the row."""
        row = self.train_epoch(images, labels, train)
        if val is not None:
            start = time.perf_counter()
            answers: list[Tensor] = []
            row["val_loss"], row["val_accuracy"] = self.evaluate(images, labels, val, answers)
            if self.score is not None:
                row["val_metric"] = scored(self.score, answers, labels[val])
            row["seconds"] += time.perf_counter() - start
        self.rows.append(row)
        return row

    def evaluate(
        self, images: Tensor, labels: Tensor, index: Tensor, answers: list[Tensor] | None = None
    ) -> tuple[float, float]:
        """Mean cross-entropy and accuracy of `eval_model`; its logits are added to `answers`."""
        model = self.eval_model()
        loss = torch.zeros((), device=self.device)
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        with compiled.evaluating(), autocast(self.device, self.precision):
            for chosen in index.split(EVALUATION_BATCH[self.device.type]):
                logits = model(pixels(images[chosen], self.layout)).float()
                if answers is not None:
                    answers.append(logits)
                loss += F.cross_entropy(logits, labels[chosen], reduction="sum")
                right += (logits.argmax(1) == labels[chosen]).sum()
        return loss.item() / len(index), right.item() / len(index)

    def eval_model(self) -> nn.Module:
        """The network to judge and ship, in evaluation mode: with the averaged weights, if any."""
        model = self.model if self.average is None else self._new_model(self.weights())
        return model.eval()

    def weights(self) -> dict[str, Tensor]:
        """State dict of `eval_model`, sharing memory with the training."""
        state = self.model.state_dict()
        if self.average is not None:
            state.update(self.average.tensors)
        return state

    # ---- state

    def state_bytes(self, metadata: Mapping[str, Any]) -> bytes:
        """Everything needed to go on, as a checkpoint file; `metadata` is kept beside it."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"ema.{k}": v for k, v in self.average.tensors.items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items() if v is not None
            }
        own = {"epoch": self.epoch, "precision": self.precision, "rows": self.rows}
        return checkpoint.pack(tensors, {**metadata, "hyperparameters": self.hp, **own})

    def load_state(self, data: bytes, source: str) -> dict[str, Any]:
        """Takes up the state of an equal Trainer's `state_bytes`; returns the file's metadata."""
        tensors, metadata = checkpoint.unpack(data, source)
        with checkpoint.fitting(source):
            self.model.load_state_dict(_part(tensors, "model"))
            if self.average is not None:
                self.average.load(_part(tensors, "ema"))
            state = _optimizer_state(_part(tensors, "optimizer"), self.optimizer)
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
            self.step.forget()  # the optimiser's state has other addresses now
            self.epoch, self.precision = metadata["epoch"], metadata["precision"]
            self.rows = [checked_row(row) for row in metadata["rows"]]
        return metadata

    def weights_bytes(self, metadata: Mapping[str, Any]) -> bytes:
        """A checkpoint file of `eval_model`: its weights and hyperparameters."""
        own = {"hyperparameters": self.hp, "epoch": self.epoch}
        return checkpoint.pack(self.weights(), {**metadata, **own})

    # ---- parts

    def _new_model(self, weights: Mapping[str, Tensor] | None) -> nn.Module:
        model = models.build(self.hp)
        if weights is not None:
            model.load_state_dict(weights)
        model.to(self.device, memory_format=self.layout)  # type: ignore[call-overload]
        return model


def layout_of(hp: Mapping[str, Any]) -> torch.memory_format:
    """How maps and kernels lie in memory: channels last, with which convolutions are quickest.

    A network of one's own may refuse that, as `x.view` does. So it is tried on two black images,
    with gradients, as in training and as in evaluation.
    """
    if ":" not in str(hp["model"]):
        return torch.channels_last
    try:
        black = torch.zeros(2, hp["in_channels"], *hp["image_size"], dtype=torch.uint8)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            network = models.build(hp)
            network.to(memory_format=torch.channels_last)
            for training in (True, False):
                network.train(training)(pixels(black, torch.channels_last)).sum().backward()
    except Exception:  # a person's own code fails in any way
        return torch.contiguous_format
    return torch.channels_last


def scored(score: Score, answers: list[Tensor], labels: Tensor) -> float:
    """A metric of the labels and the logits of all batches."""
    return score(labels.cpu().numpy(), torch.cat(answers).double().softmax(1).cpu().numpy())


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def _optimizer_state(tensors: Mapping[str, Tensor], optimizer: Any) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, tensor in tensors.items():
        i, _, key = name.partition(".")
        like = parameters[int(i)]
        if tensor.shape == like.shape:
            # Fused optimisers walk parameter and state side by side: equal strides are needed.
            tensor = torch.empty_like(like, requires_grad=False).copy_(tensor)
        state.setdefault(int(i), {})[key] = tensor
    return state


def load_network(
    data: bytes, source: str, own: str | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a `Trainer.weights_bytes` file, in evaluation mode, and its metadata.

    Args:
        data: The file's bytes.
        source: Its name in errors.
        own: The dotted path of a network of the user's own that the file may name.

    Raises:
        SettingsError: The file names another network of somebody's own (see `models.check_known`).
    """
    tensors, metadata = checkpoint.unpack(data, source)
    with checkpoint.fitting(source):
        models.check_known(metadata["hyperparameters"], source, own)
        held = sum(tensor.numel() for tensor in tensors.values())
        models.check_size(metadata["hyperparameters"], held, source)
        model = models.build(metadata["hyperparameters"])
        model.load_state_dict(tensors)
    return model.eval(), metadata
