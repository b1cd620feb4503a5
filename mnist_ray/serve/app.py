"""The application: what it answers to a picture, and to a look at its health and figures."""

import asyncio
import contextlib
import hmac
import ipaddress
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as metrics_text
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mnist_ray.errors import SettingsError, first_line
from mnist_ray.results import Model
from mnist_ray.serve import body

WAITING = 64  # requests that are read, wait for a thread or run; one more is turned away
PATHS = ("/predict", "/healthz", "/metrics", "/openapi.json", "/docs")


class Answer(BaseModel):
    """The answer to a picture, as `Model.predict` gives it."""

    label: str
    probability: float
    known: bool
    reason: str


class Metrics:
    """What /metrics tells, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "mnist_ray_requests", "Requests by path and status.", ["path", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "mnist_ray_request_seconds", "Seconds from a request's head to its answer.",
            registry=self.registry,
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
        )  # fmt: skip
        self.answers = Counter(
            "mnist_ray_answers", "Answered pictures by label; known: false for none of these.",
            ["label", "known"], registry=self.registry,
        )  # fmt: skip
        self.at_work = Gauge(
            "mnist_ray_requests_at_work", "Pictures being read or answered.", registry=self.registry
        )


class Guard:
    """Counts requests, and refuses those that name another host than this machine.

    A page from elsewhere may have its own name resolve to 127.0.0.1 (DNS rebinding).

    Args:
        app: The application behind it.
        metrics: Where requests are counted.
        local: Whether only this machine may be named.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, local: bool) -> None:
        self.app, self.metrics, self.local = app, metrics, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began = 500, time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"], (b"x-content-type-options", b"nosniff"),
                ]  # fmt: skip
            await send(message)

        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
        try:
            if self.local and not is_loopback(re.sub(r":\d+$", "", host)):
                refusal = JSONResponse({"detail": f"host: {host!r} is not this machine"}, 403)
                await refusal(scope, receive, noted)
            else:
                await self.app(scope, receive, noted)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self.metrics.requests.labels(path, str(status)).inc()
            if path == "/predict":
                self.metrics.seconds.observe(time.perf_counter() - began)


class Classifier:
    """Runs pictures through a model, one thread a core."""

    def __init__(self, model: Model, metrics: Metrics) -> None:
        self.model, self.metrics = model, metrics
        self.pool = ThreadPoolExecutor(os.cpu_count() or 1, "picture")
        self.at_work = 0
        # Everything is loaded, and damage is told, before the first request.
        self.classes = list(model.classes)
        model.predict(np.zeros((28, 28), np.uint8))

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """One of the WAITING places, from before the body is read. 503 if there is none."""
        if self.at_work >= WAITING:
            raise HTTPException(503, "too many requests at once", {"Retry-After": "1"})
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self.at_work += change
        self.metrics.at_work.set(self.at_work)

    async def answer(self, content: bytes, kind: str) -> Answer:
        """The answer to what `body.read` gives."""
        task = self.pool.submit(self._answer, content, kind)
        try:
            found = await asyncio.wait_for(asyncio.wrap_future(task), body.PATIENCE)
        except TimeoutError as error:
            raise HTTPException(503, f"no answer within {body.PATIENCE:g} seconds") from error
        except SettingsError as error:
            raise HTTPException(400, first_line(error)) from error
        self.metrics.answers.labels(found.label, str(found.known).lower()).inc()
        return found

    def _answer(self, content: bytes, kind: str) -> Answer:
        label, probability = found = self.model.predict(body.picture_of(content, kind))
        return Answer(label=label, probability=probability, known=found.known, reason=found.reason)


def app_of(model: Model, token: str | None = None, *, local: bool = True) -> FastAPI:
    """The application that answers for a model.

    Args:
        model: The published model.
        token: That /predict and /metrics ask for (`Authorization: Bearer …`); None: nothing.
        local: Whether requests must name this machine as their host.
    """
    metrics = Metrics()
    classifier = Classifier(model, metrics)
    app = FastAPI(
        title="mnist_ray",
        version="1",
        description="The class of a picture.",
        redoc_url=None,
    )
    app.add_middleware(Guard, metrics=metrics, local=local)
    bearer = HTTPBearer(auto_error=False)

    def known(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)] = None,
    ) -> None:
        if token is not None and not (
            given and hmac.compare_digest(given.credentials.encode(), token.encode())
        ):
            raise HTTPException(
                401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"}
            )

    guarded = [Depends(known)] if token is not None else []

    @app.post("/predict", dependencies=guarded, openapi_extra={"requestBody": body.SCHEMA})
    async def predict(request: Request) -> Answer:
        """The class of a picture: a PNG, JPEG or other file, a form with one, or JSON."""
        with classifier.place():
            return await classifier.answer(*await body.read(request))

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """That the server answers, and for which model."""
        return {
            "status": "ok",
            "model": os.path.basename(model.path.rstrip("/")),
            "sha256": model.manifest.get("sha256"),
            "classes": classifier.classes,
        }

    @app.get("/metrics", dependencies=guarded, response_class=Response)
    async def show() -> Response:
        """Counters and times for Prometheus."""
        return Response(metrics_text(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
