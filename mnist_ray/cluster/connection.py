"""The Ray that a job runs on: joined, or started and stopped again."""

import contextlib
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_ray.cluster.patches import any_agent_port
from mnist_ray.errors import SettingsError, WorkError, first_line
from mnist_ray.processes import temporary_folder

ANSWER_SECONDS = 5.0  # in which a Ray that is joined must answer
SOCKET_ROOM = 43  # characters of a folder in which Ray's sockets stay below 107


@dataclass(frozen=True)
class Cluster:
    """A Ray that this process is connected to."""

    address: str
    """HOST:PORT of its head."""
    dashboard: str | None
    """URL of the job server."""
    started_here: bool
    runtime_env: Mapping[str, Any]
    """Of this process's own job."""


def quiet_ray() -> None:
    """Sets Ray's environment, before it is imported: no noise, nothing sent, no needless files."""
    for name, value in {
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        # Everything is on storage at every moment: an interrupt can end at once.
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own snapshots are not what --resume reads
        "TUNE_WARN_THRESHOLD_S": "10",
    }.items():
        os.environ.setdefault(name, value)


def running() -> bool:
    """Whether there is a cluster to join: at RAY_ADDRESS, or one of this machine that answers."""
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return address != "local"
    note = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray", "ray_current_cluster")
    try:
        _reach(note.read_text().strip())
    except (OSError, ValueError):
        return False
    return True


def _reach(address: str) -> None:
    """Raises OSError where nothing listens, ValueError where it is not HOST:PORT."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()


def _check_address() -> None:
    """Refuses a RAY_ADDRESS at which nothing answers: ray.init would try for 14 minutes."""
    address = os.environ.get("RAY_ADDRESS") or "auto"
    if address == "auto":
        return
    if "://" in address:
        raise SettingsError(
            f"RAY_ADDRESS={address}: expected HOST:PORT of a Ray head; "
            "a job server's address belongs in RAY_API_SERVER_ADDRESS"
        )
    try:
        _reach(address)
    except ValueError as error:
        raise SettingsError(f"RAY_ADDRESS={address}: expected HOST:PORT of a Ray head") from error
    except OSError as error:
        raise WorkError(
            f"Ray cannot be joined: nothing answers at RAY_ADDRESS={address} "
            f"({error.strerror or error}); unset it, or RAY_ADDRESS=local starts a Ray here"
        ) from error


@contextlib.contextmanager
def connected(verbose: bool) -> Iterator[Cluster]:
    """Joins the cluster at RAY_ADDRESS or on this machine; where there is none, starts one.

    One that is started has its job server on loopback; at the end it is stopped and its session
    folder removed.

    Raises:
        SettingsError, WorkError: no Ray can be joined or started.
    """
    options: dict[str, Any] = {"log_to_driver": verbose}
    if not verbose:
        options["logging_level"] = "ERROR"
    if running():
        _check_address()
        with _joined({**options, "address": "auto"}) as cluster:
            yield cluster
        return
    # A folder of its own, so that all of it can be removed.
    with temporary_folder("mray-", longest=SOCKET_ROOM) as folder, _started(options, folder) as own:
        yield own


@contextlib.contextmanager
def _joined(options: dict[str, Any]) -> Iterator[Cluster]:
    import ray  # noqa: PLC0415 (Ray's environment)

    try:
        try:
            context = ray.init(**options)
        except Exception as error:
            raise WorkError(f"Ray cannot be joined: {first_line(error)}") from error
        has, free = ray.cluster_resources().get("CPU", 0), ray.available_resources().get("CPU", 0)
        busy = "" if free >= 1 or not has else "; its CPUs are taken: trials wait for them"
        joined = _cluster(context, ray.get_runtime_context(), started_here=False)
        print(f"ray: joined {joined.address}, {free:g} of {has:g} CPUs are free{busy}", flush=True)
        yield joined
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _started(options: dict[str, Any], folder: Path) -> Iterator[Cluster]:
    if "RAY_AUTH_MODE" not in os.environ:
        token = folder / "auth_token"
        token.write_text(uuid.uuid4().hex + uuid.uuid4().hex)
        token.chmod(0o600)
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    options |= {"address": "local", "include_dashboard": True, "dashboard_host": "127.0.0.1"}
    options |= {"_node_ip_address": "127.0.0.1", "_temp_dir": str(folder)}
    import ray  # noqa: PLC0415 (Ray's environment: the token's place is read on import)

    try:
        try:
            # What torch leaves behind in the workers' TMPDIR is removed with the rest.
            with any_agent_port(), _environment(TMPDIR=str(folder)):
                context = ray.init(**options)
        except Exception as error:  # Ray raises bare ones too, where its dashboard does not start
            free = shutil.disk_usage(folder).free // 2**20
            hint = f" (only {free} MB are free there)" if free < 500 else ""
            why = first_line(error)
            raise WorkError(f"Ray cannot be started in {folder}{hint}: {why}") from error
        yield _cluster(context, ray.get_runtime_context(), started_here=True)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _environment(**names: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in names}
    os.environ |= names
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _cluster(context: Any, runtime: Any, started_here: bool) -> Cluster:
    url = context.dashboard_url
    dashboard = f"http://{url}" if url else None
    return Cluster(runtime.gcs_address, dashboard, started_here, dict(runtime.runtime_env))
