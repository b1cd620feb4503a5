"""Places to store in: a disk, and the S3 server behind a proxy."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.s3_proxy import Proxy


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", "0.3")


@pytest.fixture(params=["path", "file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage URI of each kind, empty."""
    if request.param == "path":
        return str(tmp_path / "my runs")
    if request.param == "file":
        return f"file://{tmp_path}/my%20runs"
    base, query = request.getfixturevalue("proxy").uri.split("?")
    return f"{base}/my%20runs/{uuid.uuid4().hex}?{query}"


@pytest.fixture
def proxy(s3_server: str) -> Iterator[Proxy]:
    proxy = Proxy(s3_server)
    yield proxy
    proxy.stop()
