"""Holds the lease of a search for so many seconds, with short times, and says how that ended."""

import sys
import time

from mnist_ray.errors import MnistRayError
from mnist_ray.run import lease
from mnist_ray.signals import interruptible
from mnist_ray.storage import RunStorage

lease.BEAT, lease.SILENT = 0.2, 2.0
try:
    with interruptible(), lease.held(RunStorage(sys.argv[1]), "search"):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
    print("done")
except MnistRayError as error:
    sys.exit(f"{type(error).__name__}: {error}")
