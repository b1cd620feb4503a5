"""The gate of `picture.onnx`: whether a picture is one of the classes at all.

Scores of the classifier alone fail on foreign pictures of the same look: on MNIST half of them pass
(arXiv 2512.04034). So a small network of its own learns to tell the data set's images from pictures
made of them that are none of the classes (see `negatives`). The classifier stays as it is.
"""

import math
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_ray.data import Split
from mnist_ray.data.drawn import spread
from mnist_ray.export.picture_model import Declining
from mnist_ray.export.write import graph_file
from mnist_ray.finetune_job import negatives
from mnist_ray.finetune_job.negatives import Kind
from mnist_ray.run.publication import Known
from mnist_ray.training import augment

RATE = 0.005  # of a data set's own unseen images, at most, that are declined
FEWEST = 50  # validation images that thresholds are fitted on
LARGEST = 32  # pixels: a longer side is averaged down first
BATCH = 128
IMAGES_A_STEP, FEWEST_STEPS, MOST_STEPS = 20, 200, 2600
LEARNING_RATE = 1e-2
HANDED_OVER = (0.002, 0.005, 0.01)  # shares of the test images, the least sure first
JUDGED = 1000  # pictures of each kind, for the manifest
TAIL = 0.1  # share of the scores whose tail is followed where too few images are there


