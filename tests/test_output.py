"""Commands whose output cannot be written: nobody reads on, or the disk of a log is full."""

import os
import shlex
import subprocess
import sys

import pytest

from mnist_ray.output import NOBODY_READS

COMMANDS = [["--version"], ["--help"], ["search", "--help"], ["search", "--help-space", "mlp"]]
INTERRUPTED = """
import time
from mnist_ray import output

try:
    with output.interrupt_if_lost():
        print("a trial's line", flush=True)
    time.sleep(20)
except KeyboardInterrupt:
    print("what is printed later goes nowhere", flush=True)
    raise SystemExit(7)
"""
UNRELATED = """
from mnist_ray import output

with output.exit_if_lost():
    open("/no such file")
"""


def ended(words: list[str], stdout: int, unbuffered: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    return subprocess.run(
        [sys.executable, *words], stdout=stdout, stderr=subprocess.PIPE, text=True, env=env
    )


def nobody() -> int:
    """A pipe that has lost its reader."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_that_nobody_reads_ends_silently(words: list[str], unbuffered: str) -> None:
    done = ended(["-m", "mnist_ray", *words], nobody(), unbuffered)
    assert (done.returncode, done.stderr) == (NOBODY_READS, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_line(unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        done = ended(["-m", "mnist_ray", "--version"], full.fileno(), unbuffered)
    assert done.returncode == 1
    assert done.stderr == "the output cannot be written: No space left on device\n"


def test_a_job_that_nobody_reads_is_interrupted() -> None:
    done = ended(["-c", INTERRUPTED], nobody(), "")
    assert (done.returncode, done.stderr) == (7, "")


def test_another_error_keeps_its_traceback() -> None:
    done = ended(["-c", UNRELATED], subprocess.DEVNULL, "")
    assert done.returncode == 1
    assert done.stderr.endswith("No such file or directory: '/no such file'\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("words", "code"), [("--version", 0), ("serach", 2)])
def test_a_closed_stream_changes_nothing(closed: str, words: str, code: int) -> None:
    line = f"{shlex.quote(sys.executable)} -m mnist_ray {words} {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_no_file_gets_the_number_of_a_closed_stream() -> None:
    code = "from mnist_ray.output import open_streams as f; f(); exit(open('/etc/passwd').fileno())"
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", line]).returncode >= 3
