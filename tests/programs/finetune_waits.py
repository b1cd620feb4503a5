"""Another task holds the CPUs of the Ray at RAY_ADDRESS for six seconds; a fine-tuning waits."""

import time

import ray

from mnist_ray.finetune_job import task

ray.init(log_to_driver=False)
task.PATIENCE = 2.0
held = ray.remote(num_cpus=2)(lambda: time.sleep(6)).remote()
time.sleep(1)
lines = ray.remote(num_cpus=2)(lambda: (yield "begun")).remote()
task.wait_for_first(lines, cpus=2.0, gpus=0.0)
print(ray.get(next(lines)))
