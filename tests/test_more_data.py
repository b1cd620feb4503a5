"""benchmarks/more_data.py: data sets of other families, from packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np

from mnist_ray import data
from tests.support import ROOT

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def more_data(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "more_data.py"), *args]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_letters_of_fonts_in_parts_without_a_common_family(tmp_path: Path) -> None:
    done = more_data("--fonts", str(FONTS), "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    name = f"npz:{tmp_path / 'letters.npz'}"
    train, test = data.load(name, "train"), data.load(name, "test")
    assert train.images.shape[1:] == test.images.shape[1:] == (1, 28, 28)
    assert len(train.images) > len(test.images) > 0
    assert list(train.classes) == [chr(c) for c in range(65, 91)]
    assert train.images[:, 0, 4:24, 4:24].max((1, 2)).min() > 128  # all have ink in the middle
    assert not train.images[:, 0, :4].any()
    with np.load(tmp_path / "letters.npz") as file:
        assert not set(file["groups_train"]) & set(file["groups_test"])
        assert np.unique(file["groups_train"], return_counts=True)[1].max() <= 4 * 26


def test_clothes_of_the_package(tmp_path: Path) -> None:
    folder = tmp_path / "package" / "src" / "clothes"
    folder.mkdir(parents=True)
    for label in range(10):
        rows = [[label * 20 + 5] * 784] * 1002 + [[]]
        (folder / f"{label}.json").write_text(json.dumps({"data": rows}))
    done = more_data("--clothes", str(tmp_path / "package"), "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "clothes.npz") as file:
        assert file["x_train"].shape == (20, 28, 28)
        assert np.bincount(file["y_test"]).tolist() == [1000] * 10
        assert (file["x_test"][:, 0, 0] == file["y_test"] * 20 + 5).all()


def test_what_is_missing_is_told_in_a_line(tmp_path: Path) -> None:
    for args, said in (
        ((), "--clothes, --fonts: neither was given"),
        (("--clothes", str(tmp_path)), "--clothes: "),
        (("--fonts", str(tmp_path)), f"--fonts: {tmp_path}: no font in it has the letters"),
    ):
        done = more_data(*args, "--folder", str(tmp_path / "out"))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert said in done.stderr
        assert not list((tmp_path / "out").glob("*"))
