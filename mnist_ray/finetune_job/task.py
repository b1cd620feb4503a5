"""The second job's work in a Ray task: on a node that has the resources, begun again if it dies."""

from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from mnist_ray.errors import SettingsError, WorkError, first_line
from mnist_ray.finetune_job.own import OwnTask, run_own
from mnist_ray.finetune_job.recipe import ChainTask

# How Ray tells that a worker or its node died; OutOfMemoryError: its memory monitor ended it.
DEATHS = (
    WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError, LocalRayletDiedError,
)  # fmt: skip
RESTARTS = 3  # if the worker or its node dies; the chain goes on from its last epoch
PATIENCE = 30.0  # seconds before the missing resources are named; each time twice as long


def run_in_task(task: ChainTask | OwnTask, *data: Any) -> Any:
    """Runs the chain, or a function of one's own, on the cluster, printing its lines.

    Args:
        task: Its kind says which.
        data: The chain's split and test part; the function's data.

    Returns:
        The manifest of the model, or what the function made.

    Raises:
        WorkError: it failed, or its worker died too often.
    """
    try:
        stored = [ray.put(each) for each in data]  # once, whichever part is begun again
    except RayError as error:  # as a full object store
        raise _cannot_run(error) from error
    remote = ray.remote(num_cpus=task.cpus, num_gpus=task.gpus, max_retries=0)(_work)
    for restart in range(RESTARTS + 1):
        try:
            return _printed(remote.remote(task, *stored), task)
        except RayTaskError as error:
            if isinstance(error.cause, SettingsError | WorkError | OSError):
                raise WorkError(str(error.cause)) from error
            raise error.as_instanceof_cause() from error
        except DEATHS as error:
            if restart == RESTARTS:
                raise WorkError(
                    f"the fine-tuning's worker died {restart + 1} times: {first_line(error)}"
                ) from error
            print(
                "the worker died; going on from its last epoch "
                f"(restart {restart + 1} of {RESTARTS})",
                flush=True,
            )
        except RayError as error:
            raise _cannot_run(error) from error
    raise AssertionError("unreachable")


def _cannot_run(error: RayError) -> WorkError:
    return WorkError(f"the fine-tuning cannot run: {first_line(error)}")


def _work(task: ChainTask | OwnTask, *data: Any) -> Iterator[Any]:
    if isinstance(task, OwnTask):
        yield from run_own(task, *data)
        return
    from mnist_ray.finetune_job.chain import run_chain  # noqa: PLC0415 (named trainable)

    yield from run_chain(task, *data)


def _printed(lines: Any, task: ChainTask | OwnTask) -> Any:
    """Prints a task's lines; returns the result that comes last."""
    wait_for_first(lines, task.cpus, task.gpus)
    for reference in lines:
        result = ray.get(reference)
        if not isinstance(result, str):
            return result
        print(result, flush=True)
    raise WorkError("the fine-tuning ended without a result")


def wait_for_first(lines: Any, cpus: float, gpus: float) -> None:
    """Waits for a task to begin, perhaps for hours, and names the missing resources at times."""
    patience = PATIENCE
    while not ray.wait([lines], timeout=patience, fetch_local=False)[0]:
        patience *= 2
        free, total = ray.available_resources(), ray.cluster_resources()
        wanted = [
            f"{n:g} {key}s (free in the cluster: {free.get(key, 0):g} of {total.get(key, 0):g})"
            for key, n in (("CPU", cpus), ("GPU", gpus))
            if n
        ]
        print(
            "the fine-tuning has not begun; it waits for a worker on one node with "
            + " and ".join(wanted),
            flush=True,
        )
