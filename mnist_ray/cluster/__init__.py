"""The Ray cluster that a job runs on: found or started, what it can hold, and jobs within it."""

import contextlib
import functools
import math
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from mnist_ray.errors import SettingsError, WorkError, first_line
from mnist_ray.processes import temporary_folder
from mnist_ray.storage import RunStorage

AGENT_SECONDS = 120  # to wait for a node's agent, which starts jobs and is itself started after Ray has answered
IMPORT_SECONDS = 5.0  # that an interrupt waits for an import

ROOT = Path(__file__).resolve().parent.parent.parent  # where jobs/ lies


@dataclass(frozen=True)
class Cluster:
    """A Ray that this process is connected to."""

    dashboard: str | None  # URL of the job server
    started_here: bool
    runtime_env: Mapping[str, Any]  # of this process's own job


def quiet_ray() -> None:
    """Ray's environment variables that must be set before it is imported: no noise, nothing sent, no needless files."""
    for name, value in {
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # everything is on storage at every moment: an interrupt can end at once
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own snapshots are not what --resume reads
        "TUNE_WARN_THRESHOLD_S": "10",
    }.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM, which `ray job stop` sends, is a KeyboardInterrupt as Ctrl-C is. Either waits for the end of an import that it falls into
    (IMPORT_SECONDS at most): extension modules turn it into an ImportError."""
    came: list[float] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(time.monotonic())
        while frame is not None and frame.f_globals.get("__name__") != "importlib._bootstrap":
            frame = frame.f_back
        if frame is None or came[-1] - came[0] > IMPORT_SECONDS:
            raise KeyboardInterrupt
        again = threading.Timer(0.05, signal.pthread_kill, (threading.get_ident(), number))
        again.daemon = True
        again.start()

    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, interrupt)}
    if (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):  # not where a shell has it ignored
        previous[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def running() -> bool:
    """Whether there is a cluster to join: at RAY_ADDRESS, or the one that `ray start` noted down on this machine and that answers."""
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return address != "local"
    note = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray", "ray_current_cluster")
    try:
        host, _, port = note.read_text().strip().rpartition(":")
        socket.create_connection((host, int(port)), timeout=3).close()
    except (OSError, ValueError):
        return False
    return True


@contextlib.contextmanager
def connected(verbose: bool) -> Iterator[Cluster]:
    """Joins the cluster at RAY_ADDRESS or on this machine; where there is none, starts one with its job server on loopback and, at the
    end, stops it and removes its session folder."""
    options: dict[str, Any] = {"log_to_driver": verbose, "address": "auto"}
    if not verbose:
        options["logging_level"] = "ERROR"
    started_here = not running()
    # A folder of its own, so that all of it can be removed; short, as Unix sockets below it allow 107 characters.
    own = temporary_folder("mray-") if started_here else contextlib.nullcontext()
    with own as folder, _connected(options, folder) as joined:
        yield joined


@contextlib.contextmanager
def _connected(options: dict[str, Any], folder: Path | None) -> Iterator[Cluster]:
    started_here = folder is not None
    if folder is not None:
        if "RAY_AUTH_MODE" not in os.environ:
            token = folder / "auth_token"
            token.write_text(uuid.uuid4().hex + uuid.uuid4().hex)
            token.chmod(0o600)
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        options |= {"address": "local", "include_dashboard": True, "dashboard_host": "127.0.0.1"}
        options |= {"_node_ip_address": "127.0.0.1", "_temp_dir": str(folder)}
    import ray  # not before: it reads the token's place when it is imported
    from ray._private import parameter

    plain, temporary = parameter.RayParams, os.environ.get("TMPDIR")
    if started_here:
        os.environ["TMPDIR"] = str(
            folder
        )  # for the workers: what torch leaves behind there is removed with the rest
        # Any free port for the agent that starts jobs: with the default one it dies where another Ray of this machine has it, and
        # ray.init has no argument for it.
        parameter.RayParams = functools.partial(plain, dashboard_agent_listen_port=0)
    try:
        try:
            context = ray.init(**options)
        except Exception as error:  # Ray raises bare ones too, where its dashboard does not start
            why = first_line(error)
            if folder is None:
                raise WorkError(f"Ray cannot be joined: {why}") from error
            free = shutil.disk_usage(folder).free // 2**20
            hint = f" (only {free} MB are free there)" if free < 500 else ""
            raise WorkError(f"Ray cannot be started in {folder}{hint}: {why}") from error
        finally:
            parameter.RayParams = plain
            if started_here:
                del os.environ["TMPDIR"]
                os.environ |= {} if temporary is None else {"TMPDIR": temporary}
        url = context.dashboard_url
        yield Cluster(
            f"http://{url}" if url else None,
            started_here,
            dict(ray.get_runtime_context().runtime_env),
        )
    finally:
        ray.shutdown()


# ---- resources


def machine_resources(gpus: bool) -> dict[str, float]:
    """CPUs of this machine and, if asked for, its GPUs, before any Ray has counted them (it must not be imported yet)."""
    resources = {"CPU": float(len(os.sched_getaffinity(0)))}
    if gpus:
        import torch

        resources["GPU"] = float(torch.cuda.device_count())
    return resources


def nodes() -> list[dict[str, float]]:
    """The resources of each living node."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def autoscaler_maximum() -> dict[str, float]:
    """The most that an autoscaler may bring; empty where there is none."""
    from ray._private.state import state

    return state.get_max_resources_from_cluster_config() or {}


