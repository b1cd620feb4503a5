"""The plan on a cluster: a trial's share of a GPU, how many trials run at a time, the precision."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import ray

from mnist_ray import cluster
from mnist_ray.search_job.plan import Placement, Plan
from mnist_ray.study.samplers import UpperEnd, make_sampler
from mnist_ray.study.suggestions import drawn

DRAWN = 9  # suggestions of each kind, among which the largest and the median network are looked for


def complete(plan: Plan) -> Plan:
    """The plan with its placement on the cluster that this process is connected to.

    Raises:
        SettingsError: no node holds a trial.
    """
    s = plan.settings
    each, maximum = cluster.nodes(), cluster.autoscaler_maximum()
    gpus = share_of_gpu(plan, [*each, maximum]) if s.gpus_per_trial == "auto" else s.gpus_per_trial
    gpus = float(gpus)
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
    print("--gpus-per-trial auto: measuring on a GPU, as soon as one is free", flush=True)
    measure = ray.remote(num_gpus=1, num_cpus=min(s.cpus_per_trial, cpus))(gpu_share.measure)
    try:
        found = ray.get(
            measure.remote(largest, typical, data_bytes, slots, s.cpus_per_trial, s.precision)
        )
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    print(f"--gpus-per-trial auto: {1 / found.trials:g}; {found}", flush=True)
    return 1 / float(found.trials)
