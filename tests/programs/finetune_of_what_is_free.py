"""An actor holds a CPU of the Ray at RAY_ADDRESS, as a submitted job does; a fine-tuning begins."""

from typing import Any

import ray

from mnist_ray import cluster
from mnist_ray.finetune_job import task


class Holder:
    def ready(self) -> bool:
        return True


ray.init(log_to_driver=False)
holder: Any = ray.remote(num_cpus=1)(Holder)
holder = holder.remote()
ray.get(holder.ready.remote())
cpus, _ = cluster.most_cpus(0.0, cluster.with_free)
lines = ray.remote(num_cpus=cpus)(lambda: (yield "begun")).remote()
task.wait_for_first(lines, cpus=cpus, gpus=0.0)
print(f"{cpus:g} CPUs", ray.get(next(lines)))
