"""A network as one ONNX file: written, checked against torch, and rebuilt as the same network.

BatchNorm stays a node of its own in the file. onnxruntime fuses it into the convolutions when it
loads the file, so the unfolded file is as fast as a folded one: six convolutions 32-128, GELU, 1
thread, median of 9: 143.1 ms against 143.0 ms for 256 images, 0.564 ms against 0.561 ms for one. In
return every weight keeps the name that torch gave it, and the file rebuilds its very network.
"""

import contextlib
import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from mnist_ray import hyperparameters, models
from mnist_ray.errors import SettingsError, WorkError, first_line
from mnist_ray.export.read import (
    PRODUCER,
    WHOLE,
    digest,
    load_verified,
    messages,
    metadata_of,
    weights_digest,
)
from mnist_ray.export.session import Session, pixels
from mnist_ray.run import checkpoint

OPSET = 20  # the first with Gelu; onnxruntime-web runs it
TOLERANCE = 1e-4  # largest difference between torch's and onnxruntime's logits
# Logits beyond this may differ in proportion: fp32 has seven digits. Those of a network that was
# trained for one hot epoch reach hundreds.
USUAL_LOGITS = 20.0


def export(
    model: nn.Module,
    hp: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    facts: Mapping[str, str],
) -> bytes:
    """The bytes of an ONNX file: equal weights and facts give equal bytes, in any process.

    Args:
        model: Maps float32 [batch, C, H, W] in [0, 1] to logits [batch, classes]. It is copied,
            not changed.
        hp: Its hyperparameters (a committee: one dict for each network), for the file's metadata.
        facts: More metadata, as the name of the data set.
    """
    plain = hyperparameters.plain(hp, "the hyperparameters' dict")
    first = plain if isinstance(plain, dict) else plain[0]
    height, width = first["image_size"]
    # Two images, because torch.export takes a dimension of 1 for a constant.
    proto = _traced(_on_cpu(model), torch.zeros(2, first["in_channels"], height, width))
    _strip(proto)
    described = {
        **facts,
        "hyperparameters": json.dumps(plain, sort_keys=True),
        "weights_sha256": weights_digest(proto),
    }
    for key in sorted(described):
        proto.metadata_props.add(key=key, value=described[key])
    proto.metadata_props.add(key=WHOLE, value=digest(proto))
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def graph_file(model: nn.Module, image_shape: tuple[int, int, int]) -> bytes:
    """The bytes of an ONNX file without metadata but its digest, for a part of another graph.

    Args:
        model: Maps float32 [batch, C, H, W] to one tensor. It is copied, not changed.
        image_shape: C, H, W.
    """
    proto = _traced(_on_cpu(model), torch.zeros(2, *image_shape))
    _strip(proto)
    proto.metadata_props.add(key=WHOLE, value=digest(proto))
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def logits_of(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Torch's logits, float32 [n, classes], in fp32 on the CPU. The model is copied, not changed.

    Args:
        model: A network or a committee.
        images: uint8 [n, C, H, W].
    """
    network, batches = _on_cpu(model), torch.from_numpy(pixels(images)).split(256)
    with torch.inference_mode():
        logits: np.ndarray = torch.cat([network(part) for part in batches]).numpy()
    return logits


def _on_cpu(model: nn.Module) -> nn.Module:
    """A copy for inference on the CPU, its weights in the plain order."""
    copied = copy.deepcopy(model)
    copied.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return copied.eval()


def _traced(network: nn.Module, example: Tensor) -> onnx.ModelProto:
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
    assert program is not None  # it is None only if the exporter writes the file itself
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
    """Removes the exporter's notes: stack traces with this machine's paths, docs, its version."""
    for message in messages(proto):
        for field in ("metadata_props", "doc_string"):
            if field in message.DESCRIPTOR.fields_by_name:
                message.ClearField(field)
    proto.producer_name, proto.producer_version, proto.ir_version = PRODUCER, "", 10


def verify(data: bytes, model: nn.Module, images: np.ndarray) -> float:
    """Compares onnxruntime's logits with torch's, in fp32 on the CPU.

    The whole batch and a single image both go through the file: a batch size that the exporter has
    frozen is found. Within TOLERANCE (in proportion for logits beyond USUAL_LOGITS) a prediction
    can differ only if the two best logits are closer than twice the difference: a tie as far as
    fp32 can tell.

    Args:
        data: The exported file.
        model: The network that it was exported from.
        images: uint8 [n, C, H, W].

    Returns:
        The largest absolute difference.

    Raises:
        WorkError: The file is not valid, or the difference is above what is allowed.
    """
    proto = load_verified(data, "the exported model")
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise WorkError(f"the exported model is not valid: {first_line(error)}") from error
    session = Session(data, "the exported model")
    expected = logits_of(model, images)
    difference = max(
        float(np.abs(session.logits(images) - expected).max()),
        float(np.abs(session.logits(images[:1]) - expected[:1]).max()),
    )
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()) / USUAL_LOGITS)
    if not difference <= allowed:  # so written that NaN is refused too
        raise WorkError(
            f"the exported model differs from the network: its logits by {difference:.2e} "
            f"on {len(images)} images; at most {allowed:.0e} is allowed"
        )
    return difference


def rebuild(data: bytes, source: str) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a file of ours, in evaluation mode, and its hyperparameters.

    Raises:
        SettingsError: The file is not ours, is a committee, or names a network outside this
            package: a file from elsewhere must not choose the code that runs here.
    """
    proto = load_verified(data, source)
    hp = _single(metadata_of(proto), source)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    with checkpoint.fitting(source):
        models.check_size(hp, sum(array.size for array in weights.values()), source)
        model = models.build(hp).eval()
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue  # counts training steps; the network does not need it, the exporter drops it
        if name not in weights or weights[name].shape != tensor.shape:
            found = weights[name].shape if name in weights else "none"
            raise SettingsError(
                f"{source} does not fit its hyperparameters: "
                f"weight {name} is {found}, expected {tuple(tensor.shape)}"
            )
        state[name] = torch.from_numpy(weights[name].copy())
    model.load_state_dict(state)
    return model, hp


def _single(facts: Mapping[str, str], source: str) -> dict[str, Any]:
    """The hyperparameters of a single network of this package, from a file's metadata."""
    try:
        hp = json.loads(facts["hyperparameters"])
    except (KeyError, ValueError) as error:
        raise SettingsError(
            f"{source} carries no hyperparameters: expected an ONNX file that mnist_ray exported"
        ) from error
    if isinstance(hp, list):
        raise SettingsError(f"{source} is a committee of {len(hp)} networks: expected a single one")
    hp = hp if isinstance(hp, dict) else {}
    if hp.get("model") not in tuple(models.FAMILIES):  # a tuple: it may be anything, a list too
        known = ", ".join(models.FAMILIES)
        raise SettingsError(
            f"{source} names the model {hp.get('model')!r}: expected one of {known}"
        )
    return hp
