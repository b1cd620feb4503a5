"""The split by class, and by groups."""

import hashlib
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_ray.data import (
    DATASETS,
    Images,
    Reading,
    default_val_images,
    load,
    load_split,
    split,
)
from mnist_ray.data.splitting import folded
from mnist_ray.errors import SettingsError
from mnist_ray.search_job.resumed import resumed_settings
from mnist_ray.settings import SearchSettings, parse, resolved
from tests.support.datasets import REAL, real_writers


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


def test_the_default_split_of_each_set_works() -> None:
    part = load("digits", "train")
    train, val = split(part.labels, val_images=default_val_images(part), seed=0)
    assert (len(train), len(val)) == (1222, 215)
    large = [replace(part, name=name) for name in DATASETS if name != "digits"]
    assert [default_val_images(each) for each in large] == [5000] * 4


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


def test_the_split_by_class_is_the_one_of_earlier_runs() -> None:
    """A run without a recorded rule rebuilds its split: these are the indices of commit 61d3465."""
    train, val = split(np.arange(3000) % 10, val_images=500, train_images=1000, seed=7)
    found = hashlib.sha256(np.concatenate([train, val]).astype("<i8").tobytes()).hexdigest()
    assert found == "f5e9541149da327252eb5fec6ea799c14bb41ba2cb17988110107caf26c1b593"


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
    with pytest.raises(SettingsError, match=r"--val-by group: digits has no groups"):
        load_split("digits", val_by="group")


@pytest.fixture
def of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """60 images of two classes; the last is a copy of the first."""
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 4, 4), np.uint8)
    images[59] = images[0]
    labels = np.repeat([0, 1], [40, 20])
    labels[59] = labels[0]
    module = types.ModuleType("of_my_own")
    made = Images("of_my_own:part", "train", images, labels, ("a", "b"), (0.5,), (0.3,))
    monkeypatch.setattr(module, "part", lambda part, data_dir: made, raising=False)
    monkeypatch.setitem(sys.modules, "of_my_own", module)
    return "of_my_own:part"


def test_a_copy_of_a_training_image_is_told_of(
    of_one_s_own: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = load_split(of_one_s_own, val_images=30)
    both = {0, 59} & {*found.val.tolist()}
    assert len(both) == 1  # by the seed: one of them is validated
    assert "1 of 30 validation images is a training image too" in caplog.text


def test_class_weights_are_those_of_the_training_images(of_one_s_own: str) -> None:
    found = load_split(of_one_s_own, val_images=30, reading=Reading(class_weights="balanced"))
    assert found.images.weights is not None
    assert found.images.weights[found.train].mean() == pytest.approx(1, abs=1e-6)


def test_folds_validate_every_image_once_in_the_classes_proportions() -> None:
    part = load_split("digits", folds=5, seed=3)
    labels = part.images.labels
    assert (len(part.folds), part.val_by) == (5, "class")
    assert np.sort(np.concatenate([val for _, val in part.folds])).tolist() == list(
        range(len(labels))
    )
    for train, val in part.folds:
        assert not set(train) & set(val)
        assert len(train) + len(val) == len(labels)
        shares = np.bincount(labels[val]) / len(val) - np.bincount(labels) / len(labels)
        assert np.abs(shares).max() < 0.01
    assert (part.train is part.folds[0][0], part.val is part.folds[0][1]) == (True, True)
    again = load_split("digits", folds=5, seed=3)
    assert all((a[1] == b[1]).all() for a, b in zip(part.folds, again.folds, strict=True))
    other = load_split("digits", folds=5, seed=4)
    assert any((a[1] != b[1]).any() for a, b in zip(part.folds, other.folds, strict=False))


def test_folds_keep_groups_together() -> None:
    random = np.random.default_rng(0)
    groups, labels = random.integers(0, 40, 600), random.integers(0, 3, 600)
    for train, val in folded(labels, 4, 0, groups):
        assert not set(groups[train]) & set(groups[val])
        assert set(labels[train]) == set(labels[val]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        ([0] * 9 + [1] * 3, None, "--folds 4: the rarest class has 3 images"),
        ([0, 1] * 9, [0, 0, 1, 1, 2, 2] * 3, "--folds 4: there are 3 groups"),
        ([0] * 9 + [1] * 9, [*range(9), *[9] * 9], "--folds 4: the groups cannot be divided"),
    ],
)
def test_what_cannot_be_folded_is_refused(labels: list, groups: list | None, message: str) -> None:
    which = None if groups is None else np.array(groups)
    with pytest.raises(SettingsError, match=f"^{message}"):
        folded(np.array(labels), 4, 0, which)


@real_writers
@pytest.mark.parametrize("val_images", [5000, 10_000, 20_000])
def test_mnist_is_validated_by_unseen_writers(val_images: int) -> None:
    images, train, val, rule, _ = load_split("mnist", REAL, val_images=val_images, seed=3)
    assert rule == "group"
    assert images.groups is not None
    assert len(val) == val_images
    assert len(train) > 60_000 - val_images - 131  # at most one writer's images are in neither
    assert not set(images.groups[train]) & set(images.groups[val])
    shares = np.bincount(images.labels[val]) / val_images - np.bincount(images.labels) / 60_000
    assert np.abs(shares).max() < 0.01


def test_an_earlier_run_is_resumed_with_its_split() -> None:
    """Runs of commit 61d3465 record no rule: they were split by class."""
    before = resolved(SearchSettings(dataset="mnist", name="a"))
    del before["val_by"]
    now = parse(SearchSettings, ["--name", "a", "--resume"])
    assert resumed_settings(now, before).val_by == "class"
    assert resumed_settings(now, {**before, "val_by": "group"}).val_by == "group"
    now = parse(SearchSettings, ["--name", "a", "--resume", "--val-by", "group"])
    with pytest.raises(SettingsError, match="--val-by: 'group' was given, but the run has 'class'"):
        resumed_settings(now, before)
