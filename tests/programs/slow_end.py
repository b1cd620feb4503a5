"""A command that has done all its work, and takes a while to be taken apart by Python."""

import atexit
import time
from typing import Any

from mnist_ray import signals


class Slow:
    """Something of an extension module."""

    def __del__(self, sleep: Any = time.sleep, write: Any = print) -> None:
        write("ending", flush=True)
        sleep(2)


signals.exit_at_once()
atexit.register(print, "work is done", flush=True)
slow = Slow()
signals.ends_with(3)
raise SystemExit(3)
