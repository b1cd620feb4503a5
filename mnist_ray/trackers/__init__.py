"""Programs that show a search: TensorBoard, MLflow, Weights & Biases.

A thread per tracker brings MLflow and W&B up to date from the run's records. A slow or missing
server therefore delays nothing; it gets the missed values later. (Ray's own callbacks know
no PRUNED trials, begin a new run for a resumed trial, and call the server within Tune's loop.)
TensorBoard's files are written by each trial, see summaries.py. Only requested ones are imported.
"""

import contextlib
import importlib.util
import re
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from mnist_ray import output
from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.run import layout
from mnist_ray.run.best import Confirmed
from mnist_ray.run.records import Records
from mnist_ray.settings import SearchSettings, load, masked
from mnist_ray.settings.options import TRACKERS
from mnist_ray.storage import RunStorage
from mnist_ray.trackers.tracker import PATIENCE, Tracker, commands

__all__ = [
    "Tracker", "begin", "check", "commands", "confirmed", "following", "forget_unknown", "opened",
    "tell",
]  # fmt: skip

EVERY = 1.0  # seconds between two updates
TRIES = 3  # of the last update
LACK = "it does not have the search's end"
IN_A_HURRY = 1.5  # the same for a search that is interrupted


# ---- before anything starts


def check(settings: SearchSettings) -> None:
    """Checks the trackers' options; imports and contacts nothing.

    Raises:
        SettingsError: A package is missing, or --mlflow is not an address.
    """
    packages = {"tensorboard": "tensorboard", **{o: part.package for o, part in TRACKERS.items()}}
    for option, package in packages.items():
        if package and getattr(settings, option) and importlib.util.find_spec(package) is None:
            raise SettingsError(
                f"{_flag(option)}: the package {package} is missing; "
                f"pip install 'mnist_ray[{option}]'"
            )
    address = r"(sqlite:///.|((postgresql|mysql)(\+\w+)?|https?)://.)"
    if settings.mlflow and not re.match(address, settings.mlflow):
        raise SettingsError(
            f"--mlflow: {masked(settings.mlflow)!r} is not allowed; "
            "expected sqlite:///FILE, postgresql://…, mysql://… or http(s)://…"
        )


def opened(settings: SearchSettings) -> list[Tracker]:
    """The requested trackers, each of which has answered.

    Raises:
        SettingsError: One does not answer; names the flag.
    """
    requested = {option: getattr(settings, option) for option in TRACKERS}
    return [
        load(TRACKERS[option].made, _flag(option), ())(value)
        for option, value in requested.items()
        if value
    ]


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


# ---- while the search runs


def begin(
    trackers: Sequence[Tracker],
    name: str,
    settings: Mapping[str, Any],
    folder: RunStorage,
    earlier: Mapping[str, str],
) -> dict[str, str]:
    """Calls Tracker.begin of all.

    Returns:
        The search's id in each tracker, by flag: `earlier` for the next process.

    Raises:
        WorkError: A tracker fails.
    """
    known = {}
    for tracker in trackers:
        try:
            known[tracker.flag] = tracker.begin(name, settings, folder, earlier.get(tracker.flag))
        except Exception as error:
            raise WorkError(f"{tracker.flag}: {tracker.reason(error)}") from None
    return known


@contextlib.contextmanager
def following(trackers: Sequence[Tracker], records: Records) -> Iterator[None]:
    """Keeps the trackers up to date while the block runs, then tells them how it ended.

    A tracker that fails is tried again every EVERY seconds, at the end TRIES times. One warning is
    printed for each, and another if it does not get the search's end.
    """
    ended, how = threading.Event(), ["FINISHED"]

    def follow(tracker: Tracker) -> None:
        warned, tries = False, TRIES
        while tries:
            last = ended.wait(EVERY)
            try:
                tracker.sync(records)
                if last:
                    tracker.end(how[0])
                    return
            except Exception as error:
                tries -= last
                if not tries:
                    tell(f"warning: {tracker.flag}: {tracker.reason(error)}; {LACK}")
                elif not warned:
                    tell(f"warning: {tracker.flag}: {tracker.reason(error)}; the search goes on")
                warned = True
                time.sleep(EVERY if last else 0)

    threads = [threading.Thread(target=follow, args=(each,), daemon=True) for each in trackers]
    for thread in threads:
        thread.start()
    try:
        yield
    except BaseException as error:
        how[0] = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        raise
    finally:
        ended.set()
        seconds = IN_A_HURRY if how[0] == "KILLED" else PATIENCE
        _wait(trackers, threads, seconds, LACK)


def confirmed(trackers: Sequence[Tracker], found: Sequence[Confirmed]) -> None:
    """Calls Tracker.confirmed of all; one that fails, or takes too long, gets a warning."""

    def show(tracker: Tracker) -> None:
        try:
            tracker.confirmed(found)
        except Exception as error:
            tell(f"warning: {tracker.flag}: {tracker.reason(error)}; --confirm is not shown there")

    threads = [threading.Thread(target=show, args=(each,), daemon=True) for each in trackers]
    for thread in threads:
        thread.start()
    _wait(trackers, threads, PATIENCE, "--confirm is not shown there")


def _wait(
    trackers: Sequence[Tracker], threads: Sequence[threading.Thread], seconds: float, lack: str
) -> None:
    """Waits for a thread per tracker, and says what one lacks that takes longer."""
    deadline = time.monotonic() + seconds
    for tracker, thread in zip(trackers, threads, strict=True):
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            tell(f"warning: {tracker.flag}: too slow; {lack}")


def tell(line: str) -> None:
    """Prints a line, above the progress bar if there is one."""
    with output.interrupt_if_lost():
        tqdm.write(line)
        sys.stdout.flush()


def forget_unknown(storage: RunStorage, numbers: Collection[int]) -> None:
    """Removes the event files of trials that the study does not know; their numbers are reused."""
    known = set(map(layout.tensorboard_folder, numbers))
    for folder in {name.rpartition("/")[0] for name in storage.list(layout.TENSORBOARD)} - known:
        storage.delete(folder)
