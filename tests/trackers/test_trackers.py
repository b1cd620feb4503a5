"""What TensorBoard, MLflow and W&B are given, once each, and that their failures end nothing."""

import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mnist_ray import trackers
from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.run import layout
from mnist_ray.run.best import Confirmed
from mnist_ray.run.records import Record, Records
from mnist_ray.settings import SearchSettings, check_search, resolved
from mnist_ray.storage import RunStorage
from mnist_ray.trackers import tracker as showing
from mnist_ray.training.trainer import Trainer
from mnist_ray.tune.trial import NUMBER
from tests.support import ROOT
from tests.support.runs import SMALL, finish, search, tables, wait_for
from tests.support.trials import HP, Here

# ---- TensorBoard


PROGRAMS = ROOT / "tests" / "programs"


def mlflow_class() -> Any:
    return pytest.importorskip("mnist_ray.trackers.mlflow").MLflow


def wandb_class() -> Any:
    return pytest.importorskip("mnist_ray.trackers.wandb").WandB


def events(folder: Path) -> Any:
    """What TensorBoard reads of a trial's folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "histograms": 0}
    )
    return reader.Reload()


def trained(
    hp: dict[str, Any], folder: Path | None, epochs: int = 2, again: bool = False
) -> Trainer:
    """A network after some epochs, each written into the folder (`again`: the last one twice)."""
    images = torch.randint(
        0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    labels = (images.float().mean((1, 2, 3)) > 127).long()
    trainer = Trainer(hp, epochs=epochs, seed=0, precision="fp32")
    for epoch in range(epochs):
        row = trainer.run_epoch(images, labels, torch.arange(48), torch.arange(48, 64))
        if folder:
            from mnist_ray.trackers import summaries

            for _ in range(2 if again and epoch == epochs - 1 else 1):
                summaries.write(
                    RunStorage(str(folder)), 3, trainer, row, images[48:], activations=True
                )
    return trainer


def test_an_epoch_has_scalars_histograms_graph_and_conditions(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trainer = trained({**HP, "activation": "relu"}, tmp_path, again=True)
    read = events(tmp_path / "tensorboard/00003")
    for name in (
        "train_loss",
        "train_accuracy",
        "val_loss",
        "val_accuracy",
        "lr",
        "images_per_second",
        "seconds",
    ):
        assert [e.step for e in read.Scalars(name)] == [1, 2]
        assert [e.value for e in read.Scalars(name)] == pytest.approx(
            [r[name] for r in trainer.rows]
        )
    histograms = read.Tags()["histograms"]
    weights = {
        f"weights/{name}": t for name, t in trainer.weights().items() if t.is_floating_point()
    }
    leaves = [n for n, m in trainer.model.named_modules() if not any(m.children())]
    assert {tag for tag in histograms if tag.startswith("weights/")} == set(weights)
    assert (
        len({tag for tag in histograms if tag.startswith("activations/")})
        == len(leaves)
        == len(list(trainer.model.children()))
    )
    for tag in histograms:
        assert [e.step for e in read.Histograms(tag)] == [1, 2]
    tag, tensor = max(weights.items(), key=lambda item: item[1].numel())
    last = read.Histograms(tag)[-1].histogram_value
    assert (last.num, last.min, last.max) == pytest.approx(
        (tensor.numel(), tensor.min().item(), tensor.max().item())
    )
    # in-place activations come after what they change
    norm = next(t for t in histograms if t.endswith("BatchNorm2d"))
    relu = next(t for t in histograms if t.endswith("ReLU"))
    assert read.Histograms(norm)[-1].histogram_value.min < 0
    assert read.Histograms(relu)[-1].histogram_value.min == 0
    assert read.Histograms(norm)[-1].histogram_value.num == 16 * 4 * 8 * 8
    assert any("Conv" in node.name for node in read.Graph().node)
    (text,) = read.Tensors("conditions/text_summary")
    assert "| lr | `0.05` |" in text.tensor_proto.string_val[0].decode()


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_watching_changes_nothing(tmp_path: Path, ema: float) -> None:
    pytest.importorskip("tensorboard")
    hp = {**HP, "ema": ema, "dropout": 0.5}
    watched, alone = trained(hp, tmp_path), trained(hp, None)
    assert all(
        torch.equal(a, b)
        for a, b in zip(watched.weights().values(), alone.weights().values(), strict=True)
    )


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if torch.jit._trace.is_tracing():
            raise RuntimeError("not to be traced")
        return self.linear(images.flatten(1))


def untraceable(hp: dict[str, Any]) -> nn.Module:
    return Untraceable()


def test_a_network_that_cannot_be_traced_has_all_but_its_graph(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trained({**HP, "model": "tests.trackers.test_trackers:untraceable"}, tmp_path, epochs=1)
    read = events(tmp_path / "tensorboard/00003")
    assert not read.Tags()["graph"]
    assert b"not to be traced" in read.Tensors("graph/text_summary")[0].tensor_proto.string_val[0]
    assert "activations/linear Linear" in read.Tags()["histograms"]


@pytest.fixture
def trial_class(tmp_path: Path) -> type[Here]:
    from mnist_ray.tune.trial import TrialContext

    context = TrialContext(str(tmp_path), "val_accuracy", 3, 0, "fp32", 1, 0, tensorboard=True)
    return type("HereAtTmp", (Here,), {"context_of_test": context})


def test_a_trial_that_is_started_again_has_one_curve(
    trial_class: type[Here], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    first = trial_class({**HP, NUMBER: 2})
    first.train()
    rows = [first.train()]
    first.stop()
    (
        tmp_path / "tensorboard/00002/events.out.tfevents.000002"
    ).unlink()  # killed between the checkpoint and the events
    second = trial_class({**HP, NUMBER: 2})
    rows += [second.train(), second.train()]
    second.stop()
    assert [row["epoch"] for row in rows] == [2, 2, 3]
    scalars = events(tmp_path / "tensorboard/00002").Scalars("val_loss")
    assert [e.step for e in scalars] == [1, 2, 3]
    assert scalars[2].value == pytest.approx(rows[2]["val_loss"])


def test_a_node_without_tensorboard_goes_on_training(
    trial_class: type[Here], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mnist_ray.tune.trainable import SummaryWarnings

    monkeypatch.delitem(sys.modules, "mnist_ray.trackers.summaries", raising=False)
    monkeypatch.delattr("mnist_ray.trackers.summaries", raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    trial = trial_class({**HP, NUMBER: 2})
    results = [trial.train() for _ in range(3)]
    trial.stop()
    assert results[-1]["done"]
    assert results[-1]["epoch"] == 3
    callback = SummaryWarnings()
    for result in results:
        callback.on_trial_result(0, [], None, result)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: --tensorboard: ")
    assert "torch.utils.tensorboard" in line


def test_events_of_unknown_trials_are_removed(tmp_path: Path) -> None:
    storage = RunStorage(str(tmp_path))
    for number in (0, 1, 2):
        storage.write_bytes(f"{layout.tensorboard_folder(number)}/events.out.tfevents.000001", b"")
    trackers.forget_unknown(storage, {0: "", 2: ""})
    assert sorted(p.name for p in (tmp_path / "tensorboard").iterdir()) == ["00000", "00002"]


# ---- MLflow


def row(epoch: int, accuracy: float = 0.5) -> Any:
    return {
        "epoch": epoch,
        "train_loss": 1.0,
        "val_loss": 1 / epoch,
        "val_accuracy": accuracy,
        "lr": 0.1,
        "images_per_second": float("nan"),
        "seconds": 0.5,
    }


def some_records() -> Records:
    records = Records("val_accuracy", 4)
    records.add(
        Record(
            0,
            {"lr": 0.1, "kind": "a"},
            "COMPLETE",
            n_parameters=7,
            rows={1: row(1), 2: row(2, 0.9)},
        )
    )
    records.add(
        Record(
            1,
            {"lr": 0.2, "kind": "b"},
            "PRUNED",
            "stopped by the scheduler after epoch 1",
            rows={1: row(1)},
        )
    )
    records.add(Record(2, {"lr": 0.3, "kind": "c"}, "FAIL", "the loss is not finite at epoch 1"))
    records.add(Record(3, {"lr": 0.4, "kind": "d"}, rows={1: row(1)}))
    return records


SETTINGS = {"metric": "val_accuracy", "trials": 4, "sampler": "tpe", "time_budget": None}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: to make its tables takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    mlflow_class()(f"sqlite:///{path}")
    return path


@pytest.fixture
def place(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    yield f"sqlite:///{tmp_path}/mlflow.db"
    assert not (tmp_path / "mlruns").exists()


def children(tracker: Any) -> dict[int, Any]:
    found = tracker.client.search_runs(
        [tracker.experiment], f"tags.mlflow.parentRunId = '{tracker.search}'"
    )
    return {int(run.data.tags["number"]): run for run in found}


def curve(tracker: Any, run: Any, name: str = "val_accuracy") -> list[tuple[int, float]]:
    return sorted(
        (m.step, m.value) for m in tracker.client.get_metric_history(run.info.run_id, name)
    )


def test_mlflow_has_the_search_and_its_trials(place: str, tmp_path: Path) -> None:
    tracker = mlflow_class()(place)
    folder = RunStorage(str(tmp_path / "run"))
    known = trackers.begin([tracker], "mine", SETTINGS, folder, {})
    records = some_records()
    tracker.sync(records)
    tracker.sync(records)  # nothing twice
    runs = children(tracker)
    assert {n: (r.info.status, r.data.tags.get("state")) for n, r in runs.items()} == {
        0: ("FINISHED", "COMPLETE"),
        1: ("KILLED", "PRUNED"),
        2: ("FAILED", "FAIL"),
        3: ("RUNNING", None),
    }
    assert runs[0].data.params == {"lr": "0.1", "kind": "a"}
    assert runs[0].data.tags["n_parameters"] == "7"
    assert "not finite" in runs[2].data.tags["reason"]
    assert curve(tracker, runs[0]) == [(1, 0.5), (2, 0.9)]
    assert "images_per_second" not in runs[0].data.metrics

    # another process goes on: trial 3 reports all its epochs again, and a better one
    second = mlflow_class()(place)
    assert trackers.begin([second], "mine", {**SETTINGS, "trials": 5}, folder, known) == known
    records.trials[3].rows = {1: row(1), 2: row(2), 3: row(3)}
    records.report(3, row(4, 0.95))
    records.end(3, "COMPLETE")
    second.sync(records)
    second.end("FINISHED")
    runs = children(second)
    assert len(runs) == 4
    assert [step for step, _ in curve(second, runs[3])] == [1, 2, 3, 4]
    whole = second.client.get_run(known["--mlflow"])
    assert whole.info.status == "FINISHED"
    assert whole.info.run_name == "mine"
    assert whole.data.params == {"metric": "val_accuracy", "sampler": "tpe"}
    tags = whole.data.tags
    assert (tags["objective"], tags["n_trials"], tags["best_trial"]) == ("val_accuracy", "5", "3")
    assert json.loads(tags["best_params"]) == {"lr": 0.4, "kind": "d"}
    assert curve(second, whole, "best_value")[-1] == (4, 0.95)

    # --confirm in a third process, after the search's end
    third = mlflow_class()(place)
    trackers.begin([third], "mine", SETTINGS, folder, known)
    third.end("FINISHED")
    trackers.confirmed([third], CONFIRMED)
    runs, whole = children(third), third.client.get_run(known["--mlflow"])
    assert (whole.data.tags["confirmed_trial"], whole.info.status) == ("0", "FINISHED")
    assert whole.data.metrics["confirmed_mean"] == pytest.approx(0.88)
    assert runs[0].data.metrics["confirmed_mean"] == pytest.approx(0.88)
    assert runs[0].data.metrics["confirmed_spread"] == pytest.approx(0.01)
    assert runs[3].data.metrics["confirmed_mean"] == pytest.approx(0.8)
    assert runs[3].info.status == "FINISHED"
    assert "confirmed_mean" not in runs[1].data.metrics


def test_mlflow_gets_what_it_missed_once(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = mlflow_class()(place)
    trackers.begin([tracker], "mine", SETTINGS, RunStorage(str(tmp_path / "run")), {})
    real, calls = tracker.client.log_batch, []

    def answer_is_lost(run: str, *args: Any, **kwargs: Any) -> None:
        real(run, *args, **kwargs)
        calls.append(run)
        if len(calls) == 3:  # the second epoch of trial 0, after its parameters and its first epoch
            raise ConnectionError("gone")

    monkeypatch.setattr(tracker.client, "log_batch", answer_is_lost)
    with pytest.raises(ConnectionError):
        tracker.sync(some_records())
    tracker.sync(some_records())
    runs = children(tracker)
    assert len(runs) == 4
    assert curve(tracker, runs[0]) == [(1, 0.5), (2, 0.9)]


def test_mlflow_gets_parameters_that_it_missed_and_names_of_any_kind(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = mlflow_class()(place)
    trackers.begin([tracker], "mine", SETTINGS, RunStorage(str(tmp_path / "run")), {})
    records = some_records()
    records.trials[0].params["top@5 (%)"] = 3
    for row in records.trials[0].rows.values():
        row["metrics_f1@5"] = 0.25  # type: ignore[typeddict-unknown-key]
    real = tracker._params

    def fails(run: str, params: Any) -> None:
        monkeypatch.setattr(tracker, "_params", real)
        raise ConnectionError("gone")

    monkeypatch.setattr(tracker, "_params", fails)
    with pytest.raises(ConnectionError):
        tracker.sync(records)
    tracker.sync(records)
    first = children(tracker)[0]
    assert first.data.params["top_5 ___"] == "3"
    assert first.data.metrics["metrics_f1_5"] == 0.25


def test_mlflow_begins_anew_where_the_earlier_search_is_gone(place: str, tmp_path: Path) -> None:
    tracker = mlflow_class()(place)
    folder = RunStorage(str(tmp_path / "run"))
    known = trackers.begin([tracker], "mine", SETTINGS, folder, {"--mlflow": "0" * 32})
    assert known["--mlflow"] != "0" * 32
    assert tracker.client.get_run(known["--mlflow"]).info.status == "RUNNING"


def test_mlflow_begins_anew_where_the_earlier_search_was_deleted(
    place: str, tmp_path: Path
) -> None:
    """As in MLflow's pages: the server still tells of it."""
    tracker = mlflow_class()(place)
    folder = RunStorage(str(tmp_path / "run"))
    known = trackers.begin([tracker], "mine", SETTINGS, folder, {})
    tracker.sync(some_records())
    tracker.client.delete_run(known["--mlflow"])
    tracker = mlflow_class()(place)
    again = trackers.begin([tracker], "mine", SETTINGS, folder, known)
    assert again["--mlflow"] != known["--mlflow"]
    tracker.sync(some_records())
    assert set(children(tracker)) == {0, 1, 2, 3}


