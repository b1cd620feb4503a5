"""Where a study lives: a file, a database, Redis or memory.

A server may be away for a while, and a password is shown and kept nowhere.
"""

import contextlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from mnist_ray.errors import SettingsError, WorkError, first_line
from mnist_ray.settings import masked, scrubbed
from mnist_ray.settings.secrets import HIDDEN, check_unambiguous
from mnist_ray.study.optuna_private import LATER, storage_of

ALLOWED = "sqlite:///FILE, postgresql://…, mysql://…, redis://…, FILE.journal or memory"
# Kind of database, which is also the name of this package's extra, and its Python module.
DRIVERS = {"sqlite": "sqlite3", "postgresql": "psycopg2", "mysql": "pymysql", "redis": "redis"}
ALIASES = {"postgres": "postgresql", "mariadb": "mysql", "rediss": "redis"}
SCHEMES = {*DRIVERS, *ALIASES}

Refuse = Callable[[str], NoReturn]


@contextlib.contextmanager
def opened(place: str, flag: str = "--study") -> Iterator[BaseStorage]:
    """Optuna's storage at a URL, a FILE.journal or "memory".

    Args:
        place: ${VAR} in it stands for an environment variable's value.
        flag: the option that named the place, for the messages.

    Raises:
        SettingsError: the place is unknown, its driver is missing, or nothing answers there.
    """
    url = expanded(place, flag)
    shown = masked(url)
    scheme, separator, rest = url.partition("://")
    kind, _, driver = scheme.partition("+")
    kind = ALIASES.get(kind, kind) if separator else ""

    def refuse(why: str) -> NoReturn:
        raise SettingsError(f"{flag}: {shown} cannot be opened: {scrubbed(why, url)}")

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
    except (OSError, ValueError, KeyError, TypeError) as error:
        refuse(f"it is no journal of Optuna's: {first_line(error)}")


def journal_file(path: Path) -> "Journal":
    """The journal in a local file, made if there is none.

    An incomplete last line, which a full disk or a killed process leaves, is cut off.
    """
    log = FileLog(path)
    if _torn(path.read_bytes()):
        with log.locked(), path.open("r+b") as file:  # nobody writes now
            content = file.read()
            if _torn(content):
                file.truncate(content.rfind(b"\n") + 1)
    return Journal(log)


def _torn(content: bytes) -> bool:
    """Whether it is a journal without the end of its last line."""
    beginning = b'{"op_code"'
    return (
        content != b""
        and not content.endswith(b"\n")
        and content[: len(beginning)] == beginning[: len(content)]
    )


class FileLog(JournalFileBackend):
    """Optuna's, naming the file where it cannot be written, and waiting for the disk less often.

    Optuna's waits for it (fsync) after each parameter: a dozen times a trial, 2 ms each and more.
    Here all of a trial is on the disk before it is handed out (`on_disk`), after each epoch, and
    when it has ended. A killed process loses nothing: the operating system has what was written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, JournalFileOpenLock(str(path))
        super().__init__(str(path), lock_obj=self.lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends a line for each; waits for the disk where one of them is not of LATER."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._named_errors(), self.locked(), self.path.open("ab") as file:
            file.write(lines.encode())
            file.flush()
            if any(log["op_code"] not in LATER for log in logs):
                os.fsync(file.fileno())

    def sync(self) -> None:
        """Waits for the disk."""
        with self._named_errors(), self.path.open("ab") as file:
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other writers out."""
        self.lock.acquire()
        try:
            yield
        finally:
            self.lock.release()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WorkError(f"cannot write {self.path}: {error.strerror or error}") from error


class Journal(JournalStorage):
    """A study in a journal file."""

    def __init__(self, log: FileLog) -> None:
        self.log = log
        super().__init__(log)


def on_disk(study: optuna.Study) -> None:
    """Returns when all that was written to the study's journal is on the disk.

    Servers see to it themselves.

    Raises:
        WorkError: the file cannot be written.
    """
    storage = storage_of(study)
    if isinstance(storage, Journal):
        storage.log.sync()
