"""Prints the heavy and optional modules that the driver of a search without trackers imports."""

import sys

import mnist_ray.report.whole
import mnist_ray.search_job.engine
import mnist_ray.search_job.job
import mnist_ray.search_job.placement
import mnist_ray.trials.function
import mnist_ray.trials.network  # noqa: F401
from mnist_ray import trackers
from mnist_ray.settings import SearchSettings

trackers.check(SearchSettings())
assert trackers.opened(SearchSettings()) == []
heavy = {"mlflow", "tensorboard", "wandb", "torch"}
print(sorted(name for name in sys.modules if name.split(".")[0] in heavy))
