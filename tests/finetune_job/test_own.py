"""--finetune-with: a second function of one's own, called in this process instead of a Ray task."""

import hashlib
import json
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mnist_ray import open_run
from mnist_ray.errors import CorruptFileError, SettingsError, WorkError
from mnist_ray.finetune_job import job
from mnist_ray.finetune_job.own import OwnTask, run_own
from mnist_ray.run import layout
from mnist_ray.run.about import About, Finished
from mnist_ray.run.tuned import Tuned
from mnist_ray.search_job.plan import prepare
from mnist_ray.settings import FinetuneSettings, SearchSettings, resolved
from mnist_ray.storage import RunStorage

HP = {"lr": 0.5}


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module `own` with a second function, which counts on from the best trial's state."""
    module: Any = types.ModuleType("own")
    monkeypatch.setitem(sys.modules, "own", module)

    def tune(hp: dict, seed: int, device: str, state: bytes | None, data: Any) -> Iterator[Any]:
        module.given = (hp, seed, device, state, data)
        for number in range(int(state or b"0") + 1, 14):
            yield {"score": 1 - data / number, "other": number}, str(number).encode()

    def failing(hp: dict) -> Iterator[Any]:
        yield {"score": 0.5}
        raise ValueError("no more\nof it")

    def train(hp: dict) -> Iterator[Any]:
        yield {"score": 0.1}

    module.tune, module.failing, module.train, module.data = tune, failing, train, lambda: 2.0
    module.space = lambda trial: {"lr": trial.suggest_float("lr", 0.1, 1)}
    return module


@pytest.fixture
def run(tmp_path: Path) -> RunStorage:
    """A run of --train whose search is done: its best trial has yielded the state 10."""
    settings = SearchSettings(
        train="own:train", train_data="own:data", space="own:space", metric="score", seed=7
    )
    storage = RunStorage(str(tmp_path / "run"))
    facts = {"name": "own:train", "sha256": "", "train": 0, "val": 0, "classes": []}
    described = {
        "name": "run",
        "state": "searched",
        "settings": resolved(settings),
        "data": facts,
        "start": "2026-01-02T03:04:05+00:00",
    }
    About.claim(storage, described, "there is one already")
    best = {
        "number": 3,
        "row": {"epoch": 2, "val_metric": 0.8, "seconds": 0.1},
        "hyperparameters": HP,
        "sha256": hashlib.sha256(b"10").hexdigest(),
    }
    storage.write_json(layout.BEST_DESCRIBED, best)
    storage.write_bytes(layout.BEST_STATE, b"10")
    return storage


def run_here(task: OwnTask, data: Any) -> Tuned:
    *_, made = run_own(task, data)
    assert isinstance(made, Tuned)
    return made


@pytest.fixture
def in_task(in_task: Callable[[Any], None]) -> Callable[[Any], None]:
    """The function runs in this process from the start."""
    in_task(run_here)
    return in_task


def settings(of: RunStorage, **options: Any) -> FinetuneSettings:
    common = {"run": of.uri, "finetune_with": "own:tune", "train_data": "own:data"}
    return FinetuneSettings.of(**{**common, **options})


