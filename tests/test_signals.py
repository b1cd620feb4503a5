"""Ctrl-C, SIGTERM and a closed terminal."""

import importlib
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_ray import signals
from tests.support import PROGRAMS

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _closed_terminal_is_noticed() -> Iterator[None]:
    """Also if these tests were started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", NUMBERS)
def test_an_interrupt_waits_for_the_end_of_an_import(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = [signal.getsignal(each) for each in NUMBERS]
    with pytest.raises(KeyboardInterrupt), signals.interruptible():
        signal.raise_signal(number)
    monkeypatch.syspath_prepend(str(tmp_path))
    within = f"import signal, time\nsignal.raise_signal({int(number)})\ntime.sleep(%s)\n"
    names = [f"interrupted_{number}_{kind}" for kind in ("soon_over", "endless")]
    for name, seconds in zip(names, (0.2, 30), strict=True):
        (tmp_path / f"{name}.py").write_text(within % seconds)

    def import_and_go_on(name: str) -> None:
        importlib.import_module(name)
        time.sleep(30)

    with pytest.raises(KeyboardInterrupt), signals.interruptible():
        import_and_go_on(names[0])
    assert names[0] in sys.modules  # as only what ended well is
    monkeypatch.setattr(signals, "IMPORT_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), signals.interruptible():
        import_and_go_on(names[1])
    assert 0.3 < time.monotonic() - started < 20
    assert names[1] not in sys.modules
    assert [signal.getsignal(each) for each in NUMBERS] == handlers


@pytest.mark.parametrize("number", NUMBERS)
def test_signals_that_follow_at_once_are_one_interrupt(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_order = []

    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)
            put_in_order.append(True)

    with pytest.raises(KeyboardInterrupt), signals.interruptible():
        try:
            with signals.interruptible():
                work()
        finally:
            signal.raise_signal(number)
            put_in_order.append(True)
    assert put_in_order == [True, True]
    monkeypatch.setattr(signals, "SAME_SECONDS", 0.0)  # a second one of a person's is one more
    with pytest.raises(KeyboardInterrupt), signals.interruptible():
        work()
    assert put_in_order == [True, True]


def test_in_a_thread_nothing_is_changed() -> None:
    found: list[object] = []

    def work() -> None:
        with signals.interruptible():
            found.extend(signal.getsignal(number) for number in NUMBERS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(number) for number in NUMBERS]


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.interruptible():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_in_pythons_last_act_does_not_change_the_exit_code(number: int) -> None:
    program = str(PROGRAMS / "slow_end.py")
    process = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ending\n"
    process.send_signal(number)
    assert process.wait(30) == 3
    process.stdout.close()


def test_native_code_that_crashes_while_python_ends_does_not_change_the_exit_code() -> None:
    """As Ray's does, if it was interrupted while it started."""
    program = str(PROGRAMS / "crashing_end.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "work is done\n", "")


@pytest.mark.parametrize("number", NUMBERS)
def test_an_interrupt_waits_for_the_end_of_a_line_of_the_log(number: int) -> None:
    """Logging releases its lock after each fork, and Python swallows what is raised there."""
    written: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            signal.raise_signal(number)
            time.sleep(0.2)
            written.append(record.getMessage())

    log = logging.Logger("interrupted")
    log.addHandler(Handler())
    with pytest.raises(KeyboardInterrupt), signals.interruptible():
        log.warning("whole")
        time.sleep(30)
    assert written == ["whole"]
