"""A run's directory on a local or network disk, on S3 or on Google Cloud Storage, through one small interface.

Files appear whole or not at all: on a disk by a temporary file and a rename, in an object store because an object
exists only once its upload has ended. Keys come from the environment, from IAM or from the clouds' own files; a URI
that carries one is refused, since URIs are printed and written down.
"""

import errno
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from mnist_ray.errors import CorruptFileError, SettingsError, WorkError

T = TypeVar("T")
Names = list[str]  # within RunStorage, `list` is the method

RETRY_SECONDS = 60.0  # MNIST_RAY_STORAGE_RETRY_SECONDS overrides it
_CHECK_SECONDS = 10.0  # a mistyped address must not cost a minute
_SETTLE_SECONDS = 1.0  # see RunStorage.create_exclusive

_QUERY = {
    "s3": ("endpoint_override", "scheme", "region"),
    "gs": ("endpoint_override", "scheme"),
    "gcs": ("endpoint_override", "scheme"),
}
_RUN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_TEMPORARY = ".tmp-"

# What passes by itself on a network file system.
_TRANSIENT = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENETDOWN, errno.ENETUNREACH,
    errno.ECONNRESET, errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH,
}  # fmt: skip
# What does not in an object store (which gives no errno): Arrow's text holds the service's own code or the HTTP status.
_PERMANENT = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|SIGNATURE|TOKEN|UNRECOGNIZED_CLIENT|REQUEST_EXPIRED|VALIDATION"
    r"|PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|NOT_FOUND|' not found|HTTP status (?!408|429)[34]\d\d"
)


