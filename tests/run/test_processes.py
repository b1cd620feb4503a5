"""Which processes are gone, and the folders that they left."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_ray import processes

SLEEP = "import time; print('up', flush=True); time.sleep(60)"
KEEP = """
import time
from mnist_ray.processes import temporary_folder
with temporary_folder("mray-t-") as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_this_process_lives_and_a_dead_one_has_ended() -> None:
    here = processes.this_process()
    assert json.loads(json.dumps(here)) == here
    assert processes.has_ended(here) is False
    assert processes.has_ended({**here, "started": "1"}) is True  # its number was given out again
    assert processes.has_ended({**here, "machine": "another"}) is None
    child = subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    described = {**here, "pid": child.pid, "started": processes._started(child.pid)}
    assert processes.has_ended(described) is False
    child.kill()
    os.waitid(
        os.P_PID, child.pid, os.WEXITED | os.WNOWAIT
    )  # dead, but not collected: its pipe closes a little before that
    assert processes.has_ended(described) is True
    child.wait()
    assert processes.has_ended(described) is True


def test_the_next_one_removes_what_a_killed_process_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(processes.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "mray-t-another").mkdir()  # not ours: nobody's name is in it
    killed, living = (
        subprocess.Popen([sys.executable, "-c", KEEP], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    assert killed.stdout is not None
    assert living.stdout is not None
    left, kept = Path(killed.stdout.readline().strip()), Path(living.stdout.readline().strip())
    killed.kill()
    killed.wait()
    assert (left / "file").exists()
    with processes.temporary_folder("mray-t-") as folder:
        assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "mray-t-another", kept, folder])
    assert not folder.exists()
    living.kill()
    living.wait()


@pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="no /proc to find such processes by"
)
def test_what_still_runs_within_the_folder_is_ended_with_it() -> None:
    with processes.temporary_folder("mray-t-") as folder:
        environment = {**os.environ, "TMPDIR": str(folder)}
        left = subprocess.Popen(
            [sys.executable, "-c", SLEEP], env=environment, stdout=subprocess.PIPE
        )
        assert left.stdout is not None
        left.stdout.readline()
    assert left.wait(10) == -signal.SIGKILL
