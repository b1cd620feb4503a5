"""The metrics of a search, beside scikit-learn's; class weights; a metric of one's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.utils.class_weight import compute_class_weight

from mnist_ray.data import Images, Reading, load_split
from mnist_ray.data.weights import combined, of_classes
from mnist_ray.errors import SettingsError
from mnist_ray.run.records import epoch_row, rank, value_of
from mnist_ray.settings import SearchSettings, check_search
from mnist_ray.settings.objectives import column, direction, goal
from mnist_ray.training.metrics import check, confusion, score_of
from mnist_ray.training.trainer import Trainer
from tests.support.networks import TRAINED


@pytest.mark.parametrize("classes", [2, 10, 37])
@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_they_are_those_of_scikit_learn(classes: int) -> None:
    random = np.random.default_rng(classes)
    for n in (classes, 200):
        labels = random.integers(0, max(2, classes - 1), n)  # the last class is rare or missing
        labels[0] = classes - 1
        given = random.random((n, classes))
        found = given.argmax(1)
        expected = {
            "balanced_accuracy": balanced_accuracy_score(labels, found),
            "macro_f1": f1_score(labels, found, average="macro"),
        }
        for name, value in expected.items():
            score = score_of(name)
            assert score is not None
            assert score(labels, given) == pytest.approx(value, abs=1e-9)


def part(labels: np.ndarray, weights: np.ndarray | None = None) -> Images:
    classes = tuple(f"class {i}" for i in range(int(labels.max()) + 1))
    images = np.zeros((len(labels), 1, 2, 2), np.uint8)
    return Images("x", "train", images, labels, classes, (0.1,), (0.3,), weights=weights)


def test_class_weights_are_those_of_scikit_learn() -> None:
    labels = np.random.default_rng(0).choice(37, 800, p=[0.28] + [0.02] * 36)
    train = np.arange(600)
    expected = compute_class_weight("balanced", classes=np.arange(37), y=labels[train])
    assert of_classes(part(labels), train, "balanced") == pytest.approx(expected, abs=1e-9)
    found = combined(part(labels), train, "balanced")
    assert found is not None
    assert found[train].mean() == pytest.approx(1)
    assert combined(part(labels), train, None) is None


def test_image_weights_and_a_file_of_classes(tmp_path: Path) -> None:
    labels, train = np.array([0, 0, 1, 1]), np.arange(4)
    (tmp_path / "w.yaml").write_text("class 1: 3\n")
    text = SearchSettings.of(class_weights=str(tmp_path / "w.yaml")).class_weights
    assert json.loads(str(text)) == {"class 1": 3}
    found = combined(part(labels, np.array([1.0, 2, 1, 2])), train, text)
    assert found is not None
    assert found.tolist() == pytest.approx(np.array([1, 2, 3, 6]) / 3)
    for wrong, said in {
        "class 9: 1": "there is no class 'class 9'",
        "class 1: -1": "class 1: -1 is not allowed",
        "class 1: many": "'many' is not allowed",
        "- 1": "expected `class: weight` lines",
    }.items():
        (tmp_path / "w.yaml").write_text(wrong)
        with pytest.raises(SettingsError, match=f"^--class-weights.*{said}"):
            text = SearchSettings.of(class_weights=str(tmp_path / "w.yaml")).class_weights
            combined(part(labels), train, text)
    with pytest.raises(SettingsError, match=r"^--dataset: the images' weights are too large"):
        combined(part(labels, np.full(4, 1e308)), train, None)
    with pytest.raises(SettingsError, match="^--class-weights: .*nowhere"):
        SearchSettings.of(class_weights="nowhere.yaml")


def test_a_trainer_scores_and_weighs() -> None:
    """Weights of 1 change nothing; an image of weight 0 is not learnt from."""
    split = load_split("digits", train_images=300, val_images=60)
    data = [
        torch.from_numpy(each.copy())
        for each in (split.images.images, split.images.labels, split.train, split.val)
    ]

    hp = {**TRAINED, "image_size": [28, 28], "classes": 10, "ema": 0, "dropout": 0.0}

    def trained(weights: torch.Tensor | None) -> Trainer:
        trainer = Trainer(hp, epochs=1, seed=0, precision="fp32")
        trainer.score, trainer.image_weights = score_of("macro_f1"), weights
        trainer.run_epoch(*data)
        return trainer

    plain, ones = trained(None), trained(torch.ones(len(data[1])))
    assert ones.rows[0]["train_loss"] == pytest.approx(plain.rows[0]["train_loss"], rel=1e-5)
    with torch.inference_mode():
        given = plain.eval_model()(data[0][data[3]] / 255).argmax(1)
    expected = f1_score(data[1][data[3]].numpy(), given.numpy(), average="macro")
    assert plain.rows[0]["val_metric"] == pytest.approx(expected, abs=1e-9)
    assert trained((data[1] == 0).float()).rows[0]["train_loss"] < plain.rows[0]["train_loss"]


def test_directions_and_ranks() -> None:
    low, high = (
        {"epoch": 1, "val_loss": 1.0, "val_accuracy": 0.5, "val_metric": v} for v in (1, 2)
    )
    least = goal({"metric": "mine:f", "metric_mode": "min"})
    for metric, better in (("macro_f1", high), ("mine:f", high), (least, low)):
        assert max((low, high), key=lambda row: rank(row, metric)) is better
        assert column(metric) == "val_metric"
    assert (direction(least), direction("mine:f")) == ("minimize", "maximize")
    assert value_of(epoch_row(high), least) == 2
    assert np.isnan(value_of(epoch_row({"epoch": 1}), "macro_f1"))


def test_a_metric_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metric.py").write_text(
        "def cost(labels, probabilities):\n    return (labels != probabilities.argmax(1)).mean()\n"
        "def broken(labels, probabilities):\n    return labels.nothing\n"
        "def nan(labels, probabilities):\n    return float('nan')\nnumber = 3\n"
        "def leaves(labels, probabilities):\n    raise SystemExit\n"
        "def sorts(labels, probabilities):\n    labels.sort()\n    probabilities.sort()\n"
        "    return 1\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    labels = np.arange(20) % 4
    check("own_metric:cost@min", labels, 4)
    score = score_of("own_metric:cost@min")
    assert score is not None
    assert score(labels, np.eye(4)[labels]) == 0
    given = labels.copy(), np.eye(4)[labels]
    sorting = score_of("own_metric:sorts")
    assert sorting is not None
    sorting(*given)
    for each, before in zip(given, (labels, np.eye(4)[labels]), strict=True):
        np.testing.assert_array_equal(each, before)
    for name, said in {
        "own_metric:broken": r"failed: .*own_metric.py:4: AttributeError",
        "own_metric:leaves": r"failed: .*own_metric.py:9: the code called sys.exit\(\)",
        "own_metric:nan": "gives nan for random answers",
        "own_metric:number": "is of type int",
        "own_metric:gone": "cannot be imported",
    }.items():
        with pytest.raises(SettingsError, match=f"^--metric: .*{said}") as caught:
            check(name, labels, 4)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "f1"}, r"--metric: 'f1' is unknown; expected one of val_accuracy, val_loss, b"),
        (
            {"metric": "macro_f1", "metric_mode": "min"},
            "--metric-mode: is for a metric of your own",
        ),
        ({"metric": "macro_f1", "objectives": "accuracy,parameters"}, "--objectives: goes with"),
    ],
)
def test_refused_settings(options: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        check_search(SearchSettings(**options))  # type: ignore[arg-type]


def test_class_weights_of_a_built_in_data_set() -> None:
    split = load_split("digits", reading=Reading(class_weights="balanced"))
    assert split.images.weights is not None
    assert split.images.weights.dtype == np.float32


def test_confusion_counts_rows_by_truth() -> None:
    assert confusion(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3).tolist() == [
        [1, 1, 0],
        [0, 1, 0],
        [1, 0, 0],
    ]
