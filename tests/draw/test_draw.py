"""The page to draw on, in a real browser without a network, and what is packed into it."""

import base64
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mnist_ray import data, draw, models
from mnist_ray.data import read_picture
from mnist_ray.draw import build, runtime, server
from mnist_ray.errors import CorruptFileError, SettingsError
from mnist_ray.export.pictures import Preprocessor
from mnist_ray.export.session import Session, probabilities
from mnist_ray.export.write import export
from mnist_ray.training.trainer import Trainer
from tests.support.browser import chromium, wait_for
from tests.support.published import HP

JOB = Path(__file__).parents[2] / "jobs" / "draw.py"
COLOUR_HP: dict[str, Any] = HP | {
    "in_channels": 3,
    "image_size": [32, 32],
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
}
DIGITS = '["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]'
ANIMALS = '["aeroplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "lorry"]'


def exported(hp: dict[str, Any], classes: str = DIGITS) -> bytes:
    """A network with random weights."""
    torch.manual_seed(0)
    return export(models.build(hp).eval(), hp, {"classes": classes})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network, trained for seconds."""
    train = data.load("digits", "train")
    trainer = Trainer(HP, epochs=5, seed=0, precision="fp32")
    for _ in range(5):
        trainer.train_epoch(torch.tensor(train.images), torch.tensor(train.labels))
    file = tmp_path_factory.mktemp("run") / "model.onnx"
    file.write_bytes(
        export(trainer.eval_model(), HP, {"dataset": "digits", "run": "first", "classes": DIGITS})
    )
    return file


@pytest.fixture(scope="module")
def colour_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("colour") / "model.onnx"
    file.write_bytes(exported(COLOUR_HP, ANIMALS))
    return file


Predictor = Callable[[np.ndarray], np.ndarray]


def predictor(model: Path) -> Predictor:
    """What predict.py does with RGBA pixels, which gives float32 [classes]."""
    session = Session(model.read_bytes(), "model")
    channels, height, width = session.image_shape
    preprocess = Preprocessor((height, width), channels)
    return lambda picture: probabilities(session.run(preprocess(picture)))[0]


@pytest.fixture(scope="module")
def predicted(model: Path) -> Predictor:
    return predictor(model)


# ---- what is packed


@pytest.mark.parametrize(
    ("change", "modules"),
    [
        ({"activation": "silu"}, 4),
        ({"activation": "gelu", "activation_position": "before_norm"}, 3),
        ({"pool_position": "conv"}, 2),
    ],
    ids=["norm, silu", "gelu", "pool first"],
)
def test_first_layer_is_the_networks_own(change: dict[str, Any], modules: int) -> None:
    hp = HP | change
    proto = onnx.load_model_from_string(exported(hp))
    found = build.first_layer(proto)
    assert found is not None
    beginning, channels = found
    torch.manual_seed(0)
    network = models.build(hp).eval()
    assert isinstance(network, torch.nn.Sequential)
    images = torch.rand(3, 1, 28, 28)
    with torch.inference_mode():
        expected = network[:modules](images).numpy()
    (maps,) = onnxruntime.InferenceSession(beginning).run(["maps"], {"input": images.numpy()})
    assert maps.shape == expected.shape
    assert maps.shape[1] == channels == 8
    np.testing.assert_allclose(maps, expected, atol=1e-5)
    assert len(beginning) < 3000


def test_no_first_layer_without_a_convolution() -> None:
    hp = {**HP, "model": "mlp", "units": [16], "dropouts": [0.0]}
    assert build.first_layer(onnx.load_model_from_string(exported(hp))) is None


def test_no_first_layer_of_a_graph_that_needs_more() -> None:
    """A graph within a node takes weights of the outer one that its first layer lacks."""
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    weights = [
        onnx.numpy_helper.from_array(np.ones((4, 1, 3, 3), np.float32), name) for name in "abc"
    ]
    yes = onnx.numpy_helper.from_array(np.array(True), "yes")
    branches = {
        f"{which}_branch": onnx.helper.make_graph(
            [node("Identity", [name], ["w"])], which, [],
            [info("w", onnx.TensorProto.FLOAT, [4, 1, 3, 3])],
        )
        for which, name in (("then", "a"), ("else", "b"))
    }  # fmt: skip
    graph = onnx.helper.make_graph(
        [node("If", ["yes"], ["unused"], **branches), node("Conv", ["x", "c"], ["out"])],
        "g",
        [info("x", onnx.TensorProto.FLOAT, ["n", 1, 9, 9])],
        [info("out", onnx.TensorProto.FLOAT, ["n", 4, 7, 7])],
        [*weights, yes],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    onnx.checker.check_model(proto)
    assert build.first_layer(proto) is None


@pytest.fixture
def no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what lies around it."""
    monkeypatch.setattr(build, "runtime", lambda: {"ort.wasm.min.js": b"var ort"})


