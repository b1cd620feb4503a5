"""The chain that a worker runs: from a start network over the stages to a published ONNX file.

It needs no Ray. The test set is looked at once, after the last stage, through the exported files.
"""

import dataclasses
import hashlib
import json
import time
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mnist_ray import models
from mnist_ray.data import Images, Split
from mnist_ray.export.picture_model import picture_file, verify_pictures
from mnist_ray.export.session import (
    TEMPERATURE,
    Evaluation,
    Session,
    confidence_interval,
    probabilities,
    reliability,
)
from mnist_ray.export.write import export, rebuild, verify
from mnist_ray.finetune_job.calibration import NONE, Calibration, fitted
from mnist_ray.finetune_job.calibration import rule as calibration_rule
from mnist_ray.finetune_job.card import model_card
from mnist_ray.finetune_job.recipe import ChainTask
from mnist_ray.finetune_job.stages import TrainingData, train_stages
from mnist_ray.models import Committee
from mnist_ray.run import checkpoint, layout, lease, predictions, tables
from mnist_ray.run.publication import Manifest, publish
from mnist_ray.run.records import checked_row
from mnist_ray.settings import trust
from mnist_ray.settings.objectives import column, function_of
from mnist_ray.storage import RunStorage
from mnist_ray.training.machine import use_threads
from mnist_ray.training.metrics import BUILT_IN
from mnist_ray.training.trainer import load_network

MEASURED = ("epoch", "val_loss", "val_accuracy", "val_metric")  # of the search's best epoch
VERIFIED_ON = 1000  # real images on which a file is compared with torch
PICTURES = 200  # pictures on which picture.onnx is compared with its parts


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


def run_chain(task: ChainTask, split: Split, test: Images) -> Iterator[str | Manifest]:
    """Runs the chain and publishes its model: yields log lines and, last, its manifest."""
    use_threads(task.cpus)
    storage = lease.owned(task.uri, "fine-tuning", task.owner)
    start = begin(task, storage)
    hp = start.hyperparameters[0]
    task = dataclasses.replace(task, recipe=task.recipe.resolved(hp))
    yield from train(task, start, storage, split)
    steps = trained(task, start, storage)
    calibration = yield from calibrated(task, start, storage, split)
    # Training has ended: only now the test set is looked at.
    metadata = {
        "dataset": task.dataset,
        "run": task.run,
        "val_accuracy": json.dumps(_val_accuracy(steps)),
        "classes": json.dumps(list(test.classes)),
        **_of_own_images(task, split.images),
        **({} if calibration is NONE else {TEMPERATURE: repr(calibration.temperature)}),
    }
    sample = split.val if len(split.val) >= VERIFIED_ON else np.arange(len(split.images.labels))
    images = split.images.images[sample[:VERIFIED_ON]]
    lineage: list[Step | Judged] = [*steps]
    for place in range(0 if task.test_steps else len(steps) - 1, len(steps)):
        published = judge(steps[place], metadata, images, test)
        lineage[place] = published
        yield published.line()
    pictures, about_pictures = pictured(published.file, images)
    logits = published.evaluation.logits
    described = dataclasses.replace(
        manifest(task, lineage, published, test),
        calibration=_with_errors(calibration, logits, test.labels),
        picture=about_pictures,
    )
    files = {
        **pictures,
        layout.MODEL: published.file,
        layout.CARD: model_card(described, hp).encode(),
        # For the report: the answers on the test set, so that nobody looks again.
        layout.PREDICTIONS: predictions.pack(test.labels, logits, described.sha256),
    }
    publish(storage, files, described.to_json())
    yield described


def _of_own_images(task: ChainTask, images: Images) -> dict[str, str]:
    """Metadata by which pictures and images of one's own are read as they were for the training."""
    found = {} if images.padding is None else {"padding": images.padding}
    if trust.is_data(task.dataset) and task.reading is not None:
        found |= {"reading": task.reading.to_json(), "data_sha256": images.sha256}
    return found


def begin(task: ChainTask, storage: RunStorage) -> Step:
    """The network that the chain starts from: the task's ONNX file or the search's checkpoint."""
    if task.onnx is not None:
        network, hp = rebuild(task.onnx, "--onnx")
        trust.check_augmentation(hp, "--onnx: the file", task.augment)
        sha256 = hashlib.sha256(task.onnx).hexdigest()
        return Step({"step": "onnx", "sha256": sha256, "val_accuracy": None}, network, (hp,))
    data, source = storage.read_bytes(layout.BEST_NETWORK), storage.join(layout.BEST_NETWORK)
    network, metadata = load_network(data, source, task.network)
    trust.check_augmentation(metadata["hyperparameters"], source, task.augment)
    with checkpoint.fitting(source):
        row = checked_row(metadata["row"])
        facts: dict[str, Any] = {"step": "search", "trial": metadata["number"]}
        facts |= {key: value for key, value in row.items() if key in MEASURED}
    return Step(facts, network, (metadata["hyperparameters"],))


def calibrated(
    task: ChainTask, start: Step, storage: RunStorage, split: Split
) -> Generator[str, None, Calibration]:
    """Yields log lines, of a twin's training too; returns the temperature and how it was found."""
    recipe = task.recipe
    by = calibration_rule(task.calibrate, recipe.train_on, len(split.images.labels))
    if by == "none":
        return NONE
    began, twin = time.monotonic(), by == "twin"
    if twin:
        yield "calibration: a twin is trained without the validation images"
        recipe = dataclasses.replace(recipe, train_on="train", twin=True)
        task = dataclasses.replace(task, recipe=recipe)
        yield from train(task, start, storage, split)
    last = recipe.numbered()[-1][0]
    networks = [
        _stage_network(task, storage, last, member)[0] for member in range(1, task.committee + 1)
    ]
    found = fitted(by, networks, split, began)
    yield (
        f"calibration: temperature {found.temperature:g}, by {found.images:,} validation images "
        f"of the {'twin' if twin else 'network'}"
    )
    return found


