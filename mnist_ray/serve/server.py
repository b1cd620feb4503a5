"""The server: uvicorn with limits; other machines reach it only where a token is set."""

import asyncio
import logging
import os
import socket

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from mnist_ray.errors import SettingsError
from mnist_ray.processes import clock
from mnist_ray.results import load_model
from mnist_ray.serve import body
from mnist_ray.serve.app import app_of, is_loopback

TOKEN = "MNIST_RAY_TOKEN"  # the environment variable: a flag would show in the list of processes
SHORTEST_TOKEN = 16  # characters
CONNECTIONS = 256


class Patient(H11Protocol):
    """Closes a connection on which the head of a request does not arrive in time.

    uvicorn itself waits for ever for the first byte, and for the rest of a head.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait."""
        # asyncio knows a socket of create_server not to be TCP, and leaves Nagle's algorithm on:
        # the body of an answer would wait 40 ms for the receipt of its head.
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Waits on while no request has begun."""
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the waiting."""
        super().connection_lost(exc)
        if self._late is not None:
            self._late.cancel()

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        if not self._idle() and self._late is not None:
            self._late.cancel()
            self._late = None
        elif self._idle() and self._late is None:
            self._late = self.loop.call_later(body.PATIENCE, self._close)

    def _close(self) -> None:
        self._late = None
        if self._idle() and not self.transport.is_closing():
            self.transport.close()


def token_for(host: str) -> str | None:
    """The token of the environment. SettingsError if there is none, and others reach the host."""
    token = os.environ.get(TOKEN) or None
    if token is None and not is_loopback(host):
        raise SettingsError(
            f"--host: {host} can be reached from other machines; set {TOKEN} to a secret of at "
            f"least {SHORTEST_TOKEN} characters, or serve on 127.0.0.1"
        )
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii()):
        raise SettingsError(f"{TOKEN}: expected at least {SHORTEST_TOKEN} ASCII characters")
    return token


def server_of(app: FastAPI) -> uvicorn.Server:
    """The server of an application, with this module's limits."""
    # It logs each form that it cannot read; the answer says so already.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        app,
        http=Patient,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=int(body.PATIENCE),
    )
    return uvicorn.Server(config)


def serve(where: str, host: str, port: int) -> None:
    """Serves a model until Ctrl-C; requests that have begun are answered first.

    Args:
        where: An ONNX file or a run's directory, local or s3://…
        host: The address to listen on.
        port: 0 takes any that is free.

    Raises:
        SettingsError: The address cannot be listened on, there is no model, or no token is set
            for an address that other machines reach.
    """
    if not 0 <= port <= 65535:
        raise SettingsError(
            f"--port: {port} is not allowed; expected 0 (any that is free) to 65535"
        )
    token = token_for(host)
    with clock("loading the model"):
        app = app_of(load_model(where), token, local=is_loopback(host))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except OSError as error:
        raise SettingsError(
            f"--port: {host} port {port} cannot be listened on: {error.strerror or error}"
        ) from error
    with listening:
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listening.getsockname()[1]}"
        print(
            f"{address}/predict takes pictures; {address}/docs describes it; Ctrl-C ends it",
            flush=True,
        )
        server_of(app).run(sockets=[listening])
