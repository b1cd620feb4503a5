"""The part that needs Ray itself, whose environment must be set before it is imported."""

import contextlib
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private.authentication import authentication_token_setup
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
from ray._private.state import state
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.exceptions import NodeDiedError, RayError, RayTaskError, TaskUnschedulableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mnist_ray.cluster.patches import any_agent_port, same_sigterm, shutdown
from mnist_ray.cluster.resources import Cluster, Resources, capacity, environment
from mnist_ray.errors import SettingsError, WorkError, first_line, printable
from mnist_ray.settings import masked
from mnist_ray.settings.checks import JOB_CONFIG
from mnist_ray.storage import RunStorage

HEAD_SECONDS = 20.0  # in which a head must answer, though it may be busy
CHECK_SECONDS = 10.0  # in which a worker tries again to read from the storage
# Variables of ours that count in workers too. Those of a Ray that runs already have the environment
# of `ray start`.
CARRIED = ("MNIST_RAY_STORAGE_RETRY_SECONDS", "MNIST_RAY_CUDA_GRAPHS")


@contextlib.contextmanager
def join(
    options: dict[str, Any], address: str | None = None, noted: bool = False
) -> Iterator[Cluster]:
    """The Ray that is running.

    A connection that this process has already is used, and kept.

    Args:
        options: of ray.init.
        address: HOST:PORT of its head; None for a connection that is there.
        noted: whether this machine's note named the address, and not RAY_ADDRESS.

    Raises:
        WorkError: it cannot be joined.
    """
    keep = ray.is_initialized()
    try:
        try:
            if noted:  # as ray.init does for "auto", under which it may join another one
                setup = authentication_token_setup
                setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
            if address:
                _check_head(address)
            if not keep and (variables := _carried()):
                options = {**options, "runtime_env": {"env_vars": variables}}
            with same_sigterm():
                context = ray.init(address=address or "auto", ignore_reinit_error=True, **options)
        except WorkError:
            raise
        except Exception as error:
            raise WorkError(
                f"Ray cannot be joined: {first_line(error)}{_about_token(error)}"
            ) from error
        has, free = ray.cluster_resources().get("CPU", 0), ray.available_resources().get("CPU", 0)
        busy = "" if free >= 1 or not has else "; its CPUs are taken: trials wait for them"
        joined = _cluster(context, ray.get_runtime_context(), started_here=False)
        print(f"ray: joined {joined.address}, {free:g} of {has:g} CPUs are free{busy}", flush=True)
        yield joined
    finally:
        if not keep:
            shutdown()


def _carried() -> dict[str, str]:
    """The variables of CARRIED for the workers, and for the second job's.

    A submitted job's environment may have them already, and Ray refuses to be told twice.
    """
    submitted = json.loads(os.environ.get(JOB_CONFIG) or "{}")
    known = (submitted.get("runtime_env") or {}).get("env_vars") or {}
    return {name: os.environ[name] for name in CARRIED if name in os.environ and name not in known}


def _check_head(address: str) -> None:
    """Raises WorkError if no Ray head answers: ray.init would try for minutes, without a word."""
    with init_grpc_channel(address, GLOBAL_GRPC_OPTIONS) as channel:
        try:
            NodeInfoGcsServiceStub(channel).GetClusterId(
                GetClusterIdRequest(), timeout=HEAD_SECONDS
            )
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return  # ray.init says why
            given = masked(os.environ.get("RAY_ADDRESS") or "auto")
            shown = given if given == address else f"{given}, {printable(address)},"
            raise WorkError(
                f"Ray cannot be joined: at RAY_ADDRESS={shown} another program answers, no Ray "
                "head (6379 is its usual port; 8265 is the dashboard's); "
                "RAY_ADDRESS=local starts a Ray here"
            ) from error


def _about_token(error: BaseException) -> str:
    """What to do where the tokens of this process and of the cluster do not agree."""
    said = ""
    cause: BaseException | None = error
    while cause is not None:  # Ray tells it in the cause alone
        said += repr(cause).lower()
        cause = cause.__cause__ or cause.__context__
    if not any(word in said for word in ("token", "authentic")):
        return ""
    return (
        " (RAY_AUTH_MODE and the token must be the cluster's: see RAY_AUTH_TOKEN, "
        "RAY_AUTH_TOKEN_PATH and ~/.ray/auth_token)"
    )


@contextlib.contextmanager
def start(options: dict[str, Any], folder: Path) -> Iterator[Cluster]:
    """A Ray of this process, with its session in the folder. Raises WorkError."""
    options |= {"address": "local", "include_dashboard": True, "dashboard_host": "127.0.0.1"}
    options |= {"_node_ip_address": "127.0.0.1", "_temp_dir": str(folder)}
    try:
        try:
            # Files that torch leaves in the workers' TMPDIR are removed with the rest.
            with any_agent_port(), same_sigterm(), environment(TMPDIR=str(folder)):
                context = ray.init(**options)
        except Exception as error:  # Ray raises bare ones too, if its dashboard does not start
            free = shutil.disk_usage(folder).free // 2**20
            hint = f" (only {free} MB are free there)" if free < 500 else ""
            why = first_line(error)
            raise WorkError(f"Ray cannot be started in {folder}{hint}: {why}") from error
        yield _cluster(context, ray.get_runtime_context(), started_here=True)
    finally:
        shutdown()


