"""Where a search can be watched: TensorBoard, MLflow, Weights & Biases, and the commands that show them.

MLflow and W&B are brought up to date from the run's records by a thread each, so a server that is slow or gone holds nothing up: what it
has missed, it is told at the next try. (Ray's own callbacks know no PRUNED trials, begin a new run for a trial that goes on, and speak to
the server from within Tune's loop.) No tracker is imported unless it is asked for. TensorBoard's files are written by summaries.py.
"""

import contextlib
import importlib.util
import json
import logging
import math
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from tqdm import tqdm

from mnist_ray.errors import SettingsError, WorkError, first_line
from mnist_ray.run.records import Record, Records, Row
from mnist_ray.settings import SearchSettings, without_password
from mnist_ray.storage import RunStorage

EVERY = 1.0  # seconds between two looks at the records
PATIENCE, IN_A_HURRY = (
    60.0,
    1.5,
)  # seconds that the end of a search, and that of one that is interrupted, waits for a tracker
EXPERIMENT = "mnist_ray"  # MLflow's name for what all searches are part of
STATUS = {
    "COMPLETE": "FINISHED",
    "PRUNED": "KILLED",
    "FAIL": "FAILED",
}  # as MLflow's own storage for Optuna maps them

# ---- before anything starts


def check(settings: SearchSettings) -> None:
    """SettingsError where a tracker's package is missing or its place is none; imports and contacts nothing."""
    for flag, wanted, package in (
        ("tensorboard", settings.tensorboard, "tensorboard"),
        ("mlflow", settings.mlflow, "mlflow"),
        ("wandb", settings.wandb, "wandb"),
    ):
        if wanted and importlib.util.find_spec(package) is None:
            raise SettingsError(
                f"--{flag}: the package {package} is missing; pip install 'mnist_ray[{flag}]'"
            )
    if settings.mlflow and not re.match(
        r"(sqlite:///.|((postgresql|mysql)(\+\w+)?|https?)://.)", settings.mlflow
    ):
        shown = without_password(settings.mlflow)
        raise SettingsError(
            f"--mlflow: {shown!r} is not allowed; expected sqlite:///FILE, postgresql://…, mysql://… or http(s)://…"
        )


class Tracker(Protocol):
    """Something outside that a search is written to. Only one thread at a time calls it."""

    flag: str
    watch: str
    """What shows it: a command or an address."""

    def begin(
        self, name: str, settings: Mapping[str, Any], folder: RunStorage, earlier: str | None
    ) -> str:
        """Makes the search known, or finds it again by what this returned to an `earlier` process; `settings` without passwords."""
        ...

    def sync(self, records: Records) -> None:
        """Writes what has not been written yet. May raise anything, and is then called again."""
        ...

    def end(self, status: str) -> None:
        """Writes how the search ended: FINISHED, FAILED or KILLED (interrupted)."""
        ...

    def reason(self, error: Exception) -> str:
        """One line of why it failed, without passwords."""
        ...


def opened(settings: SearchSettings) -> list[Tracker]:
    """The trackers that are asked for, each of which has answered. SettingsError naming the flag where one does not."""
    trackers: list[Tracker] = []
    if settings.mlflow:
        trackers.append(MLflow(settings.mlflow))
    if settings.wandb:
        trackers.append(WandB(settings.wandb))
    return trackers


# ---- while the search runs


def begin(
    trackers: Sequence[Tracker],
    name: str,
    settings: Mapping[str, Any],
    folder: RunStorage,
    earlier: Mapping[str, str],
) -> dict[str, str]:
    """Tracker.begin of all; returns what the next process is to give as `earlier`. WorkError where one fails."""
    known = {}
    for tracker in trackers:
        try:
            known[tracker.flag] = tracker.begin(name, settings, folder, earlier.get(tracker.flag))
        except Exception as error:
            raise WorkError(f"{tracker.flag}: {tracker.reason(error)}") from None
    return known


