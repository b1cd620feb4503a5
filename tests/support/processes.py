"""Environments without a Ray, and the processes below one of ours: found, counted, killed."""

import contextlib
import os
import random
import re
import signal
import subprocess
import threading
import time

import psutil


def outside(**more: str) -> dict[str, str]:
    """An environment that knows no Ray."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
    return {k: v for k, v in os.environ.items() if k not in names} | {"OMP_NUM_THREADS": "1"} | more


def own_ray(**more: str) -> dict[str, str]:
    """An environment in which search.py starts a Ray of its own, whatever others there are."""
    return outside(RAY_ADDRESS="local", **more)


def finish(process: subprocess.Popen, timeout: float = 480) -> tuple[int, str]:
    """Waits for the end: exit code and all output that nobody has read.

    Raises:
        AssertionError: It did not end in time, and was killed with all below it; has the output.
    """
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_tree(process.pid)
        try:
            output, _ = process.communicate(timeout=20)
        except subprocess.TimeoutExpired as error:  # another process holds its pipe
            output = (error.stdout or b"").decode(errors="replace")
        raise AssertionError(f"it has not ended after {timeout} s:\n{output}") from None
    return process.returncode, output


def below(pid: int) -> list[psutil.Process]:
    """All descendants of a process of ours."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def workers(pid: int) -> list[psutil.Process]:
    """The processes of trials below a process of ours."""
    found = []
    for process in below(pid):
        with contextlib.suppress(psutil.Error):
            # `ray::TrainTrial` between two calls, within one `ray::ResourceTrainable.train`,
            # Tune's name for a class with resources
            if re.match(r"ray::\w*(Trial|Trainable)\b", " ".join(process.cmdline())):
                found.append(process)
    return found


def _starts(worker: psutil.Process) -> bool:
    """A trial's worker imports and sets up; it has not begun an epoch."""
    with contextlib.suppress(psutil.Error):
        return any(word.startswith("ray::ResourceTrainable.__init__") for word in worker.cmdline())
    return False


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and all below it, the parents first, so that none is started again."""
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def ours(folder: str) -> list[str]:
    """Processes with the folder in their arguments or, as Ray's agents, in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if folder in " ".join([*process.cmdline(), *process.environ().values()]):
                found.append(" ".join(process.cmdline()))
    return found


def nothing_of(folder: str) -> bool:
    """Whether all of them are gone in ten seconds: a killed one may be listed a moment longer."""
    deadline = time.monotonic() + 10
    while (left := ours(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    print(left)
    return not left


class Monkey(threading.Thread):
    """Kills a random trial's worker below `pid` every `pause` seconds, `most` of them at most.

    Where none is there to kill, it looks again at once: on a fast machine most moments fall into
    no trial. One that starts is mostly spared: on a slow machine a start takes longer than some
    pauses, and a trial that is killed too often is given up, as it should be.
    """

    def __init__(self, pid: int, pause: float, most: int | None = None, seed: int = 0) -> None:
        super().__init__(daemon=True)
        self.pid, self.pause, self.most, self.chance = pid, pause, most, random.Random(seed)
        self.kills, self.over = 0, threading.Event()

    def run(self) -> None:
        while self.kills != self.most and not self._rests():
            spare = self.chance.random() < 0.75
            while not self.over.wait(0.02):
                if found := [w for w in workers(self.pid) if not (spare and _starts(w))]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        self.chance.choice(found).kill()
                        self.kills += 1
                        break

    def _rests(self) -> bool:
        """Sleeps; True where it was told to stop."""
        return self.over.wait(self.pause * self.chance.uniform(0.5, 1.5))

    def __enter__(self) -> "Monkey":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.join()


def stop(process: subprocess.Popen, how: signal.Signals = signal.SIGKILL) -> str:
    """Ends a search of ours; its last output."""
    process.send_signal(how)
    return finish(process, 60)[1]
