"""The task of the second job, with a Ray that only fails: begun again, or a line that says why."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray import exceptions

from mnist_ray.errors import WorkError
from mnist_ray.finetune_job import task
from mnist_ray.finetune_job.recipe import ChainTask

TASK = cast(ChainTask, SimpleNamespace(cpus=1, gpus=0))
LOW = "Task was killed due to the node running low on memory."
DEAD = [
    exceptions.WorkerCrashedError(),
    exceptions.NodeDiedError("its node died"),
    exceptions.OutOfMemoryError(LOW),
    exceptions.LocalRayletDiedError(),
]


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """The errors of the beginnings, in turn; the one after them ends well."""
    errors: list[Exception] = []

    def remote(**options: Any) -> Any:
        assert options["max_retries"] == 0  # the restarts are ours
        return lambda work: SimpleNamespace(remote=lambda *of: None)

    def printed(*of: Any) -> str:
        if errors:
            raise errors.pop(0)
        return "the manifest"

    monkeypatch.setattr("ray.put", lambda value: value)
    monkeypatch.setattr("ray.remote", remote)
    monkeypatch.setattr(task, "_printed", printed)
    return errors


@pytest.mark.parametrize("error", DEAD, ids=lambda error: type(error).__name__)
def test_a_worker_that_dies_is_begun_again(
    fails: list[Exception], capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    fails += [error] * task.RESTARTS
    assert task.run_in_task(TASK) == "the manifest"
    assert capsys.readouterr().out.count("going on from its last epoch") == task.RESTARTS
    fails += [error] * (task.RESTARTS + 1)
    with pytest.raises(WorkError, match="^the fine-tuning's worker died 4 times: "):
        task.run_in_task(TASK)


def test_any_other_fault_of_ray_is_a_line(
    fails: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    fails.append(exceptions.RuntimeEnvSetupError("pip failed"))
    with pytest.raises(WorkError, match="^the fine-tuning cannot run: .*"):
        task.run_in_task(TASK)

    def full(value: object) -> None:
        raise exceptions.ObjectStoreFullError("the store is full")

    monkeypatch.setattr("ray.put", full)
    with pytest.raises(WorkError, match="^the fine-tuning cannot run: .*the store is full"):
        task.run_in_task(TASK, "data")
