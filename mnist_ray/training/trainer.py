"""One network's training: the hot loop, evaluation, schedules, precision, weight averaging, and its state as bytes.

Images are uint8 [n, C, H, W] tensors that stay where they are; a batch is gathered by index and converted on the way into the network.
Every epoch seeds its own random numbers from (seed, epoch), so an epoch is a function of the state it starts from: a run that was
interrupted and goes on gives the weights of one that was not.
"""

import ctypes
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_ray import hyperparameters, models
from mnist_ray.run import checkpoint
from mnist_ray.training import augment

EVALUATION_BATCH = 250  # images; of a trial's memory the activations of a batch are the most, and larger ones are no faster on a CPU


def constant(progress: float) -> float:
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
    return 1 - progress


def step(progress: float) -> float:
    """A tenth for the last sixth: over six epochs this is torch's StepLR(5, gamma=0.1)."""
    return 1.0 if progress < 5 / 6 else 0.1


# The learning rate's factor as a function of progress in [0, 1]: stateless, so that a checkpoint needs only the step's number.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": constant,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "linear": linear,
    "step": step,
}


def make_optimizer(model: nn.Module, hp: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimiser that hyperparameters checked by `hyperparameters.training` name."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    common = {"lr": hp["lr"], "weight_decay": hp["weight_decay"]}
    if hp["optimizer"] == "sgd":
        return torch.optim.SGD(
            parameters,
            momentum=hp["momentum"],
            nesterov=hp["nesterov"],
            fused=True,
            **common,
        )
    if hp["optimizer"] == "rmsprop":
        return torch.optim.RMSprop(parameters, foreach=True, **common)
    adam = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[hp["optimizer"]]
    betas = (hp["beta1"], hp["beta2"])
    return adam(parameters, betas=betas, eps=hp["eps"], fused=True, **common)


def best_precision(device: torch.device) -> str:
    """ "bf16" where the device has instructions for bfloat16, else "fp32".

    Asked of the device, not timed: what else runs on the machine at the moment must not change what a seed gives. A CPU without them
    emulates bfloat16 and is slower with it; with them it multiplies matrices about twice as fast.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has = torch.cpu.get_capabilities()
    return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") else "fp32"


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed of its own for each epoch; SeedSequence keeps neighbouring pairs apart."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)


class Trainer:
    """A network on its way: weights, optimiser, weight average and the number of finished epochs.

    hp: the flat dict of hyperparameters (see models.py) with `batch_size`, `optimizer`, `lr`, and optionally `schedule`,
        `weight_decay`, `label_smoothing`, `l1`, `augment` (see augment.py) and `ema` (decay of the weight average; 0 turns it off).
    epochs: how many epochs the schedule is laid out for.
    precision: "bf16", "fp32" or "auto" (see best_precision). In bf16 the weights and the optimiser stay in float32.
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
        self.hp = hyperparameters.plain(hp, "the hyperparameters' dict")
        self.training = hyperparameters.training(hp)  # with the defaults; the file keeps `hp`
        self.epochs, self.seed = epochs, seed
        self.device = torch.device(device)
        self.precision = best_precision(self.device) if precision == "auto" else precision
        torch.manual_seed(epoch_seed(seed, 0))
        model = models.build(hp)
        if weights is not None:
            model.load_state_dict(weights)
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.model, self.training)
        self.ema: list[Tensor] | None = (
            [t.clone() for t in self._averaged()] if self.training["ema"] else None
        )
        self.epoch = 0
        self.rows: list[dict[str, float]] = []

    # ---- training

    def train_epoch(
        self, images: Tensor, labels: Tensor, index: Tensor | None = None
    ) -> dict[str, float]:
        """Trains one epoch on images uint8 [n, C, H, W], labels int64 [n], both on the device.

        index: int64, which of them to use (all, where None). Returns train_loss (as optimised: with label smoothing and L1),
        train_accuracy, lr (of the last step), images_per_second and seconds. The last, incomplete batch is left out.
        """
        hp = self.training
        n = len(labels) if index is None else len(index)
        batch = min(hp["batch_size"], n)
        steps = n // batch
        torch.manual_seed(epoch_seed(self.seed, self.epoch + 1))
        order = torch.randperm(n)[: steps * batch].to(self.device)
        if index is not None:
            order = index[order]
        factor = SCHEDULES[hp["schedule"]]
        smoothing, l1 = hp["label_smoothing"], hp["l1"]
        change = augment.AUGMENTATIONS.get(hp["augment"])
        loss_sum, right = (
            torch.zeros((), device=self.device),
            torch.zeros((), dtype=torch.int64, device=self.device),
        )
        self.model.train()
        start = time.perf_counter()
        for step, chosen in enumerate(order.split(batch), start=self.epoch * steps):
            lr = hp["lr"] * factor(step / (self.epochs * steps))
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            x, y = images[chosen], labels[chosen]
            if change is not None:
                x = change(x)
            with self._autocast():
                logits = self.model(self._pixels(x))
            loss = F.cross_entropy(logits.float(), y, label_smoothing=smoothing)
            if l1:
                loss = (
                    loss + l1 * torch.stack([p.abs().sum() for p in self.model.parameters()]).sum()
                )
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.ema is not None:
                # A short warm-up, or the average would remember the random start (as in torch.optim.swa_utils' examples).
                decay = min(hp["ema"], (1 + step) / (10 + step))
                torch._foreach_lerp_(self.ema, self._averaged(), 1 - decay)
            loss_sum += loss.detach()
            right += (logits.detach().argmax(1) == y).sum()
        loss_mean = loss_sum.item() / steps  # waits for the device: the clock is read after it
        seconds = time.perf_counter() - start
        self.epoch += 1
        return {
            "train_loss": loss_mean,
            "train_accuracy": right.item() / (steps * batch),
            "lr": lr,
            "images_per_second": steps * batch / seconds,
            "seconds": seconds,
        }

    def run_epoch(
        self, images: Tensor, labels: Tensor, train: Tensor | None, val: Tensor | None
    ) -> dict[str, float]:
        """train_epoch, then val_loss and val_accuracy on the images that `val` (int64) points at (NaN, where None); kept in `rows`."""
        row = {"epoch": self.epoch + 1, **self.train_epoch(images, labels, train)}
        start = time.perf_counter()
        loss, accuracy = (math.nan, math.nan) if val is None else self.evaluate(images, labels, val)
        row |= {
            "val_loss": loss,
            "val_accuracy": accuracy,
            "seconds": row["seconds"] + time.perf_counter() - start,
        }
        self.rows.append(row)
        return row

    # ---- evaluation

    def evaluate(self, images: Tensor, labels: Tensor, index: Tensor) -> tuple[float, float]:
        """Mean cross-entropy (without smoothing) and accuracy of the averaged weights on the images that index points at."""
        model = self.eval_model()
        loss, right = (
            torch.zeros((), device=self.device),
            torch.zeros((), dtype=torch.int64, device=self.device),
        )
        with torch.inference_mode(), self._autocast():
            for chosen in index.split(EVALUATION_BATCH):
                logits = model(self._pixels(images[chosen])).float()
                loss += F.cross_entropy(logits, labels[chosen], reduction="sum")
                right += (logits.argmax(1) == labels[chosen]).sum()
        return loss.item() / len(index), right.item() / len(index)

    def eval_model(self) -> nn.Module:
        """The network to be judged and shipped, in evaluation mode: with averaged weights where there is an average."""
        if self.ema is None:
            return self.model.eval()
        model = models.build(self.hp).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.load_state_dict(self.weights())
        return model.eval()

    def weights(self) -> dict[str, Tensor]:
        """State dict of eval_model, sharing memory with the training."""
        state = self.model.state_dict()
        if self.ema is not None:
            state.update(zip(self._averaged_names(), self.ema, strict=True))
        return state

    # ---- state

    def state_bytes(self, story: Mapping[str, Any]) -> bytes:
        """Everything needed to go on, as a checkpoint file; `story` is kept beside it."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {
                f"ema.{k}": v for k, v in zip(self._averaged_names(), self.ema, strict=True)
            }
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items() if v is not None
            }
        return checkpoint.pack(
            tensors,
            {
                **story,
                "hyperparameters": self.hp,
                "epoch": self.epoch,
                "precision": self.precision,
                "rows": self.rows,
            },
        )

    def load_state(self, data: bytes, source: str) -> dict[str, Any]:
        """The inverse of state_bytes on a Trainer made with the same arguments; returns the story."""
        tensors, story = checkpoint.unpack(data, source)
        part = {name: _part(tensors, name) for name in ("model", "ema", "optimizer")}
        self.model.load_state_dict(part["model"])
        if self.ema is not None:
            for name, tensor in zip(self._averaged_names(), self.ema, strict=True):
                tensor.copy_(part["ema"][name])
        state: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, tensor in part["optimizer"].items():
            i, _, key = name.partition(".")
            like = parameters[int(i)]
            if tensor.shape == like.shape:
                # The fused optimisers walk parameter and state side by side in memory, so both need the same strides.
                tensor = torch.empty_like(like, requires_grad=False).copy_(tensor)
            state.setdefault(int(i), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.epoch, self.precision, self.rows = story["epoch"], story["precision"], story["rows"]
        return story

    def weights_bytes(self, story: Mapping[str, Any]) -> bytes:
        """The evaluated weights alone, with the hyperparameters that rebuild the network, as a checkpoint file."""
        return checkpoint.pack(
            self.weights(), {**story, "hyperparameters": self.hp, "epoch": self.epoch}
        )

    # ---- parts

    def _pixels(self, images: Tensor) -> Tensor:
        """uint8 -> [0, 1] in the network's layout. Every uint8 value is exact in bfloat16; the division is not, so it stays float32."""
        return images.to(torch.float32, memory_format=torch.channels_last).mul_(1 / 255)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _averaged_names(self) -> list[str]:
        return [k for k, v in self.model.state_dict().items() if v.is_floating_point()]

    def _averaged(self) -> list[Tensor]:
        """What the weight average covers: parameters and BatchNorm's statistics, so that it needs no second pass over the data."""
        if not hasattr(self, "_live"):
            self._live = [v for v in self.model.state_dict().values() if v.is_floating_point()]
        return self._live


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): t
        for name, t in tensors.items()
        if name.startswith(f"{prefix}.")
    }


def load_network(
    data: bytes, source: str, own: str | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a weights file (see Trainer.weights_bytes), in evaluation mode, and the file's story.

    own: the dotted path of a network of the user's own that the file may name (see models.check_known)."""
    tensors, story = checkpoint.unpack(data, source)
    models.check_known(story["hyperparameters"], source, own)
    model = models.build(story["hyperparameters"])
    model.load_state_dict(tensors)
    return model.eval(), story


def use_threads(cpus: float) -> None:
    """As many threads as CPUs are assigned: more of them only fight over the cores of the other trials.

    And the process keeps the memory it has freed: glibc gives each large block back to the system, which then clears its pages anew for
    every layer of every step (10 to 20 % of the training time; see mallopt(3)).
    """
    torch.set_num_threads(max(1, min(int(cpus), os.cpu_count() or 1)))
    if platform.libc_ver()[0] == "glibc":
        libc, trim_threshold, mmap_max = ctypes.CDLL(None), -1, -4
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)
