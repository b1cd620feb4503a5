"""One Ray for most of the suite, S3 behind a network that can fail, planted secrets."""

from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.faults.tools import SECRETS, Network, Rays


@pytest.fixture(scope="package", autouse=True)
def planted() -> Iterator[None]:
    """Every process of the suite has the secrets in its environment; moto takes any key."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ACCESS_KEY_ID", "planted-aws-key-id")
        yield


@pytest.fixture(scope="package")
def network(s3_server: str) -> Iterator[Network]:
    """The way to the S3 server."""
    port = parse_qs(urlsplit(s3_server).query)["endpoint_override"][0].rpartition(":")[2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "AWS_SECRET_ACCESS_KEY", SECRETS["AWS_SECRET_ACCESS_KEY"]
        )  # s3_server has set its own
        yield Network(int(port))


@pytest.fixture(scope="package")
def bucket(network: Network) -> str:
    """The URI of a bucket at the other end of the network."""
    return f"s3://bucket/faults?endpoint_override=127.0.0.1:{network.port}&scheme=http"


@pytest.fixture(scope="package")
def rays(bucket: str) -> Iterator[Rays]:
    """A Ray of one node with two CPUs, started with the S3 server's keys in its environment."""
    # Storage that stays away is reported after 15 s, not 60; a slow test has the longer time.
    cluster = Rays(2, MNIST_RAY_STORAGE_RETRY_SECONDS="15")
    yield cluster
    cluster.remove()


@pytest.fixture(autouse=True)
def network_is_up(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "network" in request.fixturenames or "bucket" in request.fixturenames:
        request.getfixturevalue("network").set("up")
