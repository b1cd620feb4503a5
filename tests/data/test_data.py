"""Data sets: real files, stand-ins of the same format, damaged and hostile ones, and the split."""

import gzip
import hashlib
import importlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_ray.data import (
    DATASETS,
    Images,
    centre_by_mass,
    default_val_images,
    digest,
    load,
    load_split,
    split,
    torchvision_files,
    writers,
)
from mnist_ray.errors import SettingsError

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


@pytest.fixture(autouse=True)
def no_data_set_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MNIST_RAY_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every address refuses at once, as without a network."""

    def refuse(*args: object, **named: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("socket.create_connection", refuse)


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


# ---- digits ----


def test_digits_are_laid_out_as_mnist() -> None:
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train.labels), len(test.labels)) == (1437, 360)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int64
    assert train.shape == (1, 28, 28)
    assert train.images.shape == (1437, 1, 28, 28)
    assert train.classes == tuple("0123456789")
    assert train.images.min() == 0
    assert train.images.max() == 255
    images = np.concatenate([train.images, test.images])[:, 0].astype(float)
    mass, index = images.sum((1, 2)), np.arange(28)
    centre = np.stack([(images.sum(2) * index).sum(1), (images.sum(1) * index).sum(1)]) / mass
    assert np.abs(centre - 14).max() <= 0.5 + 1e-9
    # nothing is cut off, and nothing is larger than 20 × 20
    for axis in (1, 2):
        inked = images.any(axis)
        extent = 28 - inked.argmax(1) - inked[:, ::-1].argmax(1)
        assert extent.max() <= 20
    assert images.reshape(len(images), -1).mean() < 60  # bright on black


def test_digits_are_the_same_everywhere_and_parts_do_not_overlap() -> None:
    train, test = load("digits", "train"), load("digits", "test")
    assert test.sha256 == "35cbbf004120c1098a1c95dfb4604f4288a80b97fd2d5a00df087fd90640b211"
    assert train.sha256 == "7179908f64f9000de2c6bbe596c98defc4803c2fe368dc71dd6c5647d50981c5"
    assert np.bincount(test.labels).min() >= 34
    from sklearn.datasets import load_digits

    whole = np.bincount(load_digits().target)
    assert (np.bincount(train.labels) + np.bincount(test.labels) == whole).all()


def test_digits_can_be_told_apart_as_well_as_before() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    train, test = load("digits", "train"), load("digits", "test")
    model = KNeighborsClassifier(1).fit(train.images.reshape(1437, -1) / 255, train.labels)
    assert model.score(test.images.reshape(360, -1) / 255, test.labels) >= 0.97


@pytest.mark.parametrize("name", ["digits", pytest.param("mnist", marks=real_mnist)])
def test_mean_and_std_are_those_of_the_training_pixels(name: str) -> None:
    train = load(name, "train", REAL)
    pixels = train.images / 255
    assert train.mean == (round(pixels.mean(), 4),)
    assert train.std == (round(pixels.std(), 4),)
    test = load(name, "test", REAL)
    assert (test.mean, test.std) == (train.mean, train.std)


def test_centring_moves_whole_pixels_and_stays_inside() -> None:
    corner = np.zeros((2, 20, 20), np.uint8)
    corner[0, 0, 0] = 200  # its centre cannot reach the middle: it goes as far as it can
    corner[1, 5, 6] = corner[1, 7, 8] = 100
    placed = centre_by_mass(corner)
    assert np.argwhere(placed[0]).tolist() == [[8, 8]]
    assert np.argwhere(placed[1]).tolist() == [[13, 13], [15, 15]]
    assert placed[0].sum() == 200
    assert centre_by_mass(np.zeros((1, 20, 20), np.uint8)).sum() == 0


# ---- MNIST and its relatives ----


@real_mnist
@pytest.mark.parametrize("part", ["train", "test"])
def test_real_mnist(part: str) -> None:
    images = load("mnist", part, REAL, download=False)
    assert images.images.shape == ({"train": 60_000, "test": 10_000}[part], 1, 28, 28)
    assert images.labels[:5].tolist() == {"train": [5, 0, 4, 1, 9], "test": [7, 2, 1, 0, 4]}[part]
    assert images.sha256 == MNIST_DIGESTS[part]


@real_mnist
def test_one_changed_byte_of_mnist_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    shutil.copytree(Path(str(REAL), "MNIST", "raw"), folder)
    file = folder / "t10k-images-idx3-ubyte"
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[1_000_000] ^= 1
    file.write_bytes(content)
    load("mnist", "train", str(tmp_path))
    with pytest.raises(SettingsError, match="--data-dir") as caught:
        load("mnist", "test", str(tmp_path))
    for part in (
        str(file),
        hashlib.sha256(content).hexdigest(),
        torchvision_files._MNIST_SHA256[file.name],
    ):
        assert part in str(caught.value)


def test_files_that_only_look_like_mnist_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path, "mnist")
    with pytest.raises(
        SettingsError,
        match=r"train-images-idx3-ubyte is not MNIST's file: SHA-256 .* is [0-9a-f]{64}",
    ):
        load("mnist", "train", str(tmp_path))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["fashion-mnist", "kmnist"])
def test_idx_files_plain_and_packed(
    name: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_idx(tmp_path, name, packed=packed)
    monkeypatch.setenv("MNIST_RAY_DATA", str(tmp_path))
    for part in ("train", "test"):
        images = load(name, part)
        assert (images.images[:, 0] == written[part]).all()
        assert images.labels.dtype == np.int64
        assert images.labels.tolist() == [i % 10 for i in range(len(written[part]))]
        assert images.sha256 == digest(images.images, images.labels)
        assert (images.name, images.part, len(images.classes)) == (name, part, 10)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("keep", [0, 3, 10, 5000, -1])
def test_truncated_files_are_found(keep: int, packed: bool, tmp_path: Path) -> None:
    write_idx(tmp_path, "mnist", packed=packed)
    file = tmp_path / "MNIST/raw" / f"t10k-images-idx3-ubyte{'.gz' if packed else ''}"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(SettingsError, match=r"--data-dir: .*t10k-images-idx3-ubyte") as caught:
        load("mnist", "test", str(tmp_path))
    assert "\n" not in str(caught.value)


def test_headers_are_checked(tmp_path: Path) -> None:
    write_idx(tmp_path, "kmnist")
    folder = tmp_path / "KMNIST/raw"
    labels, images = folder / "train-labels-idx1-ubyte", folder / "train-images-idx3-ubyte"
    good = labels.read_bytes()
    for content, message in (
        (images.read_bytes(), "is no IDX file of labels"),
        (good + b"\0", "truncated or damaged: 69 bytes, its header .60. means 68"),
        (idx(np.zeros(0)), "truncated or damaged"),
    ):
        labels.write_bytes(content)
        with pytest.raises(SettingsError, match=message):
            load("kmnist", "train", str(tmp_path))
    labels.write_bytes(idx(np.zeros(59)))
    with pytest.raises(SettingsError, match="60 images, 59 labels"):
        load("kmnist", "train", str(tmp_path))
    labels.write_bytes(idx(np.full(60, 10)))
    with pytest.raises(SettingsError, match=r"lie in 10\.\.10, allowed are 0\.\.9"):
        load("kmnist", "train", str(tmp_path))


# ---- CIFAR-10 ----


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar_files(protocol: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = write_cifar(tmp_path, protocol)
    train = load("cifar10", "train", str(tmp_path))
    assert (train.images == written).all()
    assert train.shape == (3, 32, 32)
    assert train.labels.tolist() == list(range(10)) * 5
    assert len(train.mean) == len(train.std) == 3
    assert "data_batch_1 is not the published file" in caplog.text
    assert len(load("cifar10", "test", str(tmp_path)).labels) == 10


def test_a_batch_written_by_python_2_as_the_published_ones(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    row = bytes(range(256)) * 12
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01M\x00\x0c\x86"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00"
        + row
        + b"tb"
    )
    pickled = b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x07eu."
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickled)
    test = load("cifar10", "test", str(tmp_path))
    assert test.images.tobytes() == row
    assert test.labels.tolist() == [7]


class Hostile:
    """Unpickled as usual it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_hostile_pickle_is_refused_unexecuted(protocol: int, tmp_path: Path) -> None:
    target = tmp_path / "executed"
    pickle.loads(pickle.dumps(Hostile(target), protocol))
    assert target.exists()  # the attack is a real one
    target.unlink()
    write_cifar(tmp_path, protocol, lambda batch: {**batch, "extra": Hostile(target)})
    with pytest.raises(
        SettingsError, match=r"--data-dir: .*data_batch_1 is not a CIFAR-10 batch: it names "
    ):
        load("cifar10", "train", str(tmp_path))
    assert not target.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        b"c_codecs\ndecode\n.",
        b"c_codecs\nencode\n(V\xc3\xa4\nVzlib\ntR.",
        b"ccopyreg\n_reconstructor\n.",
    ],
)
def test_nothing_but_arrays_can_be_named(pickled: bytes) -> None:
    import io

    with pytest.raises(pickle.UnpicklingError):
        torchvision_files._ArraysOnly(io.BytesIO(pickled)).load()


