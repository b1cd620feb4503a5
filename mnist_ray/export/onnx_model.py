"""The network as one ONNX file: written, checked against torch, read back, run by onnxruntime, and rebuilt as a torch module.

BatchNorm stays a node of its own in the file. onnxruntime fuses it into the convolutions when it loads the file, so the unfolded file is
as fast as a folded one: six convolutions 32-128, GELU, 1 thread, median of 9: 143.1 ms against 143.0 ms for 256 images, 0.564 ms against
0.561 ms for one. In return every weight keeps the name that torch gave it, and the file rebuilds the very network that it came from.
"""

import contextlib
import copy
import hashlib
import json
import logging
import os
import posixpath
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError, Message
from onnx import numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from mnist_ray.errors import CorruptFileError, SettingsError, WorkError, first_line
from mnist_ray.run.publication import read_verified
from mnist_ray.storage import RunStorage

if TYPE_CHECKING:
    from torch import (  # imported where it is used: whoever only runs a file need not wait for torch
        Tensor,
        nn,
    )

OPSET = 20  # the first with Gelu; onnxruntime-web runs it
CANNOT_RUN = (
    runtime_errors.Fail,
    runtime_errors.InvalidArgument,
    runtime_errors.InvalidGraph,
    runtime_errors.NotImplemented,
    runtime_errors.RuntimeException,
)
PRODUCER = "mnist_ray"
WHOLE = "sha256"  # in the metadata: the digest of the file without it
TOLERANCE = 1e-4  # largest difference between torch's and onnxruntime's logits


# ---- writing


def export(
    model: "nn.Module",
    hp: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    metadata: Mapping[str, str],
) -> bytes:
    """The bytes of an ONNX file: equal weights and metadata give equal bytes, in whatever process and folder.

    model: maps float32 [batch, C, H, W] in [0, 1] to logits [batch, classes]; it is copied, not changed.
    hp: its hyperparameters (a committee: one dict for each network). They go into the file's metadata, as `metadata` does.
    """
    import torch

    first = hp if isinstance(hp, Mapping) else hp[0]
    height, width = first["image_size"]
    network = _on_cpu(model)
    # Two images, because torch.export takes a dimension of 1 for a constant.
    proto = _traced(network, torch.zeros(2, first["in_channels"], height, width))
    _strip(proto)
    facts = {
        **metadata,
        "hyperparameters": json.dumps(hp, sort_keys=True),
        "weights_sha256": weights_digest(proto),
    }
    for key in sorted(facts):
        proto.metadata_props.add(key=key, value=facts[key])
    proto.metadata_props.add(key=WHOLE, value=digest(proto))
    return proto.SerializeToString(deterministic=True)


def _on_cpu(model: "nn.Module") -> "nn.Module":
    """A copy for inference on the CPU, its weights in the plain order."""
    import torch

    return copy.deepcopy(model).to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


def _traced(network: "nn.Module", example: "Tensor") -> onnx.ModelProto:
    import torch

    with _silence("torch.onnx", "onnxscript", "onnx_ir"):
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes=({0: "batch"},),
            opset_version=OPSET,
            external_data=False,
            optimize=False,
            verbose=False,
        )
    assert program is not None  # it is None only where the exporter writes the file itself
    return program.model_proto


@contextlib.contextmanager
def _silence(*loggers: str) -> Iterator[None]:
    """Warnings and log lines below ERROR are dropped; errors are exceptions and pass."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _strip(proto: onnx.ModelProto) -> None:
    """Removes what the exporter notes down besides the network: stack traces with this machine's paths, docs, its own version."""
    for message in _messages(proto):
        for field in ("metadata_props", "doc_string"):
            if field in message.DESCRIPTOR.fields_by_name:
                message.ClearField(field)
    proto.producer_name, proto.producer_version, proto.ir_version = PRODUCER, "", 10