@pytest.mark.usefixtures("no_runtime")
def test_export_writes_and_writes_again(model: Path, tmp_path: Path) -> None:
    site = tmp_path / "new" / "site"
    for _ in range(2):
        draw.export(str(model), str(site))
        (site / "CNAME").write_text("a host's own file")
    names = {
        "index.html",
        "page.css",
        "page.js",
        "files.js",
        "model.onnx",
        "picture.onnx",
        "CNAME",
    }
    assert {file.name for file in site.iterdir()} == names
    assert (site / "model.onnx").read_bytes() == model.read_bytes()
    page = "".join((site / name).read_text() for name in ("index.html", "page.css", "page.js"))
    assert not re.search(r"https?://|//[a-z]+\.[a-z]", page)


@pytest.mark.usefixtures("no_runtime")
def test_export_writes_through_no_link(model: Path, tmp_path: Path) -> None:
    """A page's folder may come from elsewhere, and hold links."""
    draw.export(str(model), str(tmp_path / "site"))
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "site" / "page.css").unlink()
    (tmp_path / "site" / "page.css").symlink_to(tmp_path / "mine")
    draw.export(str(model), str(tmp_path / "site"))
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "site" / "page.css").is_symlink()


@pytest.mark.usefixtures("no_runtime")
def test_export_leaves_other_folders_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(SettingsError, match=r"--export: .* holds other files"):
        draw.export(str(model), str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["index.html"]
    assert (tmp_path / "index.html").read_text() == "mine"
    with pytest.raises(
        SettingsError, match=r"--export: .*index.html cannot be written: Not a directory"
    ):
        draw.export(str(model), str(tmp_path / "index.html"))


@pytest.mark.usefixtures("no_runtime")
def test_ports_that_cannot_be(model: Path) -> None:
    with pytest.raises(SettingsError, match="--port: 70000 is not allowed"):
        draw.serve(str(model), 70000)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            SettingsError, match=f"--port: {port} cannot be listened on: Address already in use"
        ):
            draw.serve(str(model), port)


@pytest.fixture
def served() -> Iterator[int]:
    """A server of one file; its port."""
    with server.Server({"index.html": b"<p>page</p>"}, 0) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running.server_port
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("LocalHost:{port}", 200),
        ("evil.example:{port}", 403),
        ("127.0.0.1.evil.example:{port}", 403),
        ("127.0.0.1", 403),
        ("localhost:1", 403),
        ("", 403),
    ],
)
def test_only_this_machine_s_names_are_answered(served: int, host: str, status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served, timeout=10)
    connection.request("GET", "/", headers={"Host": host.format(port=served)})
    answer = connection.getresponse()
    assert answer.status == status
    assert (answer.read() == b"<p>page</p>") == (status == 200)
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
    assert "default-src 'none'" in (answer.getheader("Content-Security-Policy") or "")