@contextlib.contextmanager
def following(trackers: Sequence[Tracker], records: Records) -> Iterator[None]:
    """Keeps the trackers up to date while the block runs, and afterwards tells them how it ended.

    A tracker that fails is tried again every EVERY seconds; a person is told once, in a line.
    """
    ended, how = threading.Event(), ["FINISHED"]

    def follow(tracker: Tracker) -> None:
        warned = last = False
        while not last:
            last = ended.wait(EVERY)
            try:
                tracker.sync(records)
                if last:
                    tracker.end(how[0])
            except Exception as error:
                if not warned:
                    tell(f"warning: {tracker.flag}: {tracker.reason(error)}; the search goes on")
                warned = True

    threads = [
        threading.Thread(target=follow, args=(tracker,), daemon=True) for tracker in trackers
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    except BaseException as error:
        how[0] = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        raise
    finally:
        ended.set()
        deadline = time.monotonic() + (IN_A_HURRY if how[0] == "KILLED" else PATIENCE)
        for tracker, thread in zip(trackers, threads, strict=True):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                tell(
                    f"warning: {tracker.flag}: it does not have the search's end, as it is too slow"
                )


def tell(line: str) -> None:
    """Prints a line, above the bar where there is one."""
    tqdm.write(line)
    sys.stdout.flush()


def _network_error(error: BaseException | None) -> OSError | None:
    """The innermost one, which says what happened in a few words."""
    found: OSError | None = None
    while error is not None:
        found = error if isinstance(error, OSError) else found
        error = error.__cause__ or error.__context__
    return found


# ---- TensorBoard


def tensorboard_folder(number: int) -> str:
    """Where a trial's event files are, below the run's directory."""
    return f"tensorboard/{number:05d}"


def forget_unknown(storage: RunStorage, numbers: Collection[int]) -> None:
    """Removes the event files of trials that the study does not know after an interruption: their numbers are given anew."""
    known = set(map(tensorboard_folder, numbers))
    for folder in {name.rpartition("/")[0] for name in storage.list("tensorboard")} - known:
        storage.delete(folder)


# ---- MLflow


class MLflow:
    """One MLflow run for the search, and below it one for each trial."""

    flag = "--mlflow"

    def __init__(self, place: str) -> None:
        from mnist_ray.study.studies import expanded

        self.shown = _with_driver(without_password(place))
        self.url = _with_driver(expanded(place, self.flag))
        for name, value in {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_LOGGING_LEVEL": "ERROR",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the next look at the records tries again
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        }.items():
            os.environ.setdefault(name, value)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        try:
            self._open()
        except Exception as error:
            raise SettingsError(
                f"{self.flag}: {self.shown} cannot be opened: {self.reason(error)}"
            ) from None
        self.runs: dict[int, str] = {}  # trial number -> MLflow's id of it
        self.closed: set[int] = set()
        self.logged: dict[int, set[int]] = {}  # trial number -> epochs that have arrived
        self.best: tuple[int, Row] | None = None

    def _open(self) -> None:
        import sqlalchemy

        if not self.url.startswith("http"):  # MLflow itself would try for a minute
            engine = sqlalchemy.create_engine(self.url)
            engine.connect().close()
            engine.dispose()
        from mlflow import MlflowClient

        self.client = MlflowClient(self.url)
        found = self.client.get_experiment_by_name(EXPERIMENT)
        self.experiment = (
            found.experiment_id if found else self.client.create_experiment(EXPERIMENT)
        )
        self.watch = f"mlflow ui --backend-store-uri {quoted(self.shown)}"

    def reason(self, error: Exception) -> str:
        """See Tracker. Of a database's error the driver's part, of a server's the network's."""
        text = first_line(_network_error(error) or getattr(error, "orig", None) or error).replace(
            self.url, self.shown
        )
        password = urlsplit(self.url).password
        return without_password(text.replace(password, "***") if password else text)[:300]

    def begin(
        self, name: str, settings: Mapping[str, Any], folder: RunStorage, earlier: str | None
    ) -> str:
        """See Tracker: returns MLflow's id of the search. Where an `earlier` one is gone, a new one begins."""
        tags = {
            "objective": settings["metric"],
            "n_trials": str(settings["trials"]),
            "run": folder.uri,
        }
        if earlier and self._find(earlier):
            self.search = earlier
            self.client.update_run(earlier, status="RUNNING")
            for key, value in tags.items():
                self.client.set_tag(earlier, key, value)
        else:
            self.search = self.client.create_run(
                self.experiment, run_name=name, tags=tags
            ).info.run_id
            self._params(
                self.search,
                {
                    key: value
                    for key, value in settings.items()
                    if value is not None and key != "trials"
                },
            )
        if self.url.startswith("http"):
            self.watch = (
                f"{self.shown.rstrip('/')}/#/experiments/{self.experiment}/runs/{self.search}"
            )
        return self.search

    def _find(self, search: str) -> bool:
        """Whether the search is there; takes note of its trials."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.get_run(search)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment],
                f"tags.mlflow.parentRunId = '{search}'",
                max_results=1000,
                page_token=token,
            )
            for run in page:
                number = int(run.data.tags["number"])
                self.runs[number] = run.info.run_id
                if run.info.status != "RUNNING":
                    self.closed.add(number)
            token = page.token
            if not token:
                return True

    def sync(self, records: Records) -> None:
        """See Tracker."""
        for record in list(records.trials.values()):  # a copy: the search adds to it meanwhile
            if record.number not in self.closed:
                self._trial(record)
        best = records.best
        if best is not None and best != self.best:
            number, row = best
            self._metrics(self.search, {"best_value": row[records.metric]}, records.settled())
            self.client.set_tag(self.search, "best_trial", str(number))
            self.client.set_tag(
                self.search, "best_params", json.dumps(records.trials[number].params)
            )
            self.best = best

    def _trial(self, record: Record) -> None:
        number, state = (
            record.number,
            record.state,
        )  # the state first: rows of a trial that has ended are all there
        if number not in self.runs:
            tags = {"mlflow.parentRunId": self.search, "number": str(number)}
            self.runs[number] = self.client.create_run(
                self.experiment, run_name=f"trial-{number:05d}", tags=tags
            ).info.run_id
            self._params(self.runs[number], record.params)
            self.logged[number] = set()
        run = self.runs[number]
        # Taken out, and put back at the end: after a failure in between, MLflow is asked what has arrived.
        logged = self.logged.pop(number, None)
        if logged is None:
            logged = {metric.step for metric in self.client.get_metric_history(run, "lr")}
        for epoch, row in list(record.rows.items()):
            if epoch not in logged:
                self._metrics(
                    run, {name: value for name, value in row.items() if name != "epoch"}, epoch
                )
                logged.add(epoch)
        if state == "RUNNING":
            self.logged[number] = logged
            return
        tags = {
            "state": state,
            "reason": record.reason,
            "node": record.node,
            "n_parameters": str(record.n_parameters or ""),
        }
        for key, value in tags.items():
            if value:
                self.client.set_tag(run, key, value)
        self.client.set_terminated(run, STATUS[state])
        self.closed.add(number)

    def _params(self, run: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        given = [Param(key, str(value)[:500]) for key, value in params.items()]
        for start in range(0, len(given), 100):  # as many as a request may hold
            self.client.log_batch(run, params=given[start : start + 100])

    def _metrics(self, run: str, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(
            run,
            metrics=[
                Metric(key, value, now, step)
                for key, value in values.items()
                if math.isfinite(value)
            ],
        )

    def end(self, status: str) -> None:
        """See Tracker."""
        self.client.set_terminated(self.search, status)


# ---- Weights & Biases


class WandB:
    """A W&B run for each trial, in a group named as the search's run."""

    flag = "--wandb"

    def __init__(self, project: str) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self.wandb, self.project = wandb, project
        self.offline = os.environ.get("WANDB_MODE", "online") in ("offline", "dryrun", "disabled")
        if not self.offline:
            try:
                wandb.login()  # with a key that is known already, or by asking for one in a terminal
            except wandb.Error as error:
                raise SettingsError(
                    f"{self.flag}: {self.reason(error)} Or set WANDB_API_KEY, or WANDB_MODE=offline"
                ) from None
        self.runs: dict[int, Any] = {}
        self.logged: dict[int, int] = {}  # trial number -> its last epoch that W&B has
        self.closed: set[int] = set()
        self.again = False
        self.watch = f"project {project} of Weights & Biases"

    def reason(self, error: Exception) -> str:
        """See Tracker."""
        return without_password(first_line(error))[:300]

    def begin(
        self, name: str, settings: Mapping[str, Any], folder: RunStorage, earlier: str | None
    ) -> str:
        """See Tracker: returns the project. The trials that an `earlier` process saw ending are left alone."""
        self.group, self.settings = (
            name,
            {key: value for key, value in settings.items() if value is not None},
        )
        self.folder = (
            None
            if "WANDB_DIR" in os.environ or folder.local_path is None
            else str(folder.local_path)
        )
        self.again = earlier == self.project
        if self.offline:
            self.watch = f"wandb sync {quoted(str(self.folder or os.environ.get('WANDB_DIR', '.')))}/wandb/offline-run-*"
        return self.project

    def sync(self, records: Records) -> None:
        """See Tracker."""
        if self.again:
            self.closed |= {
                record.number
                for record in list(records.trials.values())
                if record.state != "RUNNING"
            }
            self.again = False
        for record in list(records.trials.values()):
            if record.number not in self.closed:
                self._trial(record)

    def _trial(self, record: Record) -> None:
        number, state = (
            record.number,
            record.state,
        )  # the state first: rows of a trial that has ended are all there
        if number not in self.runs:
            run = self.wandb.init(
                project=self.project,
                group=self.group,
                id=f"{self.group}-{number:05d}",
                name=f"trial-{number:05d}",
                config={**self.settings, **record.params},
                dir=self.folder,
                resume="allow",  # a trial that goes on in another process
                reinit="create_new",
                settings=self.wandb.Settings(
                    silent=True, console="off", disable_git=True, x_disable_stats=True
                ),
            )
            self.runs[number], self.logged[number] = run, run.starting_step - 1
        run = self.runs[number]
        for epoch, row in sorted(record.rows.items()):
            if epoch > self.logged[number]:
                run.log({name: value for name, value in row.items() if name != "epoch"}, step=epoch)
                self.logged[number] = epoch
        if state != "RUNNING":
            run.summary.update(
                {"state": state, "reason": record.reason, "n_parameters": record.n_parameters}
            )
            run.finish(exit_code=1 if state == "FAIL" else 0)
            del self.runs[number]
            self.closed.add(number)

    def end(self, status: str) -> None:
        """See Tracker: what still runs is left to be continued."""
        for run in self.runs.values():
            run.finish(exit_code=0 if status == "FINISHED" else 1)


# ---- what to type


def commands(
    settings: SearchSettings,
    storage: RunStorage,
    journal: str,
    dashboard: str | None,
    trackers: Sequence[Tracker],
) -> list[str]:
    """One line for each way of watching a search: `journal` is the study's file, where it is the run's own."""
    lines = []
    if settings.study != "memory":
        place = _with_driver(without_password(settings.study)) if settings.study else journal
        lines.append(f"watch it: optuna-dashboard {quoted(place)}")
    if settings.tensorboard:
        lines.append(f"watch it: tensorboard --logdir {quoted(storage.join('tensorboard'))}")
    lines += [f"watch it: {tracker.watch}" for tracker in trackers]
    if dashboard:
        lines.append(f"Ray dashboard: {dashboard}")
    return lines


def _with_driver(url: str) -> str:
    """The URL as SQLAlchemy takes it, with the drivers that this package installs instead of its own first choices."""
    url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg2://", url)
    return re.sub(r"^(mysql|mariadb)://", "mysql+pymysql://", url)


def quoted(text: str) -> str:
    """As a shell takes it for one word, in which ${VAR} is still replaced."""
    return f'"{text}"' if "${" in text else shlex.quote(text)
