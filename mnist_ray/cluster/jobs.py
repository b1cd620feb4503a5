"""Jobs within the cluster: submitted, followed to their end, stopped with this process."""

import asyncio
import contextlib
import importlib.util
import logging
import os
import queue
import re
import shlex
import sys
import sysconfig
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar
from urllib.parse import urlsplit

from ray.job_submission import JobStatus, JobSubmissionClient
from tqdm import tqdm

from mnist_ray.cluster.resources import Cluster, environment
from mnist_ray.errors import WorkError, first_line
from mnist_ray.settings import masked, scrubbed

T = TypeVar("T")

AGENT_SECONDS = 120.0  # for a node's agent, which starts jobs and is started after Ray has answered
AWAY_SECONDS = 15.0  # for which a job server may fail to answer
SILENT_SECONDS = 55.0  # without a line, after which a log says that the job still runs
# Lines of a job's log that are about Ray: how the job was started.
PLUMBING = re.compile(r"[\d-]+ [\d:,]+\s+INFO job_manager\.py|Running entrypoint for|ray: joined ")
STOP_SECONDS = 5.0  # in which a job server must answer that it stops a job
LOOK_SECONDS = 0.5  # without new lines after which the job's state is asked for


def submit_and_follow(cluster: Cluster, command: str, arguments: Sequence[str]) -> str:
    """Runs a command of ours as a Ray job of its own, printing its log as it grows.

    It runs in the runtime environment of this job. When this process is interrupted, it is stopped.

    Args:
        cluster: the one that this process is connected to.
        command: as "finetune" of `python -m mnist_ray finetune`.
        arguments: the command's flags.

    Returns:
        The job's id.

    Raises:
        WorkError: the job does not succeed, or the job server does not answer.
    """
    dashboard = _dashboard(cluster, command)
    with _no_proxy(dashboard):
        return _followed(cluster, dashboard, command, arguments)


def check_job_server(cluster: Cluster, command: str, otherwise: str = "") -> None:
    """Asks the job server of a Ray that was joined for an answer; one of our own has one.

    Args:
        cluster: the one that this process is connected to.
        command: the job's, as in submit_and_follow.
        otherwise: what else a person can do, to end the message.

    Raises:
        WorkError: the cluster has none, or it cannot be reached from here.
    """
    dashboard = _dashboard(cluster, command, otherwise)
    if cluster.started_here:
        return
    # Often it listens on the head's loopback address alone, and this process is on another node.
    belongs = "; this program belongs on the head of the cluster, beside its job server"
    with _no_proxy(dashboard):
        _client(cluster, dashboard, f"{belongs}{otherwise}")


def _dashboard(cluster: Cluster, command: str, otherwise: str = "") -> str:
    """The URL of the job server. Raises WorkError if the cluster has none."""
    if cluster.dashboard is None:
        raise WorkError(
            f"the cluster has no job server (dashboard), which the {command} job is submitted to; "
            f"start Ray with ray[default]{otherwise}"
        )
    return cluster.dashboard


