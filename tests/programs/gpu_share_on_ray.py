"""The share of a GPU that a search gives a trial, where Ray counts one: measured on a CPU."""

from typing import Any
from unittest import mock

import ray

from mnist_ray.search_job import placement
from mnist_ray.search_job.plan import prepare
from mnist_ray.settings import SearchSettings
from mnist_ray.training import gpu_share

measure: Any = gpu_share.measure


def on_a_cpu(*arguments: Any, **options: Any) -> gpu_share.Found:
    """The measurement, without a GPU."""
    found: gpu_share.Found = measure(*arguments, device="cpu", **options)
    return found


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    args = ("min_width=8", "max_width=16")
    settings = SearchSettings(
        dataset="digits", space_args=args, gpus_per_trial="auto", dry_run=True
    )
    plan = prepare(settings)
    with mock.patch.object(gpu_share, "measure", on_a_cpu):
        print("share", placement.share_of_gpu(plan, [{"CPU": 2.0, "GPU": 1.0}]))
    print("share", placement.share_of_gpu(plan, [{"CPU": 2.0}]))
