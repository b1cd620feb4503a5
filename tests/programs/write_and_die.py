"""Writes `model.onnx` in a folder, and is killed when the data are in the temporary file."""

import os
import signal
import sys

from mnist_ray.storage import RunStorage


def die(fd: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


os.fsync = die
RunStorage(sys.argv[1]).write_bytes("model.onnx", b"new" * 1_000_000)
