"""The storage of a study: a file, a database, Redis or memory.

A server may be away for a while, and a password is shown and kept nowhere.
"""

import contextlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from optuna.storages import BaseStorage, InMemoryStorage

from mnist_ray.errors import CorruptFileError, SettingsError, first_line
from mnist_ray.settings import masked, scrubbed
from mnist_ray.settings.secrets import HIDDEN, check_unambiguous
from mnist_ray.study.journal import journal_file

ALLOWED = "sqlite:///FILE, postgresql://…, mysql://…, redis://…, FILE.journal or memory"
# Kind of database, which is also the name of this package's extra, and its Python module.
DRIVERS = {"sqlite": "sqlite3", "postgresql": "psycopg2", "mysql": "pymysql", "redis": "redis"}
ALIASES = {"postgres": "postgresql", "mariadb": "mysql", "rediss": "redis"}
SCHEMES = {*DRIVERS, *ALIASES}

Refuse = Callable[[str], NoReturn]


@contextlib.contextmanager
def opened(place: str, flag: str = "--study", *, new: bool = True) -> Iterator[BaseStorage]:
    """Optuna's storage at a URL, a FILE.journal or "memory".

    Args:
        place: ${VAR} in it stands for an environment variable's value.
        flag: the option that named the place, for the messages.
        new: whether a file that is missing is made.

    Raises:
        SettingsError: the place is unknown, its driver or file is missing, or nothing answers
            there.
    """
    url = expanded(place, flag)
    shown = masked(url)
    scheme, separator, rest = url.partition("://")
    kind, _, driver = scheme.partition("+")
    kind = ALIASES.get(kind, kind) if separator else ""

    def refuse(why: str) -> NoReturn:
        raise SettingsError(f"{flag}: {shown} cannot be opened: {scrubbed(why, url)}")

    if not new and (file := file_of(url)) is not None and not file.is_file():
        raise SettingsError(f"{flag}: {shown}: there is no such file")
    if url == "memory":
        yield InMemoryStorage()
    elif url.endswith(".journal") and not separator:
        yield _existing_or_new_journal(Path(url), refuse)
    elif kind not in DRIVERS or (kind == "sqlite" and rest in ("", "/", "/:memory:")):
        raise SettingsError(f"{flag}: {shown!r} is not allowed; expected {ALLOWED}")
    else:
        if not driver and importlib.util.find_spec(DRIVERS[kind]) is None:
            refuse(f"the package {DRIVERS[kind]} is missing; pip install 'mnist_ray[{kind}]'")
        from mnist_ray.study import servers  # noqa: PLC0415 (seconds at start)

        if kind not in ("redis", "sqlite"):
            url = f"{kind}+{driver or DRIVERS[kind]}://{rest}"
        with servers.opened(url, shown, refuse) as storage:
            yield storage


def file_of(place: str) -> Path | None:
    """The file of a journal or an SQLite database, which would make a missing one; else None."""
    scheme, separator, rest = place.partition("://")
    if not separator:
        return Path(place) if place.endswith(".journal") else None
    path = rest.partition("?")[0].removeprefix("/")
    is_path = scheme.partition("+")[0] == "sqlite" and path and not path.startswith("file:")
    return Path(path) if is_path else None


def expanded(place: str, flag: str) -> str:
    """The text with each ${VAR} replaced by that environment variable's value.

    Raises:
        SettingsError: a variable is missing, or the password is, or its end cannot be told.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise SettingsError(
                f"{flag}: {masked(place)}: the environment variable {match[1]} is not set"
            )
        return os.environ[match[1]]

    if HIDDEN in place and "://" in place:
        raise SettingsError(
            f"{flag}: the password of {place} is kept nowhere: "
            "give it again, best as ${VAR} of the environment"
        )
    url = re.sub(r"\$\{(\w+)\}", value, place)
    check_unambiguous(url, flag)
    return url


# ---- a file


def _existing_or_new_journal(path: Path, refuse: Refuse) -> BaseStorage:
    if not path.parent.is_dir():
        refuse("its folder does not exist")
    try:
        return journal_file(path)
    except (OSError, CorruptFileError) as error:
        refuse(first_line(error))
