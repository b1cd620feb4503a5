"""The chain that a worker runs: from a start network over the stages to a published ONNX file.

It needs no Ray. The test set is looked at once, after the last stage, through the exported files.
"""

import dataclasses
import hashlib
import json
import time
import warnings
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from mnist_ray.data import Images, Split
from mnist_ray.data.drawn import spread
from mnist_ray.export.session import TEMPERATURE
from mnist_ray.export.write import rebuild
from mnist_ray.finetune_job.calibration import NONE, Fitted, fitted
from mnist_ray.finetune_job.calibration import rule as calibration_rule
from mnist_ray.finetune_job.card import model_card
from mnist_ray.finetune_job.gate import gated
from mnist_ray.finetune_job.judging import (
    Judged,
    Shipping,
    Step,
    judge,
    shipped,
    val_accuracy,
)
from mnist_ray.finetune_job.recipe import ChainTask
from mnist_ray.finetune_job.stages import TrainingData, train_stages
from mnist_ray.models import Committee
from mnist_ray.run import checkpoint, layout, lease, tables
from mnist_ray.run.publication import Manifest, publish
from mnist_ray.run.records import checked_row
from mnist_ray.settings import is_stored, trust
from mnist_ray.storage import RunStorage
from mnist_ray.training.machine import use_threads
from mnist_ray.training.trainer import load_network

MEASURED = ("epoch", "val_loss", "val_accuracy", "val_metric")  # of the search's best epoch
VERIFIED_ON = 1000  # real images on which a file is compared with torch
COMPARED_ON = 10_000  # training images on which a smaller file is compared


def run_chain(task: ChainTask, split: Split, test: Images) -> Iterator[str | Manifest]:
    """Runs the chain and publishes its model: yields log lines and, last, its manifest."""
    use_threads(task.cpus)
    storage = lease.owned(task.uri, "fine-tuning", task.owner)
    start = begin(task, storage)
    hp = start.hyperparameters[0]
    task = dataclasses.replace(task, recipe=task.recipe.resolved(hp))
    yield from train(task, start, storage, split)
    fit = yield from calibrated(task, start, storage, split)
    steps = trained(task, start, storage, fit.accuracy)
    calibration, gate = fit.calibration, None
    if task.gate != "none":
        gate = yield from gated(split, _device(task), fit.sure, task.calibrate)
    # Training has ended: only now the test set is looked at.
    metadata = {
        "dataset": task.dataset,
        "run": task.run,
        "val_accuracy": json.dumps(val_accuracy(steps)),
        "classes": json.dumps(list(test.classes)),
        **_of_own_images(task, split.images),
        **({} if calibration is NONE else {TEMPERATURE: repr(calibration.temperature)}),
    }
    sample = split.val if len(split.val) >= VERIFIED_ON else np.arange(len(split.images.labels))
    images = split.images.images[sample[spread(len(sample), VERIFIED_ON)]]
    lineage: list[Step | Judged] = [*steps]
    for place in range(0 if task.test_steps else len(steps) - 1, len(steps)):
        published = judge(steps[place], metadata, images, test)
        lineage[place] = published
        yield published.line()
    training = split.images.images[spread(len(split.images.labels), COMPARED_ON)]
    described, files = shipped(
        task, lineage, published, test, Shipping(images, training, fit, gate)
    )
    if described.smaller is not None:
        yield described.smaller["line"]
    files[layout.CARD] = model_card(described, hp, split.images.padding).encode()
    publish(storage, files, described.to_json())
    yield described


def _of_own_images(task: ChainTask, images: Images) -> dict[str, str]:
    """Metadata by which pictures and images of one's own are read as they were for the training."""
    found = {} if images.padding is None else {"padding": images.padding}
    if is_stored(task.dataset) and task.reading is not None:
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
) -> Generator[str, None, Fitted]:
    """Yields log lines, of a twin's training too; returns the temperature and how it was found."""
    recipe = task.recipe
    by = calibration_rule(task.calibrate, recipe.train_on, len(split.images.labels))
    if by == "none":
        return Fitted(NONE)
    if (task.onnx is not None or task.began_with_file) and recipe.start == "best":
        yield "calibration: none, as the file of --onnx may have been trained on the images for it"
        return Fitted(NONE)
    began, twin = time.monotonic(), by == "twin"
    if twin:
        yield "calibration: a second network is trained, without the validation images"
        recipe = dataclasses.replace(recipe, train_on="train", twin=True)
        task = dataclasses.replace(task, recipe=recipe)
        yield from train(task, start, storage, split)
    last = recipe.numbered()[-1][0]
    networks = [
        _stage_network(task, storage, last, member)[0] for member in range(1, task.committee + 1)
    ]
    found = fitted(by, networks, split, began)
    yield (
        f"calibration: temperature {found.calibration.temperature:g}, "
        f"by {found.calibration.images:,} validation images "
        f"of the {'twin' if twin else 'network'}"
    )
    return found


def _device(task: ChainTask) -> torch.device:
    return torch.device("cuda" if task.gpus else "cpu")


def train(task: ChainTask, start: Step, storage: RunStorage, split: Split) -> Iterator[str]:
    """Trains every stage of every member of the committee that is not done; yields log lines."""
    device = _device(task)
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


def trained(
    task: ChainTask, start: Step, storage: RunStorage, accuracy: float | None = None
) -> list[Step]:
    """The steps of a chain that was trained. The last is the model to publish.

    Args:
        task: The chain's.
        start: Its first step.
        storage: The run's.
        accuracy: A committee's on the validation images; None: nothing has measured it.
    """
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
    if task.recipe.train_on == "train":  # else it has seen the images that a twin has not
        facts["val_accuracy"] = accuracy
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
            **task.recipe.of_member(member),
            "seconds": round(seconds, 1),
            "weights_sha256": checkpoint.digest(network.state_dict()),
        }
        yield Step(facts, network, (hp,))


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