@contextlib.contextmanager
def _no_proxy(dashboard: str) -> Iterator[None]:
    """Has a company's proxy (https_proxy and others) left out on the way to this job server."""
    host = urlsplit(dashboard).hostname or ""
    known = {name: os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")}
    with environment(**{name: ",".join(filter(None, (v, host))) for name, v in known.items()}):
        yield


def _followed(cluster: Cluster, dashboard: str, command: str, arguments: Sequence[str]) -> str:
    client = _client(cluster, dashboard)
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    job = f"{command}-{uuid.uuid4().hex[:12]}"
    _submit(client, cluster, job, _entrypoint(cluster, [command, *arguments]))
    status = None
    try:
        status = _follow(client, cluster, job, _Log(command, "--verbose" in arguments))
    finally:
        if status is None:
            _stop(client, job)
    if status != JobStatus.SUCCEEDED:
        message = _ask(cluster, lambda: client.get_job_info(job).message) or "see its log"
        raise WorkError(
            f"the job {job} ({command}) ended as {status.value}: {message.splitlines()[0]}"
        )
    return job


def _stop(client: JobSubmissionClient, job: str) -> None:
    """Stops a job, unless the job server does not answer in time.

    A terminal's Ctrl-C also ends parts of a Ray that was started here, and the request then waits
    for ever. That Ray is ended next, and the job with it.
    """

    def request() -> None:
        with contextlib.suppress(Exception):  # if the job server is gone, the job is too
            client.stop_job(job)

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(STOP_SECONDS)


def _client(cluster: Cluster, dashboard: str, otherwise: str = "") -> JobSubmissionClient:
    """The cluster's job server: Ray itself would prefer RAY_ADDRESS to its argument.

    Raises:
        WorkError: none answers there; `otherwise` ends the message.
    """
    given = os.environ.get("RAY_API_SERVER_ADDRESS")
    address = given if given and not cluster.started_here else dashboard
    try:
        with environment(RAY_API_SERVER_ADDRESS=address):
            return JobSubmissionClient(address)
    except Exception as error:  # another program may answer there, and anything
        named = "RAY_API_SERVER_ADDRESS=" if address == given else ""
        away = isinstance(error, ConnectionError)
        what = "does not answer" if away else f"cannot be used: {type(error).__name__}"
        why = scrubbed(first_line(error), address).rstrip(".")
        raise WorkError(
            f"the job server at {named}{masked(address)} {what}: {why}{otherwise}"
        ) from error


def _entrypoint(cluster: Cluster, words: Sequence[str]) -> str:
    """The shell's line that starts `mnist_ray` with these words."""
    module = ["-m", "mnist_ray", *words]
    if "working_dir" in cluster.runtime_env:  # it holds the package
        # `python` is that of the environment that Ray makes; without one PATH may have another.
        makes = any(key in cluster.runtime_env for key in ("pip", "uv", "conda"))
        return shlex.join(["python" if makes else sys.executable, *module])
    names = {"PYTHONPATH": path} if (path := _python_path()) else {}
    if cluster.started_here:
        # Ray tells a job the address of any Ray among this machine's processes.
        names["RAY_ADDRESS"] = cluster.address
    # It starts in this process's folder: relative paths and a person's own modules mean the
    # same. -P: a folder that is called mnist_ray there is not taken for the package.
    environment = [f"{name}={value}" for name, value in names.items()]
    line = shlex.join(["env", *environment, sys.executable, "-P", *module])
    return f"cd {shlex.quote(os.getcwd())} && exec {line}"


def _script_folder() -> str | None:
    """The folder of the caller's script, whose modules trials find: Ray tells their workers of it.

    None: there is no such folder, or it holds nothing of a person's.
    """
    script = os.path.dirname(os.path.realpath(sys.argv[0]))
    ours = (*sysconfig.get_paths().values(), os.path.join(_checkout() or "", "jobs"))
    command = os.path.basename(sys.argv[0]) == "mnist-ray"
    return script if script in sys.path and script not in ours and not command else None


def _checkout() -> str | None:
    """The folder that holds the package; None where it is installed."""
    package = importlib.util.find_spec("mnist_ray")
    parent = str(Path(package.origin).parent.parent) if package and package.origin else ""
    return parent if parent and parent not in sysconfig.get_paths().values() else None


def _python_path() -> str | None:
    """PYTHONPATH for the job; None if it needs no other than this process has."""
    checkout, script = _checkout(), _script_folder()
    if not checkout and not script:
        return None
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys(filter(None, [checkout, *given, script])))


