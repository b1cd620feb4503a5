"""The metadata of a checkpoint file, read without torch (see run/checkpoint.py)."""

import json


def story_of(data: bytes) -> tuple[str, str]:
    """The metadata as JSON text, and the SHA-256 that the file carries. They are not verified.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: It is no such file.
    """
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    own = json.loads(header["__metadata__"]["mnist_ray"])
    return own["story"], own["sha256"]
