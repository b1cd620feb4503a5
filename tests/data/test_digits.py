"""scikit-learn's digits in MNIST's layout."""

import numpy as np
import pytest

from mnist_ray.data import (
    centre_by_mass,
    load,
)
from tests.support.datasets import REAL, real_mnist


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
        inked = np.any(images, axis=axis)
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
