"""The cross-validation by unseen writers, on a small data set: folds, resuming, comparison."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from mnist_ray.errors import SettingsError
from mnist_ray.settings import parse
from tests.support import PROGRAMS

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import crossval

STAGES = """
start: best
train_on: all
stages:
  - {epochs: 2, batch_size: 32, optimizer: adam, lr: 1.0e-2, weight_decay: 0, seed: 1}
  - {epochs: 1, batch_size: 32, optimizer: adam, lr: 1.0e-3, weight_decay: 0, seed: 2}
"""


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    shutil.copy(PROGRAMS / "bars_of_writers.py", tmp_path)
    (tmp_path / "stages.yaml").write_text(STAGES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("os.nice", lambda by: 0)
    return [
        *("--dataset", "bars_of_writers:bars", "--stages", str(tmp_path / "stages.yaml")),
        *("--kept", str(tmp_path / "kept"), "--work", str(tmp_path / "work")),
        *("--out", str(tmp_path / "out.md"), "--change", "width=4"),
    ]


def settings(*flags: str) -> crossval.CrossvalSettings:
    return parse(crossval.CrossvalSettings, flags)


def test_two_recipes_are_trained_kept_and_compared(flags: list[str], tmp_path: Path) -> None:
    crossval.measure(settings(*flags, "--folds", "2"))
    crossval.measure(settings(*flags, "--folds", "1", "2"))  # goes on
    crossval.measure(
        settings(*flags, "dropout=0.9", "--recipe", "more", "--epochs", "2", "--folds", "1", "2")
    )
    kept = crossval.read(tmp_path / "kept" / "default-seed-1")
    assert kept.about["folds"] == [1, 2]
    assert kept.about["hyperparameters"]["width"] == 4
    part = crossval.part_of(settings(*flags))
    done = np.isfinite(kept.probabilities[:, 0])
    assert (done == np.isin(part.fold, [1, 2])).all()
    assert kept.probabilities[done].sum(1) == pytest.approx(1)
    wrong = kept.probabilities[done].argmax(1) != part.images.labels[done]
    assert wrong.sum() == kept.about["errors"]
    assert wrong.mean() < 0.5  # it has learnt
    labels = part.images.labels[done]
    loss = -np.log(kept.probabilities[done][np.arange(len(labels)), labels]).mean()
    assert loss == pytest.approx(kept.about["log_loss"], abs=0.02)
    more = json.loads((tmp_path / "kept" / "more-seed-1.json").read_text())
    assert [stage["epochs"] for stage in more["stages"]] == [1, 1]
    assert more["hyperparameters"]["width"] == 4
    assert {stage["dropout"] for stage in more["stages"]} == {0.9}
    table = (tmp_path / "out.md").read_text()
    assert "against `default`" in table
    assert f"| `default` | 1 | 1, 2 | 3 | {wrong.sum()} of {done.sum()}" in table
    with pytest.raises(SettingsError, match="made with other settings"):
        crossval.run(settings(*flags, "--epochs", "2"))
    other = crossval.read(tmp_path / "kept" / "more-seed-1").probabilities[done]
    mean = (kept.probabilities[done] + other).argmax(1) != labels
    both = wrong & (other.argmax(1) != labels)
    crossval.measure(settings(*flags, "--folds", "--committee", "default+more"))
    assert f"| {mean.sum()} | {both.sum()} |" in (tmp_path / "out.md").read_text()
    with pytest.raises(SettingsError, match="--committee: less is not kept; .* default, more"):
        crossval.measure(settings(*flags, "--folds", "--committee", "default+less"))


def test_an_interrupted_fold_gives_what_an_uninterrupted_one_gives(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crossval.train(settings(*flags, "--recipe", "whole"), 3)

    def interrupt(message: str, *arguments: object) -> None:
        if "epoch 1/2" in message % arguments:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(crossval.log, "info", interrupt)
        with pytest.raises(KeyboardInterrupt):
            crossval.train(settings(*flags, "--recipe", "cut"), 3)
    crossval.train(settings(*flags, "--recipe", "cut"), 3)
    whole, cut = (
        np.load(tmp_path / "work" / f"{n}-seed-1/fold-3/logits.npy") for n in ("whole", "cut")
    )
    assert (whole == cut).all()


def test_folds_are_by_writers_and_the_same_for_every_seed(flags: list[str]) -> None:
    part = crossval.part_of(settings(*flags))
    assert set(part.fold) == {1, 2, 3, 4, 5}
    assert all(len(set(part.fold[part.writer == writer])) == 1 for writer in set(part.writer))
    assert (crossval.part_of(settings(*flags, "--seed", "7")).fold == part.fold).all()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--folds", "6"], "--folds"),
        (["--change", "nothing=1"], "--change: neither the stages nor the network have 'nothing'"),
        (["--epochs", "1"], "--epochs: 1 are too few for 2 stages"),
        (["--dataset", "bars_of_writers:unknown"], "--dataset: the groups"),
    ],
)
def test_wrong_settings_are_one_line(flags: list[str], more: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        crossval.run(settings(*flags, *more))


def test_quantised_logits_keep_class_and_probability() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (1000, 10)).astype(np.float32)
    logits[0, :2] = 9.0, 9.0001
    kept = crossval.softmax(-crossval.quantised(logits).astype(float) / crossval.STEP)
    assert (kept.argmax(1) == logits.argmax(1)).all()
    assert np.abs(kept[1:] - crossval.softmax(logits[1:].astype(float))).max() < 0.02


def test_comparisons() -> None:
    from scipy.stats import binom

    wrong, other = np.zeros((2, 100), bool)
    wrong[:9] = other[9:12] = True
    assert crossval.mcnemar(wrong, other) == (9, 3, pytest.approx(2 * binom.cdf(3, 12, 0.5)))
    assert crossval.mcnemar(other, other) == (0, 0, 1.0)
    difference, writer = wrong.astype(float) - other, np.arange(100) // 10
    low, high = crossval.by_writers(difference, writer)
    assert low < difference.mean() < high
    # All of the difference is one writer's: resampled writers know less than resampled images.
    lower, higher = crossval.by_writers(difference, np.arange(100))
    assert high - low > 1.2 * (higher - lower)


def test_errors_that_are_left() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 1000)
    right = np.eye(10)[labels] * 0.8 + 0.02
    wrong = np.eye(10)[(labels + 1) % 10] * 0.8 + 0.02
    unsure, sure = np.arange(1000) < 3, np.arange(1000) >= 993
    probabilities = np.where((unsure | sure)[:, None], wrong, right)
    probabilities[unsure] = probabilities[unsure] * 0.5 + 0.05
    found = [1000 * each for each in crossval.errors_left(probabilities, labels)]
    assert found == pytest.approx([10, 8, 7, 7])  # of all; after 2, 5 and 10 are handed over
    order = random.permutation(1000)
    assert crossval.errors_left(probabilities[order], labels[order])[:2] == [0.01, 0.008]
