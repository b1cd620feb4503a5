"""The published files: a step's network as a file that was judged once, and the manifest of all."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from mnist_ray import models
from mnist_ray.data import Images
from mnist_ray.data.drawn import spread
from mnist_ray.export import quantize
from mnist_ray.export.picture_model import (
    PictureSession,
    as_picture,
    picture_file,
    verify_pictures,
)
from mnist_ray.export.session import (
    Evaluation,
    Session,
    confidence_interval,
    probabilities,
    reliability,
)
from mnist_ray.export.write import export, verify
from mnist_ray.finetune_job.calibration import Calibration, Fitted
from mnist_ray.finetune_job.gate import Gated
from mnist_ray.finetune_job.recipe import ChainTask
from mnist_ray.run import layout, predictions
from mnist_ray.run.publication import Manifest
from mnist_ray.settings.objectives import column, function_of
from mnist_ray.training.metrics import BUILT_IN

PICTURES = 200  # pictures on which picture.onnx is compared with its parts
EMPTY = np.full((9, 9, 4), 255, np.uint8)  # a white sheet, RGBA


@dataclass(frozen=True)
class Step:
    """A network of the chain: its start, a stage's, another member's, or the committee."""

    facts: dict[str, Any]
    """Of the manifest's lineage: `step` is its name."""
    network: nn.Module
    hyperparameters: tuple[dict[str, Any], ...]
    """Those that its weights were trained with: one dict; of a committee, one for each member."""


@dataclass(frozen=True)
class Judged:
    """A step's exported file, and its answers."""

    step: Step
    file: bytes
    difference: float
    """The largest, of its logits from torch's on the sample."""
    verified_on: int
    """Images of the sample."""
    evaluation: Evaluation
    """On the test set."""

    @property
    def facts(self) -> dict[str, Any]:
        """The step's entry of the manifest's lineage."""
        return {**self.step.facts, "test_accuracy": self.evaluation.accuracy}

    def line(self) -> str:
        """For the log."""
        n, errors = self.evaluation.n, self.evaluation.n - self.evaluation.right
        return (
            f"{self.step.facts['step']}: test accuracy {self.evaluation.accuracy:.4f} "
            f"({errors} errors in {n})"
        )


def judge(step: Step, metadata: Mapping[str, str], sample: np.ndarray, test: Images) -> Judged:
    """Exports a step, compares the file with torch on the sample, and evaluates it on the test set.

    sample: images uint8 [n, C, H, W]. Raises WorkError if the file differs from the network.
    """
    hp = step.hyperparameters
    file = export(step.network, hp[0] if len(hp) == 1 else hp, metadata)
    difference = verify(file, step.network, sample)
    session = Session(file, step.facts["step"])
    return Judged(step, file, difference, len(sample), session.evaluate(test.images, test.labels))


class Shipping(NamedTuple):
    """What the published files are made and judged with, beside the network."""

    images: np.ndarray
    """uint8 [n, C, H, W], of which pictures are made."""
    training: np.ndarray
    """Training images, on which a smaller file is compared."""
    fit: Fitted
    gate: Gated | None


def shipped(
    task: ChainTask, lineage: Sequence[Step | Judged], last: Judged, test: Images, by: Shipping
) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest of the last step, and the files to publish but the card."""
    model, answers = last.file, last.evaluation
    files, about_pictures = pictured(model, by.images, by.gate)
    files[layout.MODEL] = model
    calibration = by.fit.calibration
    given = probabilities(answers.logits.astype(np.float64) / calibration.temperature)
    wrong = answers.predictions != test.labels
    known = None if by.gate is None else by.gate.judged(test.images, wrong, given.max(1))
    smaller = None
    if task.quantize != "none":
        data, compared = quantize.smaller(model, task.quantize, by.training)
        name = layout.smaller_model(task.quantize)
        errors = Session(data, name).evaluate(test.images, test.labels)
        smaller = {
            "file": name,
            **dataclasses.asdict(compared),
            "test_errors": errors.n - errors.right,
        }
        smaller["line"] = compared.line()
        if not compared.refused:
            files[name] = data
    described = dataclasses.replace(
        manifest(task, lineage, last, test),
        calibration=_with_errors(calibration, answers.logits, test.labels),
        picture=about_pictures,
        known=known,
        smaller=smaller,
        files=tuple(_measured(name, data, test.images[0]) for name, data in sorted(files.items())),
    )
    # For the report: the answers on the test set, so that nobody looks again.
    files[layout.PREDICTIONS] = predictions.pack(test.labels, answers.logits, described.sha256)
    return described, files


def _measured(name: str, data: bytes, image: np.ndarray) -> dict[str, Any]:
    """A file's size and the median milliseconds of one image, on one thread."""
    if name == layout.PICTURE:
        latency = PictureSession(data, name).latency_ms(as_picture(image))
    else:
        latency = Session(data, name, threads=1).latency_ms(image)
    return {"file": name, "bytes": len(data), "latency_ms": round(latency, 4)}