def test_it_goes_on_from_the_best_trial_and_publishes_its_best_epoch(
    own: Any, run: RunStorage, in_task: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.finetune(settings(run)) == Finished(0, run.uri)
    assert own.given == (HP, 7, "cpu", b"10", 2.0)
    tuned = open_run(run.uri).tuned
    assert tuned.state == b"13"
    assert tuned.value == pytest.approx(1 - 2 / 13)
    manifest = run.read_json(layout.TUNED)
    assert manifest["sha256"] == hashlib.sha256(b"13").hexdigest()
    assert {key: manifest[key] for key in ("function", "trial", "epoch", "epochs", "complete")} == {
        "function": "own:tune",
        "trial": 3,
        "epoch": 3,
        "epochs": 3,
        "complete": True,
    }
    assert (manifest["value_before"], manifest["row"]["metrics_other"]) == (0.8, 13)
    assert manifest["hyperparameters"] == HP
    assert About.read(run, "--run").state == "done"
    [curve] = Path(run.uri).glob("finetune/own-*/curve.parquet")
    assert pq.read_table(curve)["metrics_other"].to_pylist() == [11, 12, 13]
    assert "score 0.8462 after epoch 3 of 3; trial 3 had 0.8" in capsys.readouterr().out
    assert all(layout.is_ours(name) for name in run.list())


def test_epochs_are_limited_and_more_go_on(own: Any, run: RunStorage, in_task: Any) -> None:
    job.finetune(settings(run, finetune_epochs=1))
    assert open_run(run.uri).tuned.state == b"11"
    job.finetune(settings(run, finetune_epochs=2))
    assert own.given[3] == b"11"
    assert open_run(run.uri).tuned.state == b"12"
    states = [name for name in run.list() if layout.is_tuned_state(name)]
    assert states == [layout.tuned_state(hashlib.sha256(b"12").hexdigest())]


def test_interrupted_it_goes_on_from_its_last_state(
    own: Any, run: RunStorage, in_task: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(task: OwnTask, data: Any) -> Tuned:
        for line in run_own(task, data):
            if str(line).startswith("epoch 2"):
                signal.raise_signal(signal.SIGTERM)
        raise AssertionError("unreachable")

    in_task(interrupted)
    assert job.finetune(settings(run)) == Finished(130, run.uri)
    said = capsys.readouterr().out
    assert f"finetune --run {run.uri} --finetune-with own:tune --train-data own:data" in said
    assert About.read(run, "--run").state == "interrupted"
    with pytest.raises(WorkError, match="no result of --finetune-with"):
        open_run(run.uri).tuned  # noqa: B018
    in_task(run_here)
    job.finetune(settings(run))
    assert own.given[3] == b"12"
    assert open_run(run.uri).tuned.manifest["epochs"] == 3


def test_one_that_takes_no_state_begins_anew(own: Any, run: RunStorage, in_task: Any) -> None:
    """One that has had all its epochs is not run again."""
    calls: list[int] = []

    def untaken(hp: dict) -> Iterator[Any]:
        calls.append(0)
        for number in range(1, 9):
            yield {"score": number}, str(number).encode()

    own.tune = untaken
    for epochs, times in ((2, 1), (2, 1), (3, 2)):
        job.finetune(settings(run, finetune_epochs=epochs))
        tuned = open_run(run.uri).tuned
        assert (tuned.state, tuned.manifest["epochs"]) == (str(epochs).encode(), epochs)
        assert len(calls) == times


def test_a_worse_epoch_does_not_replace_a_better_one(
    own: Any, run: RunStorage, in_task: Any
) -> None:
    def up_and_down(hp: dict) -> Iterator[Any]:
        for value in (0.7, 0.9, 0.6):
            yield {"score": value}, str(value).encode()

    own.tune = up_and_down
    job.finetune(settings(run))
    assert open_run(run.uri).tuned.state == b"0.9"


def test_an_error_is_one_line_and_leaves_its_traceback(
    own: Any, run: RunStorage, in_task: Any
) -> None:
    with pytest.raises(WorkError) as failed:
        job.finetune(settings(run, finetune_with="own:failing"))
    said = str(failed.value)
    assert said.startswith("--finetune-with: own:failing failed in epoch 2: ValueError: no more")
    assert "\n" not in said
    assert "ValueError" in Path(said.rpartition(" ")[2]).read_text()
    assert About.read(run, "--run").state == "failed"


def test_one_that_leaves_is_one_line(own: Any, run: RunStorage, in_task: Any) -> None:
    def leaving(hp: dict) -> Iterator[Any]:
        yield {"score": 0.5}
        sys.exit(0)

    own.tune = leaving
    said = r"^--finetune-with: own:tune failed in epoch 2: the code called sys.exit\(0\) \("
    with pytest.raises(WorkError, match=said):
        job.finetune(settings(run))


@pytest.mark.parametrize("error", [OSError("no network"), SystemExit(1)])
def test_an_error_at_its_end_is_a_warning(
    own: Any, run: RunStorage, in_task: Any, error: BaseException
) -> None:
    """Its epochs are whole: the best is published."""

    def closing(hp: dict) -> Iterator[Any]:
        try:
            while True:
                yield {"score": 0.5}, b"kept"
        finally:
            raise error

    lines: list[Any] = []

    def run_and_listen(task: OwnTask, data: Any) -> Tuned:
        lines.extend(run_own(task, data))
        return lines.pop()

    own.tune = closing
    in_task(run_and_listen)
    assert job.finetune(settings(run)) == Finished(0, run.uri)
    assert open_run(run.uri).tuned.state == b"kept"
    assert lines[-1].startswith("warning: own:tune failed after its last epoch: ")
    assert type(error).__name__ in Path(lines[-1].rpartition(" ")[2]).read_text()


@pytest.mark.parametrize(
    ("yields", "said"),
    [
        ([], "ended without a yield"),
        ([{"score": float("nan")}], "score is not finite at epoch 1"),
        ([{"loss": 1.0}], "--metric score is not among the metrics yielded: loss"),
        ([0.5], "must yield a dict of metrics"),
    ],
)
def test_a_wrong_yield_is_one_line(
    own: Any, run: RunStorage, in_task: Any, yields: list, said: str
) -> None:
    own.tune = lambda hp: iter(yields)
    with pytest.raises(WorkError, match=said):
        job.finetune(settings(run))
    assert not run.exists(layout.TUNED)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"finetune_with": None}, "--finetune-with: .* name a second one"),
        ({"finetune_with": "own:missing"}, "--finetune-with: 'own:missing' cannot be imported"),
        ({"finetune_with": "own:HP"}, "--finetune-with: 'own:HP' is no function"),
        ({"train_data": None}, "--train-data: .* names 'own:data'; a file does not choose code"),
        ({"committee": 3}, "--committee: is for networks"),
        ({"test_steps": True}, "^--test-steps: is for networks"),
        ({"test_steps": False}, "^--test-steps: is for networks"),
        ({"dataset": "digits"}, "--dataset: is for networks"),
        ({"finetune_epochs": 0}, "--finetune-epochs: 0 is not allowed"),
        ({"run": None}, "--finetune-with: needs --run"),
        ({"run": None, "finetune_with": None}, "^--train-data: needs --run"),
        ({"name": "other"}, "^--name: is for a new run, which begins with --onnx"),
    ],
)
def test_a_wrong_option_is_one_line(
    own: Any, run: RunStorage, in_task: Any, options: dict, said: str
) -> None:
    own.HP = 3
    with pytest.raises(SettingsError, match=said) as refused:
        job.finetune(settings(run, **options))
    assert "\n" not in str(refused.value)
    assert not run.exists(layout.FINETUNE)


