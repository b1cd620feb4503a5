"""A training function of one's own in place of a network: rows, files, resumption, refusals."""

import json
import math
import os
import re
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import _raylet

from mnist_ray.data import Images
from mnist_ray.errors import CorruptFileError, SettingsError, WorkError
from mnist_ray.run import layout
from mnist_ray.run.layout import error_file, trial_folder
from mnist_ray.run.records import Record, epoch_row
from mnist_ray.search_job.plan import prepare
from mnist_ray.settings import SearchSettings
from mnist_ray.storage import RunStorage
from mnist_ray.study import storages, studies
from mnist_ray.trials import function
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


def test_a_hyperparameter_may_be_called_number(own: types.ModuleType, tmp_path: Path) -> None:
    """The trial's own number is not among the hyperparameters."""

    def learning(hp: dict) -> Iterator[dict]:
        yield {"score": hp["number"], "keys": len(hp)}

    trial = trial_of(tmp_path, learning, {"number": 0.25, "lr": 1})
    result = trial.train()
    trial.stop()
    assert (result["val_metric"], result["metrics_keys"]) == (0.25, 2)
    best = json.loads((tmp_path / trial_folder(3) / "best.json").read_text())
    assert (best["number"], best["hyperparameters"]) == (3, {"number": 0.25, "lr": 1})


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


def test_a_state_that_it_cannot_take_is_none(own: types.ModuleType, tmp_path: Path) -> None:
    """It begins anew, and so do its epochs."""

    def untaken(hp: dict) -> Iterator[Any]:
        for epoch in range(1, 9):
            yield {"score": epoch}, str(epoch).encode()

    def by_keywords(hp: dict, **given: Any) -> Iterator[Any]:
        return counting(hp, given["state"], given["data"])

    for train, epochs in ((untaken, [1]), (by_keywords, [1, 2])):
        folder = tmp_path / train.__name__
        folder.mkdir()
        first = trial_of(folder, train, {"epochs": 9})
        for _ in range(2):
            first.train()
        first.stop()
        second = trial_of(folder, train, {"epochs": 9})
        result = second.train()
        second.stop()
        assert [row["epoch"] for row in result.get("rows", [result])] == epochs


def test_its_hyperparameters_are_a_copy_and_kept_plain(
    own: types.ModuleType, tmp_path: Path
) -> None:
    """It gets what the space gave, as a tuple; the second job gets what the file holds."""
    found: list[Any] = []

    def changing(hp: dict) -> Iterator[dict]:
        found.append(hp["sizes"])
        hp["layers"].append(7)
        yield {"score": hp["n"] / 100}

    values: dict[str, Any] = {
        "n": np.int64(3),
        "rate": np.float32(0.5),
        "on": np.bool_(1),
        "layers": [1],
    }
    values["sizes"] = (2, 3)
    trial = trial_of(tmp_path, changing, values)
    assert trial.train()["val_metric"] == 0.03
    trial.stop()
    best = json.loads((tmp_path / trial_folder(3) / "best.json").read_text())
    plain = {"n": 3, "rate": 0.5, "on": True, "layers": [1], "sizes": [2, 3]}
    assert best["hyperparameters"] == plain
    assert found == [(2, 3)]
    assert values["layers"] == [1]


def test_a_hyperparameter_that_no_file_holds_ends_its_trial(
    own: types.ModuleType, tmp_path: Path
) -> None:
    """One branch of a space may give it. Its worker lives."""
    trial = trial_of(tmp_path, counting, {"epochs": 9, "it": {1}})
    assert trial.train()["reason"].startswith("the dict of the space is {1}: expected numbers")
    trial.stop()


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


def test_a_metric_may_be_infinite(own: types.ModuleType, tmp_path: Path) -> None:
    """As a perplexity at first; the one that is optimised must be finite."""

    def infinite(hp: dict) -> Iterator[dict]:
        yield {"score": 1.0, "perplexity": math.inf, "least": -math.inf}

    trial = trial_of(tmp_path, infinite, {}, most=1)
    result = trial.train()
    trial.stop()
    assert not result.get("reason")
    assert result["metrics_perplexity"] == math.inf
    best = json.loads((tmp_path / trial_folder(3) / "best.json").read_text())
    assert best["row"].keys() == {"epoch", "seconds", "val_metric", "metrics_score"}


@pytest.mark.parametrize("metric", ["score@max", "score@min"])
def test_a_loss_beside_the_metric_may_be_infinite(
    own: types.ModuleType, tmp_path: Path, metric: str
) -> None:
    def infinite(hp: dict) -> Iterator[dict]:
        yield {"score": 1.0, "val_loss": math.inf}

    trial = trial_of(tmp_path, infinite, {}, metric=metric, most=1)
    row = epoch_row(trial.train())
    trial.stop()
    assert Record(3, {}, rows={1: row}).best(metric) == row


