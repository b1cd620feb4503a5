"""A Ray that a search joins: its resources, what reaches its workers, what they see."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from ray import exceptions

from mnist_ray.cluster import Cluster, joined
from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.settings.checks import JOB_CONFIG
from mnist_ray.storage import RunStorage
from mnist_ray.training import step
from tests.support.runs import SMALL, finish, search
from tests.support.servers import head_of

HERE, ELSEWHERE = (Cluster("127.0.0.1:6379", None, here, {}) for here in (True, False))


@pytest.mark.parametrize(
    ("free", "said"),
    [(2.0, "2 of 2 CPUs are free\n"), (0.0, "; its CPUs are taken: trials wait for them\n")],
)
def test_joining_says_whether_its_cpus_are_free(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], free: float, said: str
) -> None:
    ray = SimpleNamespace(
        is_initialized=lambda: True,
        init=lambda **_: SimpleNamespace(dashboard_url=None),
        cluster_resources=lambda: {"CPU": 2.0},
        available_resources=lambda: {"CPU": free},
        get_runtime_context=lambda: SimpleNamespace(gcs_address="192.0.2.2:6379", runtime_env={}),
    )
    monkeypatch.setattr(joined, "ray", ray)
    with joined.join({}) as cluster:
        assert cluster.address == "192.0.2.2:6379"
    out = capsys.readouterr().out
    assert out.startswith("ray: joined 192.0.2.2:6379, ")
    assert out.endswith(said)


@pytest.mark.parametrize("keep", [False, True])
def test_variables_of_ours_reach_the_workers(monkeypatch: pytest.MonkeyPatch, keep: bool) -> None:
    """They have the environment of `ray start`; the second job has this one's."""
    given: list[Any] = []

    def init(**options: Any) -> SimpleNamespace:
        given.append(options.get("runtime_env"))
        return SimpleNamespace(dashboard_url=None)

    ray = SimpleNamespace(
        is_initialized=lambda: keep,
        init=init,
        cluster_resources=dict,
        available_resources=dict,
        get_runtime_context=lambda: SimpleNamespace(gcs_address="a", runtime_env=given[-1] or {}),
    )
    monkeypatch.setattr(joined, "ray", ray)
    monkeypatch.setattr(joined, "shutdown", lambda: None)
    monkeypatch.delenv(step.SWITCH, raising=False)
    monkeypatch.delenv("MNIST_RAY_STORAGE_RETRY_SECONDS", raising=False)
    with joined.join({}) as cluster:
        assert cluster.runtime_env == {}
    monkeypatch.setenv(step.SWITCH, "0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    both = {"MNIST_RAY_STORAGE_RETRY_SECONDS": "300", step.SWITCH: "0"}
    monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", "300")
    with joined.join({}) as cluster:
        assert cluster.runtime_env == ({} if keep else {"env_vars": both})
    # What a submitted job's environment has already: Ray refuses to be told twice.
    submitted = {"runtime_env": {"env_vars": {step.SWITCH: "0"}}, "metadata": {}}
    monkeypatch.setenv(JOB_CONFIG, json.dumps(submitted))
    assert joined._carried() == {"MNIST_RAY_STORAGE_RETRY_SECONDS": "300"}
    monkeypatch.setenv(JOB_CONFIG, '{"runtime_env": null}')
    assert joined._carried() == both


Answer = Callable[[], Any]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the task of each node does in place of what it shall: an error, or None."""
    nodes: dict[str, Any] = {}

    def get(reference: tuple[str, Answer]) -> Any:
        node, runs = reference
        if nodes[node] is not None:
            raise nodes[node]
        return runs()

    def remote(**_: Any) -> Any:
        return lambda work: SimpleNamespace(
            options=lambda scheduling_strategy: SimpleNamespace(
                remote=lambda uri: (scheduling_strategy.node_id, lambda: work(uri))
            )
        )

    def alive() -> list[dict[str, Any]]:
        at = {"Alive": True, "NodeManagerAddress": "192.0.2.2"}
        return [{"NodeID": name, **at} for name in nodes]

    def strategy(node: str, soft: bool) -> Any:
        return SimpleNamespace(node_id=node)

    monkeypatch.setattr(joined, "NodeAffinitySchedulingStrategy", strategy)
    monkeypatch.setattr(joined, "ray", SimpleNamespace(nodes=alive, remote=remote, get=get))
    return nodes


class Broken(exceptions.RayTaskError):
    def __init__(self, cause: Exception) -> None:
        Exception.__init__(self, "ray::seen() (pid=1)\nTraceback …")
        self.cause = cause


def test_a_node_that_is_gone_or_cannot_run_us_is_no_traceback(
    tmp_path: Path, answers: dict[str, Any]
) -> None:
    storage = RunStorage(str(tmp_path))
    for gone in (
        exceptions.NodeDiedError("died"),
        exceptions.TaskUnschedulableError("no such node"),
    ):
        answers |= {"a": None, "b": gone}
        joined.check_shared_storage(ELSEWHERE, storage)
    answers["b"] = Broken(ModuleNotFoundError("No module named 'mnist_ray'"))
    message = r"^node 192\.0\.2\.2 cannot run mnist_ray: No module named 'mnist_ray'$"
    with pytest.raises(WorkError, match=message):
        joined.check_shared_storage(ELSEWHERE, storage)
    why = "failed to import on the worker. [...]:\n\nTraceback (most recent call last):\n  File …\n"
    answers["b"] = Broken(RuntimeError(f"{why}ModuleNotFoundError: No module named 'mnist_ray'\n"))
    with pytest.raises(WorkError, match="cannot run mnist_ray: ModuleNotFoundError: No module"):
        joined.check_shared_storage(ELSEWHERE, storage)
    answers["b"] = exceptions.RuntimeEnvSetupError("pip failed")
    with pytest.raises(WorkError, match=r"^node 192\.0\.2\.2: Failed to set up runtime env"):
        joined.check_shared_storage(ELSEWHERE, storage)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nodes", ["a", "ab"])
def test_an_object_store_is_looked_at_from_a_single_node_too(
    answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch, nodes: str
) -> None:
    storage, names = RunStorage("s3://bucket/runs"), list[str]()
    monkeypatch.setattr(RunStorage, "write_bytes", lambda self, name, data: names.append(name))
    monkeypatch.setattr(RunStorage, "delete", lambda self, name: names.remove(name))

    def read(self: RunStorage, name: str, *, at_most: float) -> bytes:
        raise WorkError(f"cannot read {self.join(name)}: no keys found")

    monkeypatch.setattr(RunStorage, "read_bytes", read)
    answers |= dict.fromkeys(nodes)
    message = (
        rf"^--storage: s3://bucket/runs is not seen by {len(nodes)} of {len(nodes)} nodes: "
        "no keys found; keys and AWS_ENDPOINT_URL of this shell do not reach .* `ray start`, or "
    )
    with pytest.raises(SettingsError, match=message):
        joined.check_shared_storage(ELSEWHERE, storage)
    assert names == []
    if nodes == "a":  # its workers have this process's environment
        joined.check_shared_storage(HERE, storage)


@pytest.mark.slow
def test_missing_keys_of_a_ray_that_runs_are_told_before_there_is_a_run(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
            without.delenv(name)
        without.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # on a cloud's machine too
        without.setenv("HOME", "/nowhere")
        head = head_of(Path(sys.executable).parent)
        started = head.__enter__()
    try:
        place = parse_qs(urlsplit(s3_server).query)["endpoint_override"][0]
        uri = f"s3://bucket/keyless?endpoint_override={place}&scheme=http"
        env = {**started, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
        code, output = finish(search(env, *SMALL, "--trials", "1", "--storage", uri), 120)
        assert code == 2, output
        last = output.splitlines()[-1]
        assert last.startswith("search.py: --storage: s3://bucket/keyless")
        assert "is not seen by 1 of 1 nodes: " in last
        assert "do not reach a Ray that was started before: set them for `ray start`" in last
        assert "Traceback" not in output
        assert RunStorage(uri).list() == []
    finally:
        head.__exit__(None, None, None)
