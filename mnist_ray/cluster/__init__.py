"""The Ray cluster that a job runs on: joined or started, its resources, and jobs within it.

`joined` and `jobs`, which need Ray itself, are imported when used: its environment comes first.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mnist_ray.cluster.connection import connected, quiet_ray, running
from mnist_ray.cluster.resources import (
    Cluster,
    OtherWork,
    capacity,
    check_fits,
    check_sendable,
    cpu_count,
    machine_resources,
    most_cpus,
)

if TYPE_CHECKING:
    from mnist_ray.cluster.jobs import check_job_server, submit_and_follow
    from mnist_ray.cluster.joined import (
        Slots,
        autoscaler_maximum,
        check_shared_storage,
        nodes,
        scales,
        with_free,
    )

__all__ = [
    "Cluster",
    "OtherWork",
    "Slots",
    "autoscaler_maximum",
    "capacity",
    "check_fits",
    "check_job_server",
    "check_sendable",
    "check_shared_storage",
    "connected",
    "cpu_count",
    "machine_resources",
    "most_cpus",
    "nodes",
    "quiet_ray",
    "running",
    "scales",
    "submit_and_follow",
    "with_free",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "jobs" if name in ("check_job_server", "submit_and_follow") else "joined"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
