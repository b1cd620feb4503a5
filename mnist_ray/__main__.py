"""The doors: `mnist-ray COMMAND …`, `python -m mnist_ray COMMAND …`, `python jobs/COMMAND.py …`.

An interrupt ends a command in order from its first import on, so that signals come first.
"""

import importlib
from typing import Any, NoReturn

from mnist_ray import output, signals


def _cli() -> Any:
    signals.exit_at_once()
    return importlib.import_module("mnist_ray.cli")


def console() -> NoReturn:
    """Does what `mnist-ray` is called for, and exits."""
    with output.exit_if_lost():
        _cli().console()
    raise AssertionError


def job(name: str) -> NoReturn:
    """Does what `jobs/NAME.py` is called for, and exits."""
    with output.exit_if_lost():
        _cli().job(name)
    raise AssertionError


if __name__ == "__main__":
    console()
