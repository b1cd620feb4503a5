"""A Ray cluster, and the trials that its nodes can hold."""

import contextlib
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from mnist_ray.errors import SettingsError, described

Resources = Mapping[str, float]  # as Ray counts them: "CPU", "GPU"
ROUNDING = 1e-6  # Ray counts resources in ten-thousandths
FREE_SECONDS = 10.0  # for which CPUs are waited for: what trials have held comes free after them
LEAST_SECONDS = 0.3  # the system counts CPU time in hundredths


@dataclass(frozen=True)
class Cluster:
    """A Ray that this process is connected to."""

    address: str
    """HOST:PORT of its head."""
    dashboard: str | None
    """URL of the job server."""
    started_here: bool
    runtime_env: Mapping[str, Any]
    """Of this process's own job."""


@contextlib.contextmanager
def environment(**names: str) -> Iterator[None]:
    """Sets variables of the environment until the block ends."""
    before = {name: os.environ.get(name) for name in names}
    os.environ |= names
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def cpu_count() -> int:
    """The CPUs that this process may use; on a Mac all."""
    process = psutil.Process()
    return len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else os.cpu_count() or 1


class OtherWork:
    """The CPU time that other programs take on this machine, measured from its creation on."""

    def __init__(self) -> None:
        self._before = _cpu_seconds()

    def warning(self) -> str | None:
        """A line for the log if they keep more than a quarter of the CPUs busy.

        None also if that cannot be known: too little time has passed, or this process may use only
        some of the machine's CPUs, and the others' work may be on the rest.
        """
        clock, busy, own = (
            after - before for before, after in zip(self._before, _cpu_seconds(), strict=True)
        )
        cpus = psutil.cpu_count() or 1
        if clock < LEAST_SECONDS or cpu_count() < cpus or busy - own < clock * cpus / 4:
            return None
        return (
            f"warning: other programs keep {(busy - own) / clock:.1f} of this machine's {cpus} "
            "CPUs busy: trials are slower, those of several threads (--cpus-per-trial) most"
        )


def _cpu_seconds() -> tuple[float, float, float]:
    """The clock, the CPU time of the whole machine, and that of this process and its children."""
    machine, own = psutil.cpu_times(), os.times()
    busy = machine.user + getattr(machine, "nice", 0.0) + machine.system
    return time.monotonic(), busy, sum(own[:4])


def machine_resources(gpus: bool) -> dict[str, float]:
    """CPUs of this machine and, if requested, its GPUs, before any Ray has counted them."""
    resources = {"CPU": float(cpu_count())}
    if gpus:
        import torch  # noqa: PLC0415 (seconds at start)

        resources["GPU"] = float(torch.cuda.device_count())
    return resources


def check_fits(
    cpus: float,
    gpus: float,
    each: Sequence[Resources],
    maximum: Resources,
    flags: tuple[str, str] = ("--cpus-per-trial", "--gpus-per-trial"),
) -> None:
    """SettingsError, which names the flag, if no node, present or of an autoscaler, holds it."""
    for flag, key, wanted in zip(flags, ("CPU", "GPU"), (cpus, gpus), strict=True):
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
            by_gpu = node.get("GPU", 0) * (_whole(1 / gpus) if gpus < 1 else 1 / gpus)
        return _whole(min(node.get("CPU", 0) / cpus, by_gpu))

    return max(1, sum(map(hold, each)), hold(maximum))


def most_cpus(
    gpus: float, with_free: Callable[[], Sequence[tuple[Resources, Resources]]]
) -> tuple[float, float]:
    """The CPUs for one task that uses all it gets: the largest node's, or the most that are free.

    A submitted job may hold some itself (`--entrypoint-num-cpus`), for as long as the task runs.

    Args:
        gpus: that the task needs on its node.
        with_free: gives what each living node has, and what of it is free now.

    Returns:
        These, and all of the largest node's. Both are 0 if no node has any, and equal if nothing is
        free in FREE_SECONDS.
    """
    deadline = time.monotonic() + FREE_SECONDS
    while True:
        nodes = [(has, free) for has, free in with_free() if not gpus or has.get("GPU")]
        largest = max((has.get("CPU", 0.0) for has, _ in nodes), default=0.0)
        usable = (free.get("CPU", 0.0) for _, free in nodes if free.get("GPU", 0) >= gpus)
        most = max(usable, default=0.0)
        if most + ROUNDING >= largest:
            return largest, largest
        if time.monotonic() > deadline:
            return float(_whole(most)) or largest, largest
        time.sleep(min(0.5, FREE_SECONDS))


def _whole(number: float) -> int:
    """How many fit: ten times 0.1 into 1, of which 1 // 0.1 makes 9."""
    return math.floor(number + ROUNDING)


def check_sendable(value: Any, source: str) -> None:
    """SettingsError if Ray cannot send a value to its workers.

    Args:
        value: Large arrays in it are not copied here.
        source: The option that it came from, for the message.
    """
    with open(os.devnull, "wb") as nowhere:
        try:
            pickle.Pickler(nowhere, 5, buffer_callback=lambda _: None).dump(value)
        except Exception:  # it may be a lambda, which Ray can send, or raise any error of its own
            from ray import cloudpickle  # noqa: PLC0415 (seconds at start)

            try:
                cloudpickle.CloudPickler(nowhere, 5, buffer_callback=lambda _: None).dump(value)
            except Exception as error:
                raise SettingsError(
                    f"{source}: its result cannot be sent to the trials: {described(error)}"
                ) from error
