"""A job within the cluster: how it is started, and followed to its last line."""

import dataclasses
import inspect
import os
import shlex
import sys
import sysconfig
import threading
import time
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import requests
from ray.dashboard.utils import get_address_for_submission_client
from ray.job_submission import JobStatus

import mnist_ray
from mnist_ray import cluster
from mnist_ray.cluster import Cluster, jobs
from mnist_ray.errors import WorkError
from mnist_ray.run import lease
from mnist_ray.search_job import job
from mnist_ray.search_job.plan import prepare
from mnist_ray.settings import SearchSettings

PARENT = str(Path(mnist_ray.__file__).parents[1])


def joined(started_here: bool = False, **runtime_env: Any) -> Cluster:
    return Cluster("127.0.0.1:6379", "http://127.0.0.1:8265", started_here, runtime_env)


class Client:
    """A job server whose log grows; each connection is cut after two pieces."""

    def __init__(self, pieces: list[str], status: JobStatus = JobStatus.SUCCEEDED) -> None:
        self.pieces, self.status, self.came = pieces, status, 0
        self.stopped: list[str] = []

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for at, piece in enumerate(self.pieces[:-1]):
            yield piece
            if at == self.came:
                self.came += 1
                if self.came % 2 == 0:
                    raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_status(self, job: str) -> JobStatus:
        done = self.came >= len(self.pieces) - 1
        return self.status if done else JobStatus.RUNNING

    def get_job_logs(self, job: str) -> str:
        return "".join(self.pieces)


def test_every_line_is_printed_once_whatever_the_connection_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LOOK_SECONDS", 0.05)
    pieces = [f"line {number}\n" for number in range(7)]
    log = jobs._Log("finetune")
    assert jobs._follow(Client(pieces), joined(), "job", log) is JobStatus.SUCCEEDED
    assert capsys.readouterr().out == "".join(pieces)


@pytest.mark.parametrize("answers", [False, True])
def test_an_interrupt_does_not_wait_for_a_job_server_without_an_answer(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a terminal reaches the parts of a Ray of this terminal too, and ends some."""
    client, release = Client(["a\n", "b\n"]), threading.Event()

    def stop_job(job: str) -> None:
        client.stopped.append(job)
        if not answers:
            release.wait(60)

    def interrupted(*_: object) -> JobStatus:
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "stop_job", stop_job, raising=False)
    monkeypatch.setattr(jobs, "STOP_SECONDS", 0.2)
    for name, function in {
        "_client": lambda *_: client,
        "_submit": lambda *_: None,
        "_entrypoint": lambda *_: "python",
        "_follow": interrupted,
    }.items():
        monkeypatch.setattr(jobs, name, function)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        jobs.submit_and_follow(joined(started_here=True), "finetune", [])
    release.set()
    assert time.monotonic() - began < 10
    assert len(client.stopped) == 1


@pytest.mark.parametrize("plumbing", [False, True])
def test_lines_about_ray_are_not_printed(
    plumbing: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """However the log is cut into pieces."""
    of_ray = (
        "2026-11-26 02:16:15,984\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
        "Running entrypoint for job finetune-2cef992b3dc3: cd /here && exec python\n"
        "ray: joined 192.0.2.2:35081, 2 of 2 CPUs are free\n"
    )
    own = "fine-tuning runs/a\nstage 1 epoch 1/1\nits last line"
    log = jobs._Log("finetune", plumbing)
    for at in range(0, len(of_ray + own), 5):
        log.take((of_ray + own)[at : at + 5])
    log.take("", end=True)
    assert capsys.readouterr().out == (of_ray if plumbing else "") + own
    assert log.length == len(of_ray + own)


def test_a_silent_job_shows_that_it_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = jobs._Log("finetune")
    log.wait()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(jobs, "SILENT_SECONDS", -1)
    log.wait()
    assert capsys.readouterr().out == "finetune: runs for 0 s\n"


def test_a_job_server_that_goes_away_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(jobs, "AWAY_SECONDS", 0.5)
    client = Client(["a\n", "b\n"])

    def gone(job: str) -> JobStatus:
        raise ConnectionError("Failed to connect to Ray\nat some address")

    monkeypatch.setattr(client, "get_job_status", gone)
    began = time.monotonic()
    with pytest.raises(WorkError, match=r"8265 has gone: Failed to connect to Ray$"):
        jobs._follow(client, joined(), "job", jobs._Log("finetune"))
    assert time.monotonic() - began < 10


def test_the_command_runs_where_this_process_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my runs").mkdir()
    monkeypatch.chdir(tmp_path / "my runs")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    line = jobs._entrypoint(joined(started_here=True), ["finetune", "--run", "a b"])
    where, _, command = line.partition(" && exec ")
    assert shlex.split(where) == ["cd", str(tmp_path / "my runs")]
    words = shlex.split(command)
    start = [sys.executable, "-P", "-m", "mnist_ray", "finetune", "--run", "a b"]
    assert words[-len(start) :] == start
    assert f"PYTHONPATH={PARENT}:/elsewhere" in words  # the package is not installed, but found
    assert "RAY_ADDRESS=127.0.0.1:6379" in words


def test_an_installed_package_needs_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": PARENT})
    assert "PYTHONPATH" not in jobs._entrypoint(joined(), ["finetune"])


@pytest.mark.parametrize("installed", [False, True])
def test_modules_beside_the_callers_script_are_found(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "src"), *sys.path])
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "src/run.py")])
    if installed:
        monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": PARENT})
    path = f"{'' if installed else PARENT + ':'}{tmp_path / 'src'}"
    line = jobs._entrypoint(joined(), ["finetune"])
    assert f"PYTHONPATH={path}" in shlex.split(line)
    given: list[dict[str, Any]] = []  # the job's workers have another environment than its line
    client: Any = SimpleNamespace(submit_job=lambda **job: given.append(job["runtime_env"]))
    jobs._submit(client, joined(env_vars={"A": "b"}), "job", line)
    jobs._submit(client, joined(working_dir="gcs://x.zip"), "job", line)
    assert given == [
        {"env_vars": {"A": "b", "PYTHONPATH": path}},
        {"working_dir": "gcs://x.zip"},
    ]


@pytest.mark.parametrize("script", ["jobs/search.py", "bin/mnist-ray", "elsewhere/tool.py"])
def test_the_folder_of_our_own_scripts_hides_no_package(
    script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """jobs/evaluate.py would stand before a package `evaluate`."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", [f"{PARENT}/jobs", f"{PARENT}/bin", *sys.path])
    monkeypatch.setattr(sys, "argv", [f"{PARENT}/{script}"])
    line = jobs._entrypoint(joined(), ["finetune"])
    assert f"PYTHONPATH={PARENT}" in shlex.split(line)
    given: list[dict[str, Any]] = []
    client: Any = SimpleNamespace(submit_job=lambda **job: given.append(job["runtime_env"]))
    jobs._submit(client, joined(), "job", line)
    assert given == [{}]