class Gate(nn.Module):
    """Images [n, C, H, W] in [0, 1] to a score [n]: the higher, the more foreign.

    It learns the classes and `foreign` as one more. The score compares that one with the others,
    so that a confusion between two classes does not count.
    """

    def __init__(self, channels: int, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        shrink = math.ceil(max(size) / LARGEST)
        window = min(shrink, size[0]), min(shrink, size[1])  # of a long image one side is shorter
        self.shrink = nn.AvgPool2d(window) if shrink > 1 else nn.Identity()
        self.features = nn.Sequential(
            *_block(channels, 16, 5, 2), *_block(16, 32, 3, 2), *_block(32, 32, 3, 1)
        )
        self.head = nn.Linear(64, classes + 1)

    def logits(self, x: Tensor) -> Tensor:
        """float32 [n, classes + 1], the last of them for `foreign`."""
        x = self.features(self.shrink(x))
        logits: Tensor = self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """The score."""
        logits = self.logits(x)
        return logits[:, -1] - logits[:, :-1].logsumexp(1)


def _block(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


def kinds_for(channels: int, padding: str | None) -> Mapping[str, Kind]:
    """The kinds of foreign pictures for a data set (see `data.Images.padding`)."""
    return negatives.DRAWN if channels == 1 and padding is None else negatives.GENERAL


def trained(
    images: Tensor, labels: Tensor, classes: int, kinds: Sequence[Kind], seed: int = 0
) -> Gate:
    """A gate that was trained on these images and on pictures made of them.

    Args:
        images: uint8 [n, C, H, W], on the device that trains.
        labels: int64 [n].
        classes: How many there are.
        kinds: Of foreign pictures.
        seed: Of the weights, the order and the pictures.
    """
    n, channels, height, width = images.shape
    steps = min(max(n // IMAGES_A_STEP, FEWEST_STEPS), MOST_STEPS)
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(seed)
        gate = Gate(channels, (height, width), classes).to(images.device)
        gate.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(gate.parameters(), LEARNING_RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
        foreign = torch.full((BATCH,), classes, device=images.device)
        for _ in range(steps):
            chosen = torch.randint(n, (BATCH,), device=images.device)
            own = images[chosen].float() / 255
            made = negatives.batch(own, kinds)
            x = torch.cat([_varied(own), made]).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(gate.logits(x), torch.cat([labels[chosen], foreign]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return gate.eval()


def _varied(own: Tensor) -> Tensor:
    """The images, as varied as people's: half moved, a quarter coarse, a quarter redrawn."""
    half, quarter = len(own) // 2, len(own) // 4
    height, width = own.shape[2:]
    small = max(1, height // 2), max(1, width // 2)
    coarse = F.interpolate(own[half : half + quarter], small, mode="bilinear", antialias=True)
    coarse = F.interpolate(coarse, (height, width), mode="bilinear")
    moved = augment.affine(own[:half] * 255, degrees=10, scale=0.1, shift=2)
    varied = torch.cat([moved / 255, coarse, own[half + quarter :]])
    if own.shape[1] == 1:
        varied[::4] = _redrawn(varied[::4])
    return varied


def _redrawn(own: Tensor) -> Tensor:
    """Grey images [n, 1, H, W] with another pen: lines from sharp to soft, and mostly thinner.

    Without it a gate takes digits for foreign if the pen is thinner than the data set's.
    """
    like = own[:, :1, :1, :1]
    soft = F.avg_pool2d(own, 3, 1, 1)
    own = torch.where(torch.rand_like(like) < 0.5, soft, own)
    own = own / own.amax((2, 3), keepdim=True).clamp_min(0.1)
    steep, edge = 4 + 12 * torch.rand_like(like), 0.3 + 0.5 * torch.rand_like(like)
    drawn = torch.sigmoid((own - edge) * steep) - torch.sigmoid(-edge * steep)  # 0 stays 0
    return drawn.clamp_min(0)


def scores_of(gate: Gate, images: np.ndarray) -> np.ndarray:
    """float64 [n]: the gate's scores of images uint8 [n, C, H, W]."""
    device = next(gate.parameters()).device
    with torch.inference_mode():
        parts = torch.from_numpy(images).split(1024)
        scores = [gate(part.to(device).float() / 255).double().cpu() for part in parts]
    found: np.ndarray = torch.cat(scores).numpy()
    return found


def threshold(scores: np.ndarray, rate: float) -> float:
    """The score that at most a share `rate` of unseen scores of this kind exceeds.

    Of n images the (k + 1)th largest score is exceeded by (k + 1) / (n + 1) of unseen ones on
    average. Where there are fewer than 1 / rate images, the tail is continued as an exponential.

    Args:
        scores: [n].
        rate: In (0, 1).
    """
    falling = np.sort(scores)[::-1].astype(np.float64)
    n = len(falling)
    k = math.floor(rate * (n + 1)) - 1
    if k >= 0:
        return float(falling[k])
    tail = falling[: max(2, round(TAIL * n))]
    scale = (tail - tail[-1]).mean() * (1 + 2 / len(tail))  # a short tail is uncertain
    return float(falling[0] + scale * math.log(1 / (rate * n)))


@dataclass(frozen=True)
class Thresholds:
    """When a picture is declined."""

    unsure: float
    """Below this calibrated probability."""
    foreign: float
    """Above this score of the gate."""


def thresholds(scores: np.ndarray, sure: np.ndarray | None) -> Thresholds:
    """Those that together decline RATE of a data set's own unseen images.

    Args:
        scores: The gate's, of images that it was not trained on.
        sure: The classifier's calibrated probability of its answer, on images that it was not
            trained on; None where there are none: then no picture is declined as unsure.
    """
    if sure is None:
        return Thresholds(0.0, threshold(scores, RATE))
    sure = sure.clip(1e-9, 1 - 1e-9)
    odds = threshold(np.log1p(-sure) - np.log(sure), RATE / 2)  # of an error, logarithmic
    return Thresholds(float(1 / (1 + math.exp(odds))), threshold(scores, RATE / 2))


@dataclass(frozen=True)
class Gated:
    """A gate with its thresholds, and the facts about them that `Known` has."""

    network: Gate
    at: Thresholds
    facts: dict[str, Any]

    def declining(self, image_shape: tuple[int, int, int]) -> Declining:
        """For `picture_file`."""
        file = graph_file(self.network, image_shape)
        return Declining(file, self.at.unsure, self.at.foreign)

    def judged(self, images: np.ndarray, wrong: np.ndarray, sure: np.ndarray) -> Known:
        """The facts, and those of the test images.

        Args:
            images: uint8 [n, C, H, W], of the test part.
            wrong: bool [n]: whether the classifier's answer is wrong.
            sure: float [n]: its calibrated probability.
        """
        foreign = scores_of(self.network, images) > self.at.foreign
        declined = foreign | (sure < self.at.unsure)
        least_sure_first = wrong[np.argsort(sure, kind="stable")]
        left = {
            f"{share:g}": int(least_sure_first[round(share * len(images)) :].sum())
            for share in HANDED_OVER
        }
        return Known(
            **self.facts,
            own_declined=float(declined.mean()),
            own_foreign=float(foreign.mean()),
            errors_declined=int((declined & wrong).sum()),
            errors_left=left,
        )


def gated(
    split: Split, device: torch.device, sure: np.ndarray | None, calibrate: str
) -> Generator[str, None, Gated | None]:
    """Yields log lines; trains a gate on the training images, sets thresholds by the others.

    Args:
        split: The training part. Its validation images set the thresholds.
        device: That trains.
        sure: See `thresholds`.
        calibrate: The option. With `none` there is no gate.
    """
    images, channels = split.images, split.images.images.shape[1]
    for why, found in (
        ("--calibrate none", calibrate == "none"),
        (f"images of {channels} channels; expected 1 or 3", channels not in (1, 3)),
        (
            f"{len(split.val)} validation images; expected at least {FEWEST}",
            len(split.val) < FEWEST,
        ),
    ):
        if found:
            yield f"none of these: without a gate ({why})"
            return None
    began = time.monotonic()
    kinds = kinds_for(channels, images.padding)
    unseen = np.isin(np.arange(len(images.labels)), split.val)
    own_images, labels = (
        torch.from_numpy(part[~unseen]).to(device) for part in (images.images, images.labels)
    )
    network = trained(own_images, labels, len(images.classes), list(kinds.values()))
    own = images.images[split.val]
    scores = scores_of(network, own)
    at = thresholds(scores, sure)
    declined = scores > at.foreign
    if sure is not None:
        declined |= sure < at.unsure
    facts = {
        "rate": RATE,
        "unsure_below": at.unsure,
        "foreign_above": at.foreign,
        "images": len(split.val),
        "declined": float(declined.mean()),
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": round(time.monotonic() - began, 1),
        "kinds": _share_of_each(network, at, own, kinds),
    }
    yield (
        f"none of these: a gate of {facts['parameters']:,} parameters in {facts['seconds']:.0f} s; "
        f"{facts['declined']:.2%} of {len(own):,} validation images are declined"
    )
    return Gated(network, at, facts)


def _share_of_each(
    network: Gate, at: Thresholds, own: np.ndarray, kinds: Mapping[str, Kind]
) -> dict[str, float]:
    """The share of each kind, made of these images, that is declined as foreign."""
    device = next(network.parameters()).device
    found = {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(1)
        images = torch.from_numpy(own[spread(len(own), JUDGED)]).to(device).float() / 255
        with torch.inference_mode():
            for name, kind in kinds.items():
                found[name] = float((network(kind(images)) > at.foreign).float().mean())
    return found
