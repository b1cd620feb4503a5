"""MLflow: one run for the search, and below it one for each trial."""

import json
import logging
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import sqlalchemy

from mnist_ray.errors import SettingsError, first_line, shortened
from mnist_ray.run.best import Confirmed
from mnist_ray.run.records import EpochRow, Record, Records, value_of
from mnist_ray.settings import masked, scrubbed
from mnist_ray.storage import RunStorage
from mnist_ray.study.storages import expanded
from mnist_ray.trackers.tracker import mlflow_ui, quoted, with_driver

# Read by mlflow when it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the next update tries again
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

EXPERIMENT = "mnist_ray"  # MLflow's name for the group of all searches
# The same states as in MLflow's own storage for Optuna.
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
ACTIVE = "active"  # the `lifecycle_stage` of what is not deleted
PARAMS_PER_REQUEST = 100  # MLflow's limit


class MLflow:
    """A Tracker; see mnist_ray.trackers."""

    flag = "--mlflow"

    def __init__(self, place: str) -> None:
        self.shown = with_driver(masked(place))
        self.url = with_driver(expanded(place, self.flag))
        logging.getLogger("alembic").setLevel(logging.ERROR)
        try:
            if not self.url.startswith("http"):  # MLflow itself would retry for a minute
                engine = sqlalchemy.create_engine(self.url)
                engine.connect().close()
                engine.dispose()
            self.client = MlflowClient(self.url)
            found = self.client.get_experiment_by_name(EXPERIMENT)
            self.experiment = (
                found.experiment_id if found else self.client.create_experiment(EXPERIMENT)
            )
        except Exception as error:
            raise SettingsError(
                f"{self.flag}: {self.shown} cannot be opened: {self.reason(error)}"
            ) from None
        if found and found.lifecycle_stage != ACTIVE:
            restore = f"mlflow experiments restore -x {self.experiment}"
            raise SettingsError(
                f"{self.flag}: the experiment {EXPERIMENT} at {self.shown} is deleted; "
                f"restore it: MLFLOW_TRACKING_URI={quoted(self.shown)} {restore}"
            )
        self.viewer = self.shown if self.url.startswith("http") else mlflow_ui(self.shown)
        self.search = ""  # MLflow's id of the search
        self.runs: dict[int, str] = {}  # trial number -> MLflow's id
        self.closed: set[int] = set()
        self.described: set[int] = set()  # trials whose parameters MLflow has
        self.logged: dict[int, set[int]] = {}  # trial number -> epochs that MLflow has
        self.best: tuple[int, EpochRow] | None = None

    def reason(self, error: Exception) -> str:
        """See Tracker. Of a database's error the driver's part, of a server's the network's."""
        cause = _network_error(error) or getattr(error, "orig", None) or error
        return shortened(scrubbed(first_line(cause).replace(self.url, self.shown), self.url), 300)

    def begin(
        self, name: str, settings: Mapping[str, Any], folder: RunStorage, earlier: str | None
    ) -> str:
        """See Tracker. If the `earlier` search is gone or deleted, a new one begins."""
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
            self.search = self._create(name, tags)
            given = {k: v for k, v in settings.items() if v is not None and k != "trials"}
            self._params(self.search, given)
        if self.url.startswith("http"):
            page = f"#/experiments/{self.experiment}/runs/{self.search}"
            self.viewer = f"{self.shown.rstrip('/')}/{page}"
        return self.search

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        run = self.client.create_run(self.experiment, run_name=name, tags=dict(tags))
        return str(run.info.run_id)

    def _find(self, search: str) -> bool:
        """Whether the search is there; remembers its trials."""
        try:
            if self.client.get_run(search).info.lifecycle_stage != ACTIVE:
                return False  # MLflow still tells of it, and refuses to change it
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        trials, token = f"tags.mlflow.parentRunId = '{search}'", None
        while True:
            page = self.client.search_runs(
                [self.experiment], trials, max_results=1000, page_token=token
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
            self._metrics(
                self.search, {"best_value": value_of(row, records.metric)}, records.settled()
            )
            self.client.set_tag(self.search, "best_trial", str(number))
            params = json.dumps(records.trials[number].params)
            self.client.set_tag(self.search, "best_params", params)
            self.best = best

    def _trial(self, record: Record) -> None:
        # The state first: a trial that has ended has all its rows.
        number, state = record.number, record.state
        if number not in self.runs:
            tags = {"mlflow.parentRunId": self.search, "number": str(number)}
            self.runs[number] = self._create(f"trial-{number:05d}", tags)
            self.logged[number] = set()
        run = self.runs[number]
        if number not in self.described:  # an update may have failed in between
            self._params(run, record.params)
            self.described.add(number)
        # Taken out, and put back at the end: after a failure MLflow is asked for its values.
        logged = self.logged.pop(number, None)
        if logged is None:
            logged = {metric.step for metric in self.client.get_metric_history(run, "seconds")}
        for epoch, row in list(record.rows.items()):
            if epoch not in logged:
                values = cast(dict[str, float], row)
                known = {k: v for k, v in values.items() if k != "epoch" and v == v}
                self._metrics(run, known, epoch)
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
        given = [Param(_key(key), str(value)[:500]) for key, value in params.items()]
        for start in range(0, len(given), PARAMS_PER_REQUEST):
            self.client.log_batch(run, params=given[start : start + PARAMS_PER_REQUEST])

    def _metrics(self, run: str, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        finite = [Metric(_key(k), v, now, step) for k, v in values.items() if math.isfinite(v)]
        self.client.log_batch(run, metrics=finite)

    def end(self, status: str) -> None:
        """See Tracker."""
        self.client.set_terminated(self.search, status)

    def confirmed(self, found: Sequence[Confirmed]) -> None:
        """See Tracker. Each trial has mean and spread; the search also the chosen one's."""
        for each in found:
            values = {"confirmed_mean": each.mean, "confirmed_spread": each.spread}
            self._metrics(self.runs[each.number], values, 0)
            if each is found[0]:
                self._metrics(self.search, values, 0)
                self.client.set_tag(self.search, "confirmed_trial", str(each.number))


def _key(name: str) -> str:
    """A name as MLflow allows it; a training function of one's own may yield any."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _network_error(error: BaseException | None) -> OSError | None:
    """The innermost one, which names the cause in a few words."""
    found: OSError | None = None
    while error is not None:
        found = error if isinstance(error, OSError) else found
        error = error.__cause__ or error.__context__
    return found
