"""Reads an ONNX file: from a person's path or run, checked against the digests that it carries."""

import hashlib
import os
import posixpath
from collections.abc import Iterator

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message
from onnx import numpy_helper

from mnist_ray.errors import CorruptFileError, SettingsError, first_line
from mnist_ray.run import layout
from mnist_ray.run.publication import read_verified
from mnist_ray.settings import masked
from mnist_ray.storage import RunStorage

PRODUCER = "mnist_ray"
WHOLE = "sha256"  # in the metadata: the digest of the file without it


def read_model(source: str, flag: str = "") -> bytes:
    """The bytes of a model that a person names.

    A file that a `model.json` beside it names is checked against it.

    Args:
        source: An ONNX file or a run's directory, local or on storage (s3://…).
        flag: Begins the message of an error.

    Raises:
        SettingsError: There is no model, it is damaged, or `model.json` describes another file.
    """
    try:
        data = _read(source)
        load_verified(data, source)
    except (SettingsError, CorruptFileError) as error:
        raise SettingsError(f"{flag}: {error}" if flag else str(error)) from error
    return data


def _read(source: str) -> bytes:
    path, mark, query = source.partition("?") if "://" in source else (source, "", "")
    is_file = path.endswith(".onnx") or os.path.isfile(path)
    folder, name = posixpath.split(path) if is_file else (path, "")
    storage = RunStorage((folder or ".") + mark + query)
    try:
        if not name:
            return read_verified(storage)[1]
        has_manifest = storage.exists(layout.MANIFEST)
        manifest = storage.read_json(layout.MANIFEST) if has_manifest else None
        if isinstance(manifest, dict) and manifest.get("file") == name:
            return read_verified(storage)[1]
        return storage.read_bytes(name)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise SettingsError(
            f"{masked(source)}: no model lies there; "
            "expected an ONNX file or the directory of a run that has ended"
        ) from error


def load_verified(data: bytes, source: str) -> onnx.ModelProto:
    """The parsed file. `source` is its name in errors.

    Raises:
        CorruptFileError: It is no ONNX file or, being one of ours, does not match the digests in
            its metadata.
        SettingsError: It keeps weights in other files: they would be read from the folder in which
            the program happens to run.
    """
    try:
        proto = onnx.load_model_from_string(data)
        for message in messages(proto):
            if isinstance(message, onnx.TensorProto) and message.data_location == message.EXTERNAL:
                raise SettingsError(
                    f"{source}: the weight {message.name!r} lies in another file; "
                    "expected a model in one file"
                )
        onnx.checker.check_model(proto)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        found = first_line(error)
        raise CorruptFileError(f"{source} is not an ONNX model or is damaged: {found}") from error
    facts = metadata_of(proto)
    if "weights_sha256" in facts and weights_digest(proto) != facts["weights_sha256"]:
        raise CorruptFileError(
            f"{source} is damaged: its weights do not match the SHA-256 that it carries"
        )
    if (proto.producer_name == PRODUCER or WHOLE in facts) and digest(proto) != facts.get(WHOLE):
        raise CorruptFileError(
            f"{source} is damaged: it does not match the SHA-256 that it carries"
        )
    return proto


def metadata_of(proto: onnx.ModelProto) -> dict[str, str]:
    """The file's own key-value pairs (`metadata_props`)."""
    return {pair.key: pair.value for pair in proto.metadata_props}


def messages(message: Message) -> Iterator[Message]:
    """A protobuf message and every message within it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if isinstance(value, Message) else value:
                yield from messages(child)


def weights_digest(proto: onnx.ModelProto) -> str:
    """SHA-256 of the initializers' names, types, shapes and bytes, in the order of their names."""
    sha = hashlib.sha256()
    for tensor in sorted(proto.graph.initializer, key=lambda t: t.name):
        array = numpy_helper.to_array(tensor)
        sha.update(f"{tensor.name} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def digest(proto: onnx.ModelProto) -> str:
    """SHA-256 of the whole file, but for this digest itself."""
    rest = onnx.ModelProto()
    rest.CopyFrom(proto)
    kept = [pair for pair in proto.metadata_props if pair.key != WHOLE]
    del rest.metadata_props[:]
    rest.metadata_props.extend(kept)
    return hashlib.sha256(rest.SerializeToString(deterministic=True)).hexdigest()