def _submit(client: JobSubmissionClient, cluster: Cluster, job: str, entrypoint: str) -> None:
    deadline = time.monotonic() + AGENT_SECONDS
    runtime_env = dict(cluster.runtime_env)
    if "working_dir" not in runtime_env and _script_folder():  # its workers shall find it too
        variables = {**runtime_env.get("env_vars", {}), "PYTHONPATH": _python_path()}
        runtime_env["env_vars"] = variables
    while True:
        try:
            client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env, submission_id=job)
            return
        except (OSError, RuntimeError, ValueError) as error:  # requests' are OSErrors
            # After a short search, on a slow machine, the node's agent may not have started yet.
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise WorkError(
                    f"the job server at {cluster.dashboard} refuses the job: {first_line(error)}"
                ) from error
        time.sleep(1)


class _Log:
    """Prints a job's log, whole lines, and shows that a silent job still runs.

    In a terminal a clock runs below the lines. In a log a line comes about once a minute.

    Args:
        command: the job's, for the clock.
        plumbing: whether Ray's own lines are printed too.
    """

    def __init__(self, command: str, plumbing: bool = False) -> None:
        self.command, self.plumbing = command, plumbing
        self.clock: tqdm[NoReturn] = tqdm(
            desc=command, bar_format="{desc} {elapsed}", disable=None, leave=False
        )
        self.length, self._rest = 0, ""  # characters taken; the beginning of a line
        self._began = self._last = time.monotonic()

    def take(self, text: str, end: bool = False) -> None:
        """Prints the lines that are complete; at the job's end all."""
        self.length += len(text)
        lines = (self._rest + text).splitlines(keepends=True)
        whole = end or not lines or lines[-1].endswith("\n")
        self._rest = "" if whole else lines.pop()
        for line in lines:
            if self.plumbing or not PLUMBING.match(line):
                self.clock.write(line, end="")
                self._last = time.monotonic()
        sys.stdout.flush()

    def wait(self) -> None:
        """Shows the time, if nothing else was shown for long enough."""
        now = time.monotonic()
        if not self.clock.disable:
            self.clock.refresh()
        elif now - self._last > SILENT_SECONDS:
            print(f"{self.command}: runs for {now - self._began:.0f} s", flush=True)
            self._last = now


def _follow(client: JobSubmissionClient, cluster: Cluster, job: str, log: _Log) -> JobStatus:
    """Prints the job's log until its end."""
    lines: queue.Queue[str] = queue.Queue()
    over = threading.Event()
    threading.Thread(target=_tail, args=(client, job, lines, over), daemon=True).start()
    try:
        while True:
            try:
                text = lines.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                status = _ask(cluster, lambda: client.get_job_status(job))
                if status.is_terminal():
                    break
                log.wait()
                continue
            log.take(text)
    finally:
        over.set()
        log.clock.close()
    log.take(_ask(cluster, lambda: client.get_job_logs(job))[log.length :], end=True)
    return status


def _tail(
    client: JobSubmissionClient, job: str, lines: queue.Queue[str], over: threading.Event
) -> None:
    """Passes the log on as it grows; begins again if the connection breaks."""
    passed = 0

    async def follow() -> None:
        nonlocal passed
        at = 0
        async for text in client.tail_job_logs(job):
            if over.is_set():
                return
            new = text[max(0, passed - at) :]
            at += len(text)
            if new:
                lines.put(new)
                passed = at

    while not over.wait(LOOK_SECONDS):
        with contextlib.suppress(Exception):  # the job's state, asked for elsewhere, tells
            asyncio.run(follow())


def _ask(cluster: Cluster, question: Callable[[], T]) -> T:
    """An answer of the job server. Raises WorkError if none comes for AWAY_SECONDS."""
    deadline = time.monotonic() + AWAY_SECONDS
    while True:
        try:
            return question()
        except Exception as error:  # requests' errors, and Ray's bare RuntimeError
            if time.monotonic() > deadline:
                raise WorkError(
                    f"the job server at {cluster.dashboard} has gone: {first_line(error)}"
                ) from error
        time.sleep(1)