@pytest.mark.parametrize(
    "change",
    [
        lambda b: [],
        lambda b: {"data": b["data"]},
        lambda b: {**b, "labels": [1]},
        lambda b: {**b, "data": b["data"].astype(float)},
        lambda b: {**b, "data": b["data"][:, :100]},
        lambda b: {**b, "labels": [], "data": b["data"][:0]},
    ],
)
def test_other_pickles_are_refused(change: Callable[[dict], object], tmp_path: Path) -> None:
    write_cifar(tmp_path, change=change)
    with pytest.raises(SettingsError, match="data_batch_1 is not a CIFAR-10 batch"):
        load("cifar10", "train", str(tmp_path))


def test_damaged_cifar_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path)
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    content = file.read_bytes()
    monkeypatch.setattr(
        torchvision_files, "_CIFAR_BATCH", 10
    )  # as if the stand-ins were of the published size
    with pytest.raises(
        SettingsError,
        match=r"test_batch is damaged: MD5 [0-9a-f]{32}, expected 40351d587109b95175f43aff81a1287e",
    ):
        load("cifar10", "test", str(tmp_path))
    for keep in (0, 100, -1):
        file.write_bytes(content[:keep])
        with pytest.raises(SettingsError, match="test_batch is not a CIFAR-10 batch"):
            load("cifar10", "test", str(tmp_path))


