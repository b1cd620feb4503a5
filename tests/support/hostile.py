"""What a hostile file would have to do to do harm is watched for: an audit hook, and values to try.

A hook cannot be taken away again: it looks away unless a block is `watched`.
"""

import builtins
import contextlib
import copy
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

SECRET = "Zq7Kx9-of-the-environment"
VARIABLE = "MNIST_RAY_TEST_SECRET"
CANARY = "canary_module"  # in the working directory; notes down that it was imported

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork")
TALKS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
CHANGES = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod",
    "os.chown", "os.truncate", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile",
)  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass
class Watch:
    """What was seen while a block ran."""

    allowed: tuple[str, ...]
    """Folders in which files may change."""
    forbidden: str
    """A folder of which no file may be read."""
    seen: list[str] = field(default_factory=list)

    def event(self, name: str, args: tuple[Any, ...]) -> None:
        if name in STARTS or name in TALKS:
            self.seen.append(f"{name} {args!r}"[:300])
        elif name == "open" and isinstance(args[0], str | bytes | os.PathLike):
            path, mode, flags = os.path.abspath(os.fsdecode(args[0])), args[1], args[2]
            writes = any(c in mode for c in "wax+") if mode else bool(flags & WRITES)
            if path.startswith(self.forbidden) or (writes and not self._may(path)):
                self.seen.append(f"open {path} {mode} {flags}")
        elif name in CHANGES and isinstance(args[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(args[0]))
            if args[-1] == -1 and not self._may(path):  # else relative to an open folder
                self.seen.append(f"{name} {args!r}"[:300])

    def _may(self, path: str) -> bool:
        return path.startswith(self.allowed) or path == os.devnull


_now: list[Watch] = []


def _hook(name: str, args: tuple[Any, ...]) -> None:
    if _now:
        watch = _now.pop()  # what the hook itself does is not looked at
        try:
            watch.event(name, args)
        finally:
            _now.append(watch)


_hooked: list[bool] = []


@contextlib.contextmanager
def watched(allowed: tuple[str, ...], forbidden: str) -> Iterator[Watch]:
    """Notes down everything that a file from elsewhere must not bring about."""
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)
    watch, variables = Watch(allowed, forbidden), dict(os.environ)
    _now.append(watch)
    try:
        yield watch
    finally:
        _now.pop()
        if hasattr(builtins, "canary_ran"):
            watch.seen.append(f"code ran: {builtins.canary_ran}")
            del builtins.canary_ran
            sys.modules.pop(CANARY, None)
        changed = {k for k in variables | dict(os.environ) if variables.get(k) != os.environ.get(k)}
        if changed:
            watch.seen.append(f"environment changed: {sorted(changed)}")


def canary(folder: Path) -> None:
    """A module that tells when it runs."""
    text = f"import builtins\nbuiltins.canary_ran = '{CANARY}'\ndef run(*a, **k): ...\n"
    (folder / f"{CANARY}.py").write_text(text)


def values(outside: Path) -> list[Any]:
    """What a hostile file may say in place of anything. outside: a folder beside the run."""
    return [
        f"{CANARY}:run",
        CANARY,
        "shutil:rmtree",
        "os:system",
        f"${{{VARIABLE}}}",
        f"http://me:${{{VARIABLE}}}@127.0.0.1:9/",
        f"postgresql://me:${{{VARIABLE}}}@127.0.0.1:9/db",
        "redis://127.0.0.1:9/0",
        "s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http",
        f"sqlite:///{outside}/new.db",
        f"{outside}/new.journal",
        f"{outside}/secret.yaml",
        "../outside/secret.yaml",
        "../../../../../../../../etc/passwd",
        f"file://{outside}/secret.yaml",
        f"!!python/object/apply:{CANARY}.run []",
        f"__import__('{CANARY}')",
        f"{{{{ cycler.__init__.__globals__.os.popen('python {CANARY}.py') }}}}",
        f"; python {CANARY}.py #",
        "<img src=x onerror=alert(1)>",
        "\x1b[2J\x07",
        [f"{CANARY}:run"],
        {"model": f"{CANARY}:run"},
    ]


Path_ = tuple[str | int, ...]


def keys(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Where a value of a JSON file stands, however deep."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in items:
        yield (*at, key)
        if isinstance(child, dict | list):
            yield from keys(child, (*at, key))


def changed(value: Any, at: Path_, new: Any) -> Any:
    """A copy with another value at that place."""
    result = copy.deepcopy(value)
    part = result
    for key in at[:-1]:
        part = part[key]
    part[at[-1]] = new
    return result


def with_metadata(model: bytes, key: str, value: str) -> bytes:
    """The model with that metadata, and the digest that fits: as its author would make it."""
    from mnist_ray.export.read import WHOLE, digest

    proto = onnx.load_model_from_string(model)
    kept = {pair.key: pair.value for pair in proto.metadata_props if pair.key != WHOLE}
    del proto.metadata_props[:]
    for name, text in (kept | {key: value}).items():
        proto.metadata_props.add(key=name, value=text)
    proto.metadata_props.add(key=WHOLE, value=digest(proto))
    return bytes(proto.SerializeToString(deterministic=True))


def as_text(value: Any) -> str:
    """A value for the metadata, which is text."""
    return value if isinstance(value, str) else json.dumps(value)
