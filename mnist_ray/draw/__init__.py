"""A page to draw on: the published model and the preprocessing of predict.py, run in the browser by onnxruntime-web.

Everything the page runs lies gzipped in one script, files.js: scripts are all that a browser reads beside a page that is opened from disk,
so the same folder works from any static host and without one. No response header is needed, since one thread does. Pictures never leave
the browser.
"""

import base64
import gzip
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from mimetypes import guess_type
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from mnist_ray.errors import CorruptFileError, SettingsError
from mnist_ray.export.pictures import MAX_PIXELS, preprocessing_graph
from mnist_ray.export.read import load_verified, read_model
from mnist_ray.export.session import Session
from mnist_ray.storage import RunStorage

PACKAGE = "onnxruntime-web@1.30.0"
# The package's smallest build that runs on the CPU, with the SHA-256 of each file.
RUNTIME = {
    "ort.wasm.min.js": "faece07e84faa9001f5104bbe4e5c70861d06cb2376a0dea1fa0ad33a67adc81",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
PAGE = ("index.html", "page.css", "page.js")
OURS = (
    b'<meta name="generator" content="mnist_ray">'  # in index.html: the folder may be written again
)
ACTIVATIONS = ("Relu", "LeakyRelu", "Gelu", "Elu", "Mul")  # Mul: SiLU's second node
BEFORE_ACTIVATION = ("BatchNormalization", "Sigmoid")  # Sigmoid: SiLU's first node


def serve(where: str, port: int = 0) -> None:
    """Serves the page of a run's directory or ONNX file on 127.0.0.1 until Ctrl-C, from memory; prints its address.

    port: 0 takes any that is free. Raises SettingsError where it cannot be listened on.
    """
    if not 0 <= port <= 65535:
        raise SettingsError(
            f"--port: {port} is not allowed; expected 0 (any that is free) to 65535"
        )
    files = page(read_model(where), where)
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), _handler(files))
    except OSError as error:
        raise SettingsError(f"--port: {port} cannot be listened on: {error.strerror}") from error
    with server:
        print(
            f"open http://127.0.0.1:{server.server_port}/ in a browser; Ctrl-C ends it", flush=True
        )
        server.serve_forever()


def export(where: str, folder: str) -> None:
    """Writes the page into a folder that any static host can serve.

    Raises SettingsError where the folder holds something else than a page of ours, or cannot be written.
    """
    target = Path(folder)
    try:
        if (
            target.exists()
            and any(target.iterdir())
            and OURS not in _content(target / "index.html")
        ):
            raise SettingsError(
                f"--export: {folder} holds other files; expected a new or empty folder, or one that --export wrote"
            )
        files = page(read_model(where), where)
        target.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (target / name).write_bytes(content)
    except OSError as error:
        raise SettingsError(f"--export: {folder} cannot be written: {error.strerror}") from error


def page(model: bytes, source: str) -> dict[str, bytes]:
    """File name -> content of the page for an ONNX file. `source` is the file's name in errors.

    model.onnx (as it was published) and preprocess.onnx are for people; the page runs their copies in files.js.
    """
    session = Session(model, source)
    channels, height, width = session.image_shape
    preprocess = preprocessing_graph((height, width), channels)
    first = first_layer(load_verified(model, source))
    folder = resources.files("mnist_ray.draw") / "page"
    packed = {
        **runtime(),
        "worker.js": (folder / "worker.js").read_bytes(),
        "model.onnx": model,
        "preprocess.onnx": preprocess,
    }
    facts: dict[str, Any] = {
        "classes": json.loads(session.metadata.get("classes", "null")),
        "channels": channels,
        "size": [height, width],
        "dataset": session.metadata.get("dataset"),
        "run": session.metadata.get("run"),
        "sha256": hashlib.sha256(model).hexdigest(),
        "maxPixels": MAX_PIXELS,
        "maps": 0,
    }
    if first is not None:
        packed["first_layer.onnx"], facts["maps"] = first
    text = {
        name: base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()
        for name, content in packed.items()
    }
    script = f'"use strict";\nconst FACTS = {json.dumps(facts)};\nconst FILES = {json.dumps(text, indent=0)};\n'
    return {
        **{name: (folder / name).read_bytes() for name in PAGE},
        "files.js": script.encode(),
        "model.onnx": model,
        "preprocess.onnx": preprocess,
    }


