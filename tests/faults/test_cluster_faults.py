"""Nodes and servers that go: one raylet, the cluster, the database; what a killed search leaves."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from mnist_ray.storage import RunStorage
from tests.faults.tools import SECRETS, TINY, Rays, no_open_trial, no_secret, paced
from tests.support import PROGRAMS
from tests.support.processes import (
    below,
    kill_tree,
    nothing_of,
    ours,
    own_ray,
    stop,
    workers,
)
from tests.support.runs import check_run, ended, finish, flags, load_study, search, wait_for
from tests.support.servers import SECRET, free_port, postgresql


def test_a_node_dies_and_then_all_of_them(rays: Rays, tmp_path: Path) -> None:
    several, run = Rays(0), flags(storage=tmp_path, name="n")
    try:
        first, second = several.add(1), several.add(1)
        arguments = flags(trials=24, max_epochs=8, scheduler="none", max_concurrent=2)
        arguments += paced(tmp_path)  # on a fast machine too, trials are left for the next search
        process = search(several.env, *arguments, *run, cwd=tmp_path)
        wait_for(process, "epochs=")
        running: set[int] = set()
        while len(running) < 2 or not workers(second.pid):
            assert process.poll() is None
            time.sleep(0.1)
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
        assert len(finished) < 24
        several.kill()
        stop(process)
    finally:
        several.remove()
    again = [*run, *flags(space="paced:space", resume=True)]
    code, output = finish(search(rays.env, *again, cwd=tmp_path))
    assert code == 0, output
    assert not ended(output) & finished
    check_run(str(tmp_path / "n"), 24)
    no_open_trial(tmp_path / "n")


def test_a_node_joins_and_gets_trials(tmp_path: Path) -> None:
    several = Rays(0)
    try:
        first = several.add(1)
        arguments = [*paced(tmp_path), *flags(trials=12, max_epochs=8, scheduler="none")]
        run = flags(storage=tmp_path, name="j")
        process = search(several.env, *arguments, *run, cwd=tmp_path)
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
def test_an_autoscaler_brings_nodes_for_as_many_trials_as_may_run(tmp_path: Path) -> None:
    """From none: by the autoscaler of `ray up` and KubeRay, with Ray's own make-believe cloud."""
    port, file = free_port(), tmp_path / "autoscaler.yaml"
    config = (PROGRAMS / "autoscaler.yaml").read_text().replace("PORT", str(port))
    file.write_text(config)
    head = yaml.safe_load(config)["provider"]["head_node_id"]
    own = {
        "RAY_enable_autoscaler_v2": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_CLOUD_INSTANCE_ID": head,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head,
        "RAY_NODE_TYPE_NAME": "ray.head.default",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    several = Rays(0, f"--autoscaling-config={file}", port=port, **own)
    try:
        env = {name: value for name, value in several.env.items() if name not in own}
        size = flags(trials=4, max_epochs=2, max_concurrent=2, scheduler="none")
        code, output = finish(search(env, *TINY, *size, *flags(storage=tmp_path, name="s")), 180)
        assert code == 0, output
        assert "4 complete, 0 pruned, 0 failed" in output
        assert len(several.nodes_with_cpus(3)) == 2  # not four, and not one
    finally:
        several.remove()


@pytest.mark.slow
def test_a_spot_node_goes_with_notice(tmp_path: Path) -> None:
    """Drained as before a preemption; ten seconds later it is gone. Its trial goes on elsewhere."""
    several = Rays(0)
    try:
        nodes = [several.add(1), several.add(1)]
        arguments = [
            *TINY,
            *flags(trials=8, max_epochs=24, scheduler="none", max_concurrent=2),
        ]
        process = search(several.env, *arguments, *flags(storage=tmp_path, name="spot"))
        seen = wait_for(process, "epochs=")
        while not all(workers(node.pid) for node in nodes):
            assert process.poll() is None
            time.sleep(0.1)
        node_id = several.nodes_with_cpus()[0]
        drain = [
            "ray",
            "drain-node",
            f"--address={several.env['RAY_ADDRESS']}",
            f"--node-id={node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=spot",
            "--deadline-remaining-seconds=10",
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
            *flags(trials=6, max_epochs=6, storage=tmp_path, name="sql", study=place),
        ]
        process = search(env, *arguments)
        seen = wait_for(process, "epochs=")
        server.stop()
        time.sleep(4)
        assert process.poll() is None, "the search ended before the database was away"
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


def test_nothing_is_left_after_a_kill_and_an_interrupt(tmp_path: Path) -> None:
    """SIGKILL leaves a folder, no process; the next search removes it, and at Ctrl-C its own."""
    folder = tempfile.mkdtemp(prefix="t")
    env = own_ray(TMPDIR=folder, HOME=str(tmp_path))
    try:
        arguments = [
            *TINY,
            *flags(trials=20, max_epochs=8, storage=tmp_path, name="left"),
        ]
        process = search(env, *arguments)
        wait_for(process, "run ")
        time.sleep(2)
        stop(process)
        deadline = time.monotonic() + 90  # a worker that was just starting waits for its raylet
        agents = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}  # stay for about a minute
        while (
            alive := {command.split()[0] for command in ours(folder) if command}
        ) - agents and time.monotonic() < deadline:
            time.sleep(0.5)
        assert alive <= agents
        left = set(os.listdir(folder))
        assert left
        process = search(env, *flags(storage=tmp_path, name="left", resume=True))
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
    shutil.copy(PROGRAMS / "broken_space.py", tmp_path)
    folder = tempfile.mkdtemp(prefix="t")
    try:
        arguments = [
            *flags(dataset="digits", space="broken_space:space", trials=2, max_epochs=1),
        ]
        env = own_ray(TMPDIR=folder, HOME=str(tmp_path))
        code, output = finish(
            search(env, *arguments, *flags(storage=tmp_path, name="f"), cwd=tmp_path)
        )
        assert code == 1, output
        assert os.listdir(folder) == []
        assert nothing_of(folder)
        assert not (tmp_path / "f" / "search.lease").exists()
    finally:
        shutil.rmtree(folder)
