"""The server: the answers of `predict`, and a line for whatever else it is sent."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from uvicorn.protocols.http.h11_impl import H11Protocol

from mnist_ray import data, load_model
from mnist_ray.errors import SettingsError
from mnist_ray.export.picture_model import guises
from mnist_ray.results import Model
from mnist_ray.serve import app, body, server
from tests.support.pictures import png
from tests.support.published import published

SECRET = "0123456789abcdef"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("run"))


def client_of(run: Path, token: str | None = None, local: bool = True) -> TestClient:
    made = app.app_of(load_model(run), token, local=local)
    return TestClient(made, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(run: Path) -> TestClient:
    return client_of(run)


@pytest.fixture(scope="module")
def picture() -> bytes:
    return png(data.load("digits", "test").images[3, 0])


def test_it_answers_as_predict_and_the_page_s_file_do(
    client: TestClient, run: Path, tmp_path: Path
) -> None:
    """The page runs a copy of picture.onnx; `session` is that file in onnxruntime alone."""
    model = load_model(run)
    session = load_model(run)._pictures
    pictures = list(guises(data.load("digits", "test").images[:100]))[1:]  # no 12 megapixels
    assert len(pictures) == 100
    for rgba in pictures:
        (tmp_path / "a.png").write_bytes(file := png(rgba))
        label, probability = found = model.predict(tmp_path / "a.png")
        assert client.post("/predict", content=file).json() == {
            "label": label, "probability": probability, "known": found.known,
            "reason": found.reason,
        }  # fmt: skip
        alone = session(np.array(Image.open(io.BytesIO(file)).convert("RGBA")))
        assert (alone.probability, alone.known) == (probability, found.known)


def test_a_form_json_and_a_jpeg_are_pictures_too(client: TestClient, picture: bytes) -> None:
    pixels = np.array(Image.open(io.BytesIO(picture)))
    expected = client.post("/predict", content=picture).json()
    assert expected["known"]
    form = client.post("/predict", files={"file": ("a.png", picture, "image/png")})
    assert form.json() == expected
    of_curl = {"Content-Type": "application/x-www-form-urlencoded"}  # as the page's line sends it
    assert client.post("/predict", content=picture, headers=of_curl).json() == expected
    assert client.post("/predict", json=pixels.tolist()).json() == expected
    rgba = np.array(Image.fromarray(pixels).convert("RGBA"))
    assert client.post("/predict", json=rgba.tolist()).json() == expected
    jpeg = io.BytesIO()
    Image.fromarray(pixels).resize((90, 90)).save(jpeg, "JPEG")
    answer = client.post(
        "/predict", content=jpeg.getvalue(), headers={"Content-Type": "image/jpeg"}
    )
    assert (answer.status_code, answer.json()["label"]) == (200, expected["label"])


BAD = {
    "empty": (b"", "image/png", 400),
    "no picture": (b"hello", "image/png", 400),
    "half a picture": (png(np.eye(90, dtype=np.uint8) * 255)[:90], "image/png", 400),
    "a kind of its own": (b"x", "text/html", 415),
    "no JSON": (b"[[", "application/json", 400),
    "deep JSON": (b"[" * 100_000, "application/json", 400),
    "an object": (b'{"a": 1}', "application/json", 400),
    "ragged": (b"[[1,2],[3]]", "application/json", 400),
    "a text": (b'[["a"]]', "application/json", 400),
    "fractions": (b"[[0.5]]", "application/json", 400),
    "NaN": (b"[[NaN]]", "application/json", 400),
    "too bright": (b"[[256]]", "application/json", 400),
    "huge number": (b"[[1" + b"0" * 400 + b"]]", "application/json", 400),
    "nothing": (b"[[]]", "application/json", 400),
    "a line": (b"[1, 2]", "application/json", 400),
    "five channels": (b"[[[1,2,3,4,5]]]", "application/json", 400),
    "no form": (b"hello", "multipart/form-data; boundary=x", 400),
    "no boundary": (b"hello", "multipart/form-data", 400),
    "no file": (
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n',
        "multipart/form-data; boundary=x",
        400,
    ),
    "large": (b"\0" * (body.LARGEST + 1), "image/png", 413),
    "large JSON": (b" " * (body.LARGEST_JSON + 1), "application/json", 413),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_one_line(client: TestClient, name: str) -> None:
    content, kind, status = BAD[name]
    answer = client.post("/predict", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert "\n" not in detail
    assert 0 < len(detail) < 300


def test_a_picture_of_too_many_pixels_is_refused(client: TestClient) -> None:
    file = io.BytesIO()
    Image.new("1", (5001, 5000)).save(file, "PNG")
    answer = client.post("/predict", content=file.getvalue())
    assert answer.status_code == 400
    assert "5001 x 5000 pixels; at most 25,000,000" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("width", "height", "progressive"),
    [(6000, 5000, False), (8000, 6500, False), (13_370, 13_370, True)],
)
def test_a_jpeg_counts_by_the_size_that_it_states(
    client: TestClient, width: int, height: int, progressive: bool
) -> None:
    """Above 50 million pixels it could be read at a fraction, but a progressive one is unpacked
    whole. The head of a small picture is enough: nothing is decoded.
    """
    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, "JPEG", progressive=progressive)
    content = bytearray(file.getvalue())
    frame = content.index(b"\xff\xc2" if progressive else b"\xff\xc0")  # SOF: height, width
    content[frame + 5 : frame + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    answer = client.post("/predict", content=bytes(content))
    assert answer.status_code == 400
    expected = f"{width} x {height} pixels; at most {body.MOST_PIXELS:,} in all"
    assert expected in answer.json()["detail"]


def test_other_paths_methods_and_hosts_are_refused(client: TestClient, picture: bytes) -> None:
    assert client.get("/predict").status_code == 405
    assert client.get("/etc/passwd").status_code == 404
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        answer = client.post("/predict", content=picture, headers={"Host": host})
        assert answer.status_code == 403, host
    for host in ("localhost:1", "127.0.0.1", "[::1]:9", "[::1]"):
        assert client.post("/predict", content=picture, headers={"Host": host}).is_success, host


def test_a_token_is_asked_for(run: Path, picture: bytes) -> None:
    client = client_of(run, SECRET, local=False)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": SECRET}):
        for answer in (
            client.post("/predict", content=picture, headers=headers),
            client.get("/metrics", headers=headers),
        ):
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    right = {"Authorization": f"Bearer {SECRET}", "Host": "model.example"}
    assert client.post("/predict", content=picture, headers=right).is_success
    assert client.get("/healthz").json()["status"] == "ok"


def test_another_host_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(server.TOKEN, raising=False)
    assert server.token_for("127.0.0.1") is None
    for host in ("0.0.0.0", "::", "192.0.2.1", "model.example"):
        with pytest.raises(SettingsError, match=f"^--host: {host} can be reached from other"):
            server.token_for(host)
    monkeypatch.setenv(server.TOKEN, "short")
    with pytest.raises(SettingsError, match="^MNIST_RAY_TOKEN: expected at least 16"):
        server.token_for("127.0.0.1")
    monkeypatch.setenv(server.TOKEN, SECRET)
    assert server.token_for("0.0.0.0") == SECRET


def test_health_metrics_and_the_open_api_page(run: Path, picture: bytes) -> None:
    client = client_of(run)
    health = client.get("/healthz").json()
    assert health["sha256"] == load_model(run).manifest["sha256"]
    assert health["classes"][5] == "five"
    for _ in range(3):
        assert client.post("/predict", content=picture).is_success
    client.post("/predict", content=b"")
    client.get("/favicon.ico")
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert found["mnist_ray_requests_total", "/predict", "200"] == 3
    assert found["mnist_ray_requests_total", "/predict", "400"] == 1
    assert found["mnist_ray_requests_total", "other", "404"] == 1
    assert found["mnist_ray_request_seconds_count",] == 4
    assert found["mnist_ray_requests_at_work",] == 0
    described = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert set(described["requestBody"]["content"]) == {
        "image/*", "multipart/form-data", "application/json",
    }  # fmt: skip
    assert "openapi.json" in client.get("/docs").text


def test_too_many_at_once_and_slow_answers_are_turned_away(
    run: Path, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, ended = client_of(run), threading.Event()
    real = body.picture_of

    def slow(content: bytes, kind: str) -> object:
        ended.wait(10)
        return real(content, kind)

    monkeypatch.setattr(body, "picture_of", slow)
    monkeypatch.setattr(body, "PATIENCE", 1.0)
    answer = client.post("/predict", content=picture)
    assert (answer.status_code, answer.json()) == (503, {"detail": "no answer within 1 seconds"})
    monkeypatch.setattr(app, "WAITING", 0)
    answer = client.post("/predict", content=picture)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    ended.set()
    monkeypatch.setattr(app, "WAITING", 1)
    monkeypatch.setattr(body, "PATIENCE", 10.0)
    assert client.post("/predict", content=picture).is_success


@pytest.fixture(scope="module")
def loaded(run: Path) -> Model:
    return load_model(run)


@pytest.fixture
def address(loaded: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """A server in this process that waits for half a second."""
    monkeypatch.setattr(body, "PATIENCE", 0.5)
    made = server.server_of(app.app_of(loaded))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=made.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[:2]
        made.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"


@pytest.mark.parametrize(
    ("sent", "begins"),
    [
        (b"", b""),  # closed without a word
        (b"POST /pre", b""),
        (HEAD + b"Content-Length: 9\r\n\r\nhalf", b"HTTP/1.1 408 "),
        (HEAD + b"Content-Length: 99999999\r\n\r\n", b"HTTP/1.1 413 "),
        (b"\x16\x03\x01 no HTTP \r\n\r\n", b"HTTP/1.1 400 "),
        (HEAD + b"Content-Length: -5\r\n\r\n", b"HTTP/1.1 400 "),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 9\r\n\r\nhello", b"HTTP/1.1 400 "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n", b"HTTP/1.1 400 "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFF\r\nabc", b"HTTP/1.1 408 "),
        (HEAD + b"Host: elsewhere\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 "),  # no host
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/1.1 40"),
        (bytes(range(128, 256)) * 20, b""),
    ],
)
def test_a_connection_that_does_not_go_on_is_closed(
    address: tuple[str, int], sent: bytes, begins: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if begins not in (b"", b"HTTP/1.1 408 "):  # answered at once, however slow the machine is
        monkeypatch.setattr(body, "PATIENCE", 10.0)
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(sent)
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert answer.startswith(begins)
    assert begins or not answer
    with urllib.request.urlopen("http://{}:{}/healthz".format(*address), timeout=5) as health:
        assert json.load(health)["status"] == "ok"


def test_an_answer_does_not_wait_for_the_receipt_of_its_head(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nagle's algorithm would hold the body back for 40 ms, in every answer."""
    begun, at_once = H11Protocol.connection_made, []

    def noted(self: H11Protocol, transport: asyncio.Transport) -> None:
        connection = transport.get_extra_info("socket")
        at_once.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        begun(self, transport)

    monkeypatch.setattr(H11Protocol, "connection_made", noted)
    with urllib.request.urlopen("http://{}:{}/healthz".format(*address), timeout=5):
        assert at_once == [1]


def test_ctrl_c_ends_it_in_order(run: Path, picture: bytes) -> None:
    command = [sys.executable, "-m", "mnist_ray", "serve", str(run)]
    env = {k: v for k, v in os.environ.items() if k != server.TOKEN}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        request = urllib.request.Request(address, picture, {"Content-Type": "image/png"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert json.load(answer)["known"] is True
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, errors) == (130, "mnist-ray serve: interrupted\n")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_refused(run: Path, port: int) -> None:
    with pytest.raises(SettingsError, match=f"^--port: {port} is not allowed"):
        server.serve(str(run), "127.0.0.1", port)


def test_a_port_that_is_taken_is_named(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port} cannot be listened on: "):
            server.serve(str(run), "127.0.0.1", port)
