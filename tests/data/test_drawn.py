"""Places that are drawn: a test part by groups, and splits with rare classes."""

from pathlib import Path

import numpy as np
import pytest

from mnist_ray.data import drawn, load, load_split, split
from mnist_ray.errors import SettingsError


def archive(file: Path, *content: tuple[str, int, int]) -> str:
    """Random pictures, so many of each group and class: (group, class, count)."""
    groups = [group for group, _, count in content for _ in range(count)]
    labels = [label for _, label, count in content for _ in range(count)]
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 12, 12), np.uint8)
    np.savez(file, images=images, labels=np.array(labels), groups=np.array(groups))
    return f"npz:{file}"


@pytest.mark.parametrize(
    ("content", "sizes"),
    [
        ([("A", 0, 500), ("A", 1, 400), ("B", 0, 50), ("B", 1, 50)], (900, 100)),
        ([("A", 0, 10), ("A", 1, 10), ("A", 2, 100), ("B", 0, 50), ("B", 1, 50)], (120, 100)),
    ],
)
def test_the_largest_group_is_no_test_part_where_another_can_be(
    tmp_path: Path, content: list[tuple[str, int, int]], sizes: tuple[int, int]
) -> None:
    """scikit-learn puts the least even group into the first fold: nearly all, or all of a class."""
    name = archive(tmp_path / "a.npz", *content)
    assert tuple(len(load(name, part).labels) for part in ("train", "test")) == sizes


def test_groups_that_leave_a_class_without_a_training_picture_are_named(tmp_path: Path) -> None:
    name = archive(tmp_path / "a.npz", ("A", 0, 20), ("A", 1, 20), ("B", 2, 20), ("B", 3, 20))
    said = (
        "no test part, and with one split off its groups leave no training picture of class "
        ".*give it a test part .as in a column split., or leave the groups out$"
    )
    with pytest.raises(SettingsError, match=said) as caught:
        load(name, "train")
    assert "\n" not in str(caught.value)


def test_groups_of_classes_with_one_picture_each_are_too_few(tmp_path: Path) -> None:
    name = archive(tmp_path / "a.npz", *((f"g{i}", i, 1) for i in range(6)))
    with pytest.raises(SettingsError, match="too few pictures to split one off; expected at least"):
        load(name, "train")


def test_a_usable_first_fold_stays_the_test_part() -> None:
    """That of earlier runs, which are resumed with it."""
    random = np.random.default_rng(1)
    groups, labels = random.integers(0, 20, 400), random.integers(0, 3, 400)
    splitter = drawn.model_selection_of_sklearn().StratifiedGroupKFold(
        5, shuffle=True, random_state=0
    )
    first = next(iter(splitter.split(labels, labels, groups)))[1]
    assert drawn.test_part_of_groups(labels, groups).tolist() == first.tolist()


def test_a_rare_class_is_in_every_part_of_the_default_split(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1003, 8, 8), np.uint8)
    labels = np.array(["usual"] * 1000 + ["rare"] * 3)
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    found = load_split(f"npz:{tmp_path / 'a.npz'}")
    for side in (found.train, found.val):
        assert np.bincount(found.images.labels[side]).min() == 1
    assert len(found.val) == 80


@pytest.mark.parametrize("train_images", [None, 6, 200])
def test_rare_classes_are_on_either_side_of_a_split(train_images: int | None) -> None:
    labels = np.repeat(np.arange(6), [500, 3, 2, 2, 9, 30])
    for seed in range(5):
        train, val = split(labels, val_images=8, train_images=train_images, seed=seed)
        assert len(val) == 8
        assert len(train) == (train_images or len(labels) - 8)
        assert not set(train) & set(val)
        assert set(labels[train]) == set(labels[val]) == set(range(6))
    again, other = (split(labels, val_images=8, seed=seed)[1] for seed in (4, 5))
    assert again.tolist() == split(labels, val_images=8, seed=4)[1].tolist() != other.tolist()


def test_more_of_a_class_are_drawn_the_more_of_it_are_free() -> None:
    labels = np.repeat(np.arange(3), [1000, 100, 4])
    chosen, others = drawn.with_each_class(np.arange(1104), 113, labels, 0, left=1)
    assert np.bincount(labels[chosen]).tolist() == [101, 11, 1]
    assert sorted([*chosen, *others]) == list(range(1104))
