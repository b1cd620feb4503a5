"""The errors a person can cause. Each prints as one line; anything else keeps its traceback."""

import contextlib
import os
import sysconfig
import traceback
from collections.abc import Iterator
from types import FrameType

LONGEST = 400  # characters of a message of several lines
ANNOUNCING = (":", ",", "\\")  # ends of a line that goes on in the next
BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))
STANDARD_LIBRARY = sysconfig.get_path("stdlib")


class MnistRayError(Exception):
    """Root of the errors that a job reports in one line instead of a traceback.

    It stays one line whatever the message quotes of a file, an option or another error.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(" ".join(message.splitlines()))


class SettingsError(MnistRayError):
    """A flag, file or input is wrong: names it, the value found and those allowed. Exit code 2."""

    exit_code = 2


class WorkError(MnistRayError):
    """The settings were right but the work failed. Exit code 1."""


class CaptureError(WorkError):
    """A step of training cannot be captured as a CUDA graph; torch is not fit for use after it."""


class CorruptFileError(WorkError):
    """A file of ours is not as it was written: truncated, altered, or of another format."""

    exit_code = 2


def printable(text: str) -> str:
    """The text without what a terminal would obey; it may come from a file of somebody else's."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def first_line(error: BaseException) -> str:
    """An error's message in one line; its type's name if it has none.

    A first line that only announces what follows, as a list, is joined with it.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Traceback "):
        return lines[-1]
    announces = lines[0].endswith(ANNOUNCING) or any(
        lines[0].count(opening) > lines[0].count(closing) for opening, closing in BRACKETS
    )
    return shortened(" ".join(lines), LONGEST) if announces else lines[0]


def shortened(text: str, most: int) -> str:
    """At most that many characters of a text; it tells that it was cut."""
    return text if len(text) <= most else f"{text[: most - 2].rstrip(' ,;:')} …"


def described(error: BaseException) -> str:
    """An error of a person's own code in one line: its file and line, its type and its message."""
    own = _own_frames(error)
    return f"{own[-1][0]}:{own[-1][1]}: {_what(error)}" if own else _what(error)


def reason(error: BaseException) -> str:
    """Why a trial failed, in a line: type and message, and file and line of the raising frame.

    Of several frames it is the innermost one of the person's code, else the innermost of all.
    """
    if isinstance(error, MnistRayError):
        return shortened(first_line(error), 500)
    frames = _own_frames(error) or [
        (frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    text = shortened(_what(error), 400)
    return (
        f"{text} ({'/'.join(frames[-1][0].split(os.sep)[-2:])}:{frames[-1][1]})" if frames else text
    )


def is_of_own_code(error: BaseException, below: str = "") -> bool:
    """Whether an error's traceback passes through a person's own code, no installed package.

    Args:
        error: The error, caught.
        below: A module's name: only code that it calls, perhaps by others, counts.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [frame.f_globals.get("__name__", "") for frame in frames]
    first = names.index(below) if below in names else len(names) if below else 0
    return any(map(_is_own, frames[first:]))


@contextlib.contextmanager
def own_code(called: str) -> Iterator[None]:
    """Any error of a person's own code in the block as a SettingsError of one line.

    Args:
        called: The beginning of that line: the flag, what it names, and what failed.
    """
    try:
        yield
    except MnistRayError:
        raise
    except (Exception, SystemExit) as error:
        if not is_of_own_code(error):
            raise
        raise SettingsError(f"{called}: {described(error)}") from error


def raise_if_ended(error: BaseException) -> None:
    """Raises an error again by which Ray ends this process, as after a SIGTERM.

    It is a SystemExit too, but no fault of a person's code: its work goes on in another process.
    """
    if hasattr(error, "ray_terminate_msg"):
        raise error


def _what(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"the code called sys.exit({'' if error.code is None else repr(error.code)})"
    kind, said = type(error).__name__, first_line(error)
    return kind if said == kind else f"{kind}: {said}"


def _own_frames(error: BaseException) -> list[tuple[str, int]]:
    """Files and lines of a person's own code, the innermost last."""
    own = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if _is_own(frame)
    ]
    if isinstance(error, SyntaxError) and error.filename:
        own.append((error.filename, error.lineno or 0))
    return own


def _is_own(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    ours = frame.f_globals.get("__name__", "").startswith("mnist_ray.")
    installed = any(name in file for name in ("site-packages", "dist-packages"))  # Debian's
    installed = installed or file.startswith(("<", STANDARD_LIBRARY))
    return not (ours or installed)
