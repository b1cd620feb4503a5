"""Publishes one model after the other in the run that is named, until it is killed."""

import sys

from mnist_ray.run.publication import publish
from mnist_ray.storage import RunStorage

run = RunStorage(sys.argv[1])
print("begins", flush=True)
for number in range(1000):
    model = bytes([number % 256]) * 3_000_000
    publish(run, {"model.onnx": model}, {"file": "model.onnx", "which": number % 256})
