"""The writers of MNIST's training images, from QMNIST's extended labels (Yadav & Bottou 2019).

The images at odd places are by census staff, in the order of their writers. Those at even places,
up to 58,098, are by 250 students in random order: every stretch of the training part has images by
all of them. No writer of a training image wrote a test image.
"""

import gzip
import hashlib
import http.client
import logging
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnist_ray.errors import SettingsError

log = logging.getLogger(__name__)

FILE = "QMNIST/raw/qmnist-train-labels-idx2-int.gz"
"""Below the data folder; the same file without .gz is read too."""
_SHA256 = "bb1b6e1ec7b04fd5696f1ed50b5f58f8ef195118edd5c93c81783df9740b8ac5"  # uncompressed
_HEADER, _COLUMNS = 12, 8  # bytes; big-endian int32 a row: class, series, writer, …
STAFF, STUDENTS = 0, 4  # the two series of the training part


class Writers(NamedTuple):
    """Series and writer of each of MNIST's training images, int64 `[60000]`."""

    series: np.ndarray
    writer: np.ndarray


def read(root: Path, labels: np.ndarray) -> Writers | None:
    """The writers, or None if the file is not in the data folder.

    Args:
        root: the data folder.
        labels: of MNIST's training part, int64 `[60000]`; the file must repeat them.

    Raises:
        SettingsError: the file is damaged, or of other images.
    """
    path = root / FILE
    if not path.is_file():
        path = path.with_suffix("")
    if not path.is_file():
        return None
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise SettingsError(f"--data-dir: cannot read {path}: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != _SHA256:
        raise SettingsError(
            f"--data-dir: {path} is not QMNIST's file: "
            f"SHA-256 of its content is {found}, expected {_SHA256}"
        )
    rows = np.frombuffer(content, ">i4", offset=_HEADER).reshape(-1, _COLUMNS)
    if not np.array_equal(rows[:, 0], labels):
        raise SettingsError(f"--data-dir: {path} has other classes than MNIST's training labels")
    return Writers(rows[:, 1].astype(np.int64), rows[:, 2].astype(np.int64))


def download(root: Path, datasets: Any) -> None:
    """Fetch the file from the address in torchvision's `datasets`, with its checksum.

    It appears whole or not. A failure is logged: MNIST works without its writers.
    """
    url, md5 = datasets.QMNIST.resources["train"][1]
    path = root / FILE
    try:
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch:
            # torchvision writes to the file's own name, and leaves a part of it there.
            datasets.utils.download_url(url, scratch, path.name, md5)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(scratch, path.name), path)
    except (RuntimeError, OSError, EOFError, http.client.HTTPException) as error:
        why = str(error) or type(error).__name__
        log.warning("the writers of MNIST's images cannot be downloaded: %s", why)