def train(task: ChainTask, start: Step, storage: RunStorage, split: Split) -> Iterator[str]:
    """Trains every stage of every member of the committee that is not done; yields log lines."""
    device = torch.device("cuda" if task.gpus else "cpu")
    arrays = [split.images.images, split.images.labels, split.train, split.val]
    if split.images.weights is not None:
        arrays.append(split.images.weights)
    with warnings.catch_warnings():
        # Read-only views of memory that is shared, and never written to.
        warnings.simplefilter("ignore", UserWarning)
        data = TrainingData(*(torch.from_numpy(array).to(device) for array in arrays))
    recipe = task.recipe
    yield (
        f"fine-tuning {task.uri}: {len(recipe.stages)} stages of recipe {recipe.name} "
        f"on {device.type}"
    )
    hp = start.hyperparameters[0]
    weights = start.network.state_dict() if recipe.start == "best" else None
    for member in range(1, task.committee + 1):
        if task.committee > 1:
            yield f"network {member} of {task.committee}"
        yield from train_stages(recipe, hp, weights, storage, data, task.precision, member)


def trained(task: ChainTask, start: Step, storage: RunStorage) -> list[Step]:
    """The steps of a chain that was trained. The last is the model to publish."""
    steps = [start]
    for number, stage in task.recipe.numbered():
        curve = _curve(storage, number)
        network, hp = _stage_network(task, storage, number)
        facts = {
            "step": f"stage-{number}",
            **dataclasses.asdict(stage),
            "lr": hp["lr"],  # lower, if the stage had diverged
            "seconds": round(sum(curve["seconds"]), 1),
        }
        if task.recipe.train_on == "train":
            facts["val_accuracy"] = curve["val_accuracy"][-1]
        facts["weights_sha256"] = checkpoint.digest(network.state_dict())
        steps.append(Step(facts, network, (hp,)))
    members = [steps[-1], *_other_members(task, storage)]
    if len(members) == 1:
        return steps
    committee = Committee([step.network for step in members]).eval()
    facts = {"step": "committee", "networks": len(members)}
    each = tuple(step.hyperparameters[0] for step in members)
    return [*steps, *members[1:], Step(facts, committee, each)]


def _other_members(task: ChainTask, storage: RunStorage) -> Iterator[Step]:
    """The last networks of the committee's members but the first."""
    numbers = [number for number, _ in task.recipe.numbered()]
    for member in range(2, task.committee + 1):
        seconds = sum(sum(_curve(storage, number, member)["seconds"]) for number in numbers)
        network, hp = _stage_network(task, storage, numbers[-1], member)
        facts = {
            "step": f"member-{member}",
            "seconds": round(seconds, 1),
            "weights_sha256": checkpoint.digest(network.state_dict()),
        }
        yield Step(facts, network, (hp,))


def judge(step: Step, metadata: Mapping[str, str], sample: np.ndarray, test: Images) -> Judged:
    """Exports a step, compares the file with torch on the sample, and evaluates it on the test set.

    sample: images uint8 [n, C, H, W]. Raises WorkError if the file differs from the network.
    """
    hp = step.hyperparameters
    file = export(step.network, hp[0] if len(hp) == 1 else hp, metadata)
    difference = verify(file, step.network, sample)
    session = Session(file, step.facts["step"])
    return Judged(step, file, difference, len(sample), session.evaluate(test.images, test.labels))


def pictured(model: bytes, images: np.ndarray) -> tuple[dict[str, bytes], dict[str, Any] | None]:
    """The pictures' file by its name, verified, and what the manifest says of it.

    Args:
        model: The network's file.
        images: Training images uint8 [n, C, H, W], of which pictures are made.
    """
    if images.shape[1] not in (1, 3):
        return {}, None
    data = picture_file(model, layout.MODEL)
    difference = verify_pictures(data, model, images[:PICTURES])
    about = {
        "file": layout.PICTURE,
        "sha256": hashlib.sha256(data).hexdigest(),
        "max_difference": difference,
        "verified_on_pictures": len(images[:PICTURES]) + 1,
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
        val_accuracy=_val_accuracy(lineage),
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


def _val_accuracy(steps: Iterable[Step | Judged]) -> float | None:
    """The last that was measured: the start's, if the stages trained on all images."""
    measured: list[float | None]
    measured = [s.facts["val_accuracy"] for s in steps if "val_accuracy" in s.facts]
    return measured[-1]


def _stage_network(
    task: ChainTask, storage: RunStorage, number: int, member: int = 1
) -> tuple[nn.Module, dict[str, Any]]:
    """A stage's network and the hyperparameters that it was trained with."""
    name = f"{layout.stage_folder(number, member, twin=task.recipe.twin)}/{layout.STAGE_NETWORK}"
    data, source = storage.read_bytes(name), storage.join(name)
    network, metadata = load_network(data, source, task.network)
    return network, metadata["hyperparameters"]


def _curve(storage: RunStorage, number: int, member: int = 1) -> dict[str, list[Any]]:
    """A stage's columns, one value an epoch (see run.tables.HISTORY)."""
    name = f"{layout.stage_folder(number, member)}/{layout.STAGE_CURVE}"
    columns: dict[str, list[Any]] = tables.read(storage, name).to_pydict()
    return columns
