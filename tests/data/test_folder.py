"""Folders of pictures: names of parts, links, empty and unreadable folders."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from mnist_ray.data import load
from mnist_ray.errors import SettingsError
from tests.support.pictures import coloured, png


def put(folder: Path, n: int, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(coloured(n, seed=seed)):
        (folder / f"{i}.png").write_bytes(png(image))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("training_set", "test_set"), "training_set and test_set: name them train and test"),
        (("seg_train", "seg_test", "seg_pred"), "seg_train and seg_test: name them train and test"),
        (("trainset", "my-validation"), "trainset and my-validation: name them train and val"),
        (("val", "test"), "no training part"),
    ],
)
def test_parts_of_other_names_are_no_classes(
    tmp_path: Path, names: tuple[str, ...], said: str
) -> None:
    for name in names:
        for label in ("cat", "dog"):
            put(tmp_path / "d" / name / label, 4)
    with pytest.raises(SettingsError, match=f"^--dataset: .* (holds|has) {said}$"):
        load(f"folder:{tmp_path / 'd'}", "train")


@pytest.mark.parametrize(
    "names", [("bus", "train"), ("bus", "test tube"), ("dev", "ops"), ("bus", "test", "train set")]
)
def test_a_class_may_have_the_name_of_a_part(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        put(tmp_path / "d" / name, 20)
    assert load(f"folder:{tmp_path / 'd'}", "train").classes == names


def test_eval_is_a_test_part(tmp_path: Path) -> None:
    for part, n in (("train", 20), ("eval", 4)):
        for label in ("cat", "dog"):
            put(tmp_path / "d" / part / label, n)
    assert len(load(f"folder:{tmp_path / 'd'}", "test").labels) == 8


def test_folders_without_pictures_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for part, labels in (("train", ("cat", "dog")), ("test", ("dog",))):
        for label in labels:
            put(tmp_path / "d" / part / label, 8)
    for empty in ("train/bird", "test/bird", "test/cat", "train/ape/young"):
        (tmp_path / "d" / empty).mkdir(parents=True)
    assert load(f"folder:{tmp_path / 'd'}", "train").classes == ("cat", "dog")
    assert "folders without pictures, which are no class: ape, bird\n" in caplog.text


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    put(tmp_path / "d" / "cat", 20)
    put(tmp_path / "d" / "dog", 20, seed=1)
    put(tmp_path / "more", 50, seed=2)
    for link, to in (("more", "more"), ("again", "more"), ("round", "d/dog"), ("up", "d")):
        (tmp_path / "d" / "dog" / link).symlink_to(tmp_path / to)
    (tmp_path / "more" / "back").symlink_to(tmp_path / "more")
    labels = [load(f"folder:{tmp_path / 'd'}", part).labels for part in ("train", "test")]
    assert np.bincount(np.concatenate(labels)).tolist() == [20, 70]


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "d" / "cat", 8)
    put(tmp_path / "d" / "dog" / "closed", 8)
    original = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SettingsError, match=r"^--dataset: .*dog/closed: Permission denied$"):
        load(f"folder:{tmp_path / 'd'}", "train")
