"""Where trials run: a GPU that is found is used, or the log says why not; without one, a line."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from mnist_ray import cluster
from mnist_ray.errors import SettingsError
from mnist_ray.search_job import placement
from mnist_ray.search_job.plan import Plan
from mnist_ray.settings import SearchSettings


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


def test_no_gpu() -> None:
    assert line(0, {"CPU": 2}) == "found: 2 CPUs, no GPU; a trial takes 1 CPU"


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