def check_fits(
    cpus: float, gpus: float, each: list[dict[str, float]], maximum: Mapping[str, float]
) -> None:
    """SettingsError where no node, nor what an autoscaler may bring, holds one trial of so many CPUs and GPUs."""
    for flag, key, wanted in (("--cpus-per-trial", "CPU", cpus), ("--gpus-per-trial", "GPU", gpus)):
        most = max([node.get(key, 0) for node in each] + [maximum.get(key, 0)])
        if wanted > most:
            raise SettingsError(
                f"{flag}: {wanted:g} wanted, but no node has more than {most:g} {key}s; allowed is at most {most:g}"
            )


def capacity(
    cpus: float, gpus: float, each: list[dict[str, float]], maximum: Mapping[str, float]
) -> int:
    """How many trials of so many CPUs and GPUs run at a time, on the living nodes or on all that an autoscaler may bring."""

    def hold(node: Mapping[str, float]) -> int:
        by_cpu = node.get("CPU", 0) / cpus
        # A GPU's fractions cannot be added up across GPUs: 0.4 fits twice into each, whatever their number.
        by_gpu = (
            math.inf
            if not gpus
            else node.get("GPU", 0) * (1 // gpus)
            if gpus < 1
            else node.get("GPU", 0) / gpus
        )
        return int(min(by_cpu, by_gpu))

    return max(1, sum(map(hold, each)), hold(maximum))


class Slots:
    """How many trials of so many CPUs and GPUs run at a time on the cluster as it is now: nodes come and go. maximum: see capacity."""

    AGAIN_AFTER = 2.0  # seconds for which an answer is taken to hold

    def __init__(self, cpus: float, gpus: float, maximum: Mapping[str, float]) -> None:
        self.trial, self.maximum = (cpus, gpus), maximum
        self.number, self.asked_at = 0, -math.inf

    def __call__(self) -> int:
        if time.monotonic() - self.asked_at > self.AGAIN_AFTER:
            self.number, self.asked_at = (
                capacity(*self.trial, nodes(), self.maximum),
                time.monotonic(),
            )
        return self.number


def check_shared_storage(storage: RunStorage) -> None:
    """SettingsError where a node of the cluster does not see the files that this process writes."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(alive) < 2:
        return
    # Beside the run, not in it: nothing may be left behind where the storage is refused.
    name, token = f"probe-{uuid.uuid4().hex}", uuid.uuid4().hex.encode()
    storage.write_bytes(name, token)

    @ray.remote(num_cpus=0, max_retries=0)
    def sees(uri: str) -> bool:
        try:
            return RunStorage(uri).read_bytes(name) == token
        except (OSError, WorkError):
            return False

    try:
        results = ray.get(
            [
                sees.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(n, soft=False)
                ).remote(storage.uri)
                for n in alive
            ]
        )
    finally:
        storage.delete(name)
    if not all(results):
        raise SettingsError(
            f"--storage: {storage.uri} is not seen by {results.count(False)} of {len(alive)} nodes; "
            "expected a shared file system or an object store as s3://bucket/path"
        )


# ---- jobs


def submit_and_follow(cluster: Cluster, script: str, arguments: list[str]) -> str:
    """Runs a script of jobs/ as a Ray job of its own, in the runtime environment of this one, printing its log as it grows.

    Returns the job's id. Raises WorkError where it does not succeed. When this process is interrupted the job is stopped too.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    if cluster.dashboard is None:
        raise WorkError(
            "the cluster has no job server (dashboard), which the fine-tuning is submitted to; start Ray with ray[default]"
        )
    try:
        client = JobSubmissionClient(cluster.dashboard)
    except (ConnectionError, RuntimeError) as error:
        raise WorkError(
            f"the job server at {cluster.dashboard} does not answer: {first_line(error)}"
        ) from error
    runtime_env = dict(cluster.runtime_env)
    # With a shipped working directory the job finds its script there, and `python` is the runtime environment's.
    shipped = "working_dir" in runtime_env
    command = (
        ["python", f"jobs/{script}"] if shipped else [sys.executable, str(ROOT / "jobs" / script)]
    )
    # Elsewhere it starts where this process was called, so that relative paths and modules of the caller's own mean the same.
    where = "" if shipped else f"cd {shlex.quote(os.getcwd())} && exec "
    if cluster.started_here:
        # Ray tells a job the address of any Ray that it finds among this machine's processes, where it was not begun by `ray start`.
        import ray

        where += f"env RAY_ADDRESS={ray.get_runtime_context().gcs_address} "
    job = f"finetune-{uuid.uuid4().hex[:12]}"
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            client.submit_job(
                entrypoint=where + shlex.join(command + arguments),
                runtime_env=runtime_env,
                submission_id=job,
            )
            break
        except RuntimeError as error:
            # After a short search, on a machine that is slow, the node's agent may not have started yet.
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise WorkError(
                    f"the job server at {cluster.dashboard} refuses the job: {first_line(error)}"
                ) from error
            time.sleep(1)
    printed = 0
    finished = False
    try:
        while True:
            status = client.get_job_status(job)
            log = client.get_job_logs(job)
            sys.stdout.write(log[printed:])
            sys.stdout.flush()
            printed = len(log)
            if status.is_terminal():
                finished = True
                break
            time.sleep(0.3)
    finally:
        if not finished:
            client.stop_job(job)
    if status != JobStatus.SUCCEEDED:
        message = client.get_job_info(job).message or ""
        raise WorkError(
            f"the job {job} ({script}) ended as {status.value}: {message.splitlines()[0] if message else 'see its log'}"
        )
    return job