def test_a_browser_that_stops_loading_is_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with server.Server({"index.html": bytes(30_000_000)}, 0) as running:
        running.daemon_threads = False  # closing waits for what answers
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        with socket.create_connection(("127.0.0.1", running.server_port), 10) as client:
            host = f"localhost:{running.server_port}"
            client.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert client.recv(100)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        running.shutdown()
        thread.join()
    assert capfd.readouterr() == ("", "")


def fake_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another npm, and a home directory without a cache."""
    npm = folder / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


def test_without_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        SettingsError, match=r"npm was not found: it is needed once, to fetch onnxruntime-web@"
    ):
        runtime.runtime()


def test_npm_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "npm error code ENOTFOUND",
        "npm error network request failed, reason: getaddrinfo ENOTFOUND",
        "npm error more",
    ]
    script = "\n".join(f"echo '{line}' >&2" for line in lines) + "\nexit 1"
    fake_npm(tmp_path, script, monkeypatch)
    with pytest.raises(
        SettingsError,
        match=r"^npm could not fetch \S+: network request failed, reason: getaddrinfo ENOTFOUND$",
    ):
        runtime.runtime()


def test_another_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "other.tar", "w:gz") as archive:
        for name in runtime.RUNTIME:
            archive.addfile(tarfile.TarInfo(f"package/dist/{name}"), io.BytesIO())
    fake_npm(tmp_path, f'cp {tmp_path}/other.tar "$4/onnxruntime-web.tgz"', monkeypatch)
    with pytest.raises(CorruptFileError, match="other content"):
        runtime.runtime()
    assert not (tmp_path / ".cache").exists()


# ---- in the browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        runtime.runtime()
    except SettingsError as error:
        pytest.skip(str(error))
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(model: Path, browser: Any) -> Iterator[str]:
    """jobs/draw.py as people run it."""
    server = subprocess.Popen(
        [sys.executable, str(JOB), str(model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        match = re.fullmatch(
            r"open (http://127\.0\.0\.1:\d+/) in a browser; Ctrl-C ends it\n", line
        )
        assert match, line
        yield match[1]
        server.send_signal(signal.SIGINT)
        assert server.communicate(timeout=20) == ("", "draw.py: interrupted\n")
        assert server.returncode == 130
    finally:
        server.kill()


Opened = Callable[..., Any]


@pytest.fixture
def opened(browser: Any) -> Iterator[Opened]:
    """Opens an address and waits until the network runs; nothing may complain or ask elsewhere."""
    complaints: list[str] = []
    requests: list[str] = []
    contexts = []

    def open_page(address: str, **options: Any) -> Any:
        contexts.append(
            browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        )
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        wait_for(page, "document.getElementById('best').textContent !== 'Starting…'")
        assert page.locator("#failure").is_hidden(), page.inner_text("#failure")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert [
        url
        for url in requests
        if not url.startswith(("http://127.0.0.1:", "file:", "blob:", "data:"))
    ] == []


def shown(page: Any) -> np.ndarray:
    """The probabilities on the page, float64 [classes]."""
    return np.array(
        page.eval_on_selector_all("#bars data", "all => all.map(one => Number(one.value))")
    )


def canvas(page: Any, selector: str) -> np.ndarray:
    """The pixels of a canvas, uint8 [h, w, 4]."""
    url = page.eval_on_selector(selector, "canvas => canvas.toDataURL()")
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA")
    )


def seen(page: Any) -> np.ndarray:
    """The picture that the network sees, uint8 [h, w, 3]."""
    return canvas(page, "#seen")[..., :3]


def settle(page: Any) -> None:
    """Waits until the last answer is on the page."""
    wait_for(page, "!busy && !waiting")


def give(page: Any, file: Path) -> np.ndarray:
    """A file through the file input; the probabilities shown for it."""
    page.set_input_files("#file", file)
    condition = "name => document.getElementById('source').textContent.startsWith(name)"
    wait_for(page, condition, arg=file.name)
    return shown(page)


def test_pictures_get_predict_py_s_answers(
    predicted: Predictor, address: str, opened: Opened, tmp_path: Path
) -> None:
    """100 test images: a quarter as they are, others enlarged, dark on light, or transparent."""
    images = data.load("mnist" if os.environ.get("MNIST_RAY_DATA") else "digits", "test").images[
        :100, 0
    ]
    page = opened(address)
    differences, same = [], 0
    for i, image in enumerate(images):
        picture = Image.fromarray(image)
        if i % 4 in (1, 2):
            picture = Image.fromarray(
                255 - np.asarray(picture.resize((200, 200), Image.Resampling.BICUBIC))
            )
        if i % 4 == 2:
            picture = picture.convert("P")
        if i % 4 == 3:
            black = Image.new("L", picture.size)
            picture = Image.merge("LA", (black, picture))
        file = tmp_path / f"{i}.png"
        picture.save(file)
        answer, expected = give(page, file), predicted(read_picture(str(file)))
        differences.append(np.abs(answer - expected).max())
        same += answer.argmax() == expected.argmax()
        assert page.inner_text("#best") == str(expected.argmax())
    assert same == len(images) == 100
    assert max(differences) < 1e-4


def noise(*shape: int, rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, shape, np.uint8))


def smooth(rng: np.random.Generator) -> Image.Image:
    return noise(6, 5, 3, rng=rng).resize((100, 120), Image.Resampling.BICUBIC)


def pictures(folder: Path) -> list[Path]:
    """Files of the kinds that a browser could read in another way than Pillow does."""
    rng = np.random.default_rng(0)
    gamma = PngInfo()
    gamma.add(b"gAMA", struct.pack(">I", 100000))
    noise(30, 40, 3, rng=rng).save(folder / "colour.png")
    noise(30, 40, rng=rng).save(folder / "grey.png")
    noise(30, 40, rng=rng).convert("1").save(folder / "two colours.png")
    noise(30, 40, 3, rng=rng).save(folder / "gamma.png", pnginfo=gamma)
    noise(1100, 9, 3, rng=rng).save(folder / "two tiles.png")
    noise(5, 2050, 3, rng=rng).save(folder / "three tiles.png")
    smooth(rng).convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png")
    Image.fromarray(rng.integers(0, 2**16, (30, 40), np.uint16)).save(folder / "sixteen bits.png")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        smooth(rng).save(folder / f"turned {orientation}.jpg", exif=exif, quality=90)
    return sorted(folder.iterdir())


def test_pixels_are_those_of_pillow(address: str, opened: Opened, tmp_path: Path) -> None:
    page = opened(address)
    files = pictures(tmp_path)
    assert len(files) == 16
    for file in files:
        pixels, expected = browser_pixels(page, file), read_picture(str(file))
        assert pixels.shape == expected.shape, file.name
        assert np.abs(pixels.astype(int) - expected).max() <= ("sixteen" in file.name), file.name


def test_half_transparent_pixels_look_the_same_on_white(
    address: str, opened: Opened, tmp_path: Path
) -> None:
    noise(40, 30, 4, rng=np.random.default_rng(0)).save(tmp_path / "alpha.png")
    pixels, expected = (
        browser_pixels(opened(address), tmp_path / "alpha.png"),
        read_picture(str(tmp_path / "alpha.png")),
    )
    assert (pixels[..., 3] == expected[..., 3]).all()
    on_white = [p[..., :3] * (p[..., 3:] / 255) + 255 - p[..., 3:] for p in (pixels, expected)]
    assert np.abs(on_white[0] - on_white[1]).max() <= 1


def browser_pixels(page: Any, file: Path) -> np.ndarray:
    script = """async text => {
        const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
        const { pixels, width, height } = await decoded(new Blob([bytes]));
        const reader = new FileReader();
        reader.readAsDataURL(new Blob([pixels]));
        await new Promise(resolve => { reader.onload = resolve; });
        return [height, width, reader.result];
    }"""
    height, width, url = page.evaluate(script, base64.b64encode(file.read_bytes()).decode())
    return np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8).reshape(
        height, width, 4
    )


def draw_line(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """With the mouse, from one place to another: shares of the sheet's width and height."""
    box = page.locator("#canvas").bounding_box()
    (x, y), (to_x, to_y) = start, end
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + to_x * box["width"], box["y"] + to_y * box["height"], steps=15)
    page.mouse.up()
    settle(page)


