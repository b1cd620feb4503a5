"""Small data sets in the formats of the large ones, and where the real ones lie."""

import gzip
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mnist_ray.data import (
    writers,
)

REAL = os.environ.get("MNIST_RAY_DATA")
real_mnist = pytest.mark.skipif(
    not REAL or not Path(REAL, "MNIST", "raw").is_dir(),
    reason="MNIST_RAY_DATA does not name a directory with MNIST/raw",
)

# SHA-256 of the decoded arrays of the real MNIST: images, then labels as int64.
MNIST_DIGESTS = {
    "train": "d18cfd466eb143ac1097fde604dba9eec4116885869d04cc648b510949f9e88c",
    "test": "a0863a96c44e5666edbb30c4071ee79ca0514c621e6349c5967fc78e7305c891",
}
FOLDERS = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw", "kmnist": "KMNIST/raw"}


real_writers = pytest.mark.skipif(
    not REAL or not Path(REAL, writers.FILE).is_file(),
    reason="MNIST_RAY_DATA does not name a directory with QMNIST/raw",
)


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


def write_idx(
    root: Path, name: str, n: dict[str, int] | None = None, packed: bool = False
) -> dict[str, np.ndarray]:
    """A small data set in the format and folders of MNIST; returns its images by part."""
    folder = root / FOLDERS[name]
    folder.mkdir(parents=True)
    random, images = np.random.default_rng(0), {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        count = (n or {"train": 60, "test": 20})[part]
        images[part] = random.integers(0, 256, (count, 28, 28), np.uint8)
        for file, array in (
            (f"{prefix}-images-idx3-ubyte", images[part]),
            (f"{prefix}-labels-idx1-ubyte", np.arange(count) % 10),
        ):
            if packed:
                (folder / f"{file}.gz").write_bytes(gzip.compress(idx(array), 1))
            else:
                (folder / file).write_bytes(idx(array))
    return images


def write_cifar(
    root: Path, protocol: int = 2, change: Callable[[dict], object] = lambda batch: batch
) -> np.ndarray:
    """A small data set in the format of CIFAR-10; returns the training images `[50, 3, 32, 32]`."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random, images = np.random.default_rng(0), []
    for file in (
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
    ):
        rows = random.integers(0, 256, (10, 3072), np.uint8)
        batch = {
            "batch_label": file,
            "labels": list(range(10)),
            "data": rows,
            "filenames": [b"a.png"] * 10,
        }
        (folder / file).write_bytes(pickle.dumps(change(batch), protocol))
        images.append(rows)
    return np.concatenate(images[:5]).reshape(50, 3, 32, 32)
