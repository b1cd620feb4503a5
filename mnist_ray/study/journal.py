"""A study in a journal file: one JSON record a line, read strictly, appended to by one writer.

A file that is cut off within its last record has lost nothing: that record was never acknowledged.
It is cut back to its last whole record. Any other damage is named with its line, and nothing is
appended behind it.
"""

import contextlib
import functools
import io
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileOpenLock

from mnist_ray.errors import CorruptFileError, MnistRayError, WorkError, first_line
from mnist_ray.storage import RunStorage, tried_again
from mnist_ray.study.optuna_private import FIELDS, LATER, storage_of

BEGINNING = b'{"op_code"'  # of every record that Optuna writes


def whole(content: bytes) -> bytes:
    """The content without a last record that was only partly written, and without its zeros.

    A killed process and a full disk leave part of a line, a power cut zeros in its place.
    """
    rest = content.rstrip(b"\0\r\n ")
    begin = rest.rfind(b"\n") + 1
    last = rest[begin:]
    end = begin + len(last) + 1
    if not last or (content[end - 1 : end] == b"\n" and not _is_part(last)):
        return content[:end] if last else b""
    return content[:begin] if _is_part(last) or _is_record(last) else content


def _is_part(line: bytes) -> bool:
    """Whether a line can be the beginning of a record, and is not a whole one."""
    begins = line[: len(BEGINNING)] == BEGINNING[: len(line)]
    return begins and not line.endswith(b"}") and not _is_record(line)


def _is_record(line: bytes) -> bool:
    try:
        _record(line)
    except ValueError:
        return False
    return True


def _record(line: bytes) -> dict[str, Any]:
    """A line's record. Raises ValueError if it is none of Optuna's."""
    try:
        found = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, found {type(found).__name__}")
    return _checked(found)


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    code = record.get("op_code")
    if type(code) is not int or code not in FIELDS:
        raise ValueError(f"the operation {code!r} is unknown")
    for name, kinds in {"worker_id": (str,), **FIELDS[code]}.items():
        value = record.get(name, ...)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            shown = "missing" if value is ... else f"{value!r}"[:40]
            raise ValueError(f"{name} of the operation {code} is {shown}")
    return record


class _Bytes(BaseJournalBackend):
    """The records of a journal in memory, to be read only."""

    def __init__(self, content: bytes) -> None:
        self.lines, self.line = whole(content).splitlines(), 0

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(self.lines[log_number_from:], log_number_from + 1):
            self.line = number
            yield _record(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise WorkError("a copy of a study's journal cannot be written")


def read(storage: RunStorage, name: str) -> JournalStorage:
    """The studies of a journal, in memory and to be read only; none if the file is missing.

    Raises:
        CorruptFileError: names the line that is damaged.
    """
    try:
        log = _Bytes(storage.read_bytes(name))
    except FileNotFoundError:
        log = _Bytes(b"")
    with _named_line(log, storage.join(name)):
        kept = JournalStorage(log)
        _check_trials(kept)
    return kept


@contextlib.contextmanager
def _named_line(log: Any, source: str) -> Iterator[None]:
    """Any error of a damaged record, also within Optuna, as CorruptFileError."""
    try:
        yield
    except MnistRayError:
        raise
    except Exception as error:  # Optuna's replay raises any error of its types
        why = f"{type(error).__name__}: {first_line(error)}"
        why = first_line(error) if type(error) is ValueError else why
        raise CorruptFileError(
            f"{source} is damaged in line {log.line}: {why}; put back a copy of it that is whole"
        ) from error


def _check_trials(storage: JournalStorage) -> None:
    """Raises ValueError if a complete trial has no such values as its study's directions."""
    for study in storage.get_all_studies():
        key = storage.get_study_id_from_name(study.study_name)
        for trial in storage.get_all_trials(key, deepcopy=False):
            complete = trial.state == optuna.trial.TrialState.COMPLETE
            values: Iterable[Any] = trial.values or ()
            numbers = [v for v in values if isinstance(v, int | float) and not math.isnan(v)]
            if complete and not len(numbers) == len(list(values)) == len(study.directions):
                raise ValueError(f"trial {trial.number} is complete with the values {values}")


# ---- the file of a search


def journal_file(path: Path, check: Callable[[], None] | None = None) -> "Journal":
    """The journal in a local file, made if there is none.

    Args:
        path: the file.
        check: called before every writing; raises if the run is another process's by now.

    Raises:
        CorruptFileError: it is damaged; names the line.
        OSError: it can be neither read nor made.
    """
    log = FileLog(path, check or (lambda: None))
    tried_again(path.touch)
    content = tried_again(path.read_bytes)
    if whole(content) != content:
        with log.locked(), path.open("r+b") as file:  # nobody writes now
            file.truncate(len(whole(file.read())))
    with _named_line(log, str(path)):
        journal = Journal(log)
        _check_trials(journal)
    return journal


class FileLog(BaseJournalBackend):
    """Optuna's JournalFileBackend, but strict, and waiting for the disk less often.

    Optuna's passes over a damaged last line, appends behind it, and makes a new file if the old
    one is gone. It waits for the disk (fsync) after each parameter: a dozen times a trial, 2 ms
    each and more. Here all of a trial is on the disk before it is handed out (`on_disk`), after
    each epoch, and when it has ended. A killed process loses nothing: the operating system has what
    was written.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        self.check = check
        self.path, self.lock, self.line = path, JournalFileOpenLock(str(path)), 0
        self._begins = [0]  # of each line, in bytes
        self._held: list[bytes] | None = None  # lines that are written together
        self._writing = threading.Lock()  # Optuna's does not cover the end of `together`

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Writes the lines of the block that need not be on the disk at once in one go.

        One by one, the parameters of a trial are a dozen times open, lock, write and read.
        """
        self._held = []
        try:
            yield
        finally:
            with self._writing:
                held, self._held = self._held, None
                if held:
                    self._write(held, known=True)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The records from that one on, counted from 0."""
        with self._writing:
            new = log_number_from - len(self._begins) + 1
            held = self._held[new:] if self._held else None
        if held is not None:
            yield from map(_record, held)
            return
        at = self._begins[log_number_from]
        with self._named_errors():
            content = tried_again(functools.partial(self._read, at))
        for number, line in enumerate(io.BytesIO(content), log_number_from + 1):
            at += len(line)
            if not line.endswith(b"\n"):
                return  # another process is writing it
            self.line = number
            record = _record(line)
            if number == len(self._begins):
                self._begins.append(at)
            yield record

    def _read(self, begin: int) -> bytes:
        """The file's content from that byte on."""
        with self.path.open("rb") as file:
            file.seek(begin)
            return file.read()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends a line for each; waits for the disk if one of them is not of LATER."""
        lines = [f"{json.dumps(log, separators=(',', ':'))}\n".encode() for log in logs]
        later = all(log["op_code"] in LATER for log in logs)
        with self._writing:
            if self._held is None:
                self._write(lines, sync=not later)
            elif later:
                self._held += lines
            else:
                held, self._held = self._held, []
                self._write(held, known=True)
                self._write(lines, sync=True)

    def _write(self, lines: list[bytes], sync: bool = False, known: bool = False) -> None:
        """Appends lines; `known` ones were given by `read_logs` before."""
        at = end = self._begins[-1]
        place: int | None = None  # of ours in the file, once that is known
        alone = False  # whether no other process's lines are before or among ours

        def write() -> None:
            nonlocal place, alone
            with self.locked(), self._opened() as file:
                self.check()
                size = self._cut(file.fileno(), end)
                place = size if place is None else place
                there = self._held_at(file.fileno(), place, lines)  # where this is tried again
                alone = place == end and size == place + sum(map(len, lines[:there]))
                file.write(b"".join(lines[there:]))
                file.flush()
                if sync:
                    os.fsync(file.fileno())

        with self._named_errors():
            tried_again(write)
        for line in lines if known else ():
            # Behind another process's lines, as of a dashboard: those come next, then these again,
            # which does no harm.
            at += len(line)
            self._begins.append(at if alone else end)

    @staticmethod
    def _held_at(file: int, place: int, lines: list[bytes]) -> int:
        """How many of the lines the file holds from a place on: an earlier try wrote them."""
        content = os.pread(file, sum(map(len, lines)), place)
        there = 0
        for line in lines:
            if not content.startswith(line):
                break
            content, there = content[len(line) :], there + 1
        return there

    @staticmethod
    def _cut(file: int, end: int) -> int:
        """Cuts off a part of a line, and returns the size of the file.

        Another writer was killed, or its disk was full, while it wrote: ours would be glued to it.

        Args:
            file: its descriptor; nobody else writes now.
            end: where whole lines are known to end.
        """
        size = os.fstat(file).st_size
        behind = os.pread(file, max(0, size - end), end)
        whole_lines = end + behind.rfind(b"\n") + 1
        if whole_lines >= size:
            return size
        os.ftruncate(file, whole_lines)
        return whole_lines

    def sync(self) -> None:
        """Waits for the disk."""

        def wait() -> None:
            with self._opened() as file:
                os.fsync(file.fileno())

        with self._named_errors():
            tried_again(wait)

    def _opened(self) -> Any:
        """To append. A file that is gone is not made again: it would lack its beginning."""
        return open(os.open(self.path, os.O_RDWR | os.O_APPEND), "ab")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other writers out."""
        self.lock.acquire()
        try:
            yield
        finally:
            with contextlib.suppress(RuntimeError):  # gone, with the folder
                self.lock.release()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise WorkError(
                f"{self.path} is gone: it was deleted or moved while the search was at work"
            ) from error
        except OSError as error:
            raise WorkError(f"cannot write {self.path}: {error.strerror or error}") from error


class Journal(JournalStorage):
    """A study in a journal file."""

    def __init__(self, log: FileLog) -> None:
        self.log = log
        super().__init__(log)


def together(study: optuna.Study) -> contextlib.AbstractContextManager[None]:
    """See FileLog; nothing for a study on a server."""
    storage = storage_of(study)
    return storage.log.together() if isinstance(storage, Journal) else contextlib.nullcontext()


def on_disk(study: optuna.Study) -> None:
    """Returns when all that was written to the study's journal is on the disk.

    Servers see to it themselves.

    Raises:
        WorkError: the file cannot be written.
    """
    storage = storage_of(study)
    if isinstance(storage, Journal):
        storage.log.sync()
