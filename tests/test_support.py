"""What the tests share does what it says: a hang ends, and a port that is taken is no failure."""

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.processes import finish, nothing_of
from tests.support.servers import ATTEMPTS, free_port, soon, tried

HANGS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)", sys.argv[1]])
print("so far", flush=True)
time.sleep(100)
"""


def test_what_hangs_is_ended_with_its_children_and_its_output_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGS, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with pytest.raises(AssertionError, match=r"not ended after 3 s:\nso far"):
        finish(process, 3)
    assert nothing_of(str(tmp_path))


def test_a_port_of_before_is_taken_again_when_its_holder_goes() -> None:
    holder = socket.create_server(("127.0.0.1", free_port()))
    place = holder.getsockname()
    with pytest.raises(OSError, match="in use"):
        socket.create_server(place)
    threading.Timer(0.3, holder.close).start()
    with soon(lambda: socket.create_server(place)) as again:
        assert again.getsockname() == place


def test_a_server_is_started_on_other_ports_when_they_were_taken() -> None:
    ports: list[int] = []

    def start() -> int:
        ports.append(free_port())
        if len(ports) < ATTEMPTS:
            raise RuntimeError("in use")
        return ports[-1]

    assert tried(start) == ports[-1]
    ports.clear()

    def fails() -> None:
        ports.append(free_port())
        raise OSError("for ever")

    with pytest.raises(OSError, match="for ever"):
        tried(fails)
    assert len(ports) == ATTEMPTS
