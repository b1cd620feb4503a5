"""Where trials run: a GPU that is found is used, or the log says why not; without one, a line."""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from ray.exceptions import OutOfMemoryError

from mnist_ray import cluster
from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.search_job import placement
from mnist_ray.search_job.plan import Placement, Plan, prepare
from mnist_ray.settings import SearchSettings
from mnist_ray.training import gpu_share


def line(gpus: float, *nodes: dict[str, float], cpus: float = 1) -> str:
    """What a search says that it found."""
    plan: Any = SimpleNamespace(
        placed=SimpleNamespace(gpus=gpus), settings=SearchSettings(cpus_per_trial=cpus)
    )
    return placement.found(cast(Plan, plan), nodes)


def test_a_gpu_that_is_not_used_is_named_with_the_reason() -> None:
    said = line(0, {"CPU": 16, "GPU": 1})
    assert "1 GPU, not used, as --gpus-per-trial is 0: 1 or auto uses it" in said


def test_a_gpu_that_is_used() -> None:
    said = line(0.25, {"CPU": 16, "GPU": 1})
    assert "not used" not in said
    assert said.endswith("a trial takes 1 CPU and 0.25 GPU")


@pytest.mark.parametrize(
    ("machine", "said"),
    [(("Linux", "x86_64"), ""), (("Darwin", "arm64"), " (Apple's is not supported)")],
)
def test_no_gpu(monkeypatch: pytest.MonkeyPatch, machine: tuple[str, str], said: str) -> None:
    monkeypatch.setattr("platform.system", lambda: machine[0])
    monkeypatch.setattr("platform.machine", lambda: machine[1])
    assert line(0, {"CPU": 2}) == f"found: 2 CPUs, no GPU{said}; a trial takes 1 CPU"


@pytest.mark.parametrize("gpus", [0, 2])
def test_a_trial_that_needs_a_gpu_is_refused_where_torch_sees_none(
    monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    machine = cluster.machine_resources(gpus=True)
    assert machine["GPU"] == gpus
    if gpus:
        cluster.check_fits(1, 0.5, [machine], {})
        assert cluster.capacity(0.01, 0.5, [machine], {}) == 4
        return
    with pytest.raises(SettingsError, match="--gpus-per-trial: 0.5 wanted, but no node has more"):
        cluster.check_fits(1, 0.5, [machine], {})


# ---- a cluster that scales: its head has no CPUs, and what may come is not known

HEAD = {"memory": 8e9, "node:__internal_head__": 1.0}
WORKER = {"CPU": 4.0, "GPU": 1.0}
Completed = Callable[..., Placement]


@pytest.fixture
def completed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Completed:
    """A search's placement on nodes that are only told of."""

    def complete(*nodes: dict[str, float], scales: bool = True, **options: Any) -> Placement:
        monkeypatch.setattr(cluster, "nodes", lambda: list(nodes))
        monkeypatch.setattr(cluster, "autoscaler_maximum", dict)
        monkeypatch.setattr(cluster, "scales", lambda: scales)
        small = {"dataset": "digits", "space_args": ("min_width=8", "max_width=16")}
        place = {"storage": str(tmp_path), "dry_run": True}
        return placement.complete(prepare(SearchSettings(**{**small, **place, **options}))).placed

    return complete


@pytest.mark.parametrize(
    ("nodes", "options", "slots"),
    [
        ([HEAD], {"gpus_per_trial": 0.25, "max_concurrent": 32}, 32),
        ([HEAD], {"gpus_per_trial": 0.4, "max_concurrent": 5}, 5),
        ([HEAD], {"cpus_per_trial": 0.3, "max_concurrent": 7}, 7),
        ([HEAD], {"gpus_per_trial": 1.0}, 1),
        ([HEAD, WORKER], {"gpus_per_trial": 0.25, "max_concurrent": 32}, 32),
        ([HEAD, WORKER], {"gpus_per_trial": 0.25}, 4),
        ([HEAD, WORKER], {"max_concurrent": 2}, 2),
    ],
)
def test_an_autoscaler_is_asked_for_as_many_trials_as_may_run(
    completed: Completed, nodes: list[dict[str, float]], options: dict[str, Any], slots: int
) -> None:
    placed = completed(*nodes, **options)
    assert placed.slots == slots
    trial = options.get("cpus_per_trial", 1), options.get("gpus_per_trial", 0)
    assert cluster.capacity(*trial, nodes, placed.maximum) >= slots  # asked again while it runs


def test_without_an_autoscaler_a_head_without_cpus_is_refused(completed: Completed) -> None:
    with pytest.raises(SettingsError, match="^--cpus-per-trial: 1 wanted, but no node has more"):
        completed(HEAD, scales=False, max_concurrent=32)


def test_a_gpu_that_is_still_to_come_is_not_measured(
    completed: Completed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="^--gpus-per-trial: auto .* give a number"):
        completed(HEAD, gpus_per_trial="auto", max_concurrent=32)
    monkeypatch.setattr(placement, "share_of_gpu", lambda *of: 0.5)
    assert completed(HEAD, WORKER, gpus_per_trial="auto", max_concurrent=32).slots == 32
    assert completed(HEAD, WORKER, gpus_per_trial="auto", scales=False).slots == 2


def test_a_folder_that_nodes_to_come_must_see_is_told(
    completed: Completed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    completed(HEAD)
    assert f"brings must see {tmp_path}" in capsys.readouterr().out
    completed(HEAD, storage="s3://bucket/runs")
    completed(WORKER, scales=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("folds", [None, 5])
def test_the_measurement_is_told_how_many_networks_a_trial_has(
    completed: Completed, monkeypatch: pytest.MonkeyPatch, folds: int | None
) -> None:
    asked: list[dict[str, Any]] = []

    def remote(**_: object) -> Any:
        def send(*of: object, **named: object) -> None:
            asked.append(inspect.signature(gpu_share.measure).bind(*of, **named).arguments)

        return lambda work: SimpleNamespace(remote=send)

    monkeypatch.setattr("ray.remote", remote)
    monkeypatch.setattr("ray.get", lambda _: gpu_share.Found(1.0, 9.0, {1: 5.0, 2: 9.0}))
    placed = completed(WORKER, scales=False, gpus_per_trial="auto", folds=folds)
    assert placed.gpus == 0.5
    assert [each["folds"] for each in asked] == [folds or 1]


def test_a_measurement_whose_worker_dies_is_a_line(
    completed: Completed, monkeypatch: pytest.MonkeyPatch
) -> None:
    retries = []

    def remote(**options: Any) -> Any:
        retries.append(options["max_retries"])
        return lambda work: SimpleNamespace(remote=lambda *of, **named: None)

    def dies(*of: object) -> None:
        raise OutOfMemoryError("Task was killed due to the node running low on memory.")

    monkeypatch.setattr("ray.remote", remote)
    monkeypatch.setattr("ray.get", dies)
    with pytest.raises(WorkError, match="^--gpus-per-trial: auto: .*; give a number instead"):
        completed(WORKER, scales=False, gpus_per_trial="auto")
    assert retries == [0]
