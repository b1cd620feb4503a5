"""The command line: tyro over the settings, a YAML file under the flags, errors of one line."""

import contextlib
import dataclasses
import io
import os
import re
import sys
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast, get_origin

import tyro

from mnist_ray import output
from mnist_ray.errors import MnistRayError, SettingsError, printable
from mnist_ray.settings import help
from mnist_ray.settings.options import SearchSettings
from mnist_ray.settings.refusal import refusal
from mnist_ray.settings.secrets import scrubbed
from mnist_ray.settings.text import packaged, recipes
from mnist_ray.settings.yaml_files import Written, read_yaml
from mnist_ray.signals import INTERRUPTED, ends_with, interruptible

T = TypeVar("T")
NOT_IN_A_FILE = {"config", "resume", "overwrite", "dry_run", "given"}


def main(
    cls: type[T],
    run: Callable[[T], int | None],
    *,
    argv: Sequence[str] | None = None,
    program: str | None = None,
) -> NoReturn:
    """Parses the command line, calls `run` and exits.

    The exit code is the result of `run` (None is 0), that of its error, or 130 when interrupted.

    Args:
        cls: The type of the settings.
        run: The command's function.
        argv: The words of the command line (default: those of this process).
        program: The command's name in its help and errors (default: the script's name).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no output fails for a character
            stream.reconfigure(errors="backslashreplace")
    output.print_the_log()
    name = program or Path(sys.argv[0]).name
    try:
        with interruptible():
            _check_working_directory()
            code = run(parse(cls, argv, program)) or 0
            sys.stdout.flush()
    except MnistRayError as error:
        print(f"{name}: {printable(str(error))}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        code = INTERRUPTED
    ends_with(code)
    sys.exit(code)


def _check_working_directory() -> None:
    """Raises SettingsError if it was deleted: most libraries ask for it."""
    try:
        os.getcwd()
    except OSError as error:
        raise SettingsError(
            f"the working directory cannot be used: {error.strerror}; change to another one"
        ) from error


def parse(cls: type[T], argv: Sequence[str] | None = None, program: str | None = None) -> T:
    """The settings that the command line and the YAML file named by --config give.

    Raises:
        SettingsError: A flag or key is unknown, or a value is not of its type.
        SystemExit: With code 0, after --help.
    """
    argv = _together(_several(cls), sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(argv):
        print(help.text(cls, program or f"python {sys.argv[0]}"))
        sys.exit(0)
    settings = _tyro(cls, argv)
    config = getattr(settings, "config", None)
    flags: list[str] = []
    if config is not None:
        flags = yaml_as_flags(cls, config)
        from_file = _tyro(cls, flags, where=f"{config}: ")
        settings = _tyro(cls, argv, from_file)
    if isinstance(settings, SearchSettings):
        given = {
            word.split("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
            for word in flags + argv
            if word.startswith("--")
        }
        names = {f.name for f in dataclasses.fields(settings)}
        settings = dataclasses.replace(settings, given=frozenset(given & names))
    return settings


def search_settings(**options: Any) -> SearchSettings:
    """The settings of a search that keywords give; `config` names a YAML file that lies under them.

    Raises:
        SettingsError: An option or key is unknown, or a value is not of its type.
    """
    over = SearchSettings.of(**options)
    if over.config is None:
        return over
    under = parse(SearchSettings, ["--config", over.config])
    values = {name: getattr(over, name) for name in options}
    return dataclasses.replace(under, **values, given=under.given | over.given)


def yaml_as_flags(cls: type[Any], path: str) -> list[str]:
    """A YAML file of options as the flags that mean the same: both are checked by the same rules.

    Raises:
        SettingsError: The file cannot be read, or names an option that does not exist.
    """
    known = {f.name for f in dataclasses.fields(cls)} - NOT_IN_A_FILE
    file = packaged(path)
    if file == path and re.fullmatch(r"[\w-]+", path) and not os.path.exists(path):
        raise SettingsError(
            f"--config: {path!r} is neither a recipe nor a file; recipes are {', '.join(recipes())}"
        )
    flags: list[str] = []
    for key, value in read_yaml(file, Written).items():
        if key not in known:
            raise SettingsError(
                f"{path}: unknown key {key!r}; allowed are {', '.join(sorted(known))}"
            )
        flag = "--" + key.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, Mapping):
            flags += [flag, *(f"{k}={_in_one(v)}" for k, v in value.items())]
        elif isinstance(value, list):
            flags += [flag, *map(_in_one, value)]
        else:
            flags.append(f"{flag}={value}")
    return flags


def _in_one(value: Any) -> str:
    """A value of a YAML file as one text; a list in brackets, without quotation marks."""
    return f"[{', '.join(map(_in_one, value))}]" if isinstance(value, list) else str(value)


def _several(cls: type[Any]) -> set[str]:
    """The flags that take several values."""
    kinds = typing.get_type_hints(cls).items()
    return {f"--{name.replace('_', '-')}" for name, kind in kinds if get_origin(kind) is tuple}


def _together(flags: Collection[str], argv: Sequence[str]) -> list[str]:
    """The words with all values of a flag that is repeated behind one, at the end."""
    others: list[str] = []
    values: dict[str, list[str]] = {}
    to = others
    for word in argv:
        name, equals, value = word.partition("=")
        flag = name.replace("_", "-")
        if name.startswith("--") and flag in flags:
            to = values.setdefault(flag, [])
            to += [value] if equals else []
        else:
            to = others if word.startswith("--") else to
            to.append(word)
    return [*others, *(word for flag, found in values.items() for word in (flag, *found))]


def _tyro(cls: type[T], argv: Sequence[str], default: T | None = None, where: str = "") -> T:
    """tyro.cli, with its error as one line."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return cast(T, tyro.cli(cls, args=argv, default=default, add_help=False))
    except SystemExit:
        found = refusal(cls, argv, shown.getvalue())
        raise SettingsError(where + scrubbed(found, *argv)) from None
