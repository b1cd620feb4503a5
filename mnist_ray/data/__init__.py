"""Data sets as plain arrays: uint8 images, int64 labels, a digest, and one split by seed and class.

`mnist`, `fashion-mnist`, `kmnist` and `cifar10` lie in torchvision's folders under one root (`--data-dir`). They
are read with NumPy, because importing torch costs seconds at the start of every job; torchvision only downloads.
`digits` is inside scikit-learn and needs no file.
"""

import gzip
import hashlib
import http.client
import importlib
import io
import logging
import os
import pickle
import socket
import sys
import tempfile
import textwrap
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnist_ray.errors import SettingsError
from mnist_ray.settings import SearchSettings

log = logging.getLogger(__name__)

PARTS = ("train", "test")


@dataclass(frozen=True)
class Images:
    """One part of a data set, held in memory.

    A data set of one's own is a function `(part, data_dir) -> Images`; `load` fills an empty `sha256`.
    """

    name: str
    """Name of the data set, as given by --dataset."""
    part: str
    """`train` or `test`."""
    images: np.ndarray
    """uint8 `[n, C, H, W]`, bright on dark; may be read-only."""
    labels: np.ndarray
    """int64 `[n]`, each in `0 .. len(classes) - 1`."""
    classes: tuple[str, ...]
    """What each label is called."""
    mean: tuple[float, ...]
    """Per channel, of the training pixels scaled to [0, 1]."""
    std: tuple[float, ...]
    """Per channel, of the training pixels scaled to [0, 1]."""
    sha256: str = ""
    """`digest(images, labels)`."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        return self.images.shape[1], self.images.shape[2], self.images.shape[3]


@dataclass(frozen=True)
class _Source:
    torchvision_class: str
    folder: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


_DIGITS = tuple("0123456789")
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Mean and standard deviation: MNIST's and digits' are computed from the training part (the tests repeat it); the
# other three are the figures in common use for those sets.
_SOURCES = {
    "mnist": _Source("MNIST", "MNIST/raw", _DIGITS, (0.1307,), (0.3081,)),
    "fashion-mnist": _Source("FashionMNIST", "FashionMNIST/raw", _FASHION, (0.2860,), (0.3530,)),
    "kmnist": _Source("KMNIST", "KMNIST/raw", _KUZUSHIJI, (0.1918,), (0.3483,)),
    "cifar10": _Source(
        "CIFAR10", "cifar-10-batches-py", _CIFAR, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    ),
}  # fmt: skip
DATASETS = (*_SOURCES, "digits")

_IDX_PREFIX = {"train": "train", "test": "t10k"}
_IDX_MAGIC = {"images": b"\x00\x00\x08\x03", "labels": b"\x00\x00\x08\x01"}  # 8: uint8; 3 or 1: dimensions

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
_CIFAR_BATCH = 10_000  # images in each published file

_DIGITS_TEST_IMAGES = 360  # of 1,797: the fixed test part
_DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer before a mirror counts as out of reach


def load(name: str, part: str, data_dir: str | None = None, *, download: bool = True) -> Images:
    """Read one part of a data set.

    Args:
        name: one of `DATASETS`, or `module:attribute` of a function `(part, data_dir) -> Images`.
        part: `train` or `test`.
        data_dir: torchvision's root; None takes MNIST_RAY_DATA, else `~/.cache/mnist_ray`.
        download: fetch missing files through torchvision.

    Raises:
        SettingsError: unknown name, files missing and out of reach, truncated or altered files.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {PARTS}, not {part!r}")
    if ":" in name:
        return _checked(name, part, _resolve(name)(part, data_dir))
    _known(name)
    if name == "digits":
        images, labels = _digits(part)
        return Images(name, part, images, labels, _DIGITS, (0.1578,), (0.2933,), digest(images, labels))
    source, root = _SOURCES[name], _root(data_dir)
    if _missing(name, root, part):
        _obtain(name, root, data_dir, download=download)
    folder = root / source.folder
    images, labels = _read_cifar(folder, part) if name == "cifar10" else _read_idx(name, folder, part)
    if labels.min() < 0 or labels.max() >= len(source.classes):
        raise SettingsError(
            f"--data-dir: labels of {part} in {folder} lie in {labels.min()}..{labels.max()}, allowed are 0..{len(source.classes) - 1}"
        )
    return Images(name, part, images, labels, source.classes, source.mean, source.std, digest(images, labels))


