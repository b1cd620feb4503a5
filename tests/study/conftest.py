"""Servers for the tests of studies: each is started when a test first asks for it."""

from collections.abc import Callable, Iterator

import pytest

from tests.support.servers import KINDS, Server


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[str], Server]]:
    """Starts the server of a kind when it is first asked for; all are stopped at the end."""
    running: dict[str, Server] = {}

    def server(kind: str) -> Server:
        if kind not in running:
            make, driver = KINDS[kind]
            pytest.importorskip(driver, reason=f"pip install 'mnist_ray[{kind}]'")
            running[kind] = make()
            running[kind].start()
        return running[kind]

    yield server
    for each in running.values():
        each.remove()


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Server:
    return servers(request.param)