def test_a_stored_second_function_must_be_named_again(
    own: Any, run: RunStorage, in_task: Any
) -> None:
    raw = run.read_json(layout.RUN)
    raw["settings"]["finetune_with"] = "own:tune"
    run.write_json(layout.RUN, raw)
    with pytest.raises(SettingsError, match="--finetune-with: .* a file does not choose code"):
        job.finetune(settings(run, finetune_with=None))


@pytest.mark.parametrize("damage", ["state", "description", "result"])
def test_damage_is_named(own: Any, run: RunStorage, in_task: Any, damage: str) -> None:
    if damage == "state":
        run.write_bytes(layout.BEST_STATE, b"12")
    elif damage == "description":
        run.write_json(layout.BEST_DESCRIBED, {"number": "three"})
    else:
        job.finetune(settings(run))
        run.write_bytes(layout.tuned_state(hashlib.sha256(b"13").hexdigest()), b"14")
        with pytest.raises(CorruptFileError, match="is damaged"):
            open_run(run.uri).tuned  # noqa: B018
        run.write_json(layout.TUNED, {"file": "../../etc/passwd"})
        with pytest.raises(CorruptFileError, match="is damaged"):
            open_run(run.uri).tuned  # noqa: B018
        return
    with pytest.raises(SettingsError, match="is damaged"):
        job.finetune(settings(run))


# ---- the search that it follows


def search(folder: Path, **options: Any) -> SearchSettings:
    common = {"train": "own:train", "space": "own:space", "metric": "score", "name": "own"}
    return SearchSettings.of(**{**common, "storage": folder, **options})


def test_a_search_plans_its_second_job(own: Any, tmp_path: Path) -> None:
    plan = prepare(search(tmp_path, finetune_with="own:tune"))
    assert plan.finetune
    assert plan.recorded_settings()["finetune_with"] == "own:tune"
    assert not prepare(search(tmp_path, finetune_with="own:tune", finetune=False)).finetune
    assert not prepare(search(tmp_path)).finetune


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"finetune_with": "own:missing"}, "--finetune-with: 'own:missing' cannot be imported"),
        ({"train": None, "metric": "val_loss", "finetune_with": "own:tune"}, "is for --train"),
        ({"finetune_epochs": 3}, "--finetune-epochs: is for --finetune-with"),
        ({"finetune_with": "own:tune", "finetune_epochs": 0}, "--finetune-epochs: 0 is not"),
    ],
)
def test_a_search_refuses_what_could_not_follow(
    own: Any, tmp_path: Path, options: dict, said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        prepare(search(tmp_path, **options))


def test_a_resumed_search_takes_a_second_function(own: Any, tmp_path: Path) -> None:
    plan = prepare(search(tmp_path))
    storage = RunStorage(str(tmp_path / "own"))
    raw = {
        "name": "own",
        "state": "interrupted",
        "settings": plan.recorded_settings(),
        "data": plan.work.facts(),
        "start": "2026-01-02T03:04:05+00:00",
    }
    storage.write_json(layout.RUN, json.loads(json.dumps(raw)))
    again = {"train": "own:train", "space": "own:space", "storage": tmp_path, "name": "own"}
    plan = prepare(SearchSettings.of(**again, resume=True, finetune_with="own:tune"))
    assert plan.finetune
    raw["settings"] = plan.recorded_settings()
    storage.write_json(layout.RUN, json.loads(json.dumps(raw)))
    with pytest.raises(SettingsError, match="--finetune-with: .* a file does not choose code"):
        prepare(SearchSettings.of(**again, resume=True))
    assert not prepare(SearchSettings.of(**again, resume=True, finetune=False)).finetune
