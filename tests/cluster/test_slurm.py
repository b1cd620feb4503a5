"""slurm.sbatch: its calls by fakes of Slurm's and Ray's commands, and a run on a real Slurm."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

SCRIPT = ROOT / "slurm.sbatch"
FAKES = ROOT / "tests" / "programs" / "slurm_fakes.sh"
NAMED = ["--name", "first"]


def free_job() -> int:
    """The number of a job whose port is free."""
    for number in range(os.getpid(), os.getpid() + 2400):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", 20000 + number % 2400 * 5))
            return number
    raise OSError("no port is free")


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on two nodes, whose commands are fakes."""
    for name in ("scontrol", "srun", "ray", "hostname", "python"):
        (tmp_path / name).symlink_to(FAKES)
    return {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "CALLS": str(tmp_path / "calls"),
        "QUICK": "1",
        "SLURM_JOB_ID": str(free_job()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_ON_NODE": "4",
        "SLURM_GPUS_ON_NODE": "1",
    }


def start(job: dict[str, str], folder: Path, *words: str) -> subprocess.Popen:
    """The script in an empty folder, as the leader of a group, which is ended with it."""
    work = folder / "work"
    work.mkdir()
    return subprocess.Popen(
        ["bash", str(SCRIPT), *NAMED, *words], cwd=work, env=job, text=True, start_new_session=True
    )


def calls_of(process: subprocess.Popen, job: dict[str, str], code: int) -> list[str]:
    try:
        assert process.wait(30) == code
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    return Path(job["CALLS"]).read_text().splitlines()


def test_a_ray_over_all_nodes_and_the_search_in_it(job: dict[str, str], tmp_path: Path) -> None:
    calls = calls_of(start(job, tmp_path), job, 0)
    head, workers = (next(c for c in calls if c.startswith("srun") and w in c)
                     for w in ("--nodelist=node1", "--exclude=node1"))  # fmt: skip
    port = re.findall(r"--port=(\d+)", head)[0]
    assert f"ray start --head --node-ip-address=127.0.0.1 --port={port}" in head
    assert "--dashboard-host=127.0.0.1" in head
    assert "--nodes=1" in workers
    assert f"ray start --address=127.0.0.1:{port}" in workers
    for each in (head, workers):
        assert "--num-cpus 4 --num-gpus 1" in each
        assert "--block" in each
    assert "python -m mnist_ray search --name first" in calls
    assert f"address 127.0.0.1:{port}" in calls
    assert "ray get-auth-token --generate" in calls
    assert not any("requeue" in call for call in calls)


def test_near_the_limit_it_is_queued_again_and_goes_on(job: dict[str, str], tmp_path: Path) -> None:
    process = start({**job, "QUICK": ""}, tmp_path)
    noted, deadline = Path(job["CALLS"]), time.monotonic() + 30
    while not noted.exists() or "address 127" not in noted.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    calls = calls_of(process, job, 130)
    assert f"scontrol requeue {job['SLURM_JOB_ID']}" in calls


def test_a_job_that_was_queued_again_resumes(job: dict[str, str], tmp_path: Path) -> None:
    calls = calls_of(start({**job, "SLURM_RESTART_COUNT": "1"}, tmp_path), job, 0)
    assert "python -m mnist_ray search --name first --resume" in calls


def test_a_job_that_was_queued_again_deletes_nothing(job: dict[str, str], tmp_path: Path) -> None:
    again = {**job, "SLURM_RESTART_COUNT": "1"}
    words = ["--overwrite", "--stages", "my file.yaml"]
    calls = calls_of(start(again, tmp_path, *words), again, 0)
    searches = [call for call in calls if call.startswith("python ")]
    named = "python -m mnist_ray search --name first --stages my file.yaml --resume"
    assert searches == [named]


def test_a_job_that_ended_before_there_was_a_run_begins_anew(
    job: dict[str, str], tmp_path: Path
) -> None:
    again = {**job, "SLURM_RESTART_COUNT": "1", "NO_RUN": "1"}
    calls = calls_of(start(again, tmp_path, "--overwrite"), again, 0)
    searches = [call for call in calls if call.startswith("python ")]
    first = "python -m mnist_ray search --name first"
    assert searches == [f"{first} --resume", first]


# ---- a real Slurm of one node


CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a Slurm with this machine as its only node."""
    needed = ("slurmctld", "slurmd", "munged", "sbatch")
    missing = [name for name in needed if shutil.which(name) is None]
    if missing or os.getuid() != 0:
        pytest.skip(f"needs root and slurm-wlm; missing: {', '.join(missing) or 'root'}")
    folder = tmp_path_factory.mktemp("slurm")
    os.chmod(folder, 0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    text = CONFIGURATION.format(
        host=socket.gethostname(), folder=folder, ports=free_ports(2), cpus=os.cpu_count()
    )
    (folder / "slurm.conf").write_text(text)
    env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    munge = [
        *("munged", "--foreground", "--force", f"--socket={folder}/munge.socket"),
        *(f"--key-file={folder}/key", f"--pid-file={folder}/munge.pid"),
        *(f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"),
    ]
    commands = [munge, ["slurmctld", "-D", "-i"], ["slurmd", "-D"]]
    processes = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.out").open("wb") as log:
                processes.append(
                    subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
                )
            time.sleep(1)
        yield env
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(20)


@pytest.mark.slow  # a whole search; needs Debian's slurm-wlm
def test_a_search_runs_on_a_slurm_of_one_node(slurm: dict[str, str], tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / ".venv" / "bin").mkdir(parents=True)
    python = Path(sys.executable).parent
    (work / ".venv" / "bin" / "activate").write_text(
        f"export PATH={python}:$PATH PYTHONPATH={ROOT}\n"
    )
    search = [
        *("--dataset", "digits", "--space", "mlp", "--trials", "2", "--max-epochs", "1"),
        *("--no-finetune", "--storage", str(tmp_path / "runs"), "--name", "first"),
    ]
    cpus = f"--cpus-per-task={os.cpu_count()}"
    done = subprocess.run(
        ["sbatch", "--wait", cpus, "--output=log", str(SCRIPT), *search],
        cwd=work,
        env=slurm,
        capture_output=True,
        text=True,
        timeout=240,
    )
    log = (work / "log").read_text() if (work / "log").exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + log
    assert "2 trials: 2 complete" in log
    assert (tmp_path / "runs" / "first" / "trials.parquet").exists()
