"""The place of a run, read from the text after --storage; wrong URIs are refused."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from mnist_ray.errors import SettingsError

QUERY = {
    "s3": ("endpoint_override", "scheme", "region"),
    "gs": ("endpoint_override", "scheme"),
    "gcs": ("endpoint_override", "scheme"),
    "az": ("endpoint_override", "scheme"),
}
_SECRET = re.compile(r"key|secret|token|password|credential|signature|^sig$", re.IGNORECASE)
_RUN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class Address:
    """A directory of a mounted file system, or a prefix of a bucket."""

    scheme: str
    """`""` for a path, `file`, or one of QUERY."""
    base: str
    """The URI without its query."""
    path: str
    """On a disk the absolute path; in a bucket the prefix, without slashes around it."""
    bucket: str = ""
    anonymous: bool = False
    """A public bucket, read without keys: `gs://anonymous@bucket`."""
    query_text: str = ""
    query: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        """Whether it is a directory of a mounted file system."""
        return not self.bucket

    @property
    def uri(self) -> str:
        """As given, a relative path made absolute; it never holds credentials."""
        return self.base + self.query_text

    def join(self, name: str) -> str:
        """The URI of a file below it."""
        plain = name if not self.scheme else quote(name, safe="/=,+:@~")
        return f"{self.base}/{plain}{self.query_text}"


def parse(uri: str) -> Address:
    """Reads a path or URI. Raises SettingsError naming --storage."""
    if not uri or not uri.isprintable():
        shown = ascii(uri) if "://" not in uri else f"{uri.partition(':')[0]}://…"
        raise SettingsError(f"--storage {shown}: a path or URI of printable characters is needed")
    scheme, colon, rest = uri.partition(":")
    if colon and scheme in ("file", *QUERY) and not rest.startswith("//"):
        raise SettingsError(f"--storage {scheme}:…: two slashes must follow, as in {scheme}://")
    if not (colon and rest.startswith("//")):
        root = os.path.abspath(os.path.expanduser(uri))
        return Address("", root, root)
    if scheme == "file":
        return _file(uri)
    if scheme in QUERY:
        return _bucket(uri, scheme)
    raise SettingsError(
        f"--storage {scheme}://…: allowed are a path, file://, s3://, gs:// and az://"
    )


def _file(uri: str) -> Address:
    parts = _parts(uri)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise SettingsError(
            "--storage file://…: allowed is file:///PATH of this machine, without host and query"
        )
    return Address("file", uri.rstrip("/") or uri, unquote(parts.path))


def _bucket(uri: str, scheme: str) -> Address:
    refuse_credentials(uri)
    parts = urlsplit(uri)
    shown = f"{parts.scheme}://{parts.netloc}{parts.path}"
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := [key for key in query if key not in QUERY[scheme]]:
        raise SettingsError(
            f"--storage {shown}: {unknown[0]}= is not allowed in the URI, "
            f"only {', '.join(QUERY[scheme])}"
        )
    if query.get("scheme", "https") not in ("http", "https"):
        raise SettingsError(
            f"--storage {shown}: scheme={query['scheme']}: allowed are http and https"
        )
    if not parts.netloc or " " in uri or parts.fragment:
        raise SettingsError(f"--storage {shown}: needs a bucket, and %20 for a space, %23 for #")
    path = unquote(parts.path).strip("/")
    if "//" in unquote(parts.path) or {".", ".."} & set(path.split("/")):
        raise SettingsError(f"--storage {shown}: no //, . or .. within the path")
    user, _, bucket = parts.netloc.rpartition("@")
    query_text = f"?{parts.query}" if parts.query else ""
    return Address(scheme, shown.rstrip("/"), path, bucket, bool(user), query_text, query)


def refuse_credentials(uri: str) -> None:
    """Raises SettingsError, without repeating the URI, when it carries a key or password."""
    parts = _parts(uri)
    user, at, _ = parts.netloc.rpartition("@")
    # Arrow's word for public buckets
    anonymous = parts.scheme in ("gs", "gcs") and user == "anonymous"
    found = "user or password before @" if at and not anonymous else None
    if ":" in parts.netloc:  # a key whose secret holds a slash: no bucket's name has a colon
        found = "a key"
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if _SECRET.search(key) or "@" in value:
            found = f"{key}="
    if found:
        raise SettingsError(
            f"--storage {parts.scheme}://…: the URI carries {found}; "
            "keys are taken from the environment, IAM or files only"
        )


def _parts(uri: str) -> SplitResult:
    try:
        return urlsplit(uri)
    except ValueError as error:
        raise SettingsError("--storage: not a URI; expected a path or s3://bucket/path") from error


def check_run_name(name: str) -> None:
    """Raises SettingsError if a run cannot have this name."""
    if not _RUN_NAME.fullmatch(name) or ".." in name:
        raise SettingsError(
            f"--name {name!r}: allowed are up to 200 of the characters A-Z a-z 0-9 . _ - , "
            "not beginning with a dot, no '..'"
        )


def is_inside(name: str) -> bool:
    """True for a name below a directory, False for "", the directory itself.

    Raises:
        ValueError: the name leads out of the directory.
    """
    if name == "":
        return False
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or "\\" in name or not name.isprintable():
        raise ValueError(f"{name!r} is not a name inside a run's directory")
    return True
