"""Only one process at a time works on a run: a small file with a heartbeat says which, on a disk and in an object store alike.

Whoever finds the file asks first whether its process is gone, which on the same machine is known at once, and elsewhere watches whether
the heart still beats. A process that was suspended for longer finds at its next beat that another has taken its place, and stops.
"""

import contextlib
import json
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from mnist_ray import processes
from mnist_ray.errors import CorruptFileError, SettingsError, WorkError
from mnist_ray.storage import RunStorage

BEAT = 5.0  # seconds between two writings of the file
SILENT = 20.0  # seconds without a beat after which a process of another machine counts as gone
SETTLE = 1.0  # seconds after which, of two that take a dead one's place at the same moment, the first sees that it was not the last


def file(work: str) -> str:
    """The lease's name in the run's directory."""
    return f"{work}.lease"


@contextlib.contextmanager
def held(storage: RunStorage, work: str, flag: str = "--name") -> Iterator[None]:
    """Holds the run for this kind of work, "search" or "fine-tuning", until the block ends, within cluster.interruptible().

    Raises SettingsError naming the flag where another process holds it, and WorkError where another has taken it over meanwhile.
    """
    mine = {"token": uuid.uuid4().hex, "process": processes.this_process(), "beat": 0}
    _take(storage, work, flag, mine)
    over, lost = threading.Event(), threading.Event()
    heart = threading.Thread(
        target=_beat,
        args=(storage, file(work), mine, threading.get_ident(), over, lost),
        daemon=True,
    )
    heart.start()
    try:
        yield
    except KeyboardInterrupt:
        if lost.is_set():
            raise WorkError(
                f"the {work} at {storage.uri} ends: another process has taken over its run, or deleted it"
            ) from None
        raise
    finally:
        over.set()
        heart.join(5)  # where the storage does not answer, the file stays: its process is gone then


def _take(storage: RunStorage, work: str, flag: str, mine: dict[str, Any]) -> None:
    name = file(work)
    found = _read(storage, name)
    if found is None and storage.create_exclusive(name, json.dumps(mine).encode()):
        return
    found = found or _read(storage, name) or {}
    if not _silent(storage, name, found):
        raise _refusal(storage, work, flag, found)
    storage.write_json(name, mine)
    time.sleep(SETTLE)
    found = _read(storage, name) or {}
    if found.get("token") != mine["token"]:
        raise _refusal(storage, work, flag, found)


def _refusal(storage: RunStorage, work: str, flag: str, found: dict[str, Any]) -> SettingsError:
    process = found.get("process", {})
    who = f"process {process.get('pid')} on {process.get('node')}"
    return SettingsError(
        f"{flag}: another {work} is at work at {storage.uri} ({who}): wait for it, stop it, or give another run"
    )


def _silent(storage: RunStorage, name: str, found: dict[str, Any]) -> bool:
    """Whether the process that wrote the file is gone; elsewhere than on this machine that takes SILENT seconds."""
    ended = processes.has_ended(found["process"]) if "process" in found else True
    if ended is not None:
        return ended
    print(
        f"waiting {SILENT:g} s to see whether process {found['process']['pid']} on {found['process']['node']} is gone",
        flush=True,
    )
    deadline = time.monotonic() + SILENT
    while time.monotonic() < deadline:
        time.sleep(1)
        now = _read(storage, name)
        if now is None:
            return True
        if now != found:
            return False
    return True


def _read(storage: RunStorage, name: str) -> dict[str, Any] | None:
    """What the file says; None where there is none, {} where it cannot be understood."""
    for _ in range(5):
        try:
            found = storage.read_json(name)
            return (
                found
                if isinstance(found, dict) and {"token", "process", "beat"} <= found.keys()
                else {}
            )
        except FileNotFoundError:
            return None
        except CorruptFileError:
            time.sleep(0.2)  # made, but not written yet
    return {}


def _beat(
    storage: RunStorage,
    name: str,
    mine: dict[str, Any],
    worker: int,
    over: threading.Event,
    lost: threading.Event,
) -> None:
    """Renews the file until `over`, then removes it; interrupts the thread `worker` where it is another's."""
    missing = 0
    while not over.wait(BEAT):
        with contextlib.suppress(
            WorkError, OSError
        ):  # the storage does not answer: the work itself will say so
            found = _read(storage, name)
            missing = missing + 1 if found is None else 0
            if missing > 1 or (found is not None and found.get("token") != mine["token"]):
                lost.set()
                # A signal, since only that wakes a thread that waits; to that thread, since one to the process may reach this one.
                signal.pthread_kill(worker, signal.SIGTERM)
                return
            if found is not None:
                mine["beat"] += 1
                storage.write_json(name, mine)
    with contextlib.suppress(WorkError, OSError):
        found = _read(storage, name)
        if found is not None and found.get("token") == mine["token"]:
            storage.delete(name)
        if storage.local_path is not None:
            storage.local_path.rmdir()  # only where nothing was written into it
