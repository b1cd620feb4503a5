"""Nodes and servers that go: one raylet, the whole cluster, the study's database; and what a killed search leaves on its machine."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from mnist_ray.storage import RunStorage
from tests.faults.tools import SECRETS, TINY, Rays, no_open_trial, no_secret
from tests.support.processes import below, kill_tree, own_ray, stop, workers
from tests.support.runs import check_run, finish, load_study, search, wait_for
from tests.support.servers import SECRET, postgresql


def test_a_node_dies_and_then_all_of_them(rays: Rays, tmp_path: Path) -> None:
    several = Rays(0)
    try:
        first, second = several.add(1), several.add(1)
        arguments = [
            *TINY,
            "--trials",
            "12",
            "--max-epochs",
            "16",
            "--scheduler",
            "none",
            "--max-concurrent",
            "2",
        ]
        process = search(several.env, *arguments, "--storage", str(tmp_path), "--name", "n")
        wait_for(process, "epochs=")
        running: set[int] = set()
        while len(running) < 2 or not workers(second.pid):
            assert process.poll() is None
            running = {
                t.number for t in load_study(tmp_path / "n").trials if t.state.name == "RUNNING"
            }
        kill_tree(second.pid)
        died = time.monotonic()
        while running:  # also the one that was on the node
            line = wait_for(process, "epochs=").splitlines()[-1]
            running.discard(int(line.split()[1]))
            assert "FAIL" not in line
        print(f"trials moved in {time.monotonic() - died:.0f} s")
        assert workers(first.pid)
        finished = {t.number for t in load_study(tmp_path / "n").trials if t.state.is_finished()}
        assert len(finished) < 12
        several.kill()
        stop(process)
    finally:
        several.remove()
    code, output = finish(search(rays.env, "--storage", str(tmp_path), "--name", "n", "--resume"))
    assert code == 0, output
    assert (
        not {
            int(line.split()[1])
            for line in output.splitlines()
            if line.startswith("trial ") and "epochs=" in line
        }
        & finished
    )
    check_run(str(tmp_path / "n"), 12)
    no_open_trial(tmp_path / "n")


def test_a_node_joins_and_gets_trials(tmp_path: Path) -> None:
    several = Rays(0)
    try:
        first = several.add(1)
        arguments = [*TINY, "--trials", "12", "--max-epochs", "16", "--scheduler", "none"]
        process = search(several.env, *arguments, "--storage", str(tmp_path), "--name", "j")
        wait_for(process, "epochs=")
        assert workers(first.pid)
        second = several.add(1)
        while not workers(second.pid):
            assert process.poll() is None, "the search ended without the new node"
            time.sleep(0.1)
        code, output = finish(process)
        assert code == 0, output
        assert "12 complete, 0 pruned, 0 failed" in output
    finally:
        several.remove()


@pytest.mark.slow
def test_a_spot_node_goes_with_notice(tmp_path: Path) -> None:
    """Drained as the autoscaler does it before a preemption: ten seconds later it is gone; its trial goes on elsewhere."""
    several = Rays(0)
    try:
        nodes = [several.add(1), several.add(1)]
        arguments = [
            *TINY,
            "--trials",
            "8",
            "--max-epochs",
            "24",
            "--scheduler",
            "none",
            "--max-concurrent",
            "2",
        ]
        process = search(several.env, *arguments, "--storage", str(tmp_path), "--name", "spot")
        seen = wait_for(process, "epochs=")
        while not all(workers(node.pid) for node in nodes):
            assert process.poll() is None
        code = (
            "import ray; ray.init(logging_level='ERROR', log_to_driver=False)\n"
            "print([n['NodeID'] for n in ray.nodes() if n['Alive'] and n['Resources'].get('CPU')][0])"
        )
        found = subprocess.run(
            [sys.executable, "-c", code],
            env=several.env,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        node_id = found.stdout.split()[-1]
        notice = [
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=spot",
            "--deadline-remaining-seconds=10",
        ]
        drain = [
            "ray",
            "drain-node",
            f"--address={several.env['RAY_ADDRESS']}",
            f"--node-id={node_id}",
            *notice,
        ]
        subprocess.run(drain, env=several.env, check=True, capture_output=True, timeout=60)
        taken = next(
            node for node in nodes if any(node_id in " ".join(p.cmdline()) for p in below(node.pid))
        )
        time.sleep(10)
        kill_tree(taken.pid)  # Ray leaves that to the cloud
        code, output = finish(process)
        assert code == 0, seen + output
        assert "8 complete, 0 pruned, 0 failed" in output
        check_run(str(tmp_path / "spot"), 8)
        no_open_trial(tmp_path / "spot")
    finally:
        several.remove()


def test_the_database_is_started_again(rays: Rays, tmp_path: Path) -> None:
    pytest.importorskip("psycopg2", reason="pip install 'mnist_ray[postgresql]'")
    server = postgresql()
    try:
        server.start()
        place = server.url.replace(SECRET, "${STUDY_PASSWORD}")
        env = {**rays.env, "STUDY_PASSWORD": SECRET}
        arguments = [
            *TINY,
            "--trials",
            "6",
            "--max-epochs",
            "6",
            "--storage",
            str(tmp_path),
            "--name",
            "sql",
            "--study",
            place,
        ]
        process = search(env, *arguments)
        seen = wait_for(process, "epochs=")
        server.stop()
        time.sleep(4)
        server.start()
        code, output = finish(process)
        assert code == 0, seen + output
        assert "6 trials: " in output
        assert " 0 failed" in output
        check_run(str(tmp_path / "sql"), 6)
        no_secret(
            seen + output, RunStorage(str(tmp_path / "sql")), {**SECRETS, "STUDY_PASSWORD": SECRET}
        )
    finally:
        server.remove()


def ours(folder: str) -> list[str]:
    """Processes that know of the folder: by their arguments, or, as Ray's agents, by their environment alone."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if folder in " ".join([*process.cmdline(), *process.environ().values()]):
                found.append(" ".join(process.cmdline()))
    return found


