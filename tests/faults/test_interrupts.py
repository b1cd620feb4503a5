"""Signals at random moments from the first import to the last line: every end is clean.

Each moment is a whole search or fine-tuning with a Ray of its own. More of them:
`MNIST_RAY_INTERRUPTS=100 pytest -m slow tests/faults/test_interrupts.py`.
"""

import getpass
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.faults.tools import TINY
from tests.support import ROOT
from tests.support.processes import own_ray
from tests.support.runs import finetune, finish, flags, search, wait_for

MOMENTS = int(os.environ.get("MNIST_RAY_INTERRUPTS", "100"))
SEED = int(os.environ.get("MNIST_RAY_INTERRUPTS_SEED", "0"))
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
KEPT = ROOT / "tests" / "kept_runs" / "finished"
STAGES = """
train_on: train
stages:
  - {epochs: 2, batch_size: 64, optimizer: sgd, lr: 0.02, weight_decay: 5.0e-4,
     schedule: one_cycle, seed: 1}
"""


@dataclass
class End:
    """How a command ended that was sent a signal."""

    code: int
    output: str
    sent: bool  # before it had ended by itself
    seconds: float  # from the first handler to the end


@dataclass
class Place:
    """A storage, a TMPDIR and a mark in the environment, by which leftovers are found."""

    storage: Path
    temporary: Path
    mark: str

    @property
    def env(self) -> dict[str, str]:
        return own_ray(TMPDIR=str(self.temporary), MNIST_RAY_TEST_MARK=self.mark)

    @property
    def run(self) -> Path:
        return self.storage / "one"

    def state(self) -> str | None:
        """What run.json says; None where there is none."""
        file = self.run / "run.json"
        return json.loads(file.read_text())["state"] if file.exists() else None

    def processes(self) -> list[str]:
        """The command lines of those that are left."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("MNIST_RAY_TEST_MARK") == self.mark:
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    # Short: Unix sockets below it allow 107 characters.
    temporary = Path(tempfile.mkdtemp(prefix="mi-", dir="/tmp"))
    yield Place(tmp_path, temporary, uuid.uuid4().hex)
    shutil.rmtree(temporary)


def handles(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal by now."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def interrupted(process: subprocess.Popen, moment: float, number: int) -> End:
    """Sends the signal so many seconds after the first handler was there."""
    while process.poll() is None and not handles(process.pid, signal.SIGTERM):
        time.sleep(0.002)
    begun = time.monotonic()
    try:
        output, _ = process.communicate(timeout=moment)
        return End(process.returncode, output, False, time.monotonic() - begun)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    code, output = finish(process, 120)
    return End(code, output, True, time.monotonic() - begun)


def check(place: Place, end: End, done: str, before: str | None) -> None:
    """What is true after an interrupt at any moment."""
    output = end.output
    assert "Traceback" not in output, output
    assert "Exception ignored" not in output, output
    if end.code == 0:  # the signal came after the last line, or never
        assert place.state() == done, output
    else:
        assert end.code == 130, (end.code, output)
        said = [line for line in output.splitlines() if "interrupted" in line]
        assert len(said) == 1, output
        assert place.state() in {before, "interrupted", done}, output
    assert list(place.storage.rglob("*.lease")) == [], output
    assert list(place.storage.rglob(".*")) == [], output
    deadline = time.monotonic() + 15
    while place.processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert place.processes() == [], output
    left = {each.name for each in place.temporary.iterdir()}
    # onnxruntime's, and torch's cache of compiled code, which its exporter makes.
    assert left <= {".ses", f"torchinductor_{getpass.getuser()}"}, output


def searching(place: Place) -> subprocess.Popen:
    own = flags(trials=2, max_epochs=2, storage=place.storage, name="one")
    return search(place.env, *TINY, *own)


def fine_tuning(place: Place) -> subprocess.Popen:
    if not place.run.exists():
        shutil.copytree(KEPT, place.run)
    (place.storage / "stages.yaml").write_text(STAGES)
    return finetune(place.env, *flags(run=place.run, stages=place.storage / "stages.yaml"))


WORK = {"search": (searching, "searched", None), "fine-tuning": (fine_tuning, "done", "done")}


@pytest.mark.parametrize(("number", "moment"), [(15, 0.0), (1, 1.5), (2, 8.0)])
def test_a_search_ends_cleanly(place: Place, number: int, moment: float) -> None:
    check(place, interrupted(searching(place), moment, number), "searched", None)


@pytest.mark.parametrize(("line", "seconds"), [("starting Ray", 1.5), ("next:", 0.6)])
def test_it_ends_cleanly_while_ray_starts_or_ends(place: Place, line: str, seconds: float) -> None:
    process = searching(place)
    wait_for(process, line)
    begun = time.monotonic()
    time.sleep(seconds)  # within ray.init, or within ray.shutdown
    process.terminate()
    code, output = finish(process, 120)
    check(place, End(code, output, True, time.monotonic() - begun), "searched", None)
    assert code == 130 or line == "next:"  # it may have ended before


@pytest.mark.slow
@pytest.mark.parametrize("work", WORK)
def test_ends_are_clean_whenever_they_come(place: Place, work: str) -> None:
    begin, done, before = WORK[work]
    whole = interrupted(begin(place), 600, signal.SIGTERM)
    assert whole.code == 0, whole.output
    check(place, whole, done, before)
    chance, ends = random.Random(SEED), []
    for _ in range(MOMENTS // len(WORK)):
        shutil.rmtree(place.run, ignore_errors=True)  # not there after an early one
        moment, number = chance.uniform(0, whole.seconds), chance.choice(NUMBERS)
        end = interrupted(begin(place), moment, number)
        print(f"{work}: {signal.Signals(number).name} at {moment:.2f} s: {end.code}", flush=True)
        check(place, end, done, before)
        ends.append(end)
    codes = [end.code for end in ends]
    print(f"{work}: {len(ends)} signals, {codes.count(130)} times 130, {codes.count(0)} times 0")
