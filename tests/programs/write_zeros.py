"""Writes `model.onnx` of so many bytes."""

import sys

from mnist_ray.storage import RunStorage

RunStorage(sys.argv[1]).write_bytes("model.onnx", bytes(int(sys.argv[2])))