# ---- missing files ----


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    with pytest.raises(SettingsError) as caught:
        load("mnist", "train", str(missing))
    message = str(caught.value)
    assert message.startswith(
        f"--data-dir: mnist is not in {missing}/MNIST/raw: missing train-images-idx3-ubyte, "
    )
    assert "no such directory" in message
    assert message.endswith(
        "name the directory that holds MNIST/raw by --data-dir or MNIST_RAY_DATA"
    )
    assert "\n" not in message
    assert not missing.exists()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist", "cifar10"])
def test_without_a_network_one_line_and_nothing_left(
    name: str, tmp_path: Path, unreachable: None
) -> None:
    import torchvision  # noqa: F401 (its import takes seconds that are not the subject)

    began = time.monotonic()
    for directory in (str(tmp_path), None):
        with pytest.raises(
            SettingsError,
            match=r"--data-dir: .* missing .*cannot be downloaded .*Network is unreachable",
        ) as caught:
            load(name, "train", directory)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []  # HOME/.cache/mnist_ray was not left either
    assert time.monotonic() - began < 20


def test_only_what_is_missing_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path, "kmnist")
    (tmp_path / "KMNIST/raw/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(SettingsError, match="missing t10k-labels-idx1-ubyte; downloading is off"):
        load("kmnist", "test", str(tmp_path), download=False)
    assert len(load("kmnist", "train", str(tmp_path), download=False).labels) == 60


def test_a_download_is_moved_into_place_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    class KMNIST:
        def __init__(self, root: str, download: bool) -> None:
            assert download
            assert socket.getdefaulttimeout()  # torchvision itself would wait for ever
            write_idx(Path(root), "kmnist")

    monkeypatch.setattr(torchvision.datasets, "KMNIST", KMNIST)
    root = tmp_path / "home/.cache/mnist_ray"
    assert len(load("kmnist", "train").labels) == 60
    assert socket.getdefaulttimeout() is None
    assert sorted(path.name for path in root.iterdir()) == ["KMNIST"]
    assert len(list((root / "KMNIST/raw").iterdir())) == 4


def test_a_download_that_breaks_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    class KMNIST:
        def __init__(self, root: str, download: bool) -> None:
            write_idx(Path(root), "kmnist")
            raise RuntimeError("File not found\nor corrupted.")

    monkeypatch.setattr(torchvision.datasets, "KMNIST", KMNIST)
    for directory in (None, str(tmp_path)):
        with pytest.raises(
            SettingsError, match=r"cannot be downloaded \(File not found or corrupted\.\)"
        ):
            load("kmnist", "train", directory)
    assert list(tmp_path.iterdir()) == []


# ---- names ----


def test_unknown_names() -> None:
    for find in (lambda: load("nmist", "train"), lambda: default_val_images("nmist")):
        with pytest.raises(
            SettingsError,
            match=r"--dataset: 'nmist' is unknown; expected one of mnist, fashion-mnist, .*digits",
        ):
            find()
    with pytest.raises(ValueError, match="part"):
        load("digits", "validation")


def test_reading_does_not_import_torch(tmp_path: Path) -> None:
    write_idx(tmp_path, "kmnist")
    write_cifar(tmp_path)
    code = (
        "import sys; from mnist_ray import data\n"
        "for name in ('kmnist', 'cifar10', 'digits'): data.load(name, 'train', sys.argv[1])\n"
        "print([name for name in ('torch', 'torchvision', 'ray') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(Path(__file__).with_name("my_stripes.py"), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_stripes", raising=False)


def test_a_data_set_of_ones_own(own: None) -> None:
    train = load("my_stripes:stripes", "train")
    assert (train.name, train.part, train.shape) == ("my_stripes:stripes", "train", (2, 5, 6))
    assert train.sha256 == digest(train.images, train.labels)
    assert len(load("my_stripes:stripes", "test").labels) == 8
    assert default_val_images("my_stripes:stripes") == 4


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("floats", "images must be uint8"),
        ("flat", "images must be uint8"),
        ("no_height", "at least one pixel"),
        ("fractions", "labels must be whole numbers"),
        ("short", "40 images and 39 labels"),
        ("range_", r"lie in 4\.\.4, allowed are 0\.\.3"),
        ("negative", r"lie in -1\.\.-1"),
        ("mean", "mean and std need one figure"),
        ("std", "std must be above 0"),
        ("std_nan", "std must hold finite"),
        ("mean_inf", "mean must hold finite"),
        ("mean_text", "could not convert"),
        ("escape", "classes must be printable"),
        ("nameless", "classes must be printable"),
        ("group", "40 images and 39 groups"),
        ("crash", r"my_stripes.py:\d+: FileNotFoundError"),
        ("other", "must return mnist_ray.data.Images, returned list"),
        ("number", "of type int, expected a function"),
        ("none", "cannot be imported: .* no attribute 'none'"),
    ],
)
def test_mistakes_in_ones_own_data_set(own: None, attribute: str, message: str) -> None:
    with pytest.raises(
        SettingsError, match=f"--dataset: '?my_stripes:{attribute}.*{message}"
    ) as caught:
        load(f"my_stripes:{attribute}", "train")
    assert "\n" not in str(caught.value)


