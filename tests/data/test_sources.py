"""Data sets by name, and functions of a person's own."""

import hashlib
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.data import (
    Images,
    by_names,
    default_val_images,
    digest,
    load,
)
from mnist_ray.errors import SettingsError
from tests.support.datasets import write_cifar, write_idx


def test_unknown_names() -> None:
    with pytest.raises(
        SettingsError,
        match=r"--dataset: 'nmist' is unknown; expected one of mnist, fashion-mnist, .*digits",
    ):
        load("nmist", "train")
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


@pytest.mark.parametrize(
    "name", ["nowhere_at_all:x", ":x", ".relative:x", "os.path.nothing:x", "json:"]
)
def test_modules_that_are_not_there(name: str) -> None:
    with pytest.raises(SettingsError, match="--dataset"):
        load(name, "train")


def test_a_data_set_of_ones_own(own: None) -> None:
    train = load("my_stripes:stripes", "train")
    assert (train.name, train.part, train.shape) == ("my_stripes:stripes", "train", (2, 5, 6))
    assert train.sha256 == digest(train.images, train.labels)
    assert len(load("my_stripes:stripes", "test").labels) == 8
    assert default_val_images(train) == 4


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
        ("twice", "two classes are named 'a'"),
        ("group", "40 images and 39 groups"),
        ("crash", r"my_stripes.py:\d+: FileNotFoundError"),
        ("other", "must return mnist_ray.Images, returned list"),
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
        ("raise SystemExit(3)\n", r"broken_data\.py:1: the code called sys.exit\(3\)"),
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


def test_names_may_be_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(part: str, data_dir: str | None) -> Images:
        labels, groups = np.arange(8) % 2, np.array([b"p1", b"p2"] * 4)
        images = np.zeros((8, 1, 4, 4), np.uint8)
        names: Any = (b"cat", np.bytes_(b"dog"))
        return Images("", part, images, labels, names, (0.5,), (0.3,), groups=groups)

    monkeypatch.setattr("tests.support.pictures.function", function, raising=False)
    found = load("tests.support.pictures:function", "train")
    assert (found.classes, found.group_names) == (("cat", "dog"), ("p1", "p2"))


def test_the_digest_covers_images_and_labels() -> None:
    images, labels = np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2), np.array([0, 1])
    assert (
        digest(images, labels)
        == hashlib.sha256(bytes(range(8)) + bytes([0] * 8) + bytes([1] + [0] * 7)).hexdigest()
    )
    assert digest(images[:, :, ::-1], labels) != digest(images, labels)
    assert digest(images, labels[::-1]) != digest(images, labels)
    assert Images("a", "train", images, labels, ("a", "b"), (0.1,), (0.2,)).shape == (1, 2, 2)


def test_labels_follow_the_names_of_a_model(caplog: pytest.LogCaptureFixture) -> None:
    one = Images("own:it", "test", np.zeros((3, 1, 2, 2), np.uint8), np.array([0, 1, 1]),
                 ("b", "a"), (0.5,), (0.5,))  # fmt: skip
    found = by_names(one, ("a", "b", "c"), "model.onnx")
    assert (found.labels.tolist(), found.classes) == ([1, 0, 0], ("a", "b", "c"))
    assert found.sha256 == digest(found.images, found.labels)
    assert by_names(one, ("a", "b"), "model.onnx").labels.tolist() == [1, 0, 0]
    for same in ((), ("b", "a")):
        assert by_names(one, same, "model.onnx") is one
    assert not caplog.text
    assert by_names(one, ("x", "y"), "model.onnx") is one  # other words for as many labels
    assert (
        "own:it: its classes are taken for the model's in this order: b = x, a = y" in caplog.text
    )
    for other in (("a", "c"), ("x", "y", "z")):
        with pytest.raises(SettingsError, match=r"^--dataset: own:it has the class 'b', and model"):
            by_names(one, other, "model.onnx")
