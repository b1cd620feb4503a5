"""The writers of MNIST's images, from QMNIST's labels."""

import gzip
import http.client
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mnist_ray.data import (
    load,
    load_split,
    writers,
)
from mnist_ray.errors import SettingsError
from tests.support.datasets import REAL, real_writers, write_idx


def with_writers(root: Path) -> Path:
    """A data folder with the real files, which can be changed."""
    for name in ("MNIST/raw", "QMNIST/raw"):
        (root / name).mkdir(parents=True)
        for file in Path(str(REAL), name).iterdir():
            (root / name / file.name).symlink_to(file)
    return root / writers.FILE


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
def test_damaged_or_missing_writers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = with_writers(tmp_path)
    content = file.read_bytes()
    file.unlink()
    assert load_split("mnist", str(tmp_path)).val_by == "class"
    assert f"the writers are not known, as {writers.FILE} is not in the data folder" in caplog.text
    with pytest.raises(SettingsError, match=f"mnist has no groups .writers., as {writers.FILE}"):
        load_split("mnist", str(tmp_path), val_by="group")
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

    def fetch(url: str, folder: str, name: str, md5: str) -> None:
        asked.append((url, name, md5))
        Path(folder, name).write_bytes(b"whole")

    monkeypatch.setattr(torchvision.datasets, "MNIST", MNIST)
    monkeypatch.setattr("torchvision.datasets.utils.download_url", fetch)
    with pytest.raises(SettingsError, match="is not MNIST's file"):  # the stand-ins
        load("mnist", "train", str(tmp_path))
    url, md5 = torchvision.datasets.QMNIST.resources["train"][1]
    assert asked == [(url, "qmnist-train-labels-idx2-int.gz", md5)]
    assert (tmp_path / writers.FILE).read_bytes() == b"whole"

    def refuse(*arguments: object) -> None:
        raise OSError("Network is unreachable")

    shutil.rmtree(tmp_path / "MNIST")
    monkeypatch.setattr("torchvision.datasets.utils.download_url", refuse)
    with pytest.raises(SettingsError, match="is not MNIST's file"):
        load("mnist", "train", str(tmp_path))
    assert (
        "the writers of MNIST's images cannot be downloaded: Network is unreachable" in caplog.text
    )


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("File not found or corrupted."), OSError("cut off"), EOFError("cut off"),
        http.client.IncompleteRead(b"half"),
    ],
)  # fmt: skip
def test_a_download_that_is_cut_off_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """MNIST works without its writers, and not with a part of their file."""

    def cut(url: str, folder: str, name: str, md5: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, name).write_bytes(b"half")
        raise error

    resources = {"train": [("", ""), ("https://host/labels.gz", "md5")]}
    utils = SimpleNamespace(download_url=cut)
    writers.download(
        tmp_path, SimpleNamespace(QMNIST=SimpleNamespace(resources=resources), utils=utils)
    )
    assert "the writers of MNIST's images cannot be downloaded" in caplog.text
    assert writers.read(tmp_path, np.zeros(60_000, np.int64)) is None
    assert list(tmp_path.iterdir()) == []
