"""The errors a person can cause. Each prints as one line; anything else keeps its traceback."""


class MnistRayError(Exception):
    """Root of the errors that a job reports in one line instead of a traceback."""

    exit_code = 1


class SettingsError(MnistRayError):
    """A flag, file or input is wrong: names it, says what was found and what is allowed. Exit code 2."""

    exit_code = 2


class WorkError(MnistRayError):
    """The settings were right but the work failed. Exit code 1."""


class CorruptFileError(WorkError):
    """A file of ours does not hold what was written: truncated, altered, or of another format."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type's name where it says nothing."""
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )
