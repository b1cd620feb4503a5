"""A run's directory, local or not: names are checked, and failures are tried again."""

import errno
import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mnist_ray.errors import CorruptFileError, SettingsError, WorkError
from mnist_ray.storage.address import check_run_name, is_inside, parse
from mnist_ray.storage.folder import Folder
from mnist_ray.storage.object_store import Bucket, StoreError

T = TypeVar("T")
Names = list[str]  # within RunStorage, `list` is the method

RETRY_SECONDS = 60.0  # MNIST_RAY_STORAGE_RETRY_SECONDS overrides it
CHECK_SECONDS = 10.0  # a mistyped address must not cost a minute
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0

# Errors that pass by themselves on a network file system.
_TRANSIENT = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EBUSY,
    errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNRESET, errno.ECONNREFUSED, errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}  # fmt: skip


class RunStorage:
    """A directory: a local path, `file://`, `s3://bucket/prefix`, `gs://…` or `az://container/…`.

    A server of one's own: `s3://bucket/prefix?endpoint_override=HOST:PORT&scheme=http`. Keys come
    from the environment, the clouds' own files or IAM. It can be pickled: the URI alone travels.

    Every operation is repeated on errors that may pass (network, overload) with growing pauses for
    RETRY_SECONDS, then raises WorkError. Missing files, permissions and a full disk are reported at
    once.

    Args:
        uri: a relative path is made absolute; a URI that carries a key is refused, since URIs are
            printed and written down.

    Raises:
        SettingsError: the URI is not allowed; names `--storage`.

    Example:
        >>> run = RunStorage("s3://bucket/runs/first")
        >>> run.write_json("run.json", {"state": "done"})
        >>> run.list()
        ['run.json']
    """

    def __init__(self, uri: str) -> None:
        self._address = parse(uri)
        self.uri = self._address.uri

    def __reduce__(self) -> tuple[Any, ...]:
        return RunStorage, (self.uri,)

    def __repr__(self) -> str:
        return f"RunStorage({self.uri!r})"

    @functools.cached_property
    def _place(self) -> Folder | Bucket:
        return Folder(Path(self._address.path)) if self.is_local else Bucket(self._address)

    @classmethod
    def existing(cls, uri: str) -> "RunStorage":
        """A directory that another process has made: if it is gone, no write makes it again."""
        storage = cls(uri)
        if isinstance(storage._place, Folder):
            storage._place.is_made = True
        return storage

    @property
    def is_local(self) -> bool:
        """Whether it is a directory of a mounted file system."""
        return self._address.is_local

    @property
    def local_path(self) -> Path | None:
        """The directory, absolute; None in an object store."""
        return Path(self._address.path) if self.is_local else None

    def join(self, name: str) -> str:
        """URI of a file of this directory, to print or to open elsewhere."""
        return self._address.join(name) if is_inside(name) else self.uri

    def below(self, name: str) -> "RunStorage":
        """A folder of it. Whoever may write here may write there."""
        return RunStorage(self.join(name))

    def check(self) -> None:
        """Raises WorkError if this process may not write here: see OwnedStorage."""

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or directory of this name."""
        return self._retry("look at", name, lambda: self._place.exists(name))

    def read_bytes(self, name: str, *, at_most: float = float("inf")) -> bytes:
        """The whole content.

        Args:
            name: the file.
            at_most: seconds in which it is tried again, if RETRY_SECONDS are too long.

        Raises:
            FileNotFoundError: it is missing.
            WorkError: it cannot be read.
        """
        read = functools.partial(self._place.read, name)
        return self._retry("read", name, read, missing_raises=True, at_most=at_most)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file whole; a reader meanwhile gets the old or the new one."""
        self._retry("write", name, lambda: self._place.write(name, data))

    def read_json(self, name: str) -> Any:
        """A JSON file's value. Raises FileNotFoundError, or CorruptFileError if it is not JSON."""
        return self._parsed(name, self.read_bytes(name))

    def _parsed(self, name: str, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise CorruptFileError(f"{self.join(name)} is not JSON: {error}") from error

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as UTF-8 JSON, keys in their own order. Raises ValueError for NaN."""
        self.write_bytes(name, _json(value))

    def change_json(self, name: str, change: Callable[[Any], Any]) -> Any:
        """Replace a JSON file's value by `change` of it; of several that do so none is lost.

        Returns:
            The new value.

        Raises:
            FileNotFoundError: it is missing.
            CorruptFileError: it is not JSON.
        """
        while True:
            content = self.read_bytes(name)
            value = change(self._parsed(name, content))
            data = _json(value)
            if data == content or self.replace_exclusive(name, content, data):
                return value

    def list(self, name: str = "") -> Names:
        """Names, relative to this directory, of all files below `name`, sorted."""
        return sorted(self._retry("list", name, lambda: self._place.names(name)))

    def delete(self, name: str) -> None:
        """Remove a file, or a directory with all in it ("" is this one); missing is fine."""
        if name == "" and not self._address.path.strip("/"):
            raise ValueError(f"will not delete all of {self.uri}")
        self._retry("delete", name, lambda: self._place.delete(name))

    def sweep(self) -> None:
        """Remove what processes that were killed had only just begun to write."""
        if isinstance(self._place, Folder):
            self._place.sweep()

    def create_exclusive(self, name: str, data: bytes) -> bool:
        """Write a file if there is none of this name: of several writers one gets True.

        Their `data` must differ: one whose answer was lost knows its own file by it. It is certain
        except in object stores that ignore the condition `If-None-Match`.
        """
        attempts = 0

        def create() -> bool:
            nonlocal attempts
            attempts += 1
            made = self._place.create(name, data)
            return made or (attempts > 1 and self._place.read(name) == data)

        return self._retry("create", name, create)

    def replace_exclusive(self, name: str, expected: bytes, data: bytes | None) -> bool:
        """Replace a file only while it holds `expected`: of several writers one gets True.

        Args:
            name: the file.
            expected: its content as this writer read it.
            data: the new content, other than any other's; None removes the file, which in an object
                store is certain only while nobody replaces it.
        """
        return self._retry("write", name, lambda: self._place.replace(name, expected, data))

    def _retry(
        self,
        doing: str,
        name: str,
        action: Callable[[], T],
        *,
        missing_raises: bool = False,
        at_most: float = float("inf"),
    ) -> T:
        is_inside(name)
        try:
            return tried_again(action, at_most)
        except OSError as error:
            if missing_raises and isinstance(error, FileNotFoundError):
                raise FileNotFoundError(
                    errno.ENOENT, "there is no such file", self.join(name)
                ) from error
            reason = error.strerror or str(error) or type(error).__name__
            raise WorkError(f"cannot {doing} {self.join(name)}: {reason}") from error


class OwnedStorage(RunStorage):
    """A run's directory as its owner writes it: nothing more once another process has taken it.

    Before every write the owner's mark is read. A write that was held up after that, as of a
    suspended process, has no effect if another has written the file meanwhile. (Removals, and
    objects of an object store above 5 MB, are checked before they are sent and not then.)

    Args:
        uri: the run's directory, which exists.
        mark: the file that tells the owner.
        check: is given its content, or None, and raises if the run is another's.
    """

    def __init__(self, uri: str, mark: str, check: Callable[[bytes | None], None]) -> None:
        super().__init__(uri)
        self._mark, self._check_mark = mark, check
        self._guard = self._place  # holds the mark
        if isinstance(self._place, Folder):
            self._place.is_made = True

    def below(self, name: str) -> "OwnedStorage":
        """A folder of it, which need not exist yet."""
        made = OwnedStorage(self.join(name), self._mark, self._check_mark)
        made._guard = self._guard
        if isinstance(made._place, Folder):
            made._place.is_made = False
        return made

    def check(self) -> None:
        """Raises WorkError if the run is another's."""
        self._retry("read", self._mark, self._check)

    def _check(self) -> None:
        try:
            content = self._guard.read(self._mark)
        except FileNotFoundError:
            content = None
        self._check_mark(content)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file whole."""

        def write() -> None:
            version = self._place.version(name)
            self._check()
            if not self._place.write_if(name, data, version):
                # Tried again, and only if the run is not theirs by now.
                raise BlockingIOError(errno.EAGAIN, "another process writes it")

        self._retry("write", name, write)

    def delete(self, name: str) -> None:
        """Remove a file, or a directory with all in it."""
        self.check()
        super().delete(name)

    def create_exclusive(self, name: str, data: bytes) -> bool:
        """Write a file if there is none of this name."""
        self.check()
        return super().create_exclusive(name, data)

    def replace_exclusive(self, name: str, expected: bytes, data: bytes | None) -> bool:
        """Replace a file only while it holds `expected`."""
        self.check()
        return super().replace_exclusive(name, expected, data)


def tried_again(action: Callable[[], T], at_most: float = float("inf")) -> T:
    """What the action gives; it is repeated, with pauses, on errors that may pass.

    Args:
        action: one that may be repeated.
        at_most: seconds in which it is, if RETRY_SECONDS are too long.

    Raises:
        OSError: it does not pass, or not in time.
    """
    deadline = time.monotonic() + min(_retry_seconds(), at_most)
    pause = FIRST_PAUSE
    while True:
        try:
            return action()
        except OSError as error:
            if not _may_pass(error) or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


def open_run(storage: str, name: str) -> RunStorage:
    """The directory of the run `name` below `storage`; makes nothing yet.

    Raises:
        SettingsError: names `--name` or `--storage`.
    """
    check_run_name(name)
    return RunStorage(RunStorage(storage).join(name))


def check_writable(storage: str) -> None:
    """Write and delete a small file there; leaves nothing behind, no new directory either.

    Raises:
        SettingsError: names `--storage` and the system's answer.
    """
    run = RunStorage(storage)
    try:
        run._retry("write to", "", lambda: run._place.probe(), at_most=CHECK_SECONDS)
    except WorkError as error:
        raise SettingsError(f"--storage: {error}") from error


def _json(value: Any) -> bytes:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        return f"{text}\n".encode()
    except UnicodeEncodeError:  # a word of the command that is no UTF-8
        return f"{json.dumps(value, indent=1, allow_nan=False)}\n".encode()


def _retry_seconds() -> float:
    text = os.environ.get("MNIST_RAY_STORAGE_RETRY_SECONDS", "")
    try:
        seconds = float(text) if text else RETRY_SECONDS
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:  # also NaN
        raise SettingsError(
            f"MNIST_RAY_STORAGE_RETRY_SECONDS={text}: a number of seconds, 0 or more, is needed"
        )
    return seconds


def _may_pass(error: OSError) -> bool:
    return error.may_pass if isinstance(error, StoreError) else error.errno in _TRANSIENT