def test_a_deleted_experiment_of_mlflow_is_refused_before_the_search(place: str) -> None:
    tracker = mlflow_class()(place)
    tracker.client.delete_experiment(tracker.experiment)
    restore = rf"MLFLOW_TRACKING_URI={re.escape(place)} mlflow experiments restore -x \d+"
    with pytest.raises(SettingsError, match=rf"^--mlflow: .* is deleted; restore it: {restore}$"):
        trackers.opened(SearchSettings(dataset="digits", mlflow=place))


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("sqlite:////no/such/folder/mlflow.db", "unable to open database file"),
        ("http://me:${MLFLOW_TEST_PW}@127.0.0.1:9", "Connection refused"),
        ("postgresql://me:secret-of-a-test@127.0.0.1:9/db", "refused"),
        ("http://me:${NO_SUCH_VARIABLE}@127.0.0.1:9", "NO_SUCH_VARIABLE is not set"),
    ],
)
def test_a_place_that_does_not_answer_is_refused_without_its_password(
    place: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TEST_PW", "secret-of-a-test")
    with pytest.raises(SettingsError) as caught:
        trackers.opened(SearchSettings(mlflow=place))
    text = str(caught.value)
    assert text.startswith("--mlflow: ")
    assert words in text
    assert "secret-of-a-test" not in text
    assert "\n" not in text


def test_a_failing_begin_is_one_line(tmp_path: Path) -> None:
    tracker = Recorded(failures=0)
    tracker.begin = lambda *args: 1 / 0  # type: ignore
    with pytest.raises(WorkError, match="--recorded: division by zero"):
        trackers.begin([tracker], "mine", SETTINGS, RunStorage(str(tmp_path)), {})


# ---- Weights & Biases


def test_wandb_offline_has_a_run_for_each_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    tracker = wandb_class()("project")
    known = trackers.begin([tracker], "mine", SETTINGS, RunStorage(str(tmp_path)), {})
    project, _, suffix = known["--wandb"].partition("#")
    assert project == "project"
    assert len(suffix) == 8
    records = some_records()
    tracker.sync(records)
    tracker.sync(records)
    assert tracker.closed == {0, 1, 2}
    assert set(tracker.runs) == {3}
    # Else the end of the process would wait for a server that has gone away for ever.
    assert tracker.runs[3].settings.finish_timeout == 60
    finish = tracker.runs[3].finish

    def late(**options: Any) -> None:
        finish(**options)
        raise TimeoutError

    monkeypatch.setattr(tracker.runs[3], "finish", late)
    tracker.end("FINISHED")
    assert "did not take trial 3 whole in 60 s; the rest is on disk: wandb sync " in caplog.text
    names = [
        folder.name.rpartition("-mine-")[2] for folder in (tmp_path / "wandb").glob("offline-run-*")
    ]
    assert sorted(names) == [f"{suffix}-{number:05d}" for number in range(4)]
    assert tracker.viewer == f"wandb sync {tmp_path}/wandb/offline-run-*"
    summaries: list[dict[str, Any]] = []
    opened = tracker._run

    def noted(number: int) -> Any:
        run = opened(number)
        finish = run.finish

        def finished(exit_code: int) -> None:
            summaries.append(dict(run.summary))
            finish(exit_code=exit_code)

        run.finish = finished
        return run

    tracker._run = noted
    trackers.confirmed([tracker], CONFIRMED)
    assert [each["chosen"] for each in summaries] == [True, False]
    assert [each["confirmed_mean"] for each in summaries] == pytest.approx([0.88, 0.8])
    for earlier in (known["--wandb"], "project"):  # of an older version
        again = wandb_class()("project")
        assert again.begin("mine", SETTINGS, RunStorage(str(tmp_path)), earlier) == earlier
        again.sync(records)
        again.end("FINISHED")
        assert set(again.runs) == {3}


def test_wandb_without_a_key_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    # In a process of its own: wandb keeps for good what it was first told by the environment.
    env = {k: v for k, v in os.environ.items() if k not in ("WANDB_MODE", "WANDB_API_KEY")} | {
        "HOME": str(tmp_path),
        "NETRC": "none",
    }
    out = subprocess.run(
        [sys.executable, str(PROGRAMS / "wandb_without_key.py")],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.startswith("--wandb: No API key")
    assert out.stdout.endswith("Or set WANDB_API_KEY, or WANDB_MODE=offline\n")


# ---- all of them


CONFIRMED = (Confirmed(0, 0.9, (0.87, 0.88, 0.89)), Confirmed(3, 0.95, (0.7, 0.8, 0.9)))


class Recorded:
    """A tracker that fails some times and notes what it was told."""

    flag, viewer = "--recorded", "nothing"

    def __init__(
        self, failures: int, pause: float = 0, until: threading.Event | None = None
    ) -> None:
        self.failures, self.pause, self.until = failures, pause, until
        self.seen: list[Any] = []

    def begin(self, *args: Any) -> str:
        return "known"

    def sync(self, records: Records) -> None:
        time.sleep(self.pause)
        if self.until is not None:
            self.until.wait(60)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the server at x is gone\nand more")
        self.seen.append(records.settled())

    def end(self, status: str) -> None:
        self.seen.append(status)

    def confirmed(self, found: Any) -> None:
        self.sync(some_records())
        self.seen.append([each.number for each in found])

    def reason(self, error: Exception) -> str:
        return str(error).splitlines()[0]


def test_a_failing_tracker_is_told_of_once_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "EVERY", 0.01)
    good, bad, dead = Recorded(0), Recorded(3), Recorded(10**9)
    records = some_records()
    with trackers.following([good, bad, dead], records):
        deadline = time.monotonic() + 20
        while bad.failures or not good.seen or not bad.seen or dead.failures == 10**9:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        records.end(3, "COMPLETE")
    assert good.seen[0] == 3
    assert good.seen[-2:] == bad.seen[-2:] == [4, "FINISHED"]
    assert dead.seen == []
    assert capsys.readouterr().out.splitlines() == [
        "warning: --recorded: the server at x is gone; the search goes on",
        "warning: --recorded: the server at x is gone; the search goes on",
        "warning: --recorded: the server at x is gone; it does not have the search's end",
    ]


def test_a_tracker_that_fails_at_the_end_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "EVERY", 0.01)
    tracker = Recorded(0)
    with trackers.following([tracker], some_records()):
        time.sleep(0.1)
        tracker.failures = 2
    assert tracker.seen[-1] == "FINISHED"
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_what_is_confirmed_is_told_to_all_that_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "PATIENCE", 2.0)
    over = threading.Event()
    good, dead, slow = Recorded(0), Recorded(10**9), Recorded(0, until=over)
    trackers.confirmed([good, dead, slow], CONFIRMED)
    assert (good.seen[-1], dead.seen, slow.seen) == ([0, 3], [], [])
    assert capsys.readouterr().out.splitlines() == [
        "warning: --recorded: the server at x is gone; --confirm is not shown there",
        "warning: --recorded: too slow; --confirm is not shown there",
    ]
    over.set()


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "KILLED"), (WorkError, "FAILED")]
)
def test_how_a_search_ended_is_told(error: type[BaseException], status: str) -> None:
    tracker = Recorded(0)
    with pytest.raises(error), trackers.following([tracker], some_records()):
        raise error
    assert tracker.seen == [3, status]