def pictured(
    model: bytes, images: np.ndarray, gate: Gated | None
) -> tuple[dict[str, bytes], dict[str, Any] | None]:
    """The pictures' file by its name, verified, and what the manifest says of it.

    Args:
        model: The network's file.
        images: Training images uint8 [n, C, H, W], of which pictures are made.
        gate: That declines pictures; None: none is declined.
    """
    if images.shape[1] not in (1, 3):
        return {}, None
    channels, height, width = images.shape[1:]
    declining = None if gate is None else gate.declining((channels, height, width))
    data = picture_file(model, layout.MODEL, declining)
    some = images[spread(len(images), PICTURES)]
    difference = verify_pictures(data, model, some, declining)
    about = {
        "file": layout.PICTURE,
        "sha256": hashlib.sha256(data).hexdigest(),
        "max_difference": difference,
        "verified_on_pictures": len(some) + 1,
        "declines_empty": not PictureSession(data, layout.PICTURE)(EMPTY).known,
    }
    return {layout.PICTURE: data}, about


def _with_errors(
    calibration: Calibration, logits: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """For the manifest, with the expected calibration errors on the test images."""
    after = logits / np.float32(calibration.temperature)
    return {
        **dataclasses.asdict(calibration),
        "ece_before": reliability(labels, probabilities(logits))[1],
        "ece_after": reliability(labels, probabilities(after))[1],
    }


def manifest(
    task: ChainTask, lineage: Sequence[Step | Judged], last: Judged, test: Images
) -> Manifest:
    """Describes the last step, which is published, and the steps that led to it."""
    right, n = last.evaluation.right, last.evaluation.n
    session = Session(last.file, layout.MODEL, threads=1)
    return Manifest(
        file=layout.MODEL,
        sha256=hashlib.sha256(last.file).hexdigest(),
        n_parameters=models.n_parameters(last.step.network),
        val_accuracy=val_accuracy(lineage),
        test_accuracy=last.evaluation.accuracy,
        test_images=n,
        test_errors=n - right,
        test_accuracy_interval=confidence_interval(right, n),
        max_difference_from_torch=last.difference,
        verified_on_images=last.verified_on,
        latency_ms=session.latency_ms(test.images[0]),
        dataset=task.dataset,
        classes=tuple(test.classes),
        run=task.run,
        recipe=task.recipe.name,
        train_on=task.recipe.train_on,
        lineage=tuple(each.facts for each in lineage),
        metric=function_of(task.metric),
        val_metric=lineage[0].facts.get(column(task.metric)),
        test_metric=_test_metric(task.metric, last.evaluation, test),
    )


def _test_metric(metric: str, evaluation: Evaluation, test: Images) -> float | None:
    """The metric on the test images; None where it is a person's own, or accuracy or loss."""
    score = BUILT_IN.get(metric)
    if score is None:
        return None
    return score(test.labels, probabilities(evaluation.logits.astype(np.float64)))


def val_accuracy(steps: Iterable[Step | Judged]) -> float | None:
    """The last that was measured: the start's, if the stages trained on all images."""
    measured: list[float | None]
    measured = [s.facts["val_accuracy"] for s in steps if "val_accuracy" in s.facts]
    return measured[-1]