def _cluster(context: Any, runtime: Any, started_here: bool) -> Cluster:
    url = context.dashboard_url
    dashboard = f"http://{url}" if url else None
    return Cluster(runtime.gcs_address, dashboard, started_here, dict(runtime.runtime_env))


def nodes() -> list[dict[str, float]]:
    """The resources of each living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def with_free() -> list[tuple[dict[str, float], dict[str, float]]]:
    """The resources of each living node, and those of them that are free now."""
    free = state.available_resources_per_node()
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [(node["Resources"], free.get(node["NodeID"], {})) for node in alive]


def autoscaler_maximum() -> dict[str, float]:
    """The most that an autoscaler may bring; empty if there is none."""
    return state.get_max_resources_from_cluster_config() or {}


def scales() -> bool:
    """Whether an autoscaler brings nodes as they are asked for; Ray does not tell how many.

    `ray up` and KubeRay start the newer autoscaler; a plain `ray start` does not.
    """
    return bool(is_autoscaler_v2(fetch_from_server=True))


class Slots:
    """How many trials run at a time on the cluster as it is now: nodes come and go.

    Args:
        cpus: of a trial.
        gpus: of a trial, or a fraction of one.
        maximum: all that an autoscaler may bring.
    """

    AGAIN_AFTER = 2.0  # seconds for which an answer is taken to hold

    def __init__(self, cpus: float, gpus: float, maximum: Resources) -> None:
        self.trial, self.maximum = (cpus, gpus), maximum
        self.number, self.asked_at = 0, -math.inf

    def __call__(self) -> int:
        """The number of trials."""
        now = time.monotonic()
        if now - self.asked_at > self.AGAIN_AFTER:
            self.number, self.asked_at = capacity(*self.trial, nodes(), self.maximum), now
        return self.number


def check_shared_storage(cluster: Cluster, storage: RunStorage) -> None:
    """Has each node read a file that this process writes.

    On the Ray that runs already also a single one: it has the environment of `ray start`, in which
    the keys of an object store may be missing.

    Raises:
        SettingsError: a node does not see the file.
        WorkError: a node cannot run this package.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    if len(alive) < 2 and (storage.is_local or cluster.started_here):
        return
    # Beside the run, not in it: nothing may be left behind if the storage is refused.
    name, token = f"probe-{uuid.uuid4().hex}", uuid.uuid4().hex.encode()
    storage.write_bytes(name, token)

    def seen(uri: str) -> str:
        """Why a worker does not see it; empty if it does."""
        run = RunStorage(uri)
        try:
            found = run.read_bytes(name, at_most=CHECK_SECONDS)
        except FileNotFoundError:
            return "what was just written is not there"
        except (OSError, WorkError) as error:
            return first_line(error).removeprefix(f"cannot read {run.join(name)}: ")
        return "" if found == token else "another file is there"

    task = ray.remote(num_cpus=0, max_retries=0)(seen)
    on = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in alive]
    try:
        asked = [task.options(scheduling_strategy=each).remote(storage.uri) for each in on]
        said = [_answer(node, each) for node, each in zip(alive, asked, strict=True)]
    finally:
        storage.delete(name)
    if not (why := [each for each in said if each]):
        return
    if storage.is_local:
        raise SettingsError(
            f"--storage: {storage.uri} is not seen by {len(why)} of {len(alive)} "
            "nodes; expected a shared file system or an object store as s3://bucket/path"
        )
    raise SettingsError(
        f"--storage: {storage.uri} is not seen by {len(why)} of {len(alive)} nodes: {why[0]}; "
        "keys and AWS_ENDPOINT_URL of this shell do not reach a Ray that was started before: set "
        """them for `ray start`, or --runtime-env-json '{"env_vars": …}' of `ray job submit`"""
    )


def _answer(node: Mapping[str, Any], reference: Any) -> str | None:
    """What a node's task says; None if the node has gone meanwhile. Raises WorkError."""
    name = node.get("NodeManagerAddress") or node["NodeID"]
    try:
        return str(ray.get(reference))
    except (NodeDiedError, TaskUnschedulableError):
        return None
    except RayTaskError as error:
        # Of a function that cannot be imported there, Ray tells the cause in the last line.
        text = str(error.cause).strip()
        why = text.splitlines()[-1] if "\nTraceback " in text else first_line(error.cause)
        raise WorkError(f"node {name} cannot run mnist_ray: {why}") from error
    except RayError as error:
        raise WorkError(f"node {name}: {first_line(error)}") from error
