"""A training function of one's own in place of a network: rows, files, resumption, refusals."""

import json
import math
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.errors import CorruptFileError, SettingsError
from mnist_ray.run.layout import error_file, trial_folder
from mnist_ray.search_job.plan import prepare
from mnist_ray.settings import SearchSettings
from mnist_ray.storage import RunStorage
from mnist_ray.trials.function import FunctionTrial
from mnist_ray.trials.steps import pack, unpack
from mnist_ray.tune.trial import NUMBER, TrialContext


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module `own` to put functions into."""
    module = types.ModuleType("own")
    monkeypatch.setitem(sys.modules, "own", module)
    module.space = lambda trial: {"lr": trial.suggest_float("lr", 0.1, 1)}  # type: ignore[attr-defined]
    return module


def counting(hp: dict, state: bytes | None, data: Any) -> Iterator[Any]:
    """Its state is the epoch; it ends after `hp["epochs"]`."""
    epoch = int(state or b"0")
    while epoch < hp["epochs"]:
        epoch += 1
        value = np.float32(1 - data / epoch)
        yield {"score": value, "other": epoch, "n_parameters": 7}, str(epoch).encode()


def trial_of(
    folder: Path, function: Any, hp: dict, metric: str = "score@max", data: Any = 0.5, most: int = 4
) -> FunctionTrial:
    context = TrialContext(str(folder), metric, most, 0, "fp32", 1, 0)
    sys.modules["own"].train = function  # type: ignore[attr-defined]

    class Here(FunctionTrial):
        def setup(self, config: dict) -> None:  # type: ignore[override]
            super().setup(config, context, "own:train", data)

    return Here({**hp, NUMBER: 3})


def test_a_yield_is_an_epoch(own: types.ModuleType, tmp_path: Path) -> None:
    trial = trial_of(tmp_path, counting, {"epochs": 9})
    results = [trial.train() for _ in range(4)]
    trial.stop()
    assert [r["epoch"] for r in results] == [1, 2, 3, 4]
    assert [r["done"] for r in results] == [False, False, False, True]
    assert [r["val_metric"] for r in results] == pytest.approx([0.5, 0.75, 1 - 0.5 / 3, 0.875])
    assert (results[3]["metrics_other"], results[3]["n_parameters"]) == (4, 7)
    assert math.isnan(results[3]["val_loss"])
    folder = tmp_path / trial_folder(3)
    assert (folder / "best.state").read_bytes() == b"4"
    best = json.loads((folder / "best.json").read_text())
    assert (best["number"], best["row"]["val_metric"]) == (3, 0.875)


def test_one_that_ends_by_itself_is_complete(own: types.ModuleType, tmp_path: Path) -> None:
    trial = trial_of(tmp_path, counting, {"epochs": 2})
    results = [trial.train() for _ in range(3)]
    trial.stop()
    assert (results[2]["complete"], results[2]["done"], results[2]["epoch"]) == (True, True, 2)


def test_started_again_it_goes_on_with_its_state(own: types.ModuleType, tmp_path: Path) -> None:
    first = trial_of(tmp_path, counting, {"epochs": 9})
    before = [first.train() for _ in range(2)]
    first.stop()
    second = trial_of(tmp_path, counting, {"epochs": 9})
    again = second.train()
    assert [row["epoch"] for row in again["rows"]] == [1, 2]
    assert again["val_metric"] == before[1]["val_metric"]
    assert second.train()["metrics_other"] == 3
    second.stop()


def test_without_a_state_it_begins_anew(own: types.ModuleType, tmp_path: Path) -> None:
    def stateless(hp: dict) -> Iterator[dict]:
        for epoch in range(9):
            yield {"score": epoch}

    first = trial_of(tmp_path, stateless, {})
    assert [first.train()["val_metric"] for _ in range(2)] == [0, 1]
    first.stop()
    second = trial_of(tmp_path, stateless, {})
    assert second.train()["val_metric"] == 0
    second.stop()


def test_an_epoch_without_a_state_keeps_the_one_before(
    own: types.ModuleType, tmp_path: Path
) -> None:
    """A function may bring a state now and then; it goes on from the last one."""

    def now_and_then(hp: dict, state: bytes | None) -> Iterator[Any]:
        for epoch in range(int(state or b"0") + 1, 9):
            yield ({"score": epoch}, str(epoch).encode()) if epoch == 2 else {"score": epoch}

    first = trial_of(tmp_path, now_and_then, {}, most=9)
    assert [first.train()["val_metric"] for _ in range(4)] == [1, 2, 3, 4]
    first.stop()
    second = trial_of(tmp_path, now_and_then, {}, most=9)
    assert [row["epoch"] for row in second.train()["rows"]] == [1, 2]
    assert [second.train()["val_metric"] for _ in range(2)] == [3, 4]
    second.stop()


def test_the_next_trial_ends_the_function(own: types.ModuleType, tmp_path: Path) -> None:
    closed = []

    def closing(hp: dict) -> Iterator[dict]:
        try:
            while True:
                yield {"score": hp["lr"]}
        finally:
            closed.append(hp["lr"])

    trial = trial_of(tmp_path, closing, {"lr": 1})
    trial.train()
    assert trial.reset_config({"lr": 2, NUMBER: 4})
    assert closed == [1]
    assert trial.train()["val_metric"] == 2
    trial.stop()
    assert closed == [1, 2]


@pytest.mark.parametrize(
    ("yielded", "reason"),
    [
        ({"loss": 1.0}, "--metric score is not among the metrics yielded: loss"),
        ({"score": math.nan}, "score is not finite at epoch 1"),
        ({"score": "good"}, "the metric 'score' is 'good'; expected a number"),
        (({"score": 1.0}, "text"), "its state as bytes; found dict and str"),
        (0.5, "must yield a dict of metrics"),
        (None, "ended without a yield"),
    ],
)
def test_a_wrong_yield_ends_the_trial_with_its_reason(
    own: types.ModuleType, tmp_path: Path, yielded: Any, reason: str
) -> None:
    def wrong(hp: dict) -> Iterator[Any]:
        if yielded is not None:
            yield yielded

    trial = trial_of(tmp_path, wrong, {})
    result = trial.train()
    trial.stop()
    assert result["done"]
    assert reason in result["reason"]


def test_an_error_leaves_its_traceback(own: types.ModuleType, tmp_path: Path) -> None:
    def broken(hp: dict) -> Iterator[dict]:
        yield {"score": 1 / hp["zero"]}

    trial = trial_of(tmp_path, broken, {"zero": 0})
    assert "ZeroDivisionError" in trial.train()["reason"]
    trial.stop()
    assert b"ZeroDivisionError" in (tmp_path / error_file(3)).read_bytes()


NONE = (b"no checkpoint", b"\xff\xfe", b"[]\n")


def test_started_again_it_knows_the_size_at_its_best_epoch(
    own: types.ModuleType, tmp_path: Path
) -> None:
    """Of --objectives and --constraint; the epochs after the best may have other sizes."""

    def growing(hp: dict, state: bytes | None) -> Iterator[Any]:
        for epoch in range(int(state or b"0") + 1, 9):
            values = {"score": -abs(epoch - 2), "n_parameters": 100 * epoch}
            yield values, str(epoch).encode()

    first = trial_of(tmp_path, growing, {}, most=9)
    assert [first.train()["n_parameters"] for _ in range(3)] == [100, 200, 300]
    first.stop()
    second = trial_of(tmp_path, growing, {}, most=9)
    assert [second.train()["n_parameters"] for _ in range(2)] == [200, 400]
    second.stop()


def test_a_damaged_checkpoint_is_named(own: types.ModuleType, tmp_path: Path) -> None:
    rows: list[Any] = [{"epoch": 1, "val_metric": 0.5}]
    good = pack(rows, b"state", 7)
    found, state, n_parameters = unpack(good, "x")
    assert (found[0]["val_metric"], state, n_parameters) == (0.5, b"state", 7)
    assert unpack(pack(rows, None), "x")[1] is None
    for bad in (good[:-2], good.replace(b"0.5", b"0.6"), good.replace(b": 7", b": 8"), *NONE):
        with pytest.raises(CorruptFileError, match=r"^x is "):
            unpack(bad, "x")
    RunStorage(str(tmp_path)).write_bytes(f"{trial_folder(3)}/latest.state", b"no checkpoint")
    trial = trial_of(tmp_path, counting, {"epochs": 9})
    assert "latest.state" in trial.train()["storage_error"]
    trial.stop()


# ---- the plan


def settings(folder: Path, **options: Any) -> SearchSettings:
    basic = {"train": "own:train", "space": "own:space", "metric": "score"}
    return SearchSettings.of(**{**basic, "storage": folder, "name": "own", **options})


def test_a_plan_has_the_function_and_its_data(own: types.ModuleType, tmp_path: Path) -> None:
    own.train, own.data = counting, lambda: {"rows": 3}  # type: ignore[attr-defined]
    plan = prepare(settings(tmp_path, train_data="own:data"))
    assert plan.work.parameters() == {"function": "own:train", "data": {"rows": 3}}
    assert not plan.finetune
    images = prepare(settings(tmp_path, train_data="images", dataset="digits"))
    assert len(images.work.parameters()["data"].val) == 215


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train": "own:missing"}, "--train: 'own:missing' cannot be imported"),
        ({"train": "own:number"}, "--train: 'own:number' is no function"),
        ({"train": "own:greedy"}, "found 'optimizer'"),
        (
            {"train_data": "own:failing"},
            r"--train-data: 'own:failing' failed: .*test_function\.py:\d+: ValueError: no file",
        ),
        ({"space": "convnet"}, "--space: 'convnet' is for images"),
        ({"augment": "shift"}, "--augment: is for networks, and --train own:train"),
        ({"objectives": "accuracy,parameters", "metric": "val_accuracy"}, "--objectives: is for"),
        ({"scheduler": "pbt"}, "--scheduler pbt: is for networks"),
        ({"committee": 3}, "--committee: is for networks, and --train own:train"),
        ({"test_steps": True}, "--test-steps: is for networks"),
        ({"train": None, "train_data": "own:failing"}, "--train-data: is for --train"),
        ({"train": None}, "--metric: 'score' is unknown"),
    ],
)
def test_a_wrong_option_is_one_line(
    own: types.ModuleType, tmp_path: Path, options: dict, said: str
) -> None:
    def failing() -> None:
        raise ValueError("no file")

    vars(own).update(train=counting, number=3, greedy=lambda hp, optimizer: None, failing=failing)
    with pytest.raises(SettingsError) as refused:
        prepare(settings(tmp_path, **options))
    assert re.search(said, str(refused.value))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "own").exists()
