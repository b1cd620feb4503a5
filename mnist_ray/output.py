"""A command's output: what is logged is printed, and what happens where it cannot be written."""

import _thread
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator

from mnist_ray.errors import printable

NOBODY_READS = 128 + signal.SIGPIPE  # as a shell names the end of a command before `| head`


def open_streams() -> None:
    """Gives each standard stream that is closed, as by `>&-`, the null device.

    Else the next file that is opened would get its number, and what libraries write to it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the smallest number that is free
        if getattr(sys, name) is None:
            stream = open(os.devnull, "w" if number else "r")  # noqa: SIM115 (until the end)
            setattr(sys, name, stream)


@contextlib.contextmanager
def exit_if_lost() -> Iterator[None]:
    """Ends a command without a traceback if its output fails.

    If nobody reads on, as after `mnist-ray predict … | head`, silently and with 141. For any other
    reason, as a full disk, with a line and 1.
    """
    open_streams()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError:
        sys.exit(_code_of_output())


@contextlib.contextmanager
def interrupt_if_lost() -> Iterator[None]:
    """Interrupts a job in order if the lines that are printed within fail.

    Its trials are kept, and the failure is not taken for one of the storage.
    """
    try:
        yield
    except OSError:
        _discard_the_rest()
        _thread.interrupt_main()


def _discard_the_rest() -> None:
    """Sends later output to the null device, or Python would complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _code_of_output() -> int:
    """The exit code; raises the error that is handled if the output is not its reason."""
    try:
        print(flush=True)  # an empty line does no harm before a traceback
    except OSError as error:
        _discard_the_rest()
        if isinstance(error, BrokenPipeError):
            return NOBODY_READS
        with contextlib.suppress(OSError):
            print(f"the output cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    raise


class _Printed(logging.Handler):
    """Prints what this package logs: notes as output, warnings as errors."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one line. It may name a file, or quote one."""
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        with interrupt_if_lost():
            print(printable(self.format(record)), file=stream, flush=True)


def print_the_log(*, unless_handled: bool = False) -> None:
    """Prints from now on what this package logs, unless the caller has a handler that gets it."""
    package = logging.getLogger("mnist_ray")
    if unless_handled and package.hasHandlers():
        return
    if not any(isinstance(handler, _Printed) for handler in package.handlers):
        package.addHandler(_Printed())
        package.setLevel(logging.INFO)
