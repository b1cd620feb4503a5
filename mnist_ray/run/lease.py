"""Only one process at a time works on a run: a small file with a heartbeat says which.

A process that finds the file asks first whether the owner has ended, which is known at once on the
same machine. Of a process elsewhere it watches whether the heart still beats. The file is made and
replaced on conditions that the disk or the object store holds, so that two never hold it. Before it
writes, an owner reads whether the file still holds its token: no clock is trusted, since that of a
suspended laptop may stand still. Workers on other machines do the same with their owner's token.
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
from mnist_ray.errors import SettingsError, WorkError, printable
from mnist_ray.run.layout import lease_file
from mnist_ray.storage import OwnedStorage, RunStorage

BEAT = 5.0  # seconds between two writings of the file
SILENT = 20.0  # seconds without a beat after which a process elsewhere counts as ended


class Lease:
    """A run that this process holds for one kind of work.

    Attributes:
        lost: set when another process has taken the run over, or deleted it. Who has lost it must
            stop, and write nothing more.
        token: a text in the file, other than any other owner's.
        owned: the run's directory, to be written while the run is held.
    """

    def __init__(self, storage: RunStorage, work: str) -> None:
        self.lost = threading.Event()
        self.token = uuid.uuid4().hex
        self._storage, self._work, self._file = storage, work, lease_file(work)
        self._written = self._attempted = b""
        self._beat, self._allows = 0, ""
        self._lock = threading.Lock()
        self.owned = OwnedStorage(storage.uri, self._file, self._look)

    def take(self, flag: str) -> None:
        """Takes the run. Raises SettingsError naming the flag if another process holds it."""
        storage, name, content = self._storage, self._file, self._next()
        found = _read(storage, name)
        if found is not None and _has_ended(storage, name, found):
            if storage.replace_exclusive(name, found, content):
                return self._wrote(content)
            found = _read(storage, name)  # given back meanwhile, or taken
        if found is None and storage.create_exclusive(name, content):
            return self._wrote(content)
        raise _refusal(storage, self._work, flag)

    def check(self) -> None:
        """Raises WorkError if the run is another's."""
        self.owned.check()

    def _look(self, content: bytes | None) -> None:
        if _record(content or b"").get("token") != self.token:
            self.lost.set()
        if self.lost.is_set():
            raise _lost(self._storage, self._work)

    def renew(self) -> None:
        """Writes the next beat, or sets `lost`. Raises WorkError if the storage fails."""
        with self._lock:
            content = self._next()
            if self._storage.replace_exclusive(self._file, self._written, content):
                self._wrote(content)
            else:
                self.lost.set()

    def allow(self, work: str) -> None:
        """Lets another process hold the run for that work, while this one only waits for its end.

        Raises:
            WorkError: the run is another's by now, or the storage fails.
        """
        self._allows = work
        self.renew()
        self.check()

    def give_back(self) -> None:
        """Removes the file, and the run's directory if nothing was written into it."""
        with self._lock, contextlib.suppress(WorkError, OSError):
            # An interrupt may have fallen between a write and its answer.
            for content in {self._written, self._attempted} - {b""}:
                removed = self._storage.replace_exclusive(self._file, content, None)
                if removed and self._storage.local_path is not None:
                    self._storage.local_path.rmdir()

    def _next(self) -> bytes:
        process = processes.this_process()
        beat = {"token": self.token, "process": process, "beat": self._beat}
        self._attempted = json.dumps({**beat, "allows": self._allows}).encode()
        return self._attempted

    def _wrote(self, content: bytes) -> None:
        self._written = content
        self._beat += 1


@contextlib.contextmanager
def held(
    storage: RunStorage, work: str, flag: str = "--name", *, handle_signals: bool = True
) -> Iterator[Lease]:
    """Holds the run for a kind of work until the block ends.

    Args:
        storage: the run's directory.
        work: "search" or "fine-tuning".
        flag: the option that named the run, for the message.
        handle_signals: interrupts the main thread by SIGTERM when the lease is lost, which ends a
            wait too; it needs signals.interruptible(). Otherwise, and in other threads, the block
            looks at `lost` or calls `check()` itself.

    Raises:
        SettingsError: another process holds the run; names the flag.
        WorkError: another process has taken it over meanwhile.
    """
    lease = Lease(storage, work)
    main = threading.main_thread()
    target = main.ident if handle_signals and threading.current_thread() is main else None
    over = threading.Event()
    heart = threading.Thread(target=_beat, args=(lease, over, target), daemon=True)
    try:
        lease.take(flag)
        heart.start()
        yield lease
        if lease.lost.is_set():
            lease.check()
    except KeyboardInterrupt:
        if lease.lost.is_set():
            lease.check()
        raise
    finally:
        over.set()
        if heart.ident is None:
            lease.give_back()
        else:
            heart.join(5)  # if the storage does not answer, the file stays: its process ends soon
        storage.sweep()  # workers may have been killed while they wrote


