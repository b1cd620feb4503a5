"""What a cluster can hold."""

import os
import threading

import numpy as np
import psutil
import pytest

from mnist_ray import cluster
from mnist_ray.cluster import resources
from mnist_ray.errors import SettingsError

CPU, GPU = {"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("cpus", "gpus", "nodes", "maximum", "expected"),
    [
        (1, 0, [CPU], {}, 4),
        (0.5, 0, [CPU], {}, 8),
        (3, 0, [CPU, GPU], {}, 3),  # one and two: what is left over on a node cannot be added up
        (1, 0.25, [CPU, GPU], {}, 8),
        (1, 0.4, [GPU], {}, 4),  # twice in each GPU
        (4, 0.25, [GPU], {}, 2),
        (1, 2, [GPU], {}, 1),
        (0.1, 0.1, [GPU], {}, 20),  # 1 // 0.1 is 9.0
        (0.1, 0.2, [GPU], {}, 10),
        (0.07, 0, [{"CPU": 7.0}], {}, 100),
        (1, 0.5, [CPU], {"CPU": 32.0, "GPU": 8.0}, 16),
    ],
)
def test_capacity(cpus: float, gpus: float, nodes: list, maximum: dict, expected: int) -> None:
    assert cluster.capacity(cpus, gpus, nodes, maximum) == expected


def test_what_fits_nowhere_is_named() -> None:
    cluster.check_fits(8, 2, [CPU, GPU], {})
    cluster.check_fits(1, 3, [CPU], {"GPU": 4.0, "CPU": 16.0})
    with pytest.raises(SettingsError, match="--cpus-per-trial: 9 wanted"):
        cluster.check_fits(9, 0, [CPU, GPU], {})
    with pytest.raises(
        SettingsError, match="--gpus-per-trial: 3 wanted, but no node has more than 2 GPUs"
    ):
        cluster.check_fits(1, 3, [CPU, GPU], {})


def test_the_cpus_of_a_machine_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a Mac."""
    assert cluster.cpu_count() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(psutil.Process, "cpu_affinity")
    assert cluster.cpu_count() == os.cpu_count()


def test_what_ray_cannot_send_is_named() -> None:
    for value in (None, {"a": [1]}, lambda: 1, np.zeros(10)):
        cluster.check_sendable(value, "--train-data")
    message = r"^--train-data: its result cannot be sent to the trials: TypeError: cannot pickle"
    with pytest.raises(SettingsError, match=message):
        cluster.check_sendable({"a lock": threading.Lock()}, "--train-data")


@pytest.mark.parametrize(
    ("seconds", "busy", "own", "affinity", "warned"),
    [
        (2.0, 3.0, 0.5, 4, True),  # 1.25 of 4 CPUs
        (2.0, 3.0, 2.5, 4, False),  # it is this process itself
        (2.0, 1.0, 0.0, 4, False),
        (0.1, 0.4, 0.0, 4, False),  # too short to say
        (2.0, 8.0, 0.0, 2, False),  # others may have the other CPUs
    ],
)
def test_other_programs_on_the_cpus_are_named(
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    busy: float,
    own: float,
    affinity: int,
    warned: bool,
) -> None:
    times = iter([(0.0, 100.0, 1.0), (seconds, 100 + busy, 1 + own)])
    monkeypatch.setattr(resources, "_cpu_seconds", lambda: next(times))
    monkeypatch.setattr("psutil.cpu_count", lambda: 4)
    monkeypatch.setattr(resources, "cpu_count", lambda: affinity)
    warning = resources.OtherWork().warning()
    assert bool(warning) == warned
    if warning:
        assert "keep 1.2 of this machine's 4 CPUs busy" in warning


def test_the_cpu_seconds_of_this_machine_go_on() -> None:
    before = resources._cpu_seconds()
    sum(range(3_000_000))
    after = resources._cpu_seconds()
    assert after[0] > before[0]
    assert after[2] > before[2]
    assert after[1] >= before[1]


BIG, SMALL, WITH_GPU = {"CPU": 8.0}, {"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("gpus", "nodes", "expected"),
    [
        (0, [], 0.0),
        (0, [({"memory": 1.0}, {})], 0.0),
        (0, [(BIG, BIG), (SMALL, SMALL)], 8.0),
        (0, [(BIG, {"CPU": 7.0}), (SMALL, SMALL)], 7.0),  # its own job holds one
        (0, [(BIG, {"CPU": 1.5}), (SMALL, SMALL)], 4.0),
        (0, [(BIG, {"CPU": 2.5}), (SMALL, {"CPU": 0.5})], 2.0),
        (0, [(BIG, {"CPU": 0.5}), (SMALL, {})], 8.0),  # nothing is free: it is waited for
        (1, [(BIG, BIG), (WITH_GPU, WITH_GPU)], 2.0),
        (1, [(BIG, BIG), (WITH_GPU, {"CPU": 1.0, "GPU": 1.0})], 1.0),
        (1, [(BIG, BIG), (WITH_GPU, {"CPU": 1.0})], 2.0),
    ],
)
def test_a_task_takes_the_cpus_that_are_free(
    gpus: float, nodes: list, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "FREE_SECONDS", 0.0)
    assert cluster.most_cpus(gpus, lambda: nodes)[0] == expected


def test_cpus_that_come_free_soon_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The actors of the trials end a moment after the search."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    free = iter([{}, {"CPU": 1.0}, BIG])
    assert cluster.most_cpus(0, lambda: [(BIG, next(free))]) == (8.0, 8.0)
