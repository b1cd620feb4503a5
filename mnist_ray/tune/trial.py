"""A trial's input and its reports: known to the driver and to the worker."""

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from mnist_ray.run.records import EpochRow
from mnist_ray.settings.constraints import Constraint

STATE = "state.safetensors"  # a checkpoint of Tune's
LATEST = "latest.safetensors"  # of a network, in the trial's folder: the state that it goes on from
# Keys of Tune's config; all others are hyperparameters (see study.suggestions.RESERVED).
NUMBER = "mnist_ray:number"  # the trial's
RETRAINS = "mnist_ray:retrains"  # of a trial that trains another again: (its number, the new seed)


@dataclass(frozen=True)
class TrialContext:
    """The values common to all trials of a run, without the data.

    Attributes:
        run: the URI of the run's directory.
        metric: see `objectives.goal`.
        max_epochs: the most epochs of a trial.
        seed: of weights and batches.
        precision: auto, bf16 or fp32.
        cpus: of one trial.
        gpus: of one trial; may be a fraction.
        latency: whether it is measured, as an objective or for a limit.
        constraints: the limits of --constraint.
        facts: metadata of the ONNX file, where its size is limited; None: it is not.
        train_unfit: whether a network beyond a limit is trained, for samplers that learn only from
            complete trials.
        augment: for all trials; "none" leaves it to the space.
        tensorboard: whether every epoch is written for it.
        activations: whether that has histograms of the layers' outputs.
        weights: float32 [n], how much each image counts in the loss; None: all alike.
        owner: the token of the run's lease (see `lease.owned`).
        folder: of the run's directory, where the trials keep their files; "" is the whole.
    """

    run: str
    metric: str
    max_epochs: int
    seed: int
    precision: str
    cpus: float
    gpus: float
    latency: bool = False
    constraints: tuple[Constraint, ...] = ()
    facts: Mapping[str, str] | None = None
    train_unfit: bool = False
    augment: str = "none"
    tensorboard: bool = False
    activations: bool = False
    weights: np.ndarray | None = None
    owner: str = ""
    folder: str = ""


class Result(EpochRow, total=False):
    """A trial's report after an epoch, with the epoch's row.

    `rows` are all epochs so far, after a restart: their reports may have been lost. A trial that
    cannot go on has `reason`, or `storage_error` if the fault is the storage's.
    """

    rows: list[EpochRow]
    n_parameters: int | None
    node: str
    done: bool
    complete: bool  # it ended by itself
    latency_ms: float
    size: int  # bytes of its ONNX file
    unfit: str  # the limits that the network is beyond, whatever it learns
    reason: str
    storage_error: str
    tracker_warning: str  # why the epoch could not be written for TensorBoard


def reported(
    context: TrialContext, row: EpochRow, n_parameters: int | None, rows: list[EpochRow] | None
) -> Result:
    """The result of an epoch; rows: of all epochs so far, after a restart."""
    result = cast(Result, {**row, "n_parameters": n_parameters, "node": platform.node()})
    result["done"] = row["epoch"] >= context.max_epochs
    if rows is not None:
        result["rows"] = rows
    return result


def ended(**why: str) -> Result:
    """The last result of a trial that cannot go on."""
    nan = {"val_accuracy": math.nan, "val_loss": math.nan, "val_metric": math.nan}
    return {**nan, "epoch": 0, "done": True, **why}  # type: ignore[typeddict-item]
