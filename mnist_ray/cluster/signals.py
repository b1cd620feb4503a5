"""Ctrl-C, SIGTERM and SIGHUP end a job in the same way."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

IMPORT_SECONDS = 5.0  # that an interrupt waits for an import


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM (`ray job stop`) and SIGHUP (a closed terminal) raise KeyboardInterrupt as Ctrl-C.

    Each waits for the end of an import that it falls into (IMPORT_SECONDS at most): extension
    modules turn it into an ImportError. Outside the main thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[float] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(time.monotonic())
        while frame is not None and frame.f_globals.get("__name__") != "importlib._bootstrap":
            frame = frame.f_back
        if frame is None or came[-1] - came[0] > IMPORT_SECONDS:
            raise KeyboardInterrupt
        again = threading.Timer(0.05, signal.pthread_kill, (threading.get_ident(), number))
        again.daemon = True
        again.start()

    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, interrupt)}
    # Not where a shell or nohup has them ignored.
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) in (usual, interrupt):
            previous[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
