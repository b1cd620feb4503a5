"""Tensors and their story in one safetensors file: nothing in it can be executed, and an altered byte is found.

The file's metadata holds one JSON text under "mnist_ray": the `story`, which is itself JSON text, and the `sha256` of that text and of
every tensor. (One key, because safetensors writes several in a random order, and equal content is to give equal bytes.)
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mnist_ray.errors import CorruptFileError


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of `text` and of the tensors' names, types, shapes and bytes, in the order of their names."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def pack(tensors: Mapping[str, Tensor], story: Mapping[str, Any]) -> bytes:
    """The bytes of a checkpoint file. `story` is anything that JSON can hold."""
    text = json.dumps(story, allow_nan=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(plain, {"mnist_ray": json.dumps({"story": text, "sha256": digest(plain, text)})})


def unpack(data: bytes, source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `pack` was given. Raises CorruptFileError naming `source` where a byte differs or the format is another."""
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = json.loads(header["__metadata__"]["mnist_ray"])
        text, expected = metadata["story"], metadata["sha256"]
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CorruptFileError(
            f"{source} is not a checkpoint of this project or is damaged: {error!r}"
        ) from error
    if digest(tensors, text) != expected:
        raise CorruptFileError(
            f"{source} is damaged: its content does not match the SHA-256 that it carries"
        )
    return tensors, json.loads(text)
