"""Prints the SHA-256 of a network's ONNX file, exported in this process."""

import hashlib

from mnist_ray.export.write import export
from tests.support.networks import HP, network

print(hashlib.sha256(export(network(HP), HP, {"dataset": "digits", "run": "r"})).hexdigest())