def _messages(message: Message) -> Iterator[Message]:
    """A protobuf message and every message within it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if isinstance(value, Message) else value:
                yield from _messages(child)


def weights_digest(proto: onnx.ModelProto) -> str:
    """SHA-256 of the initializers' names, types, shapes and bytes, in the order of their names."""
    sha = hashlib.sha256()
    for tensor in sorted(proto.graph.initializer, key=lambda t: t.name):
        array = numpy_helper.to_array(tensor)
        sha.update(f"{tensor.name} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def digest(proto: onnx.ModelProto) -> str:
    """SHA-256 of all that the file says, but for this digest itself."""
    rest = onnx.ModelProto()
    rest.CopyFrom(proto)
    kept = [pair for pair in proto.metadata_props if pair.key != WHOLE]
    del rest.metadata_props[:]
    rest.metadata_props.extend(kept)
    return hashlib.sha256(rest.SerializeToString(deterministic=True)).hexdigest()


# ---- reading


def read(where: str, flag: str = "") -> bytes:
    """The bytes of a model that a person names: `where` is an ONNX file or a run's directory, local or on storage (s3://…).

    A file that a `model.json` beside it names is checked against it. Raises SettingsError, beginning with the flag, where there is none,
    it is damaged or it is not what `model.json` describes.
    """
    try:
        data = _read(where)
        load_verified(data, where)
    except (SettingsError, CorruptFileError) as error:
        raise SettingsError(f"{flag}: {error}" if flag else str(error)) from error
    return data


def _read(where: str) -> bytes:
    path, mark, query = where.partition("?") if "://" in where else (where, "", "")
    folder, name = (
        posixpath.split(path) if path.endswith(".onnx") or os.path.isfile(path) else (path, "")
    )
    storage = RunStorage((folder or ".") + mark + query)
    try:
        manifest = (
            storage.read_json("model.json") if name and storage.exists("model.json") else None
        )
        if not name or (isinstance(manifest, dict) and manifest.get("file") == name):
            return read_verified(storage)[1]
        return storage.read_bytes(name)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise SettingsError(
            f"{where}: no model lies there; expected an ONNX file or the directory of a run that has ended"
        ) from error


def load_verified(data: bytes, source: str) -> onnx.ModelProto:
    """The parsed file. `source` is its name in errors.

    Raises CorruptFileError where it is no ONNX file or, being one of ours, does not match the digests in its metadata, and SettingsError
    where it keeps weights in other files (they would be read from wherever the program happens to run).
    """
    try:
        proto = onnx.load_model_from_string(data)
        for message in _messages(proto):
            if (
                isinstance(message, onnx.TensorProto)
                and message.data_location == onnx.TensorProto.EXTERNAL
            ):
                raise SettingsError(
                    f"{source}: the weight {message.name!r} lies in another file; expected a model in one file"
                )
        onnx.checker.check_model(proto)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        raise CorruptFileError(
            f"{source} is not an ONNX model or is damaged: {first_line(error)}"
        ) from error
    facts = metadata(proto)
    if "weights_sha256" in facts and weights_digest(proto) != facts["weights_sha256"]:
        raise CorruptFileError(
            f"{source} is damaged: its weights do not match the SHA-256 that it carries"
        )
    if (proto.producer_name == PRODUCER or WHOLE in facts) and digest(proto) != facts.get(WHOLE):
        raise CorruptFileError(
            f"{source} is damaged: it does not match the SHA-256 that it carries"
        )
    return proto


def metadata(proto: onnx.ModelProto) -> dict[str, str]:
    """The file's own key-value pairs (`metadata_props`)."""
    return {pair.key: pair.value for pair in proto.metadata_props}


def verify(data: bytes, model: "nn.Module", images: np.ndarray) -> float:
    """Largest absolute difference between onnxruntime's and torch's logits on images uint8 [n, C, H, W], in fp32 on the CPU.

    The whole batch and a single image both go through the file, so that a batch size frozen by the exporter is found. Raises WorkError
    where the difference is above TOLERANCE. Below it a prediction can differ only where the two best logits are closer than twice
    the difference: a tie as far as fp32 can tell.
    """
    import torch

    proto = load_verified(data, "the exported model")
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise WorkError(f"the exported model is not valid: {first_line(error)}") from error
    session = Session(data, "the exported model")
    network = _on_cpu(model)
    with torch.inference_mode():
        expected = torch.cat(
            [network(part) for part in torch.from_numpy(_pixels(images)).split(256)]
        ).numpy()
    difference = max(
        float(np.abs(session.logits(images) - expected).max()),
        float(np.abs(session.logits(images[:1]) - expected[:1]).max()),
    )
    if not difference <= TOLERANCE:  # so written that NaN is refused too
        raise WorkError(
            f"the exported model differs from the network: its logits by {difference:.2e} on {len(images)} images; "
            f"at most {TOLERANCE:.0e} is allowed"
        )
    return difference


def rebuild(data: bytes, source: str) -> tuple["nn.Module", dict[str, Any]]:
    """The network that a file of ours was exported from, in evaluation mode, and its hyperparameters.

    Raises SettingsError where the file is not ours, is a committee, or names a network outside this package: a file from elsewhere
    must not choose what code runs here.
    """
    import torch

    from mnist_ray import models

    proto = load_verified(data, source)
    try:
        hp = json.loads(metadata(proto)["hyperparameters"])
    except (KeyError, ValueError) as error:
        raise SettingsError(
            f"{source} carries no hyperparameters: expected an ONNX file that mnist_ray exported"
        ) from error
    if not isinstance(hp, dict):
        raise SettingsError(f"{source} is a committee of {len(hp)} networks: expected a single one")
    if hp.get("model") not in models.FAMILIES:
        raise SettingsError(
            f"{source} names the model {hp.get('model')!r}: expected one of {', '.join(models.FAMILIES)}"
        )
    model = models.build(hp).eval()
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue  # counts training steps; of no use to the network, so the exporter leaves it out
        if name not in weights or weights[name].shape != tensor.shape:
            found = weights[name].shape if name in weights else "none"
            raise SettingsError(
                f"{source} does not fit its hyperparameters: weight {name} is {found}, expected {tuple(tensor.shape)}"
            )
        state[name] = torch.from_numpy(weights[name].copy())
    model.load_state_dict(state)
    return model, hp


# ---- running


@dataclass(frozen=True)
class Evaluation:
    """What a model made of n labelled images."""

    right: int
    n: int
    per_class: (
        np.ndarray
    )  # float64 [classes]: accuracy among the images of each class, NaN where there are none
    predictions: np.ndarray  # int64 [n]
    logits: np.ndarray  # float32 [n, classes]

    @property
    def accuracy(self) -> float:
        return self.right / self.n


class Session:
    """An ONNX file in onnxruntime on the CPU.

    threads: how many onnxruntime may use (None: as many as there are cores).
    Raises what load_verified raises, and SettingsError where onnxruntime cannot run the file.
    """

    def __init__(self, data: bytes, source: str, threads: int | None = None) -> None:
        self.source = source
        self.metadata = metadata(load_verified(data, source))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3  # errors
        try:
            self._session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except CANNOT_RUN as error:
            raise SettingsError(f"{source} cannot be run: {first_line(error)}") from error
        self._input = self._session.get_inputs()[0]
        if (
            len(self._session.get_inputs()) != 1
            or self._input.type != "tensor(float)"
            or len(self._input.shape) != 4
        ):
            raise SettingsError(
                f"{source} takes other input than one float32 tensor [batch, C, H, W]"
            )
        self.image_shape: tuple[int, int, int] = tuple(self._input.shape[1:])
        if not all(isinstance(size, int) for size in self.image_shape):
            shape = "x".join(map(str, self.image_shape))
            raise SettingsError(
                f"{source} leaves the images' shape open ({shape}); expected fixed channels, height and width"
            )

    def logits(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """float32 [n, classes] for images uint8 [n, C, H, W]. Raises SettingsError where the model takes other images."""
        if images.shape[1:] != self.image_shape:
            expected, found = (
                "x".join(map(str, shape)) for shape in (self.image_shape, images.shape[1:])
            )
            raise SettingsError(
                f"{self.source} takes images of {expected} (channels, height, width), found {found}"
            )
        parts = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
        return np.concatenate([self.run(_pixels(part)) for part in parts])

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [n, classes] for pixels float32 [n, C, H, W] in [0, 1], in one batch."""
        return self._session.run(None, {self._input.name: pixels})[0]

    def evaluate(self, images: np.ndarray, labels: np.ndarray) -> Evaluation:
        """images uint8 [n, C, H, W], n > 0; labels int64 [n]."""
        logits = self.logits(images)
        predictions = logits.argmax(1)
        right = predictions == labels
        classes = range(logits.shape[1])
        per_class = np.array(
            [right[labels == c].mean() if (labels == c).any() else np.nan for c in classes]
        )
        return Evaluation(int(right.sum()), len(labels), per_class, predictions, logits)

    def latency_ms(self, image: np.ndarray, n: int = 100) -> float:
        """Median time in milliseconds for one image uint8 [C, H, W], over n runs after ten to warm up."""
        pixels = _pixels(image[None])
        times = []
        for _ in range(n + 10):
            start = time.perf_counter()
            self.run(pixels)
            times.append(time.perf_counter() - start)
        return 1000 * float(np.median(times[10:]))


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis. A committee's output, being the log of a probability, gives that probability back."""
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def confidence_interval(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of an accuracy of `right` among n, which stays in [0, 1] close to 100 % too."""
    from scipy.stats import binomtest  # takes a second to import

    interval = binomtest(right, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _pixels(images: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(255)