def owned(uri: str, work: str, token: str) -> RunStorage:
    """A run's directory as a worker writes it: while the run is of the owner with that token.

    Args:
        uri: the run's directory.
        work: the kind of work that the owner holds it for.
        token: the owner's (see Lease); "" if nobody holds the run, as in a test.
    """
    storage = RunStorage.existing(uri)
    if not token:
        return storage

    def check(content: bytes | None) -> None:
        folder = storage.local_path
        if content is None and folder is not None and not folder.is_dir():
            raise WorkError(
                f"{storage.uri} is not there on node {processes.this_process()['node']}: it was "
                "deleted, or --storage is not on a file system that every node sees "
                "(or s3://bucket/path)"
            )
        if _record(content or b"").get("token") != token:
            raise _lost(storage, work)

    return OwnedStorage(uri, lease_file(work), check)


def refuse_while_held(storage: RunStorage, work: str, flag: str, own: str = "") -> None:
    """Refuses a run that another process holds for a kind of work.

    Args:
        storage: the run's directory.
        work: the other's.
        flag: the option that named the run, for the message.
        own: what this process holds the run for. It may, if the other waits for just that.

    Raises:
        SettingsError: names the flag.
    """
    name = lease_file(work)
    found = _read(storage, name)
    if found is None or (own and _record(found).get("allows") == own):
        return
    if not _has_ended(storage, name, found):
        raise _refusal(storage, work, flag)


def _beat(lease: Lease, over: threading.Event, target: int | None) -> None:
    """Renews the lease until `over`, then gives it back; interrupts the thread when it is lost."""
    while not over.wait(BEAT):
        known = lease.lost.is_set()  # the work has found it out, and ends
        with contextlib.suppress(WorkError):  # the work itself will say that the storage is away
            lease.renew()
        if lease.lost.is_set():
            if target is not None and not known:
                # To that thread, since a signal to the process may reach this one.
                signal.pthread_kill(target, signal.SIGTERM)
            return
    lease.give_back()


def _lost(storage: RunStorage, work: str) -> WorkError:
    return WorkError(
        f"the {work} at {storage.uri} ends: another process has taken over its run, or deleted it"
    )


def _refusal(storage: RunStorage, work: str, flag: str) -> SettingsError:
    process = _process(_read(storage, lease_file(work)) or b"")
    return SettingsError(
        f"{flag}: another {work} is at work at {storage.uri} ({_shown(process)}): "
        "wait for it, stop it, or give another run"
    )


def _shown(process: dict[str, Any]) -> str:
    text = f"process {str(process.get('pid'))[:100]} on {str(process.get('node'))[:100]}"
    return " ".join(printable(text).split())


def _has_ended(storage: RunStorage, name: str, found: bytes) -> bool:
    """Whether the process that wrote this has ended; of one elsewhere that takes SILENT seconds."""
    process = _process(found)
    ended = processes.has_ended(process) if process else True
    if ended is not None:
        return ended
    print(f"waiting {SILENT:g} s to see whether {_shown(process)} is gone", flush=True)
    deadline = time.monotonic() + SILENT
    while time.monotonic() < deadline:
        time.sleep(1)
        now = _read(storage, name)
        if now != found:
            return now is None
    return True


def _read(storage: RunStorage, name: str) -> bytes | None:
    try:
        return storage.read_bytes(name)
    except FileNotFoundError:
        return None


def _process(content: bytes) -> dict[str, Any]:
    """The process that a lease names; empty if the file is none of ours."""
    process = _record(content).get("process")
    return process if isinstance(process, dict) else {}


def _record(content: bytes) -> dict[str, Any]:
    """The object that a lease holds; empty if the file is none of ours."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or not {"token", "process", "beat"} <= found.keys():
        return {}
    return found
