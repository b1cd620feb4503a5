"""An object store in memory, and processes that share it, stepped one request at a time.

The processes are greenlets, so that a schedule decides at every request which of them goes on: one
that is not stepped is a process that was suspended. A request or its answer may be lost, and a
request may arrive twice, the second time much later. Conditions on writes hold as on S3. The clock
is the schedule's.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

Requests = list[Callable[[], Any]]
Pages = Iterator[list[dict[str, Any]]]
LOST = "Generic S3 error: HTTP error: error sending request"  # as obstore words it
FAULTS = ("request lost", "answer lost", "doubled")


class Process:
    """A flow of one process: its main thread, its heart, or its worker on another machine."""

    def __init__(self, world: "World", work: Callable[[], None], name: str) -> None:
        self.world, self.name = world, name
        self.wakes_at = 0.0
        self.faults: list[str] = []
        self.interrupted = self.is_dead = self.is_suspended = False
        self.is_writing = False  # it stands before a change of an object
        self._flow = greenlet(work)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._flow.dead or self.is_dead

    def step(self) -> None:
        """Goes on to its next request, or to the end of its sleep."""
        if self.is_over or self.is_suspended:
            return
        self.world.now = max(self.world.now, self.wakes_at)
        before, self.world.current = self.world.current, self
        try:
            self._flow.switch()
        finally:
            self.world.current = before

    def pause(self) -> None:
        """Waits until the schedule steps it."""
        parent = getcurrent().parent
        assert parent is not None
        parent.switch()
        if self.is_dead:
            raise GreenletExit
        if self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt

    def kill(self) -> None:
        """Ends it where it stands."""
        self.is_dead = True
        if self._flow and not self._flow.dead:
            self._flow.throw()


class World:
    """The clock, the processes and the store.

    Args:
        changed: told of every change of an object, after it: the flow that made it, the key, and
            whether it was a request that arrived twice.
    """

    def __init__(self, changed: Callable[[Process, str, bool], None]) -> None:
        self.now = 0.0
        self.current: Process | None = None
        self.changed = changed
        self.objects: dict[str, tuple[bytes, str]] = {}  # key -> content and ETag
        self.late: Requests = []  # that will arrive a second time
        self._tags = self.refused = 0

    # ---- time, in the place of the module `time`

    def monotonic(self) -> float:
        """The schedule's clock."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Sleeps by the schedule's clock."""
        if self.current is not None:
            self.current.wakes_at = self.now + seconds
            self.current.pause()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    # ---- requests, in the place of the module `obstore`

    def get(self, store: Any, key: str) -> Any:
        """An object."""
        return self._request(lambda: _Found(self._found(key), key))

    def head(self, store: Any, key: str) -> dict[str, Any]:
        """An object's metadata."""
        return self._request(lambda: _Found(self._found(key), key).meta)

    def list(self, store: Any, prefix: str) -> Pages:
        """Pages of metadata of all objects below a prefix."""
        yield self._request(
            lambda: [
                _Found(found, key).meta
                for key, found in self.objects.items()
                if key.startswith(f"{prefix}/") or not prefix
            ]
        )

    def put(self, store: Any, key: str, data: bytes, mode: Any = None, **options: Any) -> None:
        """Writes an object, on a condition."""

        def effect(flow: Process, doubled: bool) -> None:
            now = self.objects.get(key)
            if mode == "create" and now is not None:
                self.refused += 1
                raise AlreadyExistsError("Object already exists")
            if isinstance(mode, dict) and (now is None or now[1] != mode["e_tag"]):
                self.refused += 1
                raise PreconditionError("the condition does not hold")
            self._tags += 1
            self.objects[key] = bytes(data), f'"{self._tags}"'
            self.changed(flow, key, doubled)

        self._change(effect)

    def delete(self, store: Any, keys: Sequence[str]) -> None:
        """Removes objects; without a condition, as most stores do it."""

        def effect(flow: Process, doubled: bool) -> None:
            for key in keys:
                if self.objects.pop(key, None) is not None:
                    self.changed(flow, key, doubled)

        self._change(effect)

    def _found(self, key: str) -> tuple[bytes, str]:
        if key not in self.objects:
            raise FileNotFoundError(key)
        return self.objects[key]

    def _change(self, effect: Callable[[Process, bool], None]) -> None:
        flow = self.current
        assert flow is not None
        twice = flow.faults[:1] == ["doubled"]
        flow.is_writing = True
        try:
            self._request(lambda: effect(flow, False))
        finally:
            flow.is_writing = False
        if twice:
            self.late.append(lambda: effect(flow, True))

    def _request(self, effect: Callable[[], Any]) -> Any:
        flow = self.current
        assert flow is not None
        fault = flow.faults.pop(0) if flow.faults else ""
        flow.pause()
        if fault == "request lost":
            raise BaseError(LOST)
        answer = effect()
        if fault == "answer lost":
            raise BaseError(LOST)
        return answer

    def deliver(self, place: int) -> None:
        """Lets a request arrive a second time; nobody hears its answer."""
        if self.late:
            effect = self.late.pop(place % len(self.late))
            with suppress(AlreadyExistsError, PreconditionError):
                effect()


class _Found:
    """The answer to `get`."""

    def __init__(self, found: tuple[bytes, str], key: str) -> None:
        self.content = found[0]
        self.meta = {"path": key, "size": len(found[0]), "e_tag": found[1], "version": None}

    def bytes(self) -> bytes:
        """The content."""
        return self.content
