"""Tensors and metadata in one safetensors file: it runs no code, and an altered byte is found.

The file's own metadata holds one JSON text under "mnist_ray": `story`, our metadata as JSON text,
and `sha256`, of that text and of every tensor. (One key, because safetensors writes several in a
random order, and equal content is to give equal bytes.)
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mnist_ray.errors import CorruptFileError, MnistRayError, first_line, shortened
from mnist_ray.run.header import story_of


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of `text` and of the tensors: names, types, shapes and bytes, in the names' order."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """The bytes of a checkpoint file. `metadata` is anything that JSON can hold."""
    text = json.dumps(metadata, allow_nan=True)
    plain: dict[str, Tensor] = {}
    taken: set[int] = set()  # addresses of memory
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        if own.untyped_storage().data_ptr() in taken:
            own = own.clone()  # safetensors refuses shared memory, as of tied weights
        taken.add(own.untyped_storage().data_ptr())
        plain[name] = own
    return save(plain, {"mnist_ray": json.dumps({"story": text, "sha256": digest(plain, text)})})


def unpack(data: bytes, source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata that `pack` was given.

    Raises:
        CorruptFileError: A byte differs or the format is another; the message names `source`.
    """
    try:
        tensors = load(data)
        text, expected = story_of(data)
        if not isinstance(text, str) or not isinstance(metadata := json.loads(text), dict):
            raise ValueError("its metadata are no JSON object")
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise CorruptFileError(
            f"{source} is not a checkpoint of this project or is damaged: {first_line(error)}"
        ) from error
    if digest(tensors, text) != expected:
        raise CorruptFileError(
            f"{source} is damaged: its content does not match the SHA-256 that it carries"
        )
    return tensors, metadata


@contextlib.contextmanager
def fitting(source: str) -> Iterator[None]:
    """What weights or metadata raise that fit no network, as CorruptFileError: a whole file may.

    Their values reach torch, which raises whatever it likes.
    """
    try:
        yield
    except MnistRayError:
        raise
    except Exception as error:
        why = shortened(first_line(error), 200)
        raise CorruptFileError(f"{source} is damaged: {type(error).__name__}: {why}") from error
