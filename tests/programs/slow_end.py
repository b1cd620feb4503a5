"""A command that has done all its work, and takes a while to end."""

import atexit
import time

from mnist_ray import signals


def slowly() -> None:
    """Something that a library has registered."""
    print("ending", flush=True)
    time.sleep(2)


signals.exit_at_once()
atexit.register(slowly)
signals.ends_with(3)
raise SystemExit(3)
