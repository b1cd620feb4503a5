"""Images and groups that are in two parts are found and counted."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mnist_ray.data import Images, check_test_part, leaks, load
from mnist_ray.data.leaks import check_split, shared_images
from mnist_ray.errors import SettingsError
from tests.support.pictures import coloured


def smooth(n: int, seed: int) -> np.ndarray:
    """uint8 [n, 3, 32, 32]: pictures without noise, all different."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 5, 5, 3), np.uint8)
    large = [
        np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC))
        for one in coarse
    ]
    return np.stack(large).transpose(0, 3, 1, 2)


def as_jpeg(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=80)
    return np.asarray(Image.open(file)).transpose(2, 0, 1)


def part(name: str, images: np.ndarray, groups: list[str] | None = None) -> Images:
    labels = np.arange(len(images)) % 2
    found = Images("mine:own", name, images, labels, ("a", "b"), (0.5,) * 3, (0.2,) * 3)
    if groups is None:
        return found
    names, numbers = np.unique(groups, return_inverse=True)
    return replace(found, groups=numbers, group_names=tuple(map(str, names)))


def test_a_planted_leak_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    train, test = smooth(800, 0), smooth(400, 1)
    test[:120] = train[:120]
    test[200:280] = [as_jpeg(image) for image in train[300:380]]
    assert shared_images(train, smooth(400, 2)) == (0, 0)
    exact, near = shared_images(train, test)
    assert exact == 120
    assert 76 <= near <= 80
    groups = [f"patient {i // 20}" for i in range(800)]
    tested = [f"patient {35 + i // 20}" for i in range(400)]
    check_test_part(part("train", train, groups), part("test", test, tested))
    said = [record.message for record in caplog.records]
    assert said[0].startswith("mine:own: 120 of 400 test images are training images too")
    assert f"{near} of 400 test images are nearly training images too" in said[1]
    assert said[2] == "mine:own: 5 groups are in the training and in the test part"


def test_groups_in_the_training_and_validation_images(caplog: pytest.LogCaptureFixture) -> None:
    one = part("train", smooth(100, 0), [f"p{i // 10}" for i in range(100)])
    check_split(one, np.arange(0, 50), np.arange(45, 100))
    assert "5 of 55 validation images are training images too" in caplog.text
    assert "1 groups have training and validation images; --val-by group" in caplog.text
    caplog.clear()
    check_split(one, np.arange(0, 50), np.arange(50, 100))
    assert not caplog.text


def test_where_near_copies_are_not_looked_for_the_log_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    images = coloured(40, (5, 6)).transpose(0, 3, 1, 2)
    assert shared_images(images[:30], images[25:]) == (5, 0)
    assert "only exact copies were looked for: the images have a side below 9 pixels" in caplog.text
    caplog.clear()
    images = coloured(40, (10, 10)).transpose(0, 3, 1, 2)
    shared_images(images[:30], images[25:])
    assert not caplog.text
    monkeypatch.setattr(leaks, "COMPARED", 299)
    assert shared_images(images[:30], images[25:]) == (5, 0)
    assert "the images have 30 x 10 pairs" in caplog.text


def test_equal_parts_are_refused() -> None:
    one = part("train", smooth(40, 0))
    with pytest.raises(SettingsError, match="all 40 test images are training images"):
        check_test_part(one, replace(one, part="test"))
    images = coloured(40, (10, 10)).transpose(0, 3, 1, 2)
    assert shared_images(images, images) == (40, 0)


def test_copies_among_pictures_of_little_contrast_are_found() -> None:
    """As X-rays: hardly one has a slope, so every other picture is a candidate."""
    train = np.random.default_rng(0).integers(100, 104, (400, 1, 16, 16)).astype(np.uint8)
    copies = train[350:].copy()
    copies[:, 0, 0, 0] += 1
    others = np.random.default_rng(1).integers(100, 104, (50, 1, 16, 16)).astype(np.uint8)
    assert shared_images(train, np.concatenate([copies, others])) == (0, 50)


@pytest.mark.parametrize("values", [(100, 104), (0, 256)])
def test_small_copies_leave_out_no_picture_within_the_limit(values: tuple[int, int]) -> None:
    """Also where the sides are no multiples of theirs, and the limit is just reached."""
    one = np.random.default_rng(0).integers(*values, (40, 3, 29, 31)).astype(np.uint8)
    shift = np.arange(40)[:, None, None, None] // 4
    shifted = (one.astype(int) + shift).clip(0, 255).astype(np.uint8)
    for other in (one[::-1], shifted, 255 - one):
        differences = other[:, None].astype(float) - one
        limits = np.sqrt((differences**2).mean((2, 3, 4)))
        small, of_other = leaks._small(one), leaks._small(other)
        for i in range(40):  # each of them is the limit in turn
            within = leaks._within(small, of_other, limits[:, i])
            assert within[limits <= limits[:, i : i + 1]].all()
    far = leaks._within(leaks._small(one), leaks._small(255 - one), np.full(40, 1.0))
    assert far.sum() < 40


def test_other_digits_are_no_duplicates() -> None:
    assert shared_images(load("digits", "train").images, load("digits", "test").images).near <= 6