def test_its_best_files_name_their_epoch(own: types.ModuleType, tmp_path: Path) -> None:
    storage = RunStorage(str(tmp_path))
    trial = trial_of(tmp_path, counting, {"epochs": 9})
    assert FunctionTrial.best_row(storage, 3) is None
    rows = [epoch_row(trial.train()) for _ in range(2)]
    trial.stop()
    found = FunctionTrial.best_row(storage, 3)
    assert found is not None
    assert found["epoch"] == 2
    assert found["val_metric"] == rows[1]["val_metric"]
    assert math.isnan(found["val_loss"])
    for damaged in (b"", b"[]", b'{"row": {"epoch": 0}}', b"[" * 100_000):
        storage.write_bytes(f"{trial_folder(3)}/best.json", damaged)
        assert FunctionTrial.best_row(storage, 3) is None


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


@pytest.mark.parametrize("error", [OSError("no file"), WorkError("no file"), SystemExit(3)])
def test_no_error_of_a_function_ends_the_search(
    own: types.ModuleType, tmp_path: Path, error: BaseException
) -> None:
    """It is neither the storage's nor the end of the worker."""

    def broken(hp: dict) -> Iterator[dict]:
        yield {"score": 1}
        raise error

    trial = trial_of(tmp_path, broken, {})
    assert trial.train()["val_metric"] == 1
    result = trial.train()
    trial.stop()
    said = r"the code called sys.exit\(3\) \(" if error.args == (3,) else "(OSError: )?no file"
    assert re.match(said, result["reason"])
    assert "storage_error" not in result
    assert type(error).__name__ in (tmp_path / error_file(3)).read_text()


def test_a_sigterm_still_ends_the_worker(own: types.ModuleType, tmp_path: Path) -> None:
    """Its trial goes on in another one."""

    def killed(hp: dict) -> Iterator[dict]:
        try:
            yield {"score": 1}
        finally:
            _raylet.raise_sys_exit_with_custom_error_message(  # type: ignore[attr-defined]
                "The process receives a SIGTERM."
            )

    trial = trial_of(tmp_path, killed, {})
    trial.train()
    with pytest.raises(SystemExit):
        trial.train()
    trial = trial_of(tmp_path, killed, {})
    trial.train()
    with pytest.raises(SystemExit):
        trial.stop()
    assert not (tmp_path / error_file(3)).exists()


@pytest.mark.parametrize("error", [OSError("no network"), SystemExit(1)])
def test_an_error_at_its_end_fails_no_trial(
    own: types.ModuleType, tmp_path: Path, error: BaseException
) -> None:
    """Not the one that it belongs to, and not the next one."""

    def closing(hp: dict) -> Iterator[dict]:
        try:
            while True:
                yield {hp["name"]: 1}
        finally:
            raise error

    trial = trial_of(tmp_path, closing, {"name": "score"})
    assert trial.train()["val_metric"] == 1
    assert trial.reset_config({"name": "score", NUMBER: 4})
    assert type(error).__name__ in (tmp_path / error_file(3)).read_text()
    assert not (tmp_path / error_file(4)).exists()
    assert trial.train()["val_metric"] == 1
    assert trial.reset_config({"name": "other", NUMBER: 5})
    assert "score is not among the metrics" in trial.train()["reason"]
    trial.stop()
    text = (tmp_path / error_file(5)).read_text()
    assert text.index("KeyError") < text.index(type(error).__name__)  # the reason is kept


