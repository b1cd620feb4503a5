"""Which process a file or folder belongs to, and whether that process has ended.

Leases, temporary folders and half-written files are judged by it.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import platform
import secrets
import shutil
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import psutil
from tqdm import tqdm

from mnist_ray.errors import WorkError

OWNER = "owner.json"  # in every temporary folder of ours
SAME_START = 2.0  # seconds; Linux counts from the boot, exactly; a Mac's clock may be corrected
OWNER_BYTES = 10_000  # a longer owner.json is not ours
REMOVAL_SECONDS = 5.0  # in which what still runs in a temporary folder must have ended


def this_process() -> dict[str, Any]:
    """The identity of this process, as JSON can hold it."""
    return {
        "machine": machine(),
        "node": platform.node(),
        "pid": os.getpid(),
        "started": _started(psutil.Process()),
    }


def has_ended(process: Mapping[str, Any]) -> bool | None:
    """Whether a process that this_process() described has ended.

    None if that cannot be known: it ran on another machine or in another container, is hidden
    from this user (`/proc` mounted with `hidepid`), or was described by an earlier version.
    """
    pid, started = process.get("pid"), process.get("started")
    if process.get("machine") != machine() or not isinstance(pid, int) or pid <= 0:
        return None
    try:
        found = psutil.Process(pid)
        if found.status() == psutil.STATUS_ZOMBIE:
            return True
        # A number is given out again after a while: the time of the start tells the two apart.
        same = isinstance(started, float) and abs(_started(found) - started) <= SAME_START
        return not same if isinstance(started, float) else None
    except psutil.NoSuchProcess:
        return None if _is_hidden(pid) else True
    except psutil.AccessDenied:
        return None


def _started(process: psutil.Process) -> float:
    """Seconds from the boot to the start of a process: both move alike when the clock is set."""
    return round(float(process.create_time()) - float(psutil.boot_time()), 2)


def _is_hidden(pid: int) -> bool:
    """Whether there is such a process, though it cannot be looked at."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        pass
    return False


@functools.cache
def machine() -> str:
    """This boot of this machine, and its container, which numbers its processes by itself."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return f"{platform.node()}/{uuid.getnode()}"


@contextlib.contextmanager
def temporary_folder(prefix: str, longest: int | None = None) -> Iterator[Path]:
    """A folder that is removed at the end, with the processes whose TMPDIR it still is.

    If this process is killed, the next one that asks for such a folder removes it.

    Args:
        prefix: how the folder's name begins; eight characters follow.
        longest: how many characters the path may have; if TMPDIR is too long, it lies in /tmp.

    Raises:
        WorkError: none can be made; the message names TMPDIR.
    """
    parent = tempfile.gettempdir()
    if longest is not None and len(parent) + 1 + len(prefix) + 8 > longest:
        parent = "/tmp"
    _remove_leftovers(Path(parent), prefix)
    # Named before it is made, so that an interrupt at any moment leaves none.
    folder = Path(parent, f"{prefix}{secrets.token_hex(4)}")
    try:
        try:
            folder.mkdir(mode=0o700)
            (folder / OWNER).write_text(json.dumps(this_process()))
        except OSError as error:
            raise WorkError(
                f"no temporary folder can be made in {parent} (TMPDIR={tempfile.gettempdir()}): "
                f"{error.strerror}"
            ) from error
        yield folder
    finally:
        try:
            _remove(folder)
        except KeyboardInterrupt:
            _remove(folder)
            raise


def _remove(folder: Path) -> None:
    """Removes a folder of this process. What runs within may still write there while it ends."""
    deadline = time.monotonic() + REMOVAL_SECONDS
    while folder.exists():
        _end_all_within(folder)
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > deadline:  # as on a disk that fails
            break
        if folder.exists():
            time.sleep(0.05)


def _remove_leftovers(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        # Another's, just being written, or removed by another at this moment.
        with contextlib.suppress(OSError, ValueError):
            _remove_if_left(folder)


def _remove_if_left(folder: Path) -> None:
    """Removes a folder of this user whose process has ended.

    Others share the place, and may put links and pipes in our way: no link is followed, and only a
    regular file is read. owner.json goes last: if something cannot be removed, the next process
    tries again.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(handle).st_uid != os.getuid():
            return
        owner = _read_owner(handle)
        if not isinstance(owner, dict) or not has_ended(owner):
            return
        _end_all_within(folder)
        for name in os.listdir(handle):
            if stat.S_ISDIR(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode):
                shutil.rmtree(name, dir_fd=handle)
            elif name != OWNER:
                os.unlink(name, dir_fd=handle)
        os.unlink(OWNER, dir_fd=handle)
    finally:
        os.close(handle)
    folder.rmdir()


def _read_owner(folder: int) -> Any:
    """The JSON of owner.json in an open folder. Raises OSError or ValueError."""
    # Without O_NONBLOCK a pipe of this name would be waited for.
    file = os.open(OWNER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with open(file, "rb") as stream:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.getuid():
            return None
        return json.loads(stream.read(OWNER_BYTES))


def _end_all_within(folder: Path) -> None:
    """Ends all processes with this TMPDIR: Ray's agents take a minute to see that it is gone."""
    for process in psutil.process_iter():
        # Another user's, or gone; a Mac shows only one's own.
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("TMPDIR") == str(folder) and process.pid != os.getpid():
                process.kill()


# ---- workers of multiprocessing


def end_with_parent() -> None:
    """Ends this process when the one that started it has ended, even by SIGKILL.

    An initializer for workers: those of a ProcessPoolExecutor would work on, then wait for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:

        def wait() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()


# ---- waiting


@contextlib.contextmanager
def clock(text: str) -> Iterator[None]:
    """Shows a text and the seconds since then in a terminal, while the block runs."""
    shown: tqdm[NoReturn] = tqdm(
        desc=text, bar_format="{desc} {elapsed}", disable=None, leave=False
    )
    over = threading.Event()

    def tick() -> None:
        while not over.wait(1):
            shown.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        shown.close()