def test_a_stroke_of_the_mouse(predicted: Predictor, address: str, opened: Opened) -> None:
    page = opened(address)
    assert page.inner_text("#best") == "Nothing drawn"
    assert not seen(page).any()
    draw_line(page, (0.55, 0.2), (0.48, 0.8))
    assert_drawn(page, predicted)
    assert page.inner_text("#best") == "1"
    page.get_by_role("button", name="Clear").click()
    settle(page)
    assert page.inner_text("#best") == "Nothing drawn"
    assert page.inner_text("#sure") == ""


def assert_drawn(page: Any, predicted: Predictor) -> None:
    """The answer is predict.py's for the canvas, and the digit fills the picture as MNIST's do."""
    expected = predicted(canvas(page, "#canvas"))
    np.testing.assert_allclose(shown(page), expected, atol=1e-4)
    assert page.inner_text("#best") == str(expected.argmax())
    rows = np.flatnonzero((seen(page)[..., 0] > 100).any(1))
    assert 18 <= rows[-1] - rows[0] + 1 <= 20
    assert page.locator("#maps canvas").count() == 8
    assert (
        max(len(np.unique(canvas(page, f"#maps canvas:nth-child({i})"))) for i in range(1, 9)) > 10
    )  # shades


def test_keys_draw(predicted: Predictor, address: str, opened: Opened) -> None:
    page = opened(address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "canvas"
    for key, times in (
        ("ArrowUp", 8),
        ("Space", 1),
        ("ArrowDown", 14),
        ("Space", 1),
        ("ArrowRight", 5),
    ):
        for _ in range(times):
            page.keyboard.press(key)
    settle(page)
    assert_drawn(page, predicted)
    # For readers of screens.
    wait_for(page, "/^\\d, [0-9.]+ %$/.test(document.getElementById('status').textContent)")
    width = np.flatnonzero((seen(page)[..., 0] > 100).any(0))
    assert len(width) < 8  # the lifted pen drew nothing to the right
    page.keyboard.press("Delete")
    settle(page)
    assert page.inner_text("#best") == "Nothing drawn"
    for expected in ("clear", "open"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == expected


def test_a_finger_on_a_phone(predicted: Predictor, address: str, opened: Opened) -> None:
    page = opened(address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    box = page.locator("#canvas").bounding_box()
    touch = page.context.new_cdp_session(page)
    for kind, at in (
        ("touchStart", 0.2),
        *(("touchMove", y) for y in np.linspace(0.25, 0.8, 10)),
        ("touchEnd", None),
    ):
        points = (
            []
            if at is None
            else [{"x": box["x"] + 0.5 * box["width"], "y": box["y"] + float(at) * box["height"]}]
        )
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    settle(page)
    assert page.evaluate("scrollY") == 0  # the sheet is drawn on, not moved
    assert_drawn(page, predicted)


def test_what_is_no_picture_is_said(address: str, opened: Opened, tmp_path: Path) -> None:
    page = opened(address)
    (tmp_path / "notes.txt").write_text("hello")
    page.set_input_files("#file", tmp_path / "notes.txt")
    page.wait_for_selector("#failure:not([hidden])")
    assert page.inner_text("#failure").startswith("notes.txt could not be read as a picture: ")
    Image.new("L", (30, 40)).save(tmp_path / "large.png")
    page.evaluate("FACTS.maxPixels = 1000")
    page.set_input_files("#file", tmp_path / "large.png")
    wait_for(
        page,
        "document.getElementById('failure').textContent.includes('30 × 40 pixels; at most 1,000')",
    )
    page.evaluate("FACTS.maxPixels = 1200")
    give(page, tmp_path / "large.png")
    assert page.locator("#failure").is_hidden()


def test_other_addresses_are_not_there(address: str, browser: Any) -> None:
    request = browser.new_context().request
    for path in ("run.json", "../model.py", "%2e%2e/pyproject.toml", "page/"):
        assert request.get(address + path).status == 404
    assert request.get(address + "model.onnx").status == 200


def test_colour_from_disk(colour_model: Path, browser: Any, opened: Opened, tmp_path: Path) -> None:
    """A colour model's page, exported, without a server: pictures are dropped, not drawn."""
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, str(JOB), str(colour_model), "--export", str(site)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"page: {site}/index.html\n", "")
    file = tmp_path / "horse.png"
    smooth(np.random.default_rng(0)).save(file)
    page = opened(f"file://{site}/index.html")
    assert page.inner_text("#best") == "No picture yet"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "clear"
    page.locator("#canvas").click()
    assert not page.evaluate("busy || waiting")
    script = """text => {
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
        transfer.items.add(new File([bytes], "horse.png", { type: "image/png" }));
        const dropped = { dataTransfer: transfer, bubbles: true, cancelable: true };
        document.getElementById("sheet").dispatchEvent(new DragEvent("drop", dropped));
    }"""
    page.evaluate(script, base64.b64encode(file.read_bytes()).decode())
    wait_for(
        page, "document.getElementById('source').textContent === 'horse.png, 100 × 120 pixels'"
    )
    picture = read_picture(str(file))
    expected = predictor(colour_model)(picture)
    np.testing.assert_allclose(shown(page), expected, atol=1e-4)
    assert page.locator("#bars li span").all_inner_texts() == json.loads(ANIMALS)
    image = Preprocessor((32, 32), 3)(picture)[0].transpose(1, 2, 0)
    assert np.abs(seen(page) - 255 * image).max() < 1


@pytest.mark.parametrize(
    ("padding", "made"),
    [
        (None, "made as MNIST was: fitted, bright on black, its centre of mass in the middle."),
        ("black", "made as the training pictures were."),
    ],
)
def test_the_page_says_how_a_picture_is_prepared(
    padding: str | None, made: str, browser: Any, opened: Opened, tmp_path: Path
) -> None:
    facts = {"classes": DIGITS} | ({} if padding is None else {"padding": padding})
    (tmp_path / "model.onnx").write_bytes(export(models.build(HP).eval(), HP, facts))
    draw.export(str(tmp_path / "model.onnx"), str(tmp_path / "site"))
    page = opened(f"file://{tmp_path}/site/index.html")
    assert page.inner_text("#made") == f"28 × 28 pixels, {made}"


def test_one_draws_bright_on_black_where_nothing_inverts_it(
    browser: Any, opened: Opened, tmp_path: Path
) -> None:
    facts = {"dataset": "fashion-mnist", "padding": "black", "classes": DIGITS}
    (tmp_path / "model.onnx").write_bytes(export(models.build(HP).eval(), HP, facts))
    draw.export(str(tmp_path / "model.onnx"), str(tmp_path / "site"))
    page = opened(f"file://{tmp_path}/site/index.html")
    assert page.inner_text("#best") == "Nothing drawn"
    assert not seen(page).any()
    draw_line(page, (0.5, 0.2), (0.5, 0.8))
    assert page.inner_text("#best") != "Nothing drawn"
    image = seen(page)[..., 0]
    assert image[14, 14] > 200
    assert not image[:, :5].any()
