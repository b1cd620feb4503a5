"""A second job without a Ray."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from mnist_ray import cluster, report


@pytest.fixture
def in_task(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Replaces the cluster by one node with a CPU, and its task by a function of this process."""

    def replace(body: Any) -> None:
        fake = SimpleNamespace(run_in_task=body)
        monkeypatch.setitem(sys.modules, "mnist_ray.finetune_job.task", fake)

    @contextlib.contextmanager
    def connected(verbose: bool) -> Iterator[None]:
        yield

    monkeypatch.setattr(cluster, "connected", connected)
    monkeypatch.setattr(cluster, "nodes", lambda: [{"CPU": 1.0}])
    monkeypatch.setattr(cluster, "with_free", lambda: [(node, node) for node in cluster.nodes()])
    monkeypatch.setattr(cluster, "autoscaler_maximum", dict)
    monkeypatch.setattr(cluster, "scales", lambda: False)
    monkeypatch.setattr(report, "write_or_warn", lambda storage, test=None: "report: none")
    return replace