def nothing_of(folder: str) -> bool:
    """Whether all processes that know of the folder are gone within ten seconds: a killed one may be listed for a moment more."""
    deadline = time.monotonic() + 10
    while (left := ours(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    print(left)
    return not left


def test_nothing_is_left_after_a_kill_and_an_interrupt(tmp_path: Path) -> None:
    """SIGKILL leaves the session's folder, and no process; the next search removes the folder, and after Ctrl-C its own too."""
    folder = tempfile.mkdtemp(prefix="t")
    env = own_ray(TMPDIR=folder, HOME=str(tmp_path))
    try:
        arguments = [
            *TINY,
            "--trials",
            "20",
            "--max-epochs",
            "8",
            "--storage",
            str(tmp_path),
            "--name",
            "left",
        ]
        process = search(env, *arguments)
        wait_for(process, "run ")
        time.sleep(2)
        stop(process)
        deadline = time.monotonic() + 40
        agents = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}  # stay for about a minute
        while (
            alive := {command.split()[0] for command in ours(folder) if command}
        ) - agents and time.monotonic() < deadline:
            time.sleep(0.5)
        assert alive <= agents
        left = set(os.listdir(folder))
        assert left
        process = search(env, "--storage", str(tmp_path), "--name", "left", "--resume")
        wait_for(process, "epochs=")
        assert not left & set(os.listdir(folder))
        assert stop(process, signal.SIGINT).splitlines()[-1].endswith("--name left --resume")
        assert process.returncode == 130
        assert os.listdir(folder) == []
        assert nothing_of(folder)
        assert not (tmp_path / ".ray").exists()
        no_secret("", RunStorage(str(tmp_path / "left")))
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
def test_nothing_is_left_after_a_failure(tmp_path: Path) -> None:
    (tmp_path / "broken_space.py").write_text(
        "def space(trial, data):\n    trial.suggest_float('x', 0, 1)\n    return {'model': 'broken_space:build'}\n"
        "def build(hp):\n    raise RuntimeError('no such network')\n"
    )
    folder = tempfile.mkdtemp(prefix="t")
    try:
        arguments = [
            "--dataset",
            "digits",
            "--space",
            "broken_space:space",
            "--trials",
            "2",
            "--max-epochs",
            "1",
        ]
        env = own_ray(TMPDIR=folder, HOME=str(tmp_path))
        code, output = finish(
            search(env, *arguments, "--storage", str(tmp_path), "--name", "f", cwd=tmp_path)
        )
        assert code == 1, output
        assert os.listdir(folder) == []
        assert nothing_of(folder)
        assert not (tmp_path / "f" / "search.lease").exists()
    finally:
        shutil.rmtree(folder)
