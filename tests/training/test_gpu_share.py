"""How many trials share a GPU: the choice, the networks that are measured, and the measuring
itself, here on CPUs.
"""

import math
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from mnist_ray import models, spaces
from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.run.records import EpochRow
from mnist_ray.settings import SearchSettings, check_search, parse
from mnist_ray.study.samplers import UpperEnd
from mnist_ray.training import gpu_share
from mnist_ray.training.trainer import Trainer
from tests.support import PROGRAMS, ROOT
from tests.support.trials import HP

SHAPE = spaces.DataShape(1, (28, 28), 10, (0.5,), (0.5,))


def test_the_fewest_that_are_nearly_as_fast() -> None:
    assert gpu_share.fewest({1: 100.0, 2: 180.0, 4: 290.0, 8: 300.0, 16: 280.0}) == 4
    assert gpu_share.fewest({1: 100.0}) == 1
    assert gpu_share.fewest({1: 100.0, 2: 99.0}) == 1


@pytest.mark.parametrize(
    ("memory", "slots", "expected"),
    [
        (1.0, 100.0, [1, 2, 4, 8]),  # 10 bytes hold nine with their margin
        (1.0, 3.9, [1, 2]),
        (9.5, 100.0, [1]),
        (20.0, 0.5, [1]),  # one always: whether it fits, it finds out itself
        (0.0, 16.0, [1, 2, 4, 8, 16]),
    ],
)
def test_no_more_than_memory_and_cpus_hold(
    memory: float, slots: float, expected: list[int]
) -> None:
    assert gpu_share.numbers(memory, 10.0, slots) == expected


@pytest.mark.parametrize("name", ["convnet", "optunanet", "mlp", "cnn"])
def test_the_upper_end_is_the_largest_network(name: str) -> None:
    """But for vgg, whose first linear layer shrinks with the depth: so the drawn networks' memory
    is measured too.
    """
    space = spaces.find(name)

    def sizes(sampler: optuna.samplers.BaseSampler, n: int) -> list[int]:
        study = optuna.create_study(sampler=sampler)
        with torch.device("meta"):
            return [
                models.n_parameters(models.build(space(study.ask(), data=SHAPE))) for _ in range(n)
            ]

    assert max(sizes(UpperEnd(0), 9)) >= max(sizes(optuna.samplers.RandomSampler(0), 30))


def test_what_is_measured() -> None:
    """In processes of their own, one and two at a time; the network with the median number of
    parameters is trained.
    """
    networks: list[dict[str, Any]] = [{**HP, "width": width} for width in (4, 8, 64)]
    assert gpu_share._median(networks)["width"] == 8
    found = gpu_share.measure(networks, networks, 1000, 2, 1, "fp32", "cpu")
    assert list(found.images_per_second) == [1, 2]
    assert all(rate > 0 for rate in found.images_per_second.values())
    assert (found.memory, found.total) == (0, math.inf)
    assert found.trials in (1, 2)
    assert "1 at a time" in str(found)
    with pytest.raises(WorkError, match="--gpus-per-trial: auto"):
        gpu_share.measure(networks, [{**HP, "model": "unknown"}], 1000, 2, 1, "fp32", "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_measured_on_a_gpu() -> None:
    found = gpu_share.measure([{**HP, "width": 256}], [HP], 1000, 2, 1, "auto")
    assert 2**20 < found.memory < found.total


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_trial_of_folds_needs_more_memory() -> None:
    wide = [{**HP, "width": 256, "layers_per_block": 2}]
    one, three = (
        gpu_share.measure(wide, [HP], 1000, 1, 1, "auto", folds=folds).memory for folds in (1, 3)
    )
    assert three > one


def test_memory_is_measured_with_the_networks_of_all_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of one trial's at a time, and none of the trial before."""
    training: weakref.WeakSet[Trainer] = weakref.WeakSet()
    at_a_time = []
    train_epoch = Trainer.train_epoch

    def noted(trainer: Trainer, *of: Any) -> EpochRow:
        training.add(trainer)
        at_a_time.append(len(training))
        return train_epoch(trainer, *of)

    monkeypatch.setattr(Trainer, "train_epoch", noted)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60, 100))
    memory, total = gpu_share._memory([HP, HP], "fp32", "cpu:0", 3)  # "cpu" measures nothing
    assert at_a_time == [1, 2, 3, 1, 2, 3]
    assert (memory, total) == (40, 100)


@pytest.mark.slow
def test_in_a_task_of_ray(tmp_path: Path) -> None:
    """Where Ray counts a GPU: the processes of the task measure, here a CPU."""
    env = {
        k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    } | {"PYTHONPATH": str(ROOT)}
    out = subprocess.run(
        [sys.executable, str(PROGRAMS / "gpu_share_on_ray.py")],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "2 at a time" in out.stdout, out.stdout + out.stderr
    shares = [
        float(line.split()[1]) for line in out.stdout.splitlines() if line.startswith("share")
    ]
    assert shares[0] in (0.5, 1.0)
    assert shares[1] == 0


def test_the_flag() -> None:
    assert parse(SearchSettings, ["--gpus-per-trial", "auto"]).gpus_per_trial == "auto"
    assert parse(SearchSettings, ["--gpus-per-trial", "0.25"]).gpus_per_trial == 0.25
    with pytest.raises(SettingsError, match="--gpus-per-trial: auto measures"):
        check_search(SearchSettings(gpus_per_trial="auto", deterministic=True))