def check(name: str, data_dir: str | None) -> None:
    """Find out before anything starts whether `load` will work; costs milliseconds and does not import torch.

    Looks at names, sizes and headers, not at every byte (`load` does). Only where files are missing from a directory
    that exists, or from the default one, it tries to download them, which imports torchvision.

    Raises:
        SettingsError: names `--dataset` or `--data-dir`.
    """
    if ":" in name:
        _resolve(name)
        return
    _known(name)
    if name == "digits":
        return
    root = _root(data_dir)
    if any(_missing(name, root, part) for part in PARTS):
        _obtain(name, root, data_dir, download=True)
    folder = root / _SOURCES[name].folder
    for part in PARTS:
        if name == "cifar10":
            for file in _CIFAR_FILES[part]:
                _check_pickle_end(folder / file)
        else:
            _idx_header(_idx_path(folder, part, "images"), "images")
            _idx_header(_idx_path(folder, part, "labels"), "labels")


def default_val_images(name: str, data_dir: str | None = None) -> int:
    """Images to hold out for validation when nothing is said.

    5,000 for the four large sets, 15 % of the training part of `digits`, a tenth of a data set of one's own (which
    is loaded for it), at least one image a class.
    """
    if ":" in name:
        own = load(name, "train", data_dir)
        return max(len(own.labels) // 10, len(own.classes))
    _known(name)
    return 215 if name == "digits" else 5000


def split(labels: np.ndarray, *, val_images: int, train_images: int | None = None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide a training part into training and validation images, in the classes' proportions.

    The validation images depend on `labels`, `val_images` and `seed` alone, so runs on subsets share them.

    Args:
        labels: int `[n]`.
        val_images: images held out.
        train_images: take this many of the rest; None takes all.
        seed: of the draw.

    Returns:
        Indices of the training and of the validation images, int64, sorted, disjoint.

    Raises:
        SettingsError: more images asked for than there are, or a class would be left without any.
    """
    from sklearn.model_selection import train_test_split

    counts = np.unique(labels, return_counts=True)[1]
    n, classes = len(labels), len(counts)
    if counts.min() < 2:
        raise SettingsError("--dataset: a class has a single training image, a split needs two of each class")
    if not classes <= val_images <= n - classes:
        raise SettingsError(
            f"--val-images {val_images}: allowed are {classes} to {n - classes} "
            f"({n} training images, at least one of each of {classes} classes on either side)"
        )
    rest, val = train_test_split(np.arange(n), test_size=val_images, stratify=labels, random_state=seed)
    train = rest
    if train_images is not None and train_images != len(rest):
        if not classes <= train_images <= len(rest):
            raise SettingsError(
                f"--train-images {train_images}: allowed are {classes} to {len(rest)} "
                f"({n} images less {val_images} for validation, at least one of each of {classes} classes)"
            )
        # scikit-learn cannot leave out, in proportion, fewer images than there are classes, or part of a single one.
        left = np.bincount(labels[rest])
        exact = len(rest) - train_images >= classes and left[left > 0].min() > 1
        train, _ = train_test_split(rest, train_size=train_images, stratify=labels[rest] if exact else None, random_state=seed)
    for flag, indices in (("--val-images", val), ("--train-images", train)):
        if len(np.unique(labels[indices])) < classes:
            raise SettingsError(f"{flag}: {len(indices)} images leave a class without any; take more")
    return np.sort(train).astype(np.int64), np.sort(val).astype(np.int64)


class Split(NamedTuple):
    """A data set's training part, and the indices (int64) of the images in it to train and to validate on."""

    images: Images
    train: np.ndarray
    val: np.ndarray


def load_split(settings: SearchSettings) -> Split:
    """What a search is told to use."""
    part = load(settings.dataset, "train", settings.data_dir)
    val_images = settings.val_images or default_val_images(settings.dataset, settings.data_dir)
    return Split(part, *split(part.labels, val_images=val_images, train_images=settings.train_images, seed=settings.seed))


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256, in hexadecimal, of the images' bytes and then the labels' (little-endian int64), in C order."""
    sha = hashlib.sha256(np.ascontiguousarray(images).data)
    sha.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return sha.hexdigest()


# ---- names and places ----


def _known(name: str) -> None:
    if name not in DATASETS:
        allowed = f"{', '.join(DATASETS)} or module:attribute of your own"
        raise SettingsError(f"--dataset {name}: unknown; allowed are {allowed}")


def _root(data_dir: str | None) -> Path:
    return Path(data_dir or os.environ.get("MNIST_RAY_DATA") or "~/.cache/mnist_ray").expanduser().absolute()


def _files(name: str, part: str) -> list[str]:
    if name == "cifar10":
        return list(_CIFAR_FILES[part])
    return [f"{_IDX_PREFIX[part]}-images-idx3-ubyte", f"{_IDX_PREFIX[part]}-labels-idx1-ubyte"]


def _missing(name: str, root: Path, part: str) -> list[str]:
    folder = root / _SOURCES[name].folder
    endings = ("",) if name == "cifar10" else ("", ".gz")
    # os.path, not Path.is_file: a folder that may not be read counts as missing instead of raising
    return [file for file in _files(name, part) if not any(os.path.isfile(folder / f"{file}{ending}") for ending in endings)]


def _resolve(name: str) -> Callable[[str, str | None], Images]:
    """The function that `module:attribute` names; a module in the working directory is found too."""
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), attribute, None)
    except (ModuleNotFoundError, ValueError, TypeError) as error:
        raise SettingsError(f"--dataset {name}: cannot import {module_name!r}: {error}") from error
    if not callable(found):
        raise SettingsError(f"--dataset {name}: {module_name} has no function {attribute!r}")
    return found


def _checked(name: str, part: str, data: object) -> Images:
    """What a user's own function returned, with its digest, or a SettingsError that says what is wrong."""

    def wrong(what: str) -> SettingsError:
        return SettingsError(f"--dataset {name}: {what}")

    if not isinstance(data, Images):
        raise wrong(f"must return mnist_ray.data.Images, returned {type(data).__name__}")
    images, labels = data.images, data.labels
    for field, array, dtype, dims in (("images", images, "uint8", 4), ("labels", labels, "int64", 1)):
        if not isinstance(array, np.ndarray):
            raise wrong(f"{field} must be a NumPy array, found {type(array).__name__}")
        if array.dtype != dtype or array.ndim != dims:
            raise wrong(f"{field} must be {dtype} of {dims} dimension(s), found {array.dtype} {array.shape}")
    if len(images) != len(labels) or not len(labels):
        raise wrong(f"{part} has {len(images)} images and {len(labels)} labels; allowed is one label an image")
    if labels.min() < 0 or labels.max() >= len(data.classes):
        raise wrong(f"labels lie in {labels.min()}..{labels.max()}, allowed are 0..{len(data.classes) - 1}")
    if len(data.mean) != data.shape[0] or len(data.std) != data.shape[0] or min(data.std) <= 0:
        raise wrong(f"mean and std need one figure for each of {data.shape[0]} channel(s), std above 0")
    return replace(data, name=name, part=part, sha256=digest(images, labels))


# ---- missing files ----


def _obtain(name: str, root: Path, data_dir: str | None, *, download: bool) -> None:
    """Download what is missing, or say in one line what is missing and how to give it."""
    # A directory that was named but is not there is more likely a slip of the pen than a wish for a download.
    named = bool(data_dir or os.environ.get("MNIST_RAY_DATA"))
    if named and not os.path.isdir(root):
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
    folder = _SOURCES[name].folder
    missing = [file for part in PARTS for file in _missing(name, root, part)]
    raise SettingsError(
        f"--data-dir: {name} is not in {root / folder}: missing {', '.join(missing)}; {reason}; "
        f"name the directory that holds {folder} by --data-dir or MNIST_RAY_DATA"
    )


def _download(name: str, root: Path) -> None:
    """Fetch a data set through torchvision, which checks each MD5; files appear whole or not at all."""
    import torchvision

    source = _SOURCES[name]
    with _made(root), tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch:
        log.info("downloading %s into %s", name, root)
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)  # torchvision sets none: it would wait for ever
        try:
            getattr(torchvision.datasets, source.torchvision_class)(scratch, download=True)
        finally:
            socket.setdefaulttimeout(before)
        folder = root / source.folder
        folder.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            for file in _files(name, part):
                os.replace(Path(scratch, source.folder, file), folder / file)


@contextmanager
def _made(root: Path) -> Iterator[None]:
    """The directory, made if need be; what was made goes again when the block fails."""
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
    """Dimensions in the header of an IDX file, whose length must agree with them; reads a few bytes."""
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
        raise SettingsError(f"--data-dir: {path} is no IDX file of {kind}: it begins {begins!r}, not {right!r}")
    shape = tuple(int(count) for count in np.frombuffer(header, ">u4", offset=4))
    expected = len(header) + int(np.prod(shape, dtype=np.int64))
    if size != expected or 0 in shape:
        counts = "×".join(map(str, shape))
        raise SettingsError(f"--data-dir: {path} is truncated or damaged: {size:,} bytes, its header ({counts}) means {expected:,}")
    return shape


def _read_idx(name: str, folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for kind in ("images", "labels"):
        path = _idx_path(folder, part, kind)
        shape = _idx_header(path, kind)
        try:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (OSError, EOFError, zlib.error) as error:
            raise SettingsError(f"--data-dir: cannot read {path}: {error}") from error
        if name == "mnist":
            found, right = hashlib.sha256(content).hexdigest(), _MNIST_SHA256[path.name.removesuffix(".gz")]
            if found != right:
                raise SettingsError(f"--data-dir: {path} is not MNIST's file: SHA-256 of its content is {found}, expected {right}")
        arrays.append(np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape))
    images, labels = arrays
    if len(images) != len(labels):
        raise SettingsError(f"--data-dir: {part} in {folder} has {len(images)} images, {len(labels)} labels")
    return images[:, None], labels.astype(np.int64)


# ---- CIFAR-10 ----


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled arrays, numbers, text and containers; a pickle that names any other thing is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Only what NumPy needs to rebuild an array, under its old and its new module names."""
        if module.startswith("numpy") and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":  # protocol 5
            return np.empty(0).__reduce_ex__(5)[0]
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes
            return _latin1_bytes
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes written as {encoding}")
    return text.encode("latin1")


def _check_pickle_end(path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            end = file.read(1)
    except OSError as error:
        raise SettingsError(f"--data-dir: cannot read {path}: {error}") from error
    if end != pickle.STOP:
        raise SettingsError(f"--data-dir: {path} is truncated: it does not end as a pickle does")


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
        if found != expected:  # a smaller stand-in, as tests write them: nothing in it can be executed
            log.warning("%s is not the published file: it has %d images, MD5 %s", path, len(rows), found)
        images.append(rows)
        labels.append(targets)
    return np.concatenate(images).reshape(-1, 3, 32, 32), np.concatenate(labels)


# ---- digits ----


def _digits(part: str) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 digits of 8×8 pixels, laid out as MNIST: 20×20 within 28×28, centred by mass.

    MNIST's layout: LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition",
    1998, section III.A. The test part is the same whatever the seed of the run.
    """
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    small = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    # Pillow scales bytes in whole numbers, so that the digest is the same on every machine.
    scaled = np.stack([np.asarray(Image.fromarray(one).resize((20, 20), Image.Resampling.BICUBIC)) for one in small])
    images, labels = centre_by_mass(scaled)[:, None], bunch.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=_DIGITS_TEST_IMAGES, stratify=labels, random_state=0)
    chosen = np.sort(train if part == "train" else test)
    return images[chosen], labels[chosen]


def centre_by_mass(images: np.ndarray, size: int = 28) -> np.ndarray:
    """Place images on black squares so that their centre of mass lies at pixel (size / 2, size / 2).

    They move by whole pixels and stay inside, as MNIST's did: its centres of mass lie within 0.52 pixels of (14, 14)
    in either direction.

    Args:
        images: uint8 `[n, h, w]`, bright on black, `h` and `w` at most `size`.
        size: height and width of the result, in pixels.

    Returns:
        uint8 `[n, size, size]`.
    """
    n, h, w = images.shape
    rows, columns = np.arange(h), np.arange(w)
    mass = np.maximum(images.sum((1, 2), dtype=np.int64), 1)
    y = images.sum(2, dtype=np.int64) @ rows / mass
    x = images.sum(1, dtype=np.int64) @ columns / mass
    top = np.clip(np.rint(size / 2 - y), 0, size - h).astype(int)
    left = np.clip(np.rint(size / 2 - x), 0, size - w).astype(int)
    placed = np.zeros((n, size, size), np.uint8)
    index = np.arange(n)[:, None, None]
    placed[index, top[:, None, None] + rows[:, None], left[:, None, None] + columns] = images
    return placed
