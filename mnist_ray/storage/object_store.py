"""A run's directory in a bucket of S3, Google Cloud Storage or Azure, by obstore.

Methods are those of Folder: names are checked, "" is the directory itself, all raise OSError.
"""

import errno
import os
import re
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from mnist_ray.storage.address import Address

# A whole request may take long, as the upload of a model does; an answer must begin to come.
_CLIENT = {"connect_timeout": "5s", "read_timeout": "20s", "timeout": "300s"}
_RETRY = {"max_retries": 0}  # the pauses and the limit are RunStorage's
PART_BYTES = 5 * 1024 * 1024  # larger objects are sent in parts
_PARTS = 2  # at the same time: a slow line must send each within read_timeout
_PROFILE_SECONDS = 900.0  # for which a key from AWS's files is taken to hold

_STATUS = re.compile(r"status code: (\d{3}[^:\n]*)")
_MAY_PASS_STATUS = re.compile(r"408|429|500|502|503|504|409")
_METADATA = "http://169.254.169.254/"  # a cloud machine's own role


class StoreError(OSError):
    """An object store's refusal.

    Attributes:
        may_pass: whether it may help to ask again.
    """

    def __init__(self, reason: str, may_pass: bool) -> None:
        super().__init__(errno.EIO, reason)
        self.may_pass = may_pass


class Bucket:
    """Objects exist only once their upload has ended, so that none appears in part."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._root = address.path

    @cached_property
    def _store(self) -> ObjectStore:
        return connect(self._address)

    def exists(self, name: str) -> bool:
        """Whether there is an object of this name, or below it."""
        with _translated():
            return (bool(name) and self._is_object(self._key(name))) or bool(self._below(name))

    def read(self, name: str) -> bytes:
        """The whole content."""
        with _translated():
            return bytes(obstore.get(self._store, self._key(name)).bytes())

    def write(self, name: str, data: bytes) -> None:
        """Write an object, replacing one of that name."""
        with _translated():
            obstore.put(
                self._store,
                self._key(name),
                data,
                chunk_size=PART_BYTES,
                max_concurrency=_PARTS,
            )

    def create(self, name: str, data: bytes) -> bool:
        """Write an object if there is none of this name."""
        key = self._key(name)
        with _translated():
            # Looked at too, for stores that do not know conditions.
            return not self._is_object(key) and self._put_if(key, data, "create")

    def replace(self, name: str, expected: bytes, data: bytes | None) -> bool:
        """Replace an object, or remove it (None), only while it holds `expected`.

        Removing is not conditional: no store offers that everywhere.
        """
        key = self._key(name)
        with _translated():
            try:
                found = obstore.get(self._store, key)
            except FileNotFoundError:
                return False
            content, version = bytes(found.bytes()), found.meta
            if content == data:
                return True  # our own, whose answer was lost
            if content != expected:
                return False
            if data is None:
                obstore.delete(self._store, [key])
                return True
            return self._put_if(key, data, _version(version))

    def version(self, name: str) -> Any:
        """Tells an object from those that had its name before and after; None if there is none."""
        with _translated():
            try:
                return _version(obstore.head(self._store, self._key(name)))
            except FileNotFoundError:
                return None

    def write_if(self, name: str, data: bytes, version: Any) -> bool:
        """Write an object only while it has this version.

        One that is sent in parts is written in any case: a condition needs a single request.
        """
        if len(data) > PART_BYTES:
            self.write(name, data)
            return True
        with _translated():
            return self._put_if(self._key(name), data, "create" if version is None else version)

    def names(self, name: str) -> list[str]:
        """All objects below, relative to this directory."""
        cut = len(self._root) + 1 if self._root else 0
        with _translated():
            return [key[cut:] for key in self._below(name)]

    def delete(self, name: str) -> None:
        """Remove an object, or all below it."""
        with _translated():
            keys = self._below(name, markers=True)
            with suppress(FileNotFoundError):
                obstore.delete(self._store, keys or [self._key(name)])

    def probe(self) -> None:
        """Write and remove an object in the directory itself."""
        name = f".mnist_ray-{secrets.token_hex(8)}"
        self.write(name, b"probe")
        with _translated():
            obstore.delete(self._store, [self._key(name)])

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self._root, name) if part)

    def _is_object(self, key: str) -> bool:
        try:
            obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True

    def _below(self, name: str, markers: bool = False) -> list[str]:
        """The keys below a directory.

        markers: also the empty objects with which Arrow, and some clouds' web pages, mark a folder.
        """
        try:
            found = [each for page in obstore.list(self._store, self._key(name)) for each in page]
        except BaseError as error:
            if "status code: 404" in str(error):
                return []  # no such bucket
            raise
        return [
            each["path"]
            for each in found
            if markers or each["size"] > 0 or self._is_object(each["path"])
        ]

    def _put_if(self, key: str, data: bytes, mode: Any) -> bool:
        try:
            obstore.put(self._store, key, data, mode=mode)
        except (AlreadyExistsError, PreconditionError) as error:
            if "409 Conflict" in str(error):  # another writes at this moment: decided soon
                raise StoreError("another writes it", may_pass=True) from error
            return False
        except BaseError as error:
            if "501 Not Implemented" not in str(error):
                raise
            obstore.put(self._store, key, data)
        return True


def _version(about: Any) -> dict[str, str]:
    """The condition of a put by an object's metadata."""
    return {key: about[key] for key in ("e_tag", "version") if about.get(key)}


