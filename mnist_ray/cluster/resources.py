"""What a cluster can hold, and whether all of it sees the storage."""

import math
import os
import time
import uuid
from collections.abc import Mapping, Sequence

import psutil

from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.storage import RunStorage

Resources = Mapping[str, float]  # as Ray counts them: "CPU", "GPU"


def cpu_count() -> int:
    """The CPUs that this process may use; on a Mac all."""
    process = psutil.Process()
    return len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else os.cpu_count() or 1


def machine_resources(gpus: bool) -> dict[str, float]:
    """CPUs of this machine and, if requested, its GPUs, before any Ray has counted them."""
    resources = {"CPU": float(cpu_count())}
    if gpus:
        import torch  # noqa: PLC0415 (seconds at start)

        resources["GPU"] = float(torch.cuda.device_count())
    return resources


def nodes() -> list[dict[str, float]]:
    """The resources of each living node."""
    import ray  # noqa: PLC0415 (Ray's environment)

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def autoscaler_maximum() -> dict[str, float]:
    """The most that an autoscaler may bring; empty where there is none."""
    from ray._private.state import state  # noqa: PLC0415 (Ray's environment)

    return state.get_max_resources_from_cluster_config() or {}


def check_fits(cpus: float, gpus: float, each: Sequence[Resources], maximum: Resources) -> None:
    """Raises SettingsError where no node, nor what an autoscaler may bring, holds one trial."""
    for flag, key, wanted in (("--cpus-per-trial", "CPU", cpus), ("--gpus-per-trial", "GPU", gpus)):
        most = max([node.get(key, 0) for node in each] + [maximum.get(key, 0)])
        if wanted > most:
            raise SettingsError(
                f"{flag}: {wanted:g} wanted, but no node has more than {most:g} {key}s; "
                f"allowed is at most {most:g}"
            )


def capacity(cpus: float, gpus: float, each: Sequence[Resources], maximum: Resources) -> int:
    """How many trials run at a time.

    Args:
        cpus: of a trial.
        gpus: of a trial, or a fraction of one.
        each: the resources of each living node.
        maximum: all that an autoscaler may bring.
    """

    def hold(node: Resources) -> int:
        by_gpu = math.inf
        if gpus:
            # Fractions cannot be added up across GPUs: 0.4 fits twice into each.
            by_gpu = node.get("GPU", 0) * (1 // gpus if gpus < 1 else 1 / gpus)
        return int(min(node.get("CPU", 0) / cpus, by_gpu))

    return max(1, sum(map(hold, each)), hold(maximum))


class Slots:
    """How many trials run at a time on the cluster as it is now: nodes come and go.

    Args:
        cpus: of a trial.
        gpus: of a trial, or a fraction of one.
        maximum: all that an autoscaler may bring.
    """

    AGAIN_AFTER = 2.0  # seconds for which an answer is taken to hold

    def __init__(self, cpus: float, gpus: float, maximum: Resources) -> None:
        self.trial, self.maximum = (cpus, gpus), maximum
        self.number, self.asked_at = 0, -math.inf

    def __call__(self) -> int:
        """The number of trials."""
        now = time.monotonic()
        if now - self.asked_at > self.AGAIN_AFTER:
            self.number, self.asked_at = capacity(*self.trial, nodes(), self.maximum), now
        return self.number


def check_shared_storage(storage: RunStorage) -> None:
    """Raises SettingsError where a node does not see the files that this process writes."""
    import ray  # noqa: PLC0415 (Ray's environment)
    from ray.util.scheduling_strategies import (  # noqa: PLC0415 (Ray's environment)
        NodeAffinitySchedulingStrategy,
    )

    alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(alive) < 2:
        return
    # Beside the run, not in it: nothing may be left behind where the storage is refused.
    name, token = f"probe-{uuid.uuid4().hex}", uuid.uuid4().hex.encode()
    storage.write_bytes(name, token)

    def sees(uri: str) -> bool:
        try:
            return RunStorage(uri).read_bytes(name) == token
        except (OSError, WorkError):
            return False

    task = ray.remote(num_cpus=0, max_retries=0)(sees)
    on = [NodeAffinitySchedulingStrategy(node, soft=False) for node in alive]
    try:
        results = ray.get([task.options(scheduling_strategy=s).remote(storage.uri) for s in on])
    finally:
        storage.delete(name)
    if not all(results):
        raise SettingsError(
            f"--storage: {storage.uri} is not seen by {results.count(False)} of {len(alive)} "
            "nodes; expected a shared file system or an object store as s3://bucket/path"
        )