@pytest.mark.parametrize("makes", [None, "pip", "uv", "conda"])
def test_a_shipped_working_directory_holds_the_package(makes: str | None) -> None:
    """The `python` of PATH is the job's own only in an environment that Ray makes for it."""
    made: dict[str, Any] = {makes: ["mnist_ray"]} if makes else {}
    cluster = joined(working_dir="gcs://x.zip", **made)
    line = jobs._entrypoint(cluster, ["finetune", "--run", "a b"])
    python = "python" if makes else sys.executable
    assert shlex.split(line) == [python, "-m", "mnist_ray", "finetune", "--run", "a b"]


def test_ones_own_job_server_is_asked_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray prefers both variables to what it is given."""
    monkeypatch.setattr(jobs, "JobSubmissionClient", get_address_for_submission_client)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    here, elsewhere = "http://127.0.0.1:8265", "http://proxy:8265"
    assert jobs._client(joined(started_here=True), here) == here
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", elsewhere)
    assert jobs._client(joined(started_here=True), here) == here
    assert jobs._client(joined(), here) == elsewhere


def test_ray_init_has_no_argument_for_the_agents_port() -> None:
    """Where this fails, cluster/patches.py is no longer needed."""
    import ray

    assert "dashboard_agent_listen_port" not in inspect.signature(ray.init).parameters


def test_a_companys_proxy_is_not_asked_for_the_job_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:secret@proxy.example:3128")
    monkeypatch.setenv("no_proxy", "intranet.example")
    monkeypatch.delenv("NO_PROXY", raising=False)
    url = "http://127.0.0.1:8265"
    assert requests.utils.get_environ_proxies(url) != {}
    with jobs._no_proxy(url):
        assert requests.utils.get_environ_proxies(url) == {}
        assert requests.utils.get_environ_proxies("http://intranet.example/") == {}
        assert requests.utils.get_environ_proxies("http://elsewhere.example/") != {}
    assert os.environ["no_proxy"] == "intranet.example"
    assert "NO_PROXY" not in os.environ


def test_a_missing_job_server_is_told_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Began(Exception):
        pass

    def began(*_: object) -> None:
        raise Began

    monkeypatch.setattr(cluster, "check_shared_storage", began)
    bare, held = Cluster("127.0.0.1:6379", None, False, {}), cast(lease.Lease, None)
    plan = prepare(SearchSettings(dataset="digits", storage=str(tmp_path / "runs"), name="a"))
    message = r"^the cluster has no job server .* start Ray with ray\[default\]; or give --no-fin"
    with pytest.raises(WorkError, match=message):
        job._on_cluster(plan, bare, [], held)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(Began):
        job._on_cluster(dataclasses.replace(plan, finetune=False), bare, [], held)
    with pytest.raises(Began):
        job._on_cluster(plan, joined(started_here=True), [], held)


def test_a_job_server_out_of_reach_is_told_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a driver on another node: the dashboard listens on the head's own address alone."""
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    held, place = cast(lease.Lease, None), "http://127.0.0.1:9"
    plan = prepare(SearchSettings(dataset="digits", storage=str(tmp_path / "runs"), name="a"))
    away = dataclasses.replace(joined(), dashboard=place)
    message = (
        f"^the job server at {place} does not answer: Failed to connect .*:9; this program "
        "belongs on the head of the cluster, beside its job server; or give --no-finetune$"
    )
    with pytest.raises(WorkError, match=message):
        job._on_cluster(plan, away, [], held)
    assert not (tmp_path / "runs").exists()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", place)
    with pytest.raises(WorkError, match=f"^the job server at RAY_API_SERVER_ADDRESS={place} does"):
        job._on_cluster(plan, joined(), [], held)
    cluster.check_job_server(joined(started_here=True), "finetune")  # asks nobody


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (502, b"", "HTTPError: 502 Server Error: Bad Gateway"),
        (200, b"<html>", "JSONDecodeError: "),
        (200, b"{}", "KeyError: 'ray_version'"),
        (404, b"", "RuntimeError: Version check returned 404"),
    ],
)
def test_another_program_in_the_job_servers_place_is_one_line(
    monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, said: str
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        away = dataclasses.replace(joined(), dashboard=place)
        with pytest.raises(WorkError, match=f"^the job server at {place} cannot be used: {said}"):
            cluster.check_job_server(away, "finetune")
        server.shutdown()
