"""The data sets that lie in torchvision's folders, read with NumPy.

Importing torch costs seconds at every start, so torchvision is imported for a download alone.
"""

import gzip
import hashlib
import http.client
import io
import logging
import os
import pickle
import socket
import tempfile
import textwrap
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnist_ray.data import writers
from mnist_ray.data.images import PARTS, Images, digest
from mnist_ray.errors import SettingsError
from mnist_ray.settings.options import default_data_dir
from mnist_ray.settings.text import CACHE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Source:
    torchvision_class: str
    folder: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: str | None = None
    """How a picture becomes an image: see `Images.padding`."""


_DIGITS = tuple("0123456789")
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip
_KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Mean and standard deviation: MNIST's are computed from the training part (a test repeats it);
# the other three are the figures in common use for those sets. Clothes fill all 28 pixels, so a
# picture of them is no digit to be fitted into 20.
SOURCES = {
    "mnist": _Source("MNIST", "MNIST/raw", _DIGITS, (0.1307,), (0.3081,)),
    "fashion-mnist": _Source(
        "FashionMNIST", "FashionMNIST/raw", _FASHION, (0.2860,), (0.3530,), "black"
    ),
    "kmnist": _Source("KMNIST", "KMNIST/raw", _KUZUSHIJI, (0.1918,), (0.3483,)),
    "cifar10": _Source(
        "CIFAR10", "cifar-10-batches-py", _CIFAR, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    ),
}  # fmt: skip

_IDX_PREFIX = {"train": "train", "test": "t10k"}
_IDX_MAGIC = {
    "images": b"\x00\x00\x08\x03",
    "labels": b"\x00\x00\x08\x01",
}  # 8: uint8; 3 or 1: dimensions

# SHA-256 of MNIST's four uncompressed IDX files, so that `sha256sum` shows the same figures.
_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

# MD5 of the published CIFAR-10 batches, as torchvision lists them.
_CIFAR_FILES = {
    "train": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
}
_DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer before a mirror counts as out of reach
_CIFAR_BATCH = 10_000  # images in each published file


def read(name: str, part: str, data_dir: str | None, *, download: bool) -> Images:
    """One part of one of `SOURCES`, its files checked and, if missing, downloaded.

    Raises:
        SettingsError: files are missing and out of reach, truncated or altered.
    """
    source, root = SOURCES[name], root_of(data_dir)
    if _missing(name, root, part):
        _obtain(name, root, download=download)
    folder = root / source.folder
    images, labels = (
        _read_cifar(folder, part) if name == "cifar10" else _read_idx(name, folder, part)
    )
    if labels.max() >= len(source.classes) or labels.min() < 0:
        raise SettingsError(
            f"--data-dir: labels of {part} in {folder} lie in {labels.min()}..{labels.max()}, "
            f"allowed are 0..{len(source.classes) - 1}"
        )
    found = writers.read(root, labels) if (name, part) == ("mnist", "train") else None
    return Images(
        name,
        part,
        images,
        labels,
        source.classes,
        source.mean,
        source.std,
        digest(images, labels),
        None if found is None else found.writer,
        padding=source.padding,
    )


def root_of(data_dir: str | None) -> Path:
    """The data folder: the one given, else MNIST_RAY_DATA, else a cache of our own."""
    found = os.path.expanduser(data_dir or default_data_dir())
    if found.startswith("~"):
        raise SettingsError(
            f"--data-dir: {found}: this user has no home folder; name a folder, or set HOME"
        )
    return Path(found).absolute()


def _files(name: str, part: str) -> list[str]:
    if name == "cifar10":
        return list(_CIFAR_FILES[part])
    return [f"{_IDX_PREFIX[part]}-images-idx3-ubyte", f"{_IDX_PREFIX[part]}-labels-idx1-ubyte"]


def _missing(name: str, root: Path, part: str) -> list[str]:
    folder = root / SOURCES[name].folder
    endings = ("",) if name == "cifar10" else ("", ".gz")
    # os.path, not Path.is_file: a folder that may not be read counts as missing instead of raising
    return [
        file
        for file in _files(name, part)
        if not any(os.path.isfile(folder / f"{file}{ending}") for ending in endings)
    ]


def _obtain(name: str, root: Path, *, download: bool) -> None:
    """Download missing files, or name them in one line and how to give them."""
    # The cache is made. Any other directory that is not there is more likely a slip.
    if root != Path(os.path.expanduser(CACHE)).absolute() and not os.path.isdir(root):
        reason = "no such directory (make it to have them downloaded into it)"
    elif not download:
        reason = "downloading is off"
    else:
        try:
            _download(name, root)
            return
        except (RuntimeError, OSError, EOFError, zlib.error, http.client.HTTPException) as error:
            cause = textwrap.shorten(str(error), 200, placeholder=" …") or type(error).__name__
            reason = f"they cannot be downloaded ({cause})"
    folder = SOURCES[name].folder
    missing = [file for part in PARTS for file in _missing(name, root, part)]
    raise SettingsError(
        f"--data-dir: {name} is not in {root / folder}: missing {', '.join(missing)}; {reason}; "
        f"name the directory that holds {folder} by --data-dir or MNIST_RAY_DATA"
    )