def test_a_function_that_does_not_end_ends_its_worker(
    own: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, threads, codes = threading.Event(), [], []

    def hanging(hp: dict) -> Iterator[dict]:
        try:
            while True:
                yield {"score": 1}
        finally:
            threads.append(threading.current_thread())
            ended.wait(20)

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr(function, "CLOSING", 0.2)
    monkeypatch.setattr(os, "_exit", end)
    trial = trial_of(tmp_path, hanging, {})
    trial.train()
    trial.reset_config({NUMBER: 4})
    assert codes == [1]
    # What it closes, as torch's autocast, may belong to the thread that it ran in.
    assert threads == [threading.current_thread()]
    text = (tmp_path / error_file(3)).read_text()
    assert text.startswith("The function did not end within 0.2 s:")
    assert "ended.wait(20)" in text
    trial.train()
    trial.stop()
    time.sleep(0.4)  # this one has ended in time
    assert codes == [1]


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


@pytest.mark.parametrize("value", [math.inf, [1.0, -math.inf], {"a": math.nan}, np.float32("inf")])
def test_a_hyperparameter_that_json_cannot_hold_is_refused_before_the_start(
    own: types.ModuleType, tmp_path: Path, value: Any
) -> None:
    vars(own).update(train=counting, space=lambda trial: {"lr": 0.1, "clip": own.value})
    own.value = value  # type: ignore[attr-defined]
    said = r"hyperparameter clip is .*; JSON cannot hold it: give a large number or None$"
    with pytest.raises(SettingsError, match=rf"^--space: 'own:space' returns .*: {said}"):
        prepare(settings(tmp_path))
    for good in (None, "text", True, 1e308, [1, "a"], {"a": None}):
        own.value = good  # type: ignore[attr-defined]
        prepare(settings(tmp_path))


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
        ({"train_data": "own:leaving"}, r"--train-data: .* the code called sys.exit\(\)$"),
        ({"space": "convnet"}, "--space: 'convnet' is for images"),
        ({"augment": "shift"}, "--augment: is for networks, and --train own:train"),
        ({"objectives": "accuracy,parameters", "metric": "val_accuracy"}, "--objectives: is for"),
        ({"scheduler": "pbt"}, "--scheduler pbt: is for networks"),
        ({"committee": 3}, "--committee: is for networks, and --train own:train"),
        ({"test_steps": True}, "--test-steps: is for networks"),
        ({"dataset": "digits"}, "^--dataset: is for images; add --train-data images$"),
        ({"train_data": "own:failing", "val_images": 9}, "^--val-images: is for images; add"),
        ({"data_dir": "/nowhere"}, "^--data-dir: is for images; add"),
        ({"dataset": "folder:x", "image_size": 8}, "^--dataset: is for images; add"),
        ({"train": None, "train_data": "own:failing"}, "--train-data: is for --train"),
        ({"train": None}, "--metric: 'score' is unknown"),
    ],
)
def test_a_wrong_option_is_one_line(
    own: types.ModuleType, tmp_path: Path, options: dict, said: str
) -> None:
    def failing() -> None:
        raise ValueError("no file")

    def leaving() -> None:
        raise SystemExit  # W&B, once loaded, puts an exit of its own in place of sys.exit

    vars(own).update(train=counting, number=3, greedy=lambda hp, optimizer: None)
    vars(own).update(failing=failing, leaving=leaving)
    with pytest.raises(SettingsError) as refused:
        prepare(settings(tmp_path, **options))
    assert re.search(said, str(refused.value))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "own").exists()


def test_an_older_run_that_recorded_a_data_set_goes_on(
    own: types.ModuleType, tmp_path: Path
) -> None:
    own.train = counting  # type: ignore[attr-defined]
    plan = prepare(settings(tmp_path))
    recorded = {**plan.recorded_settings(), "dataset": "digits", "train_images": 99}
    run = {
        "name": "own",
        "state": "interrupted",
        "settings": recorded,
        "data": plan.work.facts(),
        "start": "2026-01-02T03:04:05+00:00",
    }
    RunStorage(str(tmp_path / "own")).write_json(layout.RUN, json.loads(json.dumps(run)))
    again = {"train": "own:train", "space": "own:space", "storage": tmp_path, "name": "own"}
    assert prepare(SearchSettings.of(**again, resume=True)).work.parameters()["data"] is None


def test_searches_over_other_images_share_no_study(own: types.ModuleType, tmp_path: Path) -> None:
    own.train = counting  # type: ignore[attr-defined]
    place = str(tmp_path / "s.journal")
    images = {"train_data": "images", "dataset": "digits"}
    shared = {**images, "study": place, "study_name": "s"}
    first = prepare(settings(tmp_path, **shared))
    assert first.recorded_settings()["val_by"] == "class"  # a resume must find the same images
    later = ("dataset", "train_images", "val_images", "val_by", "images_sha256")
    older = {key: value for key, value in first.purpose.items() if key not in later}
    assert len(older) == len(first.purpose) - len(later)
    with storages.opened(place) as storage:
        for name, purpose in (("s", first.purpose), ("older", older)):
            studies.open_study(storage, name, "score@max", first.sampler(0), purpose=purpose)
    prepare(settings(tmp_path, **shared))
    prepare(settings(tmp_path, **{**shared, "study_name": "older"}))
    with pytest.raises(SettingsError, match="^--study-name: study 's' .* for .*val_images=215"):
        prepare(settings(tmp_path, **shared, val_images=100))
    own.images = stripes  # type: ignore[attr-defined]
    with pytest.raises(SettingsError, match="^--study-name: study 's' .* for .*dataset='digits'"):
        prepare(settings(tmp_path, **{**shared, "dataset": "own:images"}))
    with pytest.raises(SettingsError, match="^--warm-start: study 's' is for dataset='digits'"):
        others = {**images, "dataset": "own:images", "warm_start": f"{place}#s"}
        prepare(settings(tmp_path, **others))


def stripes(part: str, data_dir: str | None) -> Images:
    labels = np.arange(40 if part == "train" else 8) % 4
    pixels = np.zeros((len(labels), 1, 5, 6), np.uint8)
    pixels[np.arange(len(labels)), :, labels] = 255
    return Images("stripes", part, pixels, labels, ("a", "b", "c", "d"), (0.2,), (0.4,))
