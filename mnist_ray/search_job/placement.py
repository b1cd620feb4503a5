"""The plan on a cluster: a trial's share of a GPU, how many trials run at a time, the precision."""

import dataclasses
import math
import platform
from collections.abc import Mapping, Sequence

import ray

from mnist_ray import cluster
from mnist_ray.errors import SettingsError, WorkError, first_line
from mnist_ray.search_job.plan import Placement, Plan
from mnist_ray.study.samplers import UpperEnd, make_sampler
from mnist_ray.study.suggestions import drawn

DRAWN = 9  # suggestions of each kind, among which the largest and the median network are looked for


def complete(plan: Plan) -> Plan:
    """The plan with its placement on the cluster that this process is connected to.

    Raises:
        SettingsError: no node holds a trial, or a GPU that is still to come cannot be measured.
        WorkError: the measurement on a GPU fails.
    """
    s = plan.settings
    each, maximum = cluster.nodes(), cluster.autoscaler_maximum()
    scales = not maximum and cluster.scales()
    if s.gpus_per_trial != "auto":
        gpus = float(s.gpus_per_trial)
    elif scales and not any(node.get("GPU") for node in each):
        raise SettingsError(
            "--gpus-per-trial: auto measures on a GPU, and no node has one until the autoscaler "
            "brings it; give a number, as 0.25, or 0 for CPUs alone"
        )
    else:
        gpus = float(share_of_gpu(plan, [*each, maximum]))
    if scales:  # nodes come for the trials that wait: as many as --max-concurrent allows
        n = s.max_concurrent or 1
        maximum = {"CPU": n * s.cpus_per_trial, "GPU": float(n) if gpus else 0.0}
        if plan.storage.is_local:
            print(
                f"warning: every node that the autoscaler brings must see {plan.storage.uri}; "
                "--storage s3://bucket/path does",
                flush=True,
            )
    cluster.check_fits(s.cpus_per_trial, gpus, each, maximum)
    slots = cluster.capacity(s.cpus_per_trial, gpus, each, maximum)
    if s.max_concurrent:
        slots = s.max_concurrent if s.deterministic else min(slots, s.max_concurrent)
    # A resume on another machine must have the same precision.
    precision = "fp32" if s.deterministic and s.precision == "auto" else s.precision
    return dataclasses.replace(plan, placement=Placement(gpus, slots, precision, maximum))


def found(plan: Plan, each: Sequence[Mapping[str, float]]) -> str:
    """A line about the nodes' CPUs and GPUs, and how much of them the search uses."""
    cpus, gpus = (int(sum(node.get(key, 0) for node in each)) for key in ("CPU", "GPU"))
    share = plan.placed.gpus
    unused = ""
    if gpus and not share:
        unused = ", not used, as --gpus-per-trial is 0: 1 or auto uses it"
    if not gpus and (platform.system(), platform.machine()) == ("Darwin", "arm64"):
        unused = " (Apple's is not supported)"
    text = f"found: {_count(cpus, 'CPU')}, {_count(gpus, 'GPU')}{unused}"
    if len(each) > 1:
        text += f", on {len(each)} nodes"
    part = f" and {share:g} GPU" if share else ""
    return f"{text}; a trial takes {_count(plan.settings.cpus_per_trial, 'CPU')}{part}"


def _count(n: float, name: str) -> str:
    return f"{n:g} {name}{'' if n == 1 else 's'}" if n else f"no {name}"


def share_of_gpu(plan: Plan, each: list[dict[str, float]]) -> float:
    """A trial's share of a GPU, measured by a task on one of them; 0 if no node has any."""
    with_gpu = [node for node in each if node.get("GPU")]
    if not with_gpu:
        return 0
    from mnist_ray.training import gpu_share  # noqa: PLC0415 (seconds at start, and 470 MB)

    s, images = plan.settings, plan.split.images
    cpus = min(node.get("CPU", 1) / node["GPU"] for node in with_gpu)  # beside one GPU

    typical = drawn(plan.space, make_sampler("random", s.seed, {}), DRAWN)
    largest = [*drawn(plan.space, UpperEnd(s.seed), DRAWN), *typical]
    data_bytes = images.images.nbytes + images.labels.nbytes
    slots = min(cpus / s.cpus_per_trial, s.max_concurrent or math.inf)
    given = (largest, typical, data_bytes, slots, s.cpus_per_trial, s.precision)
    print("--gpus-per-trial auto: measuring on a GPU, as soon as one is free", flush=True)
    remote = ray.remote(num_gpus=1, num_cpus=min(s.cpus_per_trial, cpus), max_retries=0)
    measure = remote(gpu_share.measure)
    try:
        found = ray.get(measure.remote(*given, folds=s.folds or 1))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:  # its worker died, as without memory
        raise WorkError(
            f"--gpus-per-trial: auto: {first_line(error)}; give a number instead"
        ) from error
    print(f"--gpus-per-trial auto: {1 / found.trials:g}; {found}", flush=True)
    return 1 / float(found.trials)
