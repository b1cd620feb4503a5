"""A command that was interrupted; its native code crashes while Python takes itself apart."""

import os
import signal

from mnist_ray import signals


class Native:
    """Something of an extension module."""

    def __del__(self) -> None:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)


signals.exit_at_once()
native = Native()
signals.ends_with(signals.INTERRUPTED)
print("work is done")
raise SystemExit(signals.INTERRUPTED)
