"""How far a search is, in a log and in a terminal."""

import io
from types import SimpleNamespace
from typing import Any

import pytest

from mnist_ray.run.records import Record, Records
from mnist_ray.search_job import progress
from mnist_ray.search_job.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def records() -> Records:
    made = Records("val_accuracy", 12)
    for number in range(6):
        made.add(Record(number, {"lr": 0.1}))
    row: dict[str, Any] = {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0}
    row |= {"val_accuracy": 0.75, "lr": 0.1, "images_per_second": 1.0, "seconds": 1.0}
    made.report(0, {"epoch": 1, **row})
    return made


RUNNING = (
    "running: trial 0 epoch 1/8, trial 1 epoch 0/8, trial 2 epoch 0/8, trial 3 epoch 0/8 and 2 more"
    "; best 0.7500"
)


def test_a_log_has_a_line_a_minute(
    records: Records, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter((100.0, 101.0, 154.0, 156.0, 157.0, 210.0, 212.0))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(times)))
    shown = Progress(records, 8)
    for _ in range(6):
        shown.on_step_begin(0, [])
    shown.bar.close()
    out = capsys.readouterr().out
    assert out == f"0 of 12 trials done; {RUNNING}\n" * 2
    assert shown.seconds < 60


def test_a_trial_that_ends_counts_as_a_line(
    records: Records, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    shown = Progress(records, 8)
    now = 150.0
    records.end(0, "PRUNED")
    shown.settled(0)
    now = 160.0
    shown.on_step_begin(0, [])
    shown.bar.close()
    assert capsys.readouterr().out.startswith("trial 0 PRUNED val_accuracy=0.7500 epochs=1 ")


def test_a_terminal_shows_the_epochs_each_second(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "300")
    shown = Progress(records, 8)
    monkeypatch.setattr(shown, "last", shown.last - 1.5)
    shown.on_step_begin(0, [])
    shown.bar.close()
    assert RUNNING in terminal.getvalue()
    assert shown.seconds <= 1
