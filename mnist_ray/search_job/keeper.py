"""The files that a search keeps: run.json, best/, the tables, the study's journal."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mnist_ray.run import layout, tables
from mnist_ray.run.about import About, now
from mnist_ray.run.records import Records
from mnist_ray.search_job.plan import Plan
from mnist_ray.settings import masked_command
from mnist_ray.storage import RunStorage

SAVE_EVERY = 5.0  # seconds between writings of the tables; the study itself is always up to date
QUICK, SHARE = 1.0, 10  # see Keeper.keep_journal
PACKAGES = ("mnist_ray", "ray", "optuna", "torch", "onnx", "onnxruntime", "pyarrow", "numpy")


def claim(plan: Plan) -> About:
    """Writes run.json, or takes the one of the run that goes on, and keeps the file of --onnx."""
    storage = plan.storage
    if plan.resumed:
        about = plan.resumed.patch(settings=plan.recorded_settings(), state="searching")
    else:
        if plan.settings.overwrite:
            # Files that somebody keeps beside a run's stay.
            own = {file.partition("/")[0] for file in storage.list() if layout.is_ours(file)}
            own -= {layout.lease_file("search")}
            # run.json last: an interruption leaves what is known as a run.
            for part in sorted(own, key=lambda part: part == layout.RUN):
                storage.delete(part)
        taken = f"--name: another search has just taken the name at {storage.uri}; give another"
        about = About.claim(storage, _facts(plan), taken)
    if plan.start and not storage.exists(layout.START):
        storage.write_bytes(layout.START, plan.start.data)
    return about


def _facts(plan: Plan) -> dict[str, Any]:
    """A new run.json."""
    return {
        "name": plan.name,
        "state": "searching",
        "settings": plan.recorded_settings(),
        "seed": plan.settings.seed,
        "points": list(plan.points),
        **({"onnx_sha256": plan.start.sha256} if plan.start else {}),
        "command": masked_command(sys.argv),
        "versions": {package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "git_commit": _git_commit(),
        "data": plan.work.facts(),
        "machine": {"node": platform.node(), "system": platform.platform(), "cpus": os.cpu_count()},
        "start": now(),
        "end": None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # ours, in a shipped working directory
        return None


def _git_commit() -> str | None:
    """The commit of this checkout, with "+" if files differ from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        out = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()


class Keeper:
    """Brings the run's directory up to date while trials end.

    Args:
        storage: The run's directory, as its owner writes it.
        records: The trials; the search adds to them.
        best_files: Names of the best epoch's files in a trial's folder, and their names in best/.
        journal: The study's local file, if it must be uploaded; else None.
        resumed: Whether best/ may hold the best epoch already.
    """

    def __init__(
        self,
        storage: RunStorage,
        records: Records,
        best_files: Mapping[str, str],
        journal: Path | None,
        *,
        resumed: bool = False,
    ) -> None:
        self.storage, self.records, self.best_files = storage, records, best_files
        self.journal, self.resumed = journal, resumed
        # Settled trials whose checkpoints are still there. One listing tells those of a run that
        # goes on: a removal for each of thousands of trials takes minutes in an object store.
        left = set(map(layout.trial_of, storage.list(layout.CHECKPOINTS))) if resumed else set()
        settled = {r.number for r in records.trials.values() if r.state != "RUNNING"}
        self._unswept = settled & left
        self._saved_at = -SAVE_EVERY
        self._uploaded: tuple[int, int] | None = None  # the journal's file and its size, last time
        self._upload_ended, self._upload_took = 0.0, 0.0
        self._kept: tuple[int, int] | None = None  # trial and epoch in best/

    def settled(self, number: int) -> None:
        """Takes note of a trial's end, which the study knows already."""
        self._unswept.add(number)
        self.save_if_due()

    def save_if_due(self) -> None:
        """As `save`, if that was some seconds ago."""
        if time.monotonic() - self._saved_at >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Writes best/, the tables and the journal, and removes losers' checkpoints."""
        self.keep_journal(at_once=True)  # first: the tables must not know more than it does
        self._keep_best()
        holder = self.records.best[0] if self.records.best else None
        for number in list(self._unswept):
            if number != holder or (self._kept and self._kept[0] == number):
                self.storage.delete(layout.trial_folder(number))
                self._unswept.discard(number)
        self.storage.write_bytes(layout.TRIALS, tables.parquet(tables.trials_table(self.records)))
        self.storage.write_bytes(layout.HISTORY, tables.parquet(tables.history_table(self.records)))
        self._saved_at = time.monotonic()

    def keep_journal(self, at_once: bool = False) -> None:
        """Brings the study's journal to an object store; on a disk it is in place already.

        Called before a trial is handed out: a host that is lost then costs no trial, only the epoch
        that was being trained.

        Args:
            at_once: Also if uploads are slow. Otherwise one that took more than QUICK seconds is
                followed by the next after SHARE times as long: a long journal on a slow line must
                not hold up the search.
        """
        if self.journal is None:
            return
        since = time.monotonic() - self._upload_ended
        if not at_once and self._upload_took > QUICK and since < SHARE * self._upload_took:
            return
        about = self.journal.stat()
        state = (about.st_ino, about.st_size)  # it only grows
        if state == self._uploaded:
            return
        begun = time.monotonic()
        self.storage.write_bytes(layout.JOURNAL, self.journal.read_bytes())
        self._upload_ended = time.monotonic()
        self._uploaded, self._upload_took = state, self._upload_ended - begun

    def _keep_best(self) -> None:
        """Copies the best epoch's files from its trial's folder to best/."""
        if self.records.best is None:
            return
        number, row = self.records.best
        if self._kept == (number, row["epoch"]):
            return
        folder = layout.trial_folder(number)
        if self.resumed and not self.storage.exists(f"{folder}/{list(self.best_files)[-1]}"):
            return  # kept before the interruption
        if self.resumed and self._kept is None:
            # From here on best/ holds no retraining any more, and the best is the search's.
            self.storage.delete(layout.CONFIRMED)
        for file, kept in self.best_files.items():
            content = self.storage.read_bytes(f"{folder}/{file}")
            self.storage.write_bytes(f"{layout.BEST}/{kept}", content)
        self._kept = (number, row["epoch"])
