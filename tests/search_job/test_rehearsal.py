"""What the second job needs is known before the first begins."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.data import Images, check_test_part
from mnist_ray.errors import SettingsError
from mnist_ray.export.write import export
from mnist_ray.search_job import rehearsal
from mnist_ray.search_job.plan import prepare
from mnist_ray.search_job.rehearsal import rehearse
from mnist_ray.settings import SearchSettings
from mnist_ray.spaces import SPACES, DataShape, find, of_networks, starts_from_onnx
from mnist_ray.training.trainer import Trainer
from tests.support import PROGRAMS


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PROGRAMS))


def planned(folder: Path, network: str, **options: Any) -> None:
    given = {"dataset": "digits", "space": f"odd_networks:space_of_{network}", **options}
    prepare(SearchSettings(**given, storage=str(folder / "runs"), name="a"))


@pytest.mark.parametrize("network", ["OldExample", "Flattened", "Conv3d", "Flat", "Tied"])
def test_ones_own_network_is_tried(
    tmp_path: Path, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one epoch of a few images and one export, since it must cost a few seconds.

    The old example's x.view needs the layout that its author knew.
    """
    trained, exported = [], []
    train_epoch = Trainer.train_epoch

    def train(self: Trainer, images: Any, *others: Any) -> Any:
        trained.append(len(images))
        return train_epoch(self, images, *others)

    def write(*arguments: Any) -> bytes:
        exported.append(arguments)
        return export(*arguments)

    monkeypatch.setattr(Trainer, "train_epoch", train)
    monkeypatch.setattr("mnist_ray.search_job.rehearsal.export", write)
    planned(tmp_path, network)
    assert trained == [rehearsal.IMAGES]
    assert rehearsal.IMAGES <= 32
    assert len(exported) == 1
    assert not (tmp_path / "runs").exists()


RANDOM = ("Random", "run: it answers the same images differently each time.*F.dropout")


@pytest.mark.parametrize(
    ("network", "cause", "dry_run"),
    [
        (*RANDOM, False),
        (*RANDOM, True),
        (
            "Branching",
            "exported as ONNX: its path depends on the values of its input.*odd_networks.py:",
            False,
        ),
        ("Transposed", "run: it returns (10, 32) for 32 images; expected logits (32, 10)", False),
        ("Failing", "run: .*odd_networks.py:.*RuntimeError: shape '[-1, 100]' is invalid", False),
        ("Remembering", "saved: AttributeError: 'dict' object has no attribute 'detach'", False),
        ("Leaving", "built: .*odd_networks.py:.*: the code called sys.exit(1)", False),
        ("OfThisBatch", "exported as ONNX: the exported model differs from the network", False),
    ],
)
def test_a_network_that_cannot_be_published_is_found_before_the_search(
    tmp_path: Path, network: str, cause: str, dry_run: bool
) -> None:
    with pytest.raises(SettingsError) as caught:
        planned(tmp_path, network, dry_run=dry_run)
    message = str(caught.value)
    assert message.startswith(f"--space: the network 'odd_networks:{network}' cannot be ")
    assert "\n" not in message
    for part in cause.split(".*"):
        assert part in message, message
    assert not (tmp_path / "runs").exists()


def images(part: str = "train", **change: Any) -> Images:
    n = 40 if part == "train" else 8
    pixels = np.random.default_rng(n).integers(0, 256, (n, 1, 8, 8), dtype=np.uint8)
    made = Images("m:f", part, pixels, np.arange(n) % 4, ("a", "b", "c", "d"), (0.5,), (0.3,))
    return dataclasses.replace(made, **change)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (images("test", images=np.zeros((8, 1, 9, 8), np.uint8)), r"\[1, 9, 8\].*\[1, 8, 8\]"),
        (images("test", images=np.zeros((8, 3, 8, 8), np.uint8)), r"\[3, 8, 8\].*\[1, 8, 8\]"),
        (images("test", classes=("b", "a", "c", "d")), "classes are b, a, c, d; .* are a, b, c, d"),
        (images("test", classes=("a", "b", "c")), "expected the same names in the same order"),
        (images("train"), "all 40 test images are training images"),
        (images("test", images=images().images[5:13]), "all 8 test images are training images"),
    ],
)
def test_a_test_part_that_says_nothing_is_refused(test: Images, message: str) -> None:
    with pytest.raises(SettingsError, match=f"^--dataset: m:f: .*{message}"):
        check_test_part(images(), test)


def test_shared_images_are_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    shared = images("test").images.copy()
    shared[:3] = images().images[:3]
    check_test_part(images(), images("test"))
    assert caplog.text == ""
    check_test_part(images(), images("test", images=shared))
    assert "3 of 8 test images are training images too" in caplog.text


def test_the_test_part_is_looked_at_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(part: str, data_dir: str | None) -> Images:
        if part == "test":
            raise FileNotFoundError("no test part here")
        return images()

    monkeypatch.setattr("mnist_ray.settings.text.load", lambda *args: load)
    with pytest.raises(SettingsError, match="^--dataset: m:f failed for 'test'.*no test part here"):
        prepare(SearchSettings(dataset="m:f", storage=str(tmp_path / "runs"), name="a"))
    assert not (tmp_path / "runs").exists()


BUILT_IN = sorted(
    name for name in SPACES if of_networks(find(name)) and not starts_from_onnx(find(name))
)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (2, 12, 40)])
@pytest.mark.parametrize("space", BUILT_IN)
def test_built_in_networks_need_no_rehearsal(space: str, shape: tuple[int, int, int]) -> None:
    channels, height, width = shape
    data = DataShape(channels, (height, width), 4, (0.5,) * channels, (0.3,) * channels)
    pixels = np.random.default_rng(0).integers(0, 256, (40, *shape), dtype=np.uint8)
    part = images(images=pixels)
    rehearse(lambda trial: find(space)(trial, data=data), part)