def test_types_that_mean_the_same_are_converted(own: None) -> None:
    plain, found = load("my_stripes:stripes", "train"), load("my_stripes:convertible", "train")
    assert found.sha256 == plain.sha256
    assert found.labels.dtype == np.int64
    assert found.classes == ("a", "b", "c", "d")
    assert all(type(each) is str for each in found.classes)
    assert [type(each) for each in found.mean + found.std] == [float] * 4
    assert found.mean == pytest.approx((0.2, 0.2))
    assert found.groups is not None
    assert found.groups[:10].tolist() == [0] * 5 + [1] * 5
    json.dumps([found.mean, found.std, found.classes])
    grey = load("my_stripes:grey", "train")
    assert grey.shape == (1, 5, 6)
    assert (grey.mean, grey.classes, grey.labels[:3].tolist()) == ((0.1,), ("0", "1"), [0, 1, 0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "import not_a_module_at_all\n",
            r"broken_data\.py:1: ModuleNotFoundError: No module named 'not_a_module",
        ),
        ("x = 1\nx = 1 / 0\n", r"broken_data\.py:2: ZeroDivisionError: division by zero"),
        ("def f(:\n", r"broken_data\.py:1: SyntaxError"),
        ("raise SystemExit(3)\n", r"broken_data\.py:1: SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(
    own: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    (tmp_path / "broken_data.py").write_text(text)
    monkeypatch.delitem(sys.modules, "broken_data", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(
        SettingsError, match=f"^--dataset: 'broken_data:f' cannot be imported: .*{said}"
    ) as caught:
        load("broken_data:f", "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["nowhere_at_all:x", ":x", ".relative:x", "os.path.nothing:x", "json:"]
)
def test_modules_that_are_not_there(name: str) -> None:
    with pytest.raises(SettingsError, match="--dataset"):
        load(name, "train")


# ---- split ----


def test_split_is_stratified_deterministic_and_disjoint() -> None:
    labels = np.repeat(np.arange(10), 600)
    train, val = split(labels, val_images=500, seed=3)
    assert train.dtype == val.dtype == np.int64
    assert (len(train), len(val)) == (5500, 500)
    assert sorted([*train, *val]) == list(range(6000))
    assert set(np.bincount(labels[val])) == {50}
    again, other = split(labels, val_images=500, seed=3), split(labels, val_images=500, seed=4)
    assert (again[0] == train).all()
    assert (again[1] == val).all()
    assert (other[1] != val).any()


def test_a_subset_has_the_same_validation_images() -> None:
    labels = np.repeat(np.arange(10), 600)
    train, val = split(labels, val_images=500, seed=3)
    subset, same = split(labels, val_images=500, train_images=1000, seed=3)
    assert (same == val).all()
    assert set(subset) < set(train)
    assert set(np.bincount(labels[subset])) == {100}
    assert (split(labels, val_images=500, train_images=5500, seed=3)[0] == train).all()


# ---- writers ----


def grouped(n: int = 6000, per_group: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels of ten classes, and groups of unequal sizes."""
    random = np.random.default_rng(seed)
    return random.integers(0, 10, n), random.integers(0, n // per_group, n) ** 2 % (n // per_group)


@given(
    val_images=st.integers(10, 3000),
    train_images=st.none() | st.integers(10, 3000),
    seed=st.integers(0, 2**32 - 1),
    per_group=st.sampled_from([1, 7, 40]),
)
@settings(max_examples=40, deadline=None)
def test_no_group_is_in_two_parts(
    val_images: int, train_images: int | None, seed: int, per_group: int
) -> None:
    labels, groups = grouped(per_group=per_group)
    train, val = split(
        labels, val_images=val_images, train_images=train_images, seed=seed, groups=groups
    )
    assert len(val) == len(set(val)) == val_images
    assert not set(groups[train]) & set(groups[val])
    assert not set(train) & set(val)
    assert train_images is None or len(train) == train_images
    if val_images >= 100:
        shares = np.bincount(labels[val], minlength=10) / val_images - np.bincount(labels) / len(
            labels
        )
        assert np.abs(shares).max() <= 0.01
    assert (split(labels, val_images=val_images, seed=seed, groups=groups)[1] == val).all()


def test_groups_that_cannot_be_divided() -> None:
    labels = np.arange(100) % 10
    with pytest.raises(SettingsError, match="--val-by group: 1 groups cannot be divided"):
        split(labels, val_images=20, seed=0, groups=np.zeros(100, int))
    with pytest.raises(SettingsError, match="--val-by group: 10 groups cannot be divided"):
        split(labels, val_images=20, seed=0, groups=labels)
    with pytest.raises(SettingsError, match="--train-images 90: allowed are 10 to"):
        split(labels, val_images=20, train_images=90, seed=0, groups=np.arange(100) // 10)


def test_the_rule_of_the_split(own: None) -> None:
    known, unknown = (
        load_split("my_stripes:convertible", seed=1),
        load_split("my_stripes:stripes", seed=1),
    )
    assert (known.val_by, unknown.val_by) == ("group", "class")
    by_class = load_split("my_stripes:convertible", seed=1, val_by="class")
    assert by_class.val_by == "class"
    assert by_class.val.tolist() == unknown.val.tolist()
    with pytest.raises(
        SettingsError, match=r"--val-by group: the groups .writers. of digits are not known"
    ):
        load_split("digits", val_by="group")


def test_the_split_by_class_is_the_one_of_earlier_runs() -> None:
    """A run without a recorded rule rebuilds its split: these are the indices of commit 61d3465."""
    train, val = split(np.arange(3000) % 10, val_images=500, train_images=1000, seed=7)
    found = hashlib.sha256(np.concatenate([train, val]).astype("<i8").tobytes()).hexdigest()
    assert found == "f5e9541149da327252eb5fec6ea799c14bb41ba2cb17988110107caf26c1b593"


def with_writers(root: Path) -> Path:
    """A data folder with the real files, which can be changed."""
    for name in ("MNIST/raw", "QMNIST/raw"):
        (root / name).mkdir(parents=True)
        for file in Path(str(REAL), name).iterdir():
            (root / name / file.name).symlink_to(file)
    return root / writers.FILE


real_writers = pytest.mark.skipif(
    not REAL or not Path(REAL, writers.FILE).is_file(),
    reason="MNIST_RAY_DATA does not name a directory with QMNIST/raw",
)


@real_writers
def test_the_writers_of_mnist(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = load("mnist", "train", REAL)
    assert part.groups is not None
    found = writers.read(Path(str(REAL)), part.labels)
    assert found is not None
    assert (found.writer == part.groups).all()
    staff = found.series == writers.STAFF
    assert [len(set(part.groups[each])) for each in (staff, ~staff)] == [289, 250]
    assert set(found.series) == {writers.STAFF, writers.STUDENTS}
    assert staff[1::2].all()
    # Every stretch has images by all students: half of the last half is by writers of the first.
    students = np.flatnonzero(~staff)
    assert all(len(set(part.groups[each])) == 250 for each in np.array_split(students, 10))
    assert np.isin(part.groups[30_000:], part.groups[:30_000]).sum() == 14_075
    assert load("mnist", "test", REAL).groups is None


@real_writers
@pytest.mark.parametrize("val_images", [5000, 10_000, 20_000])
def test_mnist_is_validated_by_unseen_writers(val_images: int) -> None:
    images, train, val, rule = load_split("mnist", REAL, val_images=val_images, seed=3)
    assert rule == "group"
    assert images.groups is not None
    assert len(val) == val_images
    assert len(train) > 60_000 - val_images - 131  # at most one writer's images are in neither
    assert not set(images.groups[train]) & set(images.groups[val])
    shares = np.bincount(images.labels[val]) / val_images - np.bincount(images.labels) / 60_000
    assert np.abs(shares).max() < 0.01


@real_writers
def test_damaged_or_missing_writers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = with_writers(tmp_path)
    content = file.read_bytes()
    file.unlink()
    assert load_split("mnist", str(tmp_path)).val_by == "class"
    assert f"the writers are not known, as {writers.FILE} is not in the data folder" in caplog.text
    caplog.clear()
    load_split("mnist", str(tmp_path), val_by="class")
    assert not caplog.text
    file.with_suffix("").write_bytes(gzip.decompress(content))
    assert load("mnist", "train", str(tmp_path)).groups is not None
    changed = bytearray(gzip.decompress(content))
    changed[1000] ^= 1
    for damaged in (content[:-10], b"", gzip.compress(bytes(changed), 1)):
        file.write_bytes(damaged)
        with pytest.raises(
            SettingsError, match=r"--data-dir: .*qmnist-train-labels-idx2-int.gz"
        ) as caught:
            load("mnist", "train", str(tmp_path))
        assert "\n" not in str(caught.value)


def test_writers_are_downloaded_beside_mnist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torchvision

    class MNIST:
        def __init__(self, root: str, download: bool) -> None:
            write_idx(Path(root), "mnist")

    asked = []
    monkeypatch.setattr(torchvision.datasets, "MNIST", MNIST)
    monkeypatch.setattr(
        "torchvision.datasets.utils.download_url", lambda *arguments: asked.append(arguments)
    )
    with pytest.raises(SettingsError, match="is not MNIST's file"):  # the stand-ins
        load("mnist", "train", str(tmp_path))
    url, md5 = torchvision.datasets.QMNIST.resources["train"][1]
    assert asked == [(url, str(tmp_path / "QMNIST/raw"), "qmnist-train-labels-idx2-int.gz", md5)]

    def refuse(*arguments: object) -> None:
        raise OSError("Network is unreachable")

    shutil.rmtree(tmp_path / "MNIST")
    monkeypatch.setattr("torchvision.datasets.utils.download_url", refuse)
    with pytest.raises(SettingsError, match="is not MNIST's file"):
        load("mnist", "train", str(tmp_path))
    assert (
        "the writers of MNIST's images cannot be downloaded: Network is unreachable" in caplog.text
    )


def test_the_default_split_of_each_set_works() -> None:
    labels = load("digits", "train").labels
    train, val = split(labels, val_images=default_val_images("digits"), seed=0)
    assert (len(train), len(val)) == (1222, 215)
    assert [default_val_images(name) for name in DATASETS if name != "digits"] == [5000] * 4


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    val_images=st.integers(-2, 200),
    train_images=st.none() | st.integers(-2, 200),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_any_split_is_right_or_refused(
    counts: list[int], val_images: int, train_images: int | None, seed: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    try:
        train, val = split(labels, val_images=val_images, train_images=train_images, seed=seed)
    except SettingsError as error:
        assert str(error).startswith(("--val-images", "--train-images", "--dataset"))
        return
    assert len(val) == val_images
    assert len(train) == (len(labels) - val_images if train_images is None else train_images)
    assert not set(train) & set(val)
    assert set(labels[train]) == set(labels[val]) == set(range(len(counts)))


@pytest.mark.parametrize("leave_out", [0, 1, 5, 9, 10, 11, 90])
def test_a_subset_of_nearly_all(leave_out: int) -> None:
    labels = np.repeat(np.arange(10), 20)
    assert (
        len(split(labels, val_images=100, train_images=100 - leave_out, seed=0)[0])
        == 100 - leave_out
    )


@pytest.mark.parametrize(
    ("val_images", "train_images", "message"),
    [
        (0, None, "--val-images 0: allowed are 10 to 190"),
        (9, None, "--val-images 9:"),
        (191, None, "--val-images 191:"),
        (5000, None, "--val-images 5000:"),
        (100, 9, "--train-images 9: allowed are 10 to 100"),
        (100, 101, "--train-images 101:"),
    ],
)
def test_a_split_that_cannot_be(val_images: int, train_images: int | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        split(
            np.repeat(np.arange(10), 20), val_images=val_images, train_images=train_images, seed=0
        )


def test_the_digest_covers_images_and_labels() -> None:
    images, labels = np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2), np.array([0, 1])
    assert (
        digest(images, labels)
        == hashlib.sha256(bytes(range(8)) + bytes([0] * 8) + bytes([1] + [0] * 7)).hexdigest()
    )
    assert digest(images[:, :, ::-1], labels) != digest(images, labels)
    assert digest(images, labels[::-1]) != digest(images, labels)
    assert Images("a", "train", images, labels, ("a", "b"), (0.1,), (0.2,)).shape == (1, 2, 2)


@real_mnist
def test_every_flipped_byte_and_every_truncation_of_mnist_is_found(tmp_path: Path) -> None:
    raw = Path(str(REAL), "MNIST", "raw")
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    names = sorted(
        path.name
        for path in raw.iterdir()
        if path.name.startswith("t10k") and not path.name.endswith(".gz")
    )
    if not names:
        pytest.skip("the files lie there compressed")
    for name in names:
        shutil.copy(raw / name, tmp_path / "MNIST" / "raw" / name)
    generator = np.random.default_rng(0)
    for name in names:
        path = tmp_path / "MNIST" / "raw" / name
        size = path.stat().st_size
        with path.open("r+b") as file:
            for position in [*range(16), *generator.integers(0, size, 84)]:
                file.seek(position)
                byte = file.read(1)
                file.seek(position)
                file.write(bytes([byte[0] ^ int(generator.integers(1, 256))]))
                file.flush()
                with pytest.raises(SettingsError, match=rf"--data-dir: [^\n]*{name}[^\n]*$"):
                    load("mnist", "test", str(tmp_path))
                file.seek(position)
                file.write(byte)
                file.flush()
        for length in range(size - 1, 0, -(size // 50)):  # shorter and shorter
            os.truncate(path, length)
            with pytest.raises(SettingsError, match=rf"--data-dir: [^\n]*{name}[^\n]*$"):
                load("mnist", "test", str(tmp_path))
        shutil.copy(raw / name, path)
    assert len(load("mnist", "test", str(tmp_path)).labels) == 10_000
