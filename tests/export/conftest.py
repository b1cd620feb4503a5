"""One exported network and the images of digits, for all tests of the room."""

import pytest

from mnist_ray import data
from mnist_ray.export.write import export
from tests.support.networks import HP, network


@pytest.fixture(scope="session")
def digits() -> data.Images:
    return data.load("digits", "test")


@pytest.fixture(scope="session")
def exported() -> bytes:
    return export(network(HP), HP, {"dataset": "digits", "run": "first", "val_accuracy": "0.5"})
