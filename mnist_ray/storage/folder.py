"""A run's directory on a local or network disk."""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mnist_ray import processes

TEMPORARY = ".tmp-"  # how the name of a file begins that is only just being written
LEFT_SECONDS = 86_400.0  # after which another machine's temporary file counts as left behind

LOCK_PAUSES = (0.01,) * 20  # seconds; a lock is held for one write

Version = tuple[int, int, int]  # device, number and time of a file

# File systems that have no hard links.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class Folder:
    """Files appear whole or not at all: by a temporary file and a rename or a link.

    Names are checked by the caller, "" is the directory itself. All methods raise OSError;
    FileNotFoundError means that a file is missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._swept: set[Path] = set()
        self.is_made = False

    def exists(self, name: str) -> bool:
        """Whether there is a file or directory."""
        return _exists(self._within(name))

    def read(self, name: str) -> bytes:
        """The whole content of a regular file; a pipe would be waited for, a device never end."""
        descriptor = os.open(self._within(name), os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if stat.S_ISDIR(mode := os.fstat(descriptor).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(mode):
                raise OSError(errno.EINVAL, "it is no regular file")
            return file.read()

    def _within(self, name: str, *, of: str | None = None) -> Path:
        """The path of a name.

        A run may come from elsewhere, and hold links: what lies outside is not reached by one.

        Args:
            name: A file or directory below this one.
            of: What is looked at instead, where a link of that name is itself removed or replaced.

        Raises:
            OSError: A link leads out of this directory.
        """
        root, found = (
            os.path.realpath(self.root / part) for part in ("", name if of is None else of)
        )
        if found != root and not found.startswith(root.rstrip(os.sep) + os.sep):
            raise OSError(errno.ELOOP, "a link leads out of the directory")
        return self.root / name

    def _own(self, name: str) -> Path:
        """The path of a name whose link, if it is one, is meant itself."""
        return self._within(name, of=os.path.dirname(name))

    def write(self, name: str, data: bytes) -> None:
        """Write a file, replacing one of that name."""
        path = self._own(name)
        self._refuse_where_gone()
        with self._temporary(path, data) as temporary:
            os.replace(temporary, path)
        _sync(path.parent)

    def _refuse_where_gone(self) -> None:
        """Raises FileNotFoundError if the directory was there, and was deleted or moved.

        A writing process must not make it again: the run's name would be taken by a part of it.
        """
        if self.root.is_dir():
            self.is_made = True
        elif self.is_made:
            raise FileNotFoundError(errno.ENOENT, "its folder was deleted or moved")

    def create(self, name: str, data: bytes) -> bool:
        """Write a file if there is none of this name."""
        path = self._own(name)
        if os.path.lexists(path):
            return False
        with self._temporary(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                with suppress(FileExistsError), path.open("xb"):
                    os.replace(temporary, path)
                    return True
                return False
        _sync(path.parent)
        return True

    def replace(self, name: str, expected: bytes, data: bytes | None) -> bool:
        """Replace a file, or remove it (None), only while it holds `expected`.

        A process that replaces a file so has locked it, and looked that it still has its name.
        """
        path = self._within(name)
        while True:
            try:
                descriptor = _open_to_lock(path)
            except FileNotFoundError:
                return False
            with open(descriptor, "rb") as file:
                _lock(descriptor)
                if not _is_at(descriptor, path):
                    continue  # replaced meanwhile
                if file.read() != expected:
                    return False
                if data is None:
                    path.unlink()
                else:
                    self.write(name, data)
                return True

    def version(self, name: str) -> Version | None:
        """Tells a file from those that had its name before and after; None if there is none."""
        try:
            return _version(os.lstat(self._own(name)))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write_if(self, name: str, data: bytes, version: Any) -> bool:
        """Write a file only while it has this version."""
        path = self._own(name)
        self._refuse_where_gone()
        if version is None:
            return self.create(name, data)
        if path.is_symlink():  # it is replaced itself
            self.write(name, data)
            return True
        try:
            descriptor = _open_to_lock(path)
        except FileNotFoundError:
            return False
        with open(descriptor, "rb"):
            _lock(descriptor)
            if not _is_at(descriptor, path) or _version(os.fstat(descriptor)) != version:
                return False
            self.write(name, data)
            return True

    def names(self, name: str) -> list[str]:
        """All files below, relative to this directory."""
        return [
            os.path.relpath(os.path.join(parent, file), self.root)
            for parent, _, files in os.walk(self._within(name), onerror=_unless_missing)
            for file in files
            if not file.startswith(TEMPORARY)
        ]

    def delete(self, name: str) -> None:
        """Remove a file, or a directory with all that is in it."""
        path = self._own(name)
        with suppress(FileNotFoundError, NotADirectoryError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def sweep(self) -> None:
        """Remove what processes that were killed had only just begun to write."""
        for parent, _, _ in os.walk(self.root):
            _sweep(Path(parent))

    def probe(self) -> None:
        """Write and remove a file in the deepest directory of the path that exists."""
        with suppress(FileNotFoundError):
            self.root.stat()  # a file within the path, a name too long, a loop of links
        existing = self.root
        while not os.path.lexists(existing):
            existing = existing.parent
        folder = existing / f".mnist_ray-{secrets.token_hex(8)}"
        try:
            folder.mkdir(mode=0o700)
            Folder(folder).write("probe", b"probe")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _temporary(self, path: Path, data: bytes) -> Iterator[Path]:
        """A file beside `path` that holds the data, on the disk; gone at the end."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.is_made = True
        if path.parent not in self._swept:
            self._swept.add(path.parent)
            _sweep(path.parent)
        mark = f"{TEMPORARY}{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
        temporary = path.with_name(mark)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _version(about: os.stat_result) -> Version:
    return about.st_dev, about.st_ino, about.st_mtime_ns


def _machine() -> str:
    return hashlib.sha256(processes.machine().encode()).hexdigest()[:8]


def _sweep(folder: Path) -> None:
    """Remove the temporary files of writes that were killed."""
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name.startswith(TEMPORARY) and _is_left(entry):
                with suppress(OSError):
                    os.unlink(entry.path)


def _is_left(entry: "os.DirEntry[str]") -> bool:
    mark = re.match(rf"{re.escape(TEMPORARY)}([0-9a-f]{{8}})-(\d+)-", entry.name)
    if mark is not None and mark[1] == _machine():
        return processes.has_ended({"machine": processes.machine(), "pid": int(mark[2])}) is True
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > LEFT_SECONDS


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _open_to_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR)  # which locks of a network file system need
    except PermissionError:
        return os.open(path, os.O_RDONLY)


def _lock(descriptor: int) -> None:
    """Raises BlockingIOError, which passes by itself, if another holds the lock for long."""
    for pause in (*LOCK_PAUSES, None):
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if pause is None:
                raise
            time.sleep(pause)
        except OSError:
            return None  # a network file system without locks: looking at the content must do


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _sync(folder: Path) -> None:
    """Make a rename survive a power cut; some network file systems cannot, and need not."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
