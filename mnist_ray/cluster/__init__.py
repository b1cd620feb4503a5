"""The Ray cluster that a job runs on: joined or started, what it can hold, and jobs within it."""

from mnist_ray.cluster.connection import Cluster, connected, quiet_ray, running
from mnist_ray.cluster.jobs import submit_and_follow
from mnist_ray.cluster.resources import (
    Slots,
    autoscaler_maximum,
    capacity,
    check_fits,
    check_shared_storage,
    cpu_count,
    machine_resources,
    nodes,
)
from mnist_ray.cluster.signals import interruptible

__all__ = [
    "Cluster",
    "Slots",
    "autoscaler_maximum",
    "capacity",
    "check_fits",
    "check_shared_storage",
    "connected",
    "cpu_count",
    "interruptible",
    "machine_resources",
    "nodes",
    "quiet_ray",
    "running",
    "submit_and_follow",
]
