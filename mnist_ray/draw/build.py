"""The page's files: the pictures' model, its first layer, the browser's runtime."""

import base64
import gzip
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from mnist_ray.data import DATASETS, MAX_PIXELS
from mnist_ray.draw.runtime import runtime
from mnist_ray.errors import SettingsError
from mnist_ray.export.picture_model import with_inner_values
from mnist_ray.export.read import load_verified
from mnist_ray.results import load_model
from mnist_ray.storage.folder import Folder

PAGE = ("index.html", "page.css", "page.js")
# In index.html: a folder that has it may be written again.
OURS = b'<meta name="generator" content="mnist_ray">'
ACTIVATIONS = ("Relu", "LeakyRelu", "Gelu", "Elu", "Mul")  # Mul: SiLU's second node
BEFORE_ACTIVATION = ("BatchNormalization", "Sigmoid")  # Sigmoid: SiLU's first node


def export(where: str, folder: str) -> None:
    """Writes the page into a folder that any static host can serve.

    Args:
        where: An ONNX file or a run's directory, local or s3://…
        folder: A new or empty folder, or one that this wrote.

    Raises:
        SettingsError: The folder holds other files or cannot be written, or there is no model.
    """
    target = Path(folder)
    try:
        index = target / "index.html"
        ours = index.is_file() and OURS in index.read_bytes()
        if target.exists() and any(target.iterdir()) and not ours:
            raise SettingsError(
                f"--export: {folder} holds other files; "
                "expected a new or empty folder, or one that --export wrote"
            )
        files = page_of(where)
        place = Folder(target.absolute())
        for name, content in files.items():
            place.write(name, content)  # whole, and through no link
    except OSError as error:
        raise SettingsError(f"--export: {folder} cannot be written: {error.strerror}") from error


def page_of(where: str) -> dict[str, bytes]:
    """The page's files, name -> content, for an ONNX file or a run.

    model.onnx and picture.onnx are for people; the page runs a copy of the latter in files.js.
    """
    found = load_model(where)
    session, picture = found.session, found.picture
    channels, height, width = session.image_shape
    first = first_layer(load_verified(found.content, where))
    folder = resources.files("mnist_ray.draw") / "page"
    packed = {
        **runtime(),
        "worker.js": (folder / "worker.js").read_bytes(),
        "picture.onnx": with_inner_values(picture),
    }
    dataset = session.metadata.get("dataset")
    facts: dict[str, Any] = {
        "classes": found.classes or None,
        "channels": channels,
        "digit": channels == 1 and session.padding is None,  # prepared as one
        # Drawn as images of a built-in data set are, bright on black: nothing inverts it later.
        "dark": channels == 1 and session.padding is not None and dataset in DATASETS,
        "size": [height, width],
        "dataset": dataset,
        "run": session.metadata.get("run"),
        "sha256": hashlib.sha256(found.content).hexdigest(),
        "maxPixels": MAX_PIXELS,
        "maps": 0,
    }
    if first is not None:
        packed["first_layer.onnx"], facts["maps"] = first
    text = {
        name: base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()
        for name, content in packed.items()
    }
    script = (
        f'"use strict";\nconst FACTS = {json.dumps(facts)};\n'
        f"const FILES = {json.dumps(text, indent=0)};\n"
    )
    return {
        **{name: (folder / name).read_bytes() for name in PAGE},
        "files.js": script.encode(),
        "model.onnx": found.content,
        "picture.onnx": picture,
    }


def first_layer(proto: onnx.ModelProto) -> tuple[bytes, int] | None:
    """The network's beginning as an ONNX file of its own, and its number of channels.

    Its output `maps`, float32 [batch, channels, h, w], is that of the first convolution, or of the
    activation that follows it. None if there is no convolution, or it cannot be cut off: a graph
    within another node may need more.
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
        known = made | set(weights)
        if node.op_type not in ACTIVATIONS + BEFORE_ACTIVATION or not set(node.input) <= known:
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
    try:
        onnx.checker.check_model(start)
    except onnx.checker.ValidationError:
        return None
    return start.SerializeToString(deterministic=True), channels
