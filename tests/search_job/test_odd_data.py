"""Data sets of unusual numbers: each is planned, trained, exported and judged, or is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch

from mnist_ray.data import stored
from mnist_ray.errors import SettingsError
from mnist_ray.search_job.plan import Plan, prepare
from mnist_ray.search_job.rehearsal import rehearse
from mnist_ray.settings import SearchSettings
from mnist_ray.training.metrics import score_of
from mnist_ray.training.trainer import Trainer

FEW = ("max_width=8", "min_width=8")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(stored, "_noted", set())


def plan_of(tmp_path: Path, counts: list[int], shape: tuple[int, ...], **options: Any) -> Plan:
    """The plan of a search on so many random images of each class, and two of each to test on."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(counts)), counts)
    tested = np.repeat(np.arange(len(counts)), 2)
    images, test = (random.integers(0, 256, (len(y), *shape), np.uint8) for y in (labels, tested))
    file = tmp_path / "images.npz"
    np.savez(file, allow_pickle=False, x_train=images, y_train=labels, x_test=test, y_test=tested)
    return prepare(
        SearchSettings.of(
            dataset=f"npz:{file}", storage=str(tmp_path / "runs"), space_args=FEW, **options
        )
    )


@pytest.mark.parametrize(
    ("counts", "shape"),
    [
        pytest.param([60, 40], (8, 8), id="two classes"),
        pytest.param([3] * 1000, (8, 8), id="a thousand classes"),
        pytest.param([9, 9, 9], (8, 8), id="fewer images than a batch"),
        pytest.param([6] * 36 + [3], (64, 64, 3), id="3 x 64 x 64, 37 classes, one of them rare"),
    ],
)
def test_it_is_trained_exported_and_judged(
    tmp_path: Path, counts: list[int], shape: tuple[int, ...]
) -> None:
    plan = plan_of(tmp_path, counts, shape, metric="macro_f1", class_weights="balanced")
    part = plan.split.images
    assert part.shape == ((3, *shape[:2]) if len(shape) == 3 else (1, *shape))
    hp = plan.space(optuna.create_study(sampler=optuna.samplers.RandomSampler(0)).ask())
    trainer = Trainer(hp, epochs=1, seed=0, precision="fp32")
    trainer.score = score_of("macro_f1")
    trainer.image_weights = torch.tensor(part.weights)
    arrays = (part.images, part.labels, plan.split.train, plan.split.val)
    row = trainer.run_epoch(*(torch.tensor(array) for array in arrays))
    assert np.isfinite([row["train_loss"], row["val_loss"]]).all()
    assert 0 <= row["val_metric"] <= 1
    assert set(part.labels[plan.split.val]) == set(range(len(counts)))
    if len(counts) == 37:  # an export takes seconds
        rehearse(plan.space, part)


@pytest.mark.parametrize(
    ("counts", "shape", "options", "message"),
    [
        ([5, 5, 1], (12, 12), {}, "--dataset: a class has a single training image, a split needs"),
        ([9, 9, 3], (12, 12), {"folds": 5}, "--folds 5: the rarest class has 3 images; take fewer"),
        ([9], (12, 12), {}, "has one class, '0'; expected at least two"),
        ([9, 9], (1, 32), {}, "^--space: 'convnet' needs .* at least 2 .* these are 1 x 32"),
    ],
)
def test_or_refused_in_one_line(
    tmp_path: Path,
    counts: list[int],
    shape: tuple[int, ...],
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        plan_of(tmp_path, counts, shape, **options)
    assert "\n" not in str(error.value)