def _download(name: str, root: Path) -> None:
    """Fetch a data set through torchvision, which checks each MD5; files appear whole or not."""
    import torchvision  # noqa: PLC0415 (seconds at start)

    source = SOURCES[name]
    with _made(root), tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch:
        log.info("downloading %s into %s", name, root)
        before = socket.getdefaulttimeout()
        # torchvision sets none: it would wait for ever
        socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
        try:
            getattr(torchvision.datasets, source.torchvision_class)(scratch, download=True)
            if name == "mnist":
                writers.download(root, torchvision.datasets)
        finally:
            socket.setdefaulttimeout(before)
        folder = root / source.folder
        folder.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            for file in _files(name, part):
                os.replace(Path(scratch, source.folder, file), folder / file)


@contextmanager
def _made(root: Path) -> Iterator[None]:
    """The directory, made if need be; if the block fails, it is removed again."""
    new = [path for path in (root, *root.parents) if not path.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in new:
            with suppress(OSError):  # by now another process may keep files there
                path.rmdir()
        raise


# ---- IDX: MNIST, Fashion-MNIST, KMNIST ----


def _idx_path(folder: Path, part: str, kind: str) -> Path:
    path = folder / f"{_IDX_PREFIX[part]}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
    return path if path.is_file() else path.with_name(f"{path.name}.gz")


def _idx_header(path: Path, kind: str) -> tuple[int, ...]:
    """Dimensions in the header of an IDX file, whose length must agree; reads a few bytes."""
    dims = 3 if kind == "images" else 1
    packed = path.suffix == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            header = file.read(4 + 4 * dims)
        with path.open("rb") as file:
            size = file.seek(-4 if packed else 0, os.SEEK_END)
            if packed:  # RFC 1952: the last four bytes are the unpacked length
                size = int.from_bytes(file.read(4), "little")
    except (OSError, EOFError, zlib.error) as error:
        raise SettingsError(f"--data-dir: cannot read {path}: {error}") from error
    if header[:4] != _IDX_MAGIC[kind] or len(header) < 4 + 4 * dims:
        begins, right = header[:4].hex(), _IDX_MAGIC[kind].hex()
        raise SettingsError(
            f"--data-dir: {path} is no IDX file of {kind}: it begins {begins!r}, not {right!r}"
        )
    shape = tuple(int(count) for count in np.frombuffer(header, ">u4", offset=4))
    expected = len(header) + int(np.prod(shape, dtype=np.int64))
    if size != expected or 0 in shape:
        counts = "×".join(map(str, shape))
        raise SettingsError(
            f"--data-dir: {path} is truncated or damaged: {size:,} bytes, "
            f"its header ({counts}) means {expected:,}"
        )
    return shape


def _read_idx(name: str, folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for kind in ("images", "labels"):
        path = _idx_path(folder, part, kind)
        shape = _idx_header(path, kind)
        try:
            content = (
                gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            )
        except (OSError, EOFError, zlib.error) as error:
            raise SettingsError(f"--data-dir: cannot read {path}: {error}") from error
        if name == "mnist":
            found, right = (
                hashlib.sha256(content).hexdigest(),
                _MNIST_SHA256[path.name.removesuffix(".gz")],
            )
            if found != right:
                raise SettingsError(
                    f"--data-dir: {path} is not MNIST's file: "
                    f"SHA-256 of its content is {found}, expected {right}"
                )
        arrays.append(np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape))
    images, labels = arrays
    if len(images) != len(labels):
        raise SettingsError(
            f"--data-dir: {part} in {folder} has {len(images)} images, {len(labels)} labels"
        )
    return images[:, None], labels.astype(np.int64)


# ---- CIFAR-10 ----


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled arrays, numbers, text and containers; any other thing is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Only the names that NumPy needs to rebuild an array, of old and new modules."""
        if module.startswith("numpy") and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if (
            module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer"
        ):  # protocol 5
            return np.empty(0).__reduce_ex__(5)[0]
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes
            return _latin1_bytes
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes written as {encoding}")
    return text.encode("latin1")


def _read_cifar(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """All batches of a part: rows of 3,072 bytes, channel by channel, 32×32 each."""
    images, labels = [], []
    for file, expected in _CIFAR_FILES[part].items():
        path = folder / file
        try:
            content = path.read_bytes()
            batch = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
            rows, targets = batch["data"], np.asarray(batch["labels"], np.int64)
            if rows.dtype != np.uint8 or not len(rows) or rows.shape != (len(targets), 3072):
                raise ValueError(f"its arrays are {rows.dtype} {rows.shape} and {targets.shape}")
        except Exception as error:  # a damaged pickle fails in as many ways as it has opcodes
            raise SettingsError(f"--data-dir: {path} is not a CIFAR-10 batch: {error}") from error
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != expected and len(rows) == _CIFAR_BATCH:
            raise SettingsError(f"--data-dir: {path} is damaged: MD5 {found}, expected {expected}")
        if (
            found != expected
        ):  # a smaller stand-in, as tests write them: nothing in it can be executed
            log.warning(
                "%s is not the published file: it has %d images, MD5 %s", path, len(rows), found
            )
        images.append(rows)
        labels.append(targets)
    return np.concatenate(images).reshape(-1, 3, 32, 32), np.concatenate(labels)
