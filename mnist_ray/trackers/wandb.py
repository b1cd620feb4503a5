"""Weights & Biases: a run for each trial, in a group named like the search's run."""

import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("WANDB_SILENT", "true")

import wandb

from mnist_ray.errors import SettingsError, first_line, shortened
from mnist_ray.run.best import Confirmed
from mnist_ray.run.records import Record, Records
from mnist_ray.settings import scrubbed
from mnist_ray.storage import RunStorage
from mnist_ray.trackers.tracker import PATIENCE, quoted

log = logging.getLogger(__name__)

# For which a trial's end, and W&B's own end of this process, wait for its server; without a limit
# they wait for ever.
LIMITS: dict[str, Any] = {  # older versions have none
    name: value
    for name, value in (("finish_timeout", PATIENCE), ("finish_timeout_raises", True))
    if name in wandb.Settings.model_fields
}


class WandB:
    """A Tracker; see mnist_ray.trackers."""

    flag = "--wandb"

    def __init__(self, project: str) -> None:
        self.project = project
        self.offline = os.environ.get("WANDB_MODE", "online") in ("offline", "dryrun", "disabled")
        if not self.offline:
            try:
                wandb.login()  # with a known key, or by asking for one in a terminal
            except wandb.Error as error:
                raise SettingsError(
                    f"{self.flag}: {self.reason(error)} Or set WANDB_API_KEY, or WANDB_MODE=offline"
                ) from None
        self.viewer = f"project {project} of Weights & Biases"
        self.group = self.suffix = ""
        self.settings: dict[str, Any] = {}
        self.folder: str | None = None  # of wandb's local files; None: wandb's own choice
        self.runs: dict[int, Any] = {}  # trial number -> its open run
        self.logged: dict[int, int] = {}  # trial number -> its last epoch that W&B has
        self.closed: set[int] = set()
        self.resumed = False

    def reason(self, error: Exception) -> str:
        """See Tracker."""
        return shortened(scrubbed(first_line(error)), 300)

    def begin(
        self, name: str, settings: Mapping[str, Any], folder: RunStorage, earlier: str | None
    ) -> str:
        """See Tracker. Trials that ended in an earlier process stay as they are.

        The ids of a search's runs have a suffix of its own: W&B would add to those of an older
        search of the same name.
        """
        project, _, suffix = (earlier or "").partition("#")  # older runs have no suffix
        self.resumed = project == self.project
        self.suffix = suffix if self.resumed else secrets.token_hex(4)
        self.group = name
        self.settings = {key: value for key, value in settings.items() if value is not None}
        chosen = os.environ.get("WANDB_DIR")
        self.folder = str(folder.local_path) if folder.local_path and chosen is None else None
        if self.offline:
            place = quoted(self.folder or chosen or ".")
            self.viewer = f"wandb sync {place}/wandb/offline-run-*"
        return f"{self.project}#{self.suffix}" if self.suffix else self.project

    def sync(self, records: Records) -> None:
        """See Tracker."""
        trials = list(records.trials.values())  # a copy: the search adds to it meanwhile
        if self.resumed:
            self.closed |= {record.number for record in trials if record.state != "RUNNING"}
            self.resumed = False
        for record in trials:
            if record.number not in self.closed:
                self._trial(record)

    def _trial(self, record: Record) -> None:
        # The state first: a trial that has ended has all its rows.
        number, state = record.number, record.state
        if number not in self.runs:
            run = self._run(number, {**self.settings, **record.params})
            self.runs[number], self.logged[number] = run, run.starting_step - 1
        run = self.runs[number]
        for epoch, row in sorted(record.rows.items()):
            if epoch > self.logged[number]:
                run.log({k: v for k, v in row.items() if k != "epoch" and v == v}, step=epoch)
                self.logged[number] = epoch
        if state != "RUNNING":
            ended = {"state": state, "reason": record.reason, "n_parameters": record.n_parameters}
            run.summary.update(ended)
            self._finish(run, number, 1 if state == "FAIL" else 0)
            del self.runs[number]
            self.closed.add(number)

    def _run(self, number: int, config: Mapping[str, Any] | None = None) -> Any:
        return wandb.init(
            project=self.project,
            group=self.group,
            id=f"{self.group}-{f'{self.suffix}-' if self.suffix else ''}{number:05d}",
            name=f"trial-{number:05d}",
            config=None if config is None else dict(config),
            dir=self.folder,
            resume="allow",  # a trial that goes on in another process
            reinit="create_new",
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, x_disable_stats=True, **LIMITS
            ),
        )

    def end(self, status: str) -> None:
        """See Tracker: open trials can be continued later."""
        for number, run in self.runs.items():
            self._finish(run, number, 0 if status == "FINISHED" else 1)

    def _finish(self, run: Any, number: int, exit_code: int) -> None:
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError:
            place = quoted(self.folder or os.environ.get("WANDB_DIR") or ".")
            log.warning(
                "--wandb: the server did not take trial %d whole in %g s; the rest is on disk: "
                "wandb sync %s/wandb/run-*",
                *(number, PATIENCE, place),
            )

    def confirmed(self, found: Sequence[Confirmed]) -> None:
        """See Tracker. Each trial's run is opened again and has mean, spread and `chosen`."""
        for each in found:
            run = self._run(each.number)
            values = {"confirmed_mean": each.mean, "confirmed_spread": each.spread}
            run.summary.update({**values, "chosen": each is found[0]})
            self._finish(run, each.number, 0)