def test_an_interrupt_does_not_wait_for_a_slow_tracker(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        trackers.following([Recorded(0, pause=20)], some_records()),
    ):
        raise KeyboardInterrupt
    assert time.monotonic() - start < 5
    assert "--recorded: too slow; it does not have the search's end" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_named(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    values: dict[str, Any] = {"tensorboard": True, "mlflow": "sqlite:///x.db", "wandb": "mine"}
    with pytest.raises(
        SettingsError,
        match=rf"--{flag}: the package {flag} is missing; pip install 'mnist_ray\[{flag}\]'",
    ):
        trackers.check(SearchSettings(**{flag: values[flag]}))
    trackers.check(SearchSettings())


@pytest.mark.parametrize(
    "place",
    ["mlflow.db", "sqlite:///", "file:///tmp/x", "databricks", "ftp://me:secret-of-a-test@host/"],
)
def test_other_places_than_databases_and_servers_are_refused(place: str) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(
        SettingsError, match=r"--mlflow: .* is not allowed; expected sqlite:///FILE"
    ) as caught:
        trackers.check(SearchSettings(mlflow=place))
    assert "secret-of-a-test" not in str(caught.value)


@pytest.mark.parametrize(
    ("installed", "uvx", "place", "command"),
    [
        ({"mlflow": "3.2", "mlflow-skinny": "3.2"}, None, "sqlite:///m.db", "mlflow ui"),
        ({"mlflow-skinny": "3.2"}, "/bin/uvx", "sqlite:///m.db", "uvx mlflow@3.2 ui"),
        ({"mlflow-skinny": "3.2"}, None, "sqlite:///m.db", "pip install uv && uvx mlflow@3.2 ui"),
        (
            {"mlflow-skinny": "3.2"},
            "/bin/uvx",
            "postgresql+psycopg2://me:***@host/db",
            "uvx --with psycopg2-binary mlflow@3.2 ui",
        ),
    ],
)
def test_mlflow_s_command_has_web_pages(
    installed: dict[str, str],
    uvx: str | None,
    place: str,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """mlflow-skinny, which the extra installs, prints "Unable to display MLflow UI"."""

    def version(package: str) -> str:
        if package not in installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(shutil, "which", lambda name: uvx)
    shown = shlex.quote(place)
    assert showing.mlflow_ui(place) == f"{command} --backend-store-uri {shown}"


def test_activations_need_tensorboard() -> None:
    with pytest.raises(SettingsError, match="--activations needs --tensorboard"):
        check_search(SearchSettings(activations=True))
    check_search(SearchSettings(activations=True, tensorboard=True))


def test_a_password_is_not_among_the_resolved_settings() -> None:
    assert resolved(SearchSettings(mlflow="http://me:secret@host/"))["mlflow"] == "http://***@host/"
    assert (
        resolved(SearchSettings(mlflow="http://me:${PW}@host/"))["mlflow"]
        == "http://me:${PW}@host/"
    )


@pytest.mark.parametrize(
    ("study", "command"),
    [
        (None, "optuna-dashboard '/a b/study.journal'"),
        ("memory", None),
        ("mine.journal", "optuna-dashboard mine.journal"),
        ("sqlite:///study.db", "optuna-dashboard sqlite:///study.db"),
        ("postgres://me:secret@host/db", "optuna-dashboard 'postgresql+psycopg2://me:***@host/db'"),
        ("mysql://me:${PW}@host/db", 'optuna-dashboard "mysql+pymysql://me:${PW}@host/db"'),
        ("redis://:secret@host:1/0", "optuna-dashboard 'redis://:***@host:1/0'"),
    ],
)
def test_the_study_s_command(study: str | None, command: str | None) -> None:
    lines = trackers.commands(
        SearchSettings(study=study), RunStorage("/runs/x"), "/a b/study.journal", None, []
    )
    assert lines == ([f"watch it: {command}"] if command else [])


def test_the_other_commands() -> None:
    settings = SearchSettings(study="memory", tensorboard=True)
    lines = trackers.commands(
        settings, RunStorage("/runs/x y"), "", "http://127.0.0.1:8265", [Recorded(0)]
    )
    assert lines == [
        "watch it: tensorboard --logdir '/runs/x y/tensorboard'",
        "watch it: nothing",
        "Ray dashboard: http://127.0.0.1:8265",
    ]


def test_nothing_is_imported_unless_asked_for() -> None:
    out = subprocess.run(
        [sys.executable, str(PROGRAMS / "trackers_not_requested.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_in_its_trackers(
    ray_head: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    mlflow = pytest.importorskip("mlflow")
    place = f"sqlite:///{tmp_path}/mlflow.db"
    arguments = ["--storage", str(tmp_path), "--name", "cut"]
    process = search(
        ray_head,
        *SMALL,
        "--trials",
        "5",
        "--max-epochs",
        "4",
        "--no-finetune",
        "--tensorboard",
        "--mlflow",
        place,
        *arguments,
    )
    seen = wait_for(process, "epochs=")
    assert f" ui --backend-store-uri {place}" in seen
    assert f"watch it: tensorboard --logdir {tmp_path}/cut/tensorboard" in seen
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    code, output = finish(search(ray_head, *arguments, "--resume", "--mlflow", place))
    assert code == 0, output
    assert "warning" not in output
    rows, history = tables(RunStorage(str(tmp_path / "cut")))
    client = mlflow.MlflowClient(place)
    known = json.loads((tmp_path / "cut/run.json").read_text())["trackers"]["--mlflow"]
    experiment = client.get_experiment_by_name("mnist_ray").experiment_id
    runs = {
        int(r.data.tags["number"]): r
        for r in client.search_runs([experiment], f"tags.mlflow.parentRunId = '{known}'")
    }
    assert {n: r.data.tags["state"] for n, r in runs.items()} == {
        r["number"]: r["state"] for r in rows
    }
    for number, run in runs.items():
        expected = [(h["epoch"], h["val_loss"]) for h in history if h["number"] == number]
        assert (
            sorted(
                (m.step, m.value) for m in client.get_metric_history(run.info.run_id, "val_loss")
            )
            == expected
        )
        if expected:
            scalars = events(tmp_path / "cut" / layout.tensorboard_folder(number)).Scalars(
                "val_loss"
            )
            assert [(e.step, e.value) for e in scalars] == [
                pytest.approx(pair) for pair in expected
            ]
    assert client.get_run(known).info.status == "FINISHED"
