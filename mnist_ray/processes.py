"""Which process a file or folder belongs to, and whether that process is gone: for leases and for temporary folders."""

import contextlib
import json
import os
import platform
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mnist_ray.errors import WorkError

OWNER = "owner.json"  # in every temporary folder of ours


def this_process() -> dict[str, Any]:
    """What tells this process from every other, as JSON can hold it."""
    return {
        "machine": _machine(),
        "node": platform.node(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def has_ended(process: Mapping[str, Any]) -> bool | None:
    """Whether a process that this_process() described is gone; None where it ran on another machine or in another container."""
    if process.get("machine") != _machine():
        return None
    # A number is given out again after a while: the time of the start tells the two apart.
    return process["started"] is None or _started(process["pid"]) != process["started"]


def _machine() -> str:
    """This boot of this machine, and within it the container, which numbers its processes by itself."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{platform.node()}/{uuid.getnode()}"


def _started(pid: int) -> str | None:
    """When a process began, in ticks since the boot; None where there is none, or only what its parent has not collected yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _started_elsewhere(pid)
    return None if fields[0] == "Z" else fields[19]


def _started_elsewhere(pid: int) -> str | None:
    """Without /proc (macOS) all that can be said is whether there is a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "unknown"


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder that is gone at the end, with the processes that still have it as their place for temporary files (Linux); where this
    process is killed, the next one that asks for such a folder removes it.

    Raises WorkError where none can be made.
    """
    _remove_leftovers(prefix)
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        (folder / OWNER).write_text(json.dumps(this_process()))
    except OSError as error:
        raise WorkError(
            f"no temporary folder can be made in {tempfile.gettempdir()} (TMPDIR): {error.strerror}"
        ) from error
    try:
        yield folder
    finally:
        _end_all_within(
            folder
        )  # the helpers of Ray's dashboard outlive it by a moment, and could still write there
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(prefix: str) -> None:
    for owner in Path(tempfile.gettempdir()).glob(f"{prefix}*/{OWNER}"):
        # Another's, just being written, or removed by another at this moment.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if has_ended(json.loads(owner.read_text())):
                _remove(owner)


def _remove(owner: Path) -> None:
    """Removes the folder that the file lies in, and the file last: where something stands in the way, the next one tries again."""
    _end_all_within(owner.parent)
    for part in owner.parent.iterdir():
        if part != owner:
            shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink()
    owner.unlink()
    owner.parent.rmdir()


def _end_all_within(folder: Path) -> None:
    """Ends what still runs with the folder as its place for temporary files: Ray's agents take a minute to see that their Ray is dead."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # another user's, or gone
            if f"TMPDIR={folder}" in environment.read_bytes().decode(errors="replace").split("\0"):
                os.kill(int(environment.parent.name), signal.SIGKILL)