def first_layer(proto: onnx.ModelProto) -> tuple[bytes, int] | None:
    """The network's beginning as an ONNX file of its own, and how many channels it gives; None where there is no convolution.

    Output `maps`: float32 [batch, channels, h, w] after the first convolution, and after its activation where that follows at once.
    """
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    shapes = [
        list(weights[n.input[1]].dims) if n.op_type == "Conv" and n.input[1] in weights else []
        for n in proto.graph.node
    ]
    end = next((i for i, shape in enumerate(shapes) if len(shape) == 4), None)
    if end is None:
        return None
    channels = shapes[end][0]
    made = set(proto.graph.node[end].output)
    for i, node in enumerate(proto.graph.node[end + 1 :], start=end + 1):
        if node.op_type not in ACTIVATIONS + BEFORE_ACTIVATION or not set(node.input) <= made | set(
            weights
        ):
            break
        end = i
        made |= set(node.output)
        if node.op_type in ACTIVATIONS:
            break
    start = onnx.ModelProto()
    start.CopyFrom(proto)
    graph = start.graph
    del graph.node[end + 1 :], graph.output[:], graph.value_info[:], start.metadata_props[:]
    graph.node.append(helper.make_node("Identity", [graph.node[end].output[0]], ["maps"]))
    graph.output.append(
        helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["batch", channels, "h", "w"])
    )
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    onnx.checker.check_model(start)
    return start.SerializeToString(deterministic=True), channels


def runtime() -> dict[str, bytes]:
    """onnxruntime-web's files by name: from ~/.cache/mnist_ray, where npm puts them the first time.

    Raises SettingsError where npm is missing or fetches nothing, CorruptFileError where the files are not those of PACKAGE.
    """
    cache = RunStorage(str(Path.home() / ".cache" / "mnist_ray" / PACKAGE.replace("@", "-")))
    files = {name: cache.read_bytes(name) for name in RUNTIME if cache.exists(name)}
    if not _is_runtime(files):
        files = _fetched()
        if not _is_runtime(files):
            raise CorruptFileError(
                f"npm fetched a package {PACKAGE} of other content than it is known to have"
            )
        for name, content in files.items():
            cache.write_bytes(name, content)
    return files


def _is_runtime(files: dict[str, bytes]) -> bool:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == RUNTIME


def _fetched() -> dict[str, bytes]:
    npm = shutil.which("npm")
    if npm is None:
        raise SettingsError(
            f"npm was not found: it is needed once, to fetch {PACKAGE}, which runs the model in the browser"
        )
    print(f"fetching {PACKAGE} with npm (33 MB, once)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            npm,
            "pack",
            PACKAGE,
            "--pack-destination",
            folder,
            "--ignore-scripts",
            "--loglevel=error",
            "--fetch-retries=1",
        ]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if result.returncode:
            raise SettingsError(f"npm could not fetch {PACKAGE}: {_reason(result.stderr)}")
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            members = {name: archive.extractfile(f"package/dist/{name}") for name in RUNTIME}
            return {name: member.read() for name, member in members.items() if member is not None}


def _reason(stderr: str) -> str:
    """The line of npm's output that says most: a sentence rather than a code."""
    lines = [
        line.removeprefix("npm error").removeprefix("npm ERR!").strip()
        for line in stderr.splitlines()
    ]
    sentences = [
        line for line in lines if line and line.split()[0] not in ("code", "errno", "syscall")
    ]
    return (sentences or ["it gave no reason"])[0]


def _content(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def _handler(files: dict[str, bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.partition("?")[0].removeprefix("/") or "index.html"
            if name not in files:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", guess_type(name)[0] or "application/octet-stream")
            self.send_header("Content-Length", str(len(files[name])))
            self.send_header(
                "Cache-Control", "no-store"
            )  # the next model may be served on the same port
            self.end_headers()
            self.wfile.write(files[name])

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    return Handler
