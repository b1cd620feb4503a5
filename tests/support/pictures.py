"""Small pictures of four classes, and the same ones as a folder, arrays and tables."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("chat noir", "été", "犬", "plain")


def coloured(n: int, size: tuple[int, int] = (12, 10), seed: int = 0) -> np.ndarray:
    """uint8 [n, *size, 3]: image i is of class i % 4, which its bright quarter shows."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 120, (n, *size, 3), np.uint8)
    half = size[0] // 2, size[1] // 2
    for i in range(n):
        top, left = (i % 4) // 2 * half[0], (i % 4) % 2 * half[1]
        images[i, top : top + half[0], left : left + half[1]] += 120
    return images


def labels_of(n: int) -> list[str]:
    """The class of each of `coloured`."""
    return [CLASSES[i % 4] for i in range(n)]


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def in_folders(root: Path, parts: Mapping[str, np.ndarray]) -> None:
    """PNG files, a folder a class below a folder a part; below root where the part is ""."""
    for part, images in parts.items():
        for i, (image, label) in enumerate(zip(images, labels_of(len(images)), strict=True)):
            folder = root / part / label
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:05d}.png").write_bytes(png(image))


def by_class(images: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Images and labels in the order of a folder: by class, then by number."""
    labels = labels_of(len(images))
    order = sorted(range(len(images)), key=lambda i: (labels[i], i))
    return images[order], [labels[i] for i in order]


def in_parquet(file: Path, images: np.ndarray, labels: list[Any], **columns: list[Any]) -> None:
    """A file in the layout of Hugging Face's library."""
    cells = [{"bytes": png(image), "path": None} for image in images]
    pq.write_table(pa.table({"image": cells, "label": labels, **columns}), file)
