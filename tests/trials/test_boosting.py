"""LightGBM in the place of a network: the same rows, files and resumption, and a search that never
sees a tensor.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

lightgbm = pytest.importorskip("lightgbm", reason="the extra `lightgbm` is not installed")

from mnist_ray import data, spaces
from mnist_ray.errors import CorruptFileError, SettingsError
from mnist_ray.run.layout import trial_folder
from mnist_ray.run.tables import HISTORY
from mnist_ray.search_job.plan import prepare
from mnist_ray.settings import SearchSettings
from mnist_ray.storage import RunStorage
from mnist_ray.trials.boosting import LightGBMTrial
from mnist_ray.trials.steps import pack, unpack
from mnist_ray.tune.trial import NUMBER, TrialContext
from tests.support.processes import own_ray
from tests.support.runs import finish, load_study, search, tables

SHAPE = spaces.DataShape(1, (28, 28), 10, (0.1578,), (0.2933,))
VALUES = {
    "learning_rate": 0.2,
    "num_leaves": 15,
    "min_data_in_leaf": 5,
    "feature_fraction": 0.3,
    "bagging_fraction": 0.7,
    "lambda_l1": 1e-3,
    "lambda_l2": 1e-3,
}


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    part = data.load("digits", "train")
    return part.images, part.labels


def suggestion() -> dict:
    return spaces.find("lightgbm")(optuna.trial.FixedTrial(VALUES), SHAPE)


@pytest.fixture
def trial_class(tmp_path: Path, digits: tuple[np.ndarray, np.ndarray]) -> type[LightGBMTrial]:
    context = TrialContext(str(tmp_path), "val_accuracy", 3, 0, "fp32", 1, 0)

    class Here(LightGBMTrial):
        def setup(self, config: dict) -> None:  # type: ignore[override]
            super().setup(config, context, *digits, np.arange(400), np.arange(400, 700))

    return Here


def test_it_learns_and_reports_what_a_network_does(
    trial_class: type[LightGBMTrial], tmp_path: Path, digits: tuple
) -> None:
    trial = trial_class({**suggestion(), NUMBER: 4})
    results = [trial.train() for _ in range(3)]
    trial.stop()
    assert [r["epoch"] for r in results] == [1, 2, 3]
    assert [r["done"] for r in results] == [False, False, True]
    assert all(set(HISTORY) <= set(r) and r["n_parameters"] > 0 and r["node"] for r in results)
    assert results[0]["train_loss"] > results[2]["train_loss"]
    best = max(results, key=lambda r: (r["val_accuracy"], -r["val_loss"]))
    assert best["val_accuracy"] > 0.7
    # The best model is LightGBM's own text, and gives the row that was reported.
    folder = tmp_path / trial_folder(4)
    assert sorted(p.name for p in folder.iterdir()) == ["best.json", "best.txt", "latest.txt"]
    booster = lightgbm.Booster(model_str=(folder / "best.txt").read_text())
    assert booster.num_trees() == 10 * 10 * best["epoch"]
    predicted = booster.predict(digits[0][400:700].reshape(300, -1)).argmax(1)
    assert (predicted == digits[1][400:700]).mean() == best["val_accuracy"]
    story = json.loads((folder / "best.json").read_text())
    assert (story["number"], story["row"]["epoch"], story["hyperparameters"]) == (
        4,
        best["epoch"],
        suggestion(),
    )


def test_started_again_it_goes_on_to_the_bit(
    trial_class: type[LightGBMTrial], tmp_path: Path
) -> None:
    whole = trial_class({**suggestion(), NUMBER: 1})
    expected = [whole.train() for _ in range(3)]
    whole.stop()
    first = trial_class({**suggestion(), NUMBER: 2})
    first.train()
    first.stop()
    second = trial_class({**suggestion(), NUMBER: 2})
    again = second.train()
    assert [row["epoch"] for row in again["rows"]] == [1]
    rest = [second.train() for _ in range(2)]
    second.stop()
    assert [r["val_loss"] for r in rest] == [r["val_loss"] for r in expected[1:]]
    models = [
        unpack((tmp_path / trial_folder(n) / "latest.txt").read_bytes(), "x")[1] for n in (1, 2)
    ]
    assert models[0] == models[1]


def test_one_actor_serves_several_trials(trial_class: type[LightGBMTrial]) -> None:
    trial = trial_class({**suggestion(), NUMBER: 1})
    trial.train()
    assert trial.reset_config({**suggestion(), "learning_rate": 0.1, NUMBER: 2})
    result = trial.train()
    trial.stop()
    assert (result["epoch"], result["lr"]) == (1, 0.1)


def test_a_damaged_checkpoint_is_named(trial_class: type[LightGBMTrial], tmp_path: Path) -> None:
    rows: list[Any] = [{"epoch": 1, "val_loss": 0.5}]
    good = pack(rows, b"tree\nnum_leaves=3\n")
    found, text, _ = unpack(good, "x")
    assert (found[0]["val_loss"], text) == (0.5, b"tree\nnum_leaves=3\n")
    for bad in (good[:-2], good.replace(b"0.5", b"0.6"), b"no checkpoint", b"\xff\xfe"):
        with pytest.raises(CorruptFileError, match=r"^x is "):
            unpack(bad, "x")
    RunStorage(str(tmp_path)).write_bytes(f"{trial_folder(3)}/latest.txt", b"no checkpoint")
    trial = trial_class({**suggestion(), NUMBER: 3})
    result = trial.train()
    trial.stop()
    assert result["done"]
    assert "latest.txt" in result["storage_error"]


def test_values_that_lightgbm_refuses_end_the_trial_with_a_reason(
    trial_class: type[LightGBMTrial],
) -> None:
    trial = trial_class({**suggestion(), "num_leaves": 1, NUMBER: 1})
    result = trial.train()
    trial.stop()
    assert result["done"]
    assert result["reason"].startswith("LightGBMError")


@pytest.mark.parametrize(
    "flags",
    [
        {"augment": "shift"},
        {"scheduler": "pbt"},
        {"tensorboard": True},
        {"objectives": "accuracy,latency"},
    ],
    ids=str,
)
def test_what_is_for_networks_is_refused(flags: dict[str, Any]) -> None:
    with pytest.raises(
        SettingsError,
        match=rf"^--{next(iter(flags))}[^\n]*: is for networks, and space 'lightgbm' trains none$",
    ):
        prepare(SearchSettings(space="lightgbm", dataset="digits", dry_run=True, **flags))
    plan = prepare(SearchSettings(space="lightgbm", dataset="digits", dry_run=True))
    assert not plan.finetune
    assert not plan.work.networks


def test_without_the_package_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        SettingsError, match=r"--space: lightgbm needs .* pip install 'mnist_ray\[lightgbm\]'"
    ):
        suggestion()


def test_a_search_over_trees(tmp_path: Path) -> None:
    """On a Ray of its own: pruned like networks, best/ a text file, no fine-tuning; gone on with
    under more trials.
    """
    env = own_ray()
    common = ["--storage", str(tmp_path), "--name", "trees"]
    # two that learn, then one that hardly does: there is something to stop, whatever the sampler
    # draws
    points = tmp_path / "points.yaml"
    points.write_text(
        "- {learning_rate: 0.3, min_data_in_leaf: 5}\n- "
        "{learning_rate: 0.25, min_data_in_leaf: 5}\n"
        "- {learning_rate: 0.03, num_leaves: 7, min_data_in_leaf: 100, lambda_l1: 10.0}\n"
    )
    arguments = [
        "--space",
        "lightgbm",
        "--dataset",
        "digits",
        "--train-images",
        "300",
        "--max-epochs",
        "3",
        "--trials",
        "5",
        "--max-concurrent",
        "2",
    ]
    arguments += ["--points", str(points)]
    code, output = finish(search(env, *arguments, *common))
    assert code == 0, output
    assert output.startswith("--no-finetune is implied: space 'lightgbm'")
    assert "next:" not in output
    names = [trial.state.name for trial in load_study(tmp_path / "trees").trials]
    assert set(names) <= {"COMPLETE", "PRUNED"}
    assert names[2] == "PRUNED"
    folder = tmp_path / "trees" / "best"
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "model.txt"]
    assert lightgbm.Booster(model_file=str(folder / "model.txt")).num_trees() > 0
    code, output = finish(search(env, *common, "--resume", "--trials", "6"))
    assert code == 0, output
    rows, history = tables(RunStorage(str(tmp_path / "trees")))
    assert len(rows) == 6
    best = max(history, key=lambda h: (h["val_accuracy"], -h["val_loss"]))
    story = json.loads((folder / "model.json").read_text())
    assert (story["number"], story["row"]["epoch"]) == (best["number"], best["epoch"])
    assert RunStorage(str(tmp_path / "trees")).list("tune/checkpoints") == []