class RunStorage:
    """A directory: a local path, `file://`, `s3://bucket/prefix?endpoint_override=HOST:PORT&scheme=http` or `gs://`.

    Every operation is repeated on errors that may pass (network, overload) with growing pauses for RETRY_SECONDS, then
    raises WorkError; missing files, permissions and a full disk are reported at once. It can be pickled: what travels
    is the URI alone.
    """

    uri: str
    """As given (a relative path made absolute); never holds credentials."""

    def __init__(self, uri: str) -> None:
        if not uri or not uri.isprintable():
            raise SettingsError(
                f"--storage {uri!r}: a path or URI of printable characters is needed"
            )
        scheme, colon, rest = uri.partition(":")
        if colon and scheme in ("file", *_QUERY) and not rest.startswith("//"):
            raise SettingsError(f"--storage {scheme}:…: two slashes must follow, as in {scheme}://")
        self._scheme = scheme if colon and rest.startswith("//") else ""
        self._query: dict[str, str] = {}
        self._query_text = ""
        if self._scheme in _QUERY:
            self._root = self._remote_root(uri)
        elif self._scheme in ("", "file"):
            self._root = self._local_root(uri)
        else:
            raise SettingsError(
                f"--storage {self._scheme}://…: allowed are a path, file://, s3:// and gs://"
            )

    def _local_root(self, uri: str) -> str:
        if self._scheme == "file":
            parts = urlsplit(uri)
            if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
                raise SettingsError(
                    f"--storage {uri}: allowed is file:///PATH of this machine, without query"
                )
            self._base = self.uri = uri.rstrip("/") or uri
            return unquote(parts.path)
        root = os.path.abspath(os.path.expanduser(uri))
        self._base = self.uri = root
        return root

    def _remote_root(self, uri: str) -> str:
        refuse_credentials(uri)
        parts = urlsplit(uri)
        shown = f"{parts.scheme}://{parts.netloc}{parts.path}"
        self._query = dict(parse_qsl(parts.query, keep_blank_values=True))
        allowed = _QUERY[self._scheme]
        if unknown := [key for key in self._query if key not in allowed]:
            raise SettingsError(
                f"--storage {shown}: {unknown[0]}= is not allowed in the URI, only {', '.join(allowed)}"
            )
        if self._query.get("scheme", "https") not in ("http", "https"):
            raise SettingsError(
                f"--storage {shown}: scheme={self._query['scheme']}: allowed are http and https"
            )
        if not parts.netloc or " " in uri or parts.fragment:
            raise SettingsError(
                f"--storage {shown}: needs a bucket, and %20 for a space, %23 for #"
            )
        path = unquote(parts.path).strip("/")
        if "//" in unquote(parts.path) or {".", ".."} & set(path.split("/")):
            raise SettingsError(f"--storage {shown}: no //, . or .. within the path")
        self._base = shown.rstrip("/")
        self._query_text = f"?{parts.query}" if parts.query else ""
        self.uri = self._base + self._query_text
        bucket = parts.netloc.rpartition("@")[2]
        return f"{bucket}/{path}" if path else bucket

    def __reduce__(self) -> tuple[Any, ...]:
        return RunStorage, (self.uri,)

    def __repr__(self) -> str:
        return f"RunStorage({self.uri!r})"

    @property
    def is_local(self) -> bool:
        """Whether it is a directory of a mounted file system."""
        return self._scheme in ("", "file")

    @property
    def local_path(self) -> Path | None:
        """The directory, absolute; None in an object store."""
        return Path(self._root) if self.is_local else None

    def join(self, name: str) -> str:
        """URI of a file of this directory, to print or to open elsewhere; the query stays at the end."""
        if not _inside(name):
            return self.uri
        plain = not self._scheme
        return f"{self._base}/{name if plain else quote(name, safe='/=,+:@~')}{self._query_text}"

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or directory of this name."""
        if self.is_local:
            return self._retry("look at", name, lambda: _stat_exists(self._path(name)))
        return self._retry("look at", name, lambda: self._info(name).type.name != "NotFound")

    def read_bytes(self, name: str) -> bytes:
        """The whole content. Raises FileNotFoundError when it is missing, WorkError when it cannot be read."""
        if self.is_local:
            return self._retry(
                "read", name, lambda: self._path(name).read_bytes(), missing_raises=True
            )
        return self._retry("read", name, lambda: self._get(name), missing_raises=True)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file whole, replacing one of that name; whoever reads meanwhile gets the old or the new one."""
        if self.is_local:
            self._retry("write", name, lambda: _write_whole(self._path(name), data))
        else:
            self._retry("write", name, lambda: self._put(self._key(name), data))

    def read_json(self, name: str) -> Any:
        """A JSON file's value. Raises FileNotFoundError, or CorruptFileError when it is not JSON."""
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise CorruptFileError(f"{self.join(name)} is not JSON: {error}") from error

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as UTF-8 JSON, keys in their own order. Raises ValueError for NaN and infinities."""
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        self.write_bytes(name, f"{text}\n".encode())

    def list(self, name: str = "") -> Names:
        """Names, relative to this directory, of all files below `name`, sorted; empty when there is none."""
        if self.is_local:
            return self._retry("list", name, lambda: self._local_files(self._path(name)))
        return self._retry("list", name, lambda: self._remote_files(name))

    def delete(self, name: str) -> None:
        """Remove a file, or a directory with all that is in it ("" is this directory itself); missing is fine.

        Arrow leaves an empty marker object in place of an object's parent directory.
        """
        if name == "" and "/" not in self._root.strip("/"):
            raise ValueError(f"will not delete all of {self.uri}")
        if self.is_local:
            self._retry("delete", name, lambda: _delete_local(self._path(name)))
        else:
            self._retry("delete", name, lambda: self._delete_remote(name))

    def create_exclusive(self, name: str, data: bytes) -> bool:
        """Write a file if there is none of this name; False when there is one, or when somebody else was faster.

        On a file system this is certain (O_EXCL). Arrow offers no conditional upload, so in an object store it is best
        effort: look, write, wait a second, read back. Of several writers the last one wins, and only it sees its own
        `data`, which must therefore differ between them; two could win only if one needed more than that second
        between look and write.
        """
        if self.is_local:
            return self._retry("create", name, lambda: _write_new(self._path(name), data))
        if self.exists(name):
            return False
        self.write_bytes(name, data)
        time.sleep(_SETTLE_SECONDS)
        try:
            return self.read_bytes(name) == data
        except FileNotFoundError:
            return False

    # ---- local ----

    def _path(self, name: str) -> Path:
        return Path(self._root, name) if _inside(name) else Path(self._root)

    def _local_files(self, folder: Path) -> Names:
        return sorted(
            os.path.relpath(os.path.join(parent, file), self._root)
            for parent, _, files in os.walk(folder, onerror=_unless_missing)
            for file in files
            if not file.startswith(_TEMPORARY)
        )

    # ---- object stores ----

    @cached_property
    def _fs(self) -> Any:
        import pyarrow.fs as pafs

        if self._scheme != "s3":
            mark = "&" if self._query_text else "?"
            return pafs.FileSystem.from_uri(f"{self.uri}{mark}retry_limit_seconds=5")[0]
        endpoint = self._query.get("endpoint_override")
        endpoint = (
            endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        )
        # from_uri would do, but repeats by itself for up to five minutes; the pauses and the limit are ours.
        return pafs.S3FileSystem(
            endpoint_override=endpoint,
            scheme=self._query.get("scheme"),
            region=self._query.get("region")
            or (None if endpoint else pafs.resolve_s3_region(self._root.split("/")[0])),
            allow_delayed_open=True,  # else even a small object is uploaded in three requests instead of one PUT
            connect_timeout=5,
            request_timeout=20,
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=2),
        )

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}" if _inside(name) else self._root

    def _info(self, name: str) -> Any:
        return self._fs.get_file_info(self._key(name))

    def _get(self, name: str) -> bytes:
        for _ in range(10):
            with self._fs.open_input_file(self._key(name)) as stream:
                data = stream.read()
            # The length is asked for first: when a longer object has taken the place since, only its beginning came.
            if self._info(name).size == len(data):
                return data
        raise WorkError(f"cannot read {self.join(name)}: it is replaced faster than it can be read")

    def _put(self, key: str, data: bytes) -> None:
        def put() -> None:
            # None: Arrow would else compress what is called .gz
            stream = self._fs.open_output_stream(key, compression=None)
            stream.write(data)
            stream.close()

        # A stream that is dropped half-way is completed as it stands: it must not meet a Ctrl-C, which only ever
        # interrupts the main thread.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(put).result()

    def _remote_files(self, name: str) -> Names:
        from pyarrow.fs import FileSelector

        infos = self._fs.get_file_info(
            FileSelector(self._key(name), recursive=True, allow_not_found=True)
        )
        return sorted(
            info.path[len(self._root) + 1 :] for info in infos if info.type.name == "File"
        )

    def _delete_remote(self, name: str) -> None:
        kind = self._info(name).type.name
        with suppress(FileNotFoundError):
            if kind == "File":
                self._fs.delete_file(self._key(name))
            elif kind == "Directory":
                self._fs.delete_dir(self._key(name))

    def _probe_remote(self) -> None:
        """Write and delete an object where the first run will be, making no new folder where that can be helped."""
        existing = self._root
        with suppress(OSError):  # whoever may write need not be allowed to look
            while "/" in existing and self._fs.get_file_info(existing).type.name == "NotFound":
                existing = existing.rpartition("/")[0]
        try:
            self._probe_at(existing)
        except OSError as error:
            if existing == self._root or _may_pass(error):
                raise
            self._probe_at(self._root)  # a policy may allow just this prefix

    def _probe_at(self, folder: str) -> None:
        key = f"{folder}/.mnist_ray-{secrets.token_hex(8)}"
        self._put(key, b"probe")
        self._fs.delete_file(key)

    # ---- errors ----

    def _retry(
        self,
        doing: str,
        name: str,
        action: Callable[[], T],
        *,
        missing_raises: bool = False,
        at_most: float = float("inf"),
    ) -> T:
        deadline = time.monotonic() + min(_retry_seconds(), at_most)
        pause = 0.2
        while True:
            try:
                return action()
            except OSError as error:
                if missing_raises and isinstance(error, FileNotFoundError):
                    raise FileNotFoundError(
                        errno.ENOENT, "there is no such file", self.join(name)
                    ) from error
                if not _may_pass(error) or time.monotonic() + pause > deadline:
                    raise WorkError(
                        f"cannot {doing} {self.join(name)}: {_reason(error)}"
                    ) from error
            time.sleep(pause)
            pause = min(pause * 2, 10.0)


def open_run(storage: str, name: str) -> RunStorage:
    """The directory of the run `name` below `storage`; makes nothing yet.

    Raises:
        SettingsError: names `--name` or `--storage`.
    """
    if not _RUN_NAME.fullmatch(name) or ".." in name:
        raise SettingsError(
            f"--name {name!r}: allowed are up to 200 of the characters A-Z a-z 0-9 . _ - , not beginning with a dot, no '..'"
        )
    return RunStorage(RunStorage(storage).join(name))


def check_writable(storage: str) -> None:
    """Write and delete a small file there; leaves nothing behind, no new directory either.

    Raises:
        SettingsError: names `--storage` and what the system answered.
    """
    run = RunStorage(storage)
    probe = (lambda: _probe_local(Path(run._root))) if run.is_local else run._probe_remote
    try:
        run._retry("write to", "", probe, at_most=_CHECK_SECONDS)
    except WorkError as error:
        raise SettingsError(f"--storage: {error}") from error


def refuse_credentials(uri: str) -> None:
    """Raise SettingsError, without repeating the URI, when it carries a key or password."""
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise SettingsError(f"--storage: not a URI: {error}") from error
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    user, at, _ = parts.netloc.rpartition("@")
    anonymous = (
        parts.scheme in ("gs", "gcs") and user == "anonymous"
    )  # Arrow's word for public buckets
    found = "user or password before @" if at and not anonymous else None
    for key, value in query.items():
        if (
            re.search(r"key|secret|token|password|credential|signature", key, re.IGNORECASE)
            or "@" in value
        ):
            found = f"{key}="
    if found:
        raise SettingsError(
            f"--storage {parts.scheme}://…: the URI carries {found}; keys are taken from the environment, IAM or files only"
        )


def _inside(name: str) -> bool:
    """True for the name of something inside, False for "" (the directory itself), ValueError for all that leads out."""
    if name == "":
        return False
    if (
        any(part in ("", ".", "..") for part in name.split("/"))
        or "\\" in name
        or not name.isprintable()
    ):
        raise ValueError(f"{name!r} is not a name inside a run's directory")
    return True


def _retry_seconds() -> float:
    given = os.environ.get("MNIST_RAY_STORAGE_RETRY_SECONDS", "")
    try:
        return float(given) if given else RETRY_SECONDS
    except ValueError as error:
        raise SettingsError(
            f"MNIST_RAY_STORAGE_RETRY_SECONDS={given}: a number of seconds is needed"
        ) from error


def _may_pass(error: OSError) -> bool:
    if error.errno is not None:
        return error.errno in _TRANSIENT
    return not _PERMANENT.search(str(error))


def _reason(error: OSError) -> str:
    text = error.strerror or " ".join(str(error).split())
    return re.sub(r"\s*\(Request ID:[^)]*\)", "", text) or type(error).__name__


def _stat_exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _write_new(path: Path, data: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; some network file systems cannot, and need not."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _delete_local(path: Path) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _probe_local(root: Path) -> None:
    """Make a directory and a file in the deepest directory of the path that exists, so that no other is made."""
    with suppress(FileNotFoundError):
        root.stat()  # a file within the path, a name too long, a loop of links
    existing = root
    while not os.path.lexists(existing):
        existing = existing.parent
    folder = tempfile.mkdtemp(prefix=".mnist_ray-", dir=existing)
    try:
        _write_whole(Path(folder, "probe"), b"probe")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