def connect(address: Address) -> ObjectStore:
    """The bucket of an address, with keys from the environment, the clouds' files or IAM."""
    http = address.query.get("scheme") == "http"
    place = address.query.get("endpoint_override")
    endpoint = f"{'http' if http else 'https'}://{place}" if place else None
    client: Any = {**_CLIENT, "allow_http": True}
    common: Any = {"client_options": client, "retry_config": _RETRY}
    if address.scheme == "az":
        options: Any = {"endpoint": endpoint} if endpoint else {}
        return AzureStore(address.bucket, **common, **options)
    if address.scheme in ("gs", "gcs"):
        options = {"base_url": endpoint} if endpoint else {}
        return GCSStore(address.bucket, skip_signature=address.anonymous, **common, **options)
    endpoint = (
        endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    options = {"endpoint": endpoint} if endpoint else {}
    region = address.query.get("region") or (None if endpoint else _region(address.bucket))
    options |= {"region": region} if region else {}
    return S3Store(address.bucket, **common, **options, **_aws_keys())


def _region(bucket: str) -> str | None:
    """The region of a bucket of AWS, which its refusals name too."""
    request = urllib.request.Request(f"https://s3.amazonaws.com/{bucket}", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            headers = answer.headers
    except urllib.error.HTTPError as error:
        headers = error.headers
    except OSError as error:
        raise StoreError(f"AWS cannot be reached: {error}", may_pass=True) from error
    region: str | None = headers.get("x-amz-bucket-region")
    return region


def _aws_keys() -> dict[str, Any]:
    """Options that name the place of S3's keys; none if obstore finds them itself.

    It knows the environment, web identity, containers and a machine's role, not AWS's files.
    """
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return {}
    files = (
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
    )
    if any(Path(os.path.expanduser(file)).exists() for file in files):
        provider = _profile()
        if provider is not None:
            return {"credential_provider": provider}
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return {"skip_signature": True}
    return {}


def _profile() -> Callable[[], Any] | None:
    """A profile's keys (AWS_PROFILE): written there, of a role, or of a single sign-on."""
    import botocore.session  # noqa: PLC0415 (seconds at start)

    try:
        keys = botocore.session.get_session().get_credentials()
    except botocore.exceptions.BotoCoreError as error:  # no such profile, or not to be read
        raise StoreError(f"AWS_PROFILE: {error}", may_pass=False) from error
    if keys is None:
        return None

    def provide() -> dict[str, Any]:
        now = keys.get_frozen_credentials()
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(UTC) + timedelta(seconds=_PROFILE_SECONDS),
        }

    return provide


@contextmanager
def _translated() -> Iterator[None]:
    """Errors of obstore as OSError; its messages hold whole answers and Rust's debug output."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, _reason(str(error))) from error
    except BaseError as error:
        text = str(error)
        raise StoreError(_reason(text), _may_pass(text)) from error


def _may_pass(text: str) -> bool:
    status = _STATUS.search(text)
    if status is None:
        return "HTTP error" in text  # no answer
    # S3 calls a connection that stood still a bad request.
    return bool(_MAY_PASS_STATUS.match(status[1])) or "<Code>RequestTimeout</Code>" in text


def _reason(text: str) -> str:
    """One line, without URLs: Azure's may hold a signature."""
    if _METADATA in text:
        return "no keys found in the environment, in the cloud's files or by the machine's role"
    code, message = (re.search(rf"<{tag}>([^<]+)", text) for tag in ("Code", "Message"))
    if code is not None:
        return f"{code[1]}: {message[1].splitlines()[0]}" if message else code[1]
    if status := _STATUS.search(text):
        return f"HTTP status {status[1].strip()}"
    if "HTTP error" in text:
        if "kind: Timeout" in text:
            return "the server does not answer"
        details = re.findall(r'(?:message|error): "([^"]+)"', text)
        return f"the server cannot be reached ({details[-1] if details else 'no connection'})"
    return re.sub(r"\w+://\S+", "…", text.splitlines()[0])
