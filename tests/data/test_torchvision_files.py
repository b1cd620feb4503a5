"""Real files, stand-ins of the same format, damaged and hostile ones, and missing ones."""

import hashlib
import io
import os
import pickle
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mnist_ray.data import (
    digest,
    load,
    torchvision_files,
)
from mnist_ray.errors import SettingsError
from mnist_ray.settings import SearchSettings
from tests.support.datasets import MNIST_DIGESTS, REAL, idx, real_mnist, write_cifar, write_idx


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


@pytest.mark.parametrize(
    ("name", "padding"), [("fashion-mnist", "black"), ("kmnist", None)], ids=["fashion", "kmnist"]
)
def test_a_data_set_says_how_pictures_become_its_images(
    name: str, padding: str | None, tmp_path: Path
) -> None:
    write_idx(tmp_path, name)
    assert load(name, "train", str(tmp_path)).padding == padding
    assert load("digits", "train").padding is None


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
    for directory in (str(tmp_path), None, SearchSettings(dataset=name).data_dir):
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


@pytest.mark.parametrize("of_settings", [False, True])
def test_a_download_is_moved_into_place_whole(
    of_settings: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    class KMNIST:
        def __init__(self, root: str, download: bool) -> None:
            assert download
            assert socket.getdefaulttimeout()  # torchvision itself would wait for ever
            write_idx(Path(root), "kmnist")

    monkeypatch.setattr(torchvision.datasets, "KMNIST", KMNIST)
    root = tmp_path / "home/.cache/mnist_ray"
    data_dir = SearchSettings(dataset="kmnist").data_dir if of_settings else None
    assert len(load("kmnist", "train", data_dir).labels) == 60
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


def test_without_a_home_folder_the_flag_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, whose user id has no entry in passwd."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    for name in ("HOME", "MNIST_RAY_DATA"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match="^--data-dir: ~.*no home folder; name a folder"):
        torchvision_files.root_of(None)
    assert torchvision_files.root_of("/data") == Path("/data")
