"""Ctrl-C, SIGTERM and SIGHUP end a command in the same way, from its first import to its last line.

A command has three parts. Until its settings are read, nothing has been started: an interrupt ends
it at once (`exit_at_once`). While it works, an interrupt is a KeyboardInterrupt, and everything is
put in order (`interruptible`). After its last line it ends with the exit code that it has by then
(`ends_with`).
"""

import atexit
import contextlib
import errno
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

INTERRUPTED = 130  # exit code after Ctrl-C, SIGTERM or SIGHUP, as shells have it
IMPORT_SECONDS = 5.0  # that an interrupt waits for an import
SAME_SECONDS = 0.5  # in which further signals are the same interrupt
# Modules in which it waits: an import turns it into an ImportError, and what logging does at each
# fork, as when Ray starts its processes, has its exceptions swallowed.
WAITS_FOR = ("importlib._bootstrap", "logging")

Handler = Callable[[int, FrameType | None], None]
_raised: list[float] = []  # when interrupts were raised, since the last block was entered
_code: list[int] = []  # the exit code of a command after its last line


def exit_at_once() -> None:
    """Has an interrupt end the process with a line and exit code 130."""
    _install(_exit)
    atexit.register(_end, _is_whole_program())  # so early that it runs last


def _is_whole_program() -> bool:
    """Whether the process was started for the command: it may be a notebook's or a script's."""
    callers, frame = [], sys._getframe(1)
    while frame := frame.f_back:  # type: ignore[assignment]
        callers.append(frame.f_code.co_name)
    outermost = callers[callers.index("<module>") :] if "<module>" in callers else callers
    return outermost in (["<module>"], ["<module>", "_run_code", "_run_module_as_main"])


def _end(whole: bool) -> None:
    """Python's last act takes all handlers away: a signal would then change the exit code.

    After an interrupt that act is left out. Ray's native code may crash in it, if it was
    interrupted while it started.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if whole and _code == [INTERRUPTED]:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(_code[-1])


def ends_with(code: int) -> None:
    """Has an interrupt end a command, which has done all its work, with this exit code."""
    _code.append(code)


def _exit(number: int, frame: FrameType | None) -> None:
    if not _code:
        _leave_terminal(number)
        name = os.path.basename(sys.argv[0]) if sys.argv else "mnist-ray"
        with contextlib.suppress(OSError):
            os.write(2, f"{name}: interrupted\n".encode())
    os._exit(_code[-1] if _code else INTERRUPTED)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM (`ray job stop`) and SIGHUP (a closed terminal) raise KeyboardInterrupt as Ctrl-C.

    Each waits for the end of an import or of a line of the log that it falls into (IMPORT_SECONDS
    at most, see WAITS_FOR). Signals that follow at once are ignored: timeout(1) sends two, and the
    second would break the locks that the first one leaves. Outside the main thread nothing is
    changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[float] = []
    _raised.clear()

    def interrupt(number: int, frame: FrameType | None) -> None:
        _leave_terminal(number)
        came.append(time.monotonic())
        if _raised and came[-1] - _raised[-1] < SAME_SECONDS:
            return
        while frame is not None and frame.f_globals.get("__name__") not in WAITS_FOR:
            frame = frame.f_back
        if frame is None or came[-1] - came[0] > IMPORT_SECONDS:
            _raised.append(came[-1])
            raise KeyboardInterrupt
        again = threading.Timer(0.05, signal.pthread_kill, (threading.get_ident(), number))
        again.daemon = True
        again.start()

    previous = _install(interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _install(handler: Handler) -> dict[signal.Signals, Handler | int | None]:
    """Sets the handler of the three signals; returns those before."""
    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, handler)}
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell or nohup has it
            previous[number] = signal.signal(number, handler)
    return previous


def _leave_terminal(number: int) -> None:
    """Sends output nowhere if its terminal is gone: a line that cannot be printed is no error."""
    if number != signal.SIGHUP:
        return
    for file in (1, 2):
        try:
            termios.tcgetattr(file)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), file)
