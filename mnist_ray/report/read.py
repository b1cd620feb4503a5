"""A run's directory as plain values, for the report: nothing is trained, evaluated or drawn here."""

import contextlib
import io
import math
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from mnist_ray.errors import CorruptFileError, SettingsError, first_line
from mnist_ray.run import layout
from mnist_ray.run.publication import read_verified
from mnist_ray.run.records import Row, rank
from mnist_ray.settings import objectives
from mnist_ray.storage import RunStorage
from mnist_ray.study.objectives import single

Direction = Literal["minimize", "maximize"]


@dataclass
class Run:
    """All that the report needs of one run."""

    storage: RunStorage
    about: dict[str, Any]  # run.json
    trials: list[Row]  # trials.parquet, one row a settled trial
    history: list[Row]  # history.parquet, one row a trial and epoch
    frozen: list[
        FrozenTrial
    ]  # the same trials as Optuna has them, RUNNING ones too; of several objectives with the run's metric alone
    timed: bool  # whether `frozen` knows when trials started and ended
    stages: list[tuple[int, list[Row]]]  # number and curve of each fine-tune stage
    manifest: dict[str, Any] | None  # model.json; None before the chain has ended
    onnx: bytes  # the published model, verified; empty before

    @property
    def name(self) -> str:
        return str(self.about["name"])

    @property
    def settings(self) -> dict[str, Any]:
        return self.about["settings"]

    @property
    def metric(self) -> str:
        return str(self.settings["metric"])

    @property
    def maximize(self) -> bool:
        return self.metric != "val_loss"

    @property
    def direction(self) -> Direction:
        return "maximize" if self.maximize else "minimize"

    @property
    def objectives(self) -> tuple[str, ...]:
        """What --objectives named; () where the metric is the only objective."""
        return objectives.names(self.settings.get("objectives"))

    @property
    def completed(self) -> list[FrozenTrial]:
        return [
            t
            for t in self.frozen
            if t.state == TrialState.COMPLETE and t.value is not None and math.isfinite(t.value)
        ]

    @property
    def best(self) -> Row | None:
        """The best epoch of the search with its trial's `number`; None where no epoch ended with a finite loss."""
        finite = [
            row
            for row in self.history
            if row["val_loss"] is not None and math.isfinite(row["val_loss"])
        ]
        return max(finite, key=lambda row: rank(row, self.metric), default=None)

    @property
    def spans(self) -> list[tuple[datetime, datetime]]:
        """When the trials that have ended began and ended; empty where that is not known."""
        return [
            (t.datetime_start, t.datetime_complete)
            for t in self.frozen
            if self.timed and t.datetime_start and t.datetime_complete
        ]

    def study(self, trials: Sequence[FrozenTrial], name: str = "") -> optuna.Study:
        """The trials as a study in memory, under their own numbers, for Optuna's figures; `name` in place of the run's."""
        return as_study(trials, name or self.name, [self.direction])

    def gapless(self, name: str = "") -> optuna.Study:
        """As `study` of the completed trials, with failed ones in the places of all others: Optuna's history takes numbers for places."""
        done = {trial.number: trial for trial in self.completed}
        trials = [
            done.get(n) or optuna.trial.create_trial(state=TrialState.FAIL)
            for n in range(max(done) + 1)
        ]
        for number, trial in enumerate(trials):
            trial.number = number
        return self.study(trials, name)


def value_of(trial: FrozenTrial) -> float:
    """A trial's value; where it was stopped, its last intermediate one; NaN where it has none."""
    return (
        trial.value
        if trial.value is not None
        else trial.intermediate_values.get(trial.last_step or 0, math.nan)
    )


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's log lines and its warnings that a figure is experimental."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def as_study(
    trials: Sequence[FrozenTrial], name: str, directions: Sequence[Direction]
) -> optuna.Study:
    """A study in memory of these trials, each under its own number (a storage numbers anew what is added to it)."""
    study = optuna.create_study(
        directions=list(directions), study_name=name, sampler=optuna.samplers.RandomSampler(0)
    )
    study.add_trials(trials)
    for kept, given in zip(study.get_trials(deepcopy=False), trials, strict=True):
        kept.number = given.number
    return study


def read_run(storage: RunStorage) -> Run:
    """Reads a run, finished or not. Raises SettingsError where there is none, CorruptFileError where a file is damaged."""
    if not storage.exists("run.json"):
        raise SettingsError(f"RUN: there is no run at {storage.uri}")
    about = storage.read_json("run.json")
    try:
        settings, name = about["settings"], about["name"]
        metric, study_name = settings["metric"], settings["study_name"] or name
        about["data"]["name"], about["start"], settings["max_epochs"]
    except (KeyError, TypeError) as error:
        raise CorruptFileError(
            f"{storage.join('run.json')} is not of this project or is damaged: {error!r}"
        ) from error
    trials, history = _table(storage, "trials.parquet"), _table(storage, "history.parquet")
    journal = [] if settings.get("study") else _journal(storage, study_name)
    several = objectives.names(settings.get("objectives"))
    journal = [single(trial, several, metric) for trial in journal]
    frozen = journal or _frozen(trials, history, metric)
    manifest: dict[str, Any] | None = None
    onnx = b""
    if storage.exists("model.json"):
        manifest, onnx = read_verified(storage)
    return Run(
        storage,
        about,
        trials,
        history,
        frozen,
        bool(journal),
        _stages(storage, manifest),
        manifest,
        onnx,
    )


def _table(storage: RunStorage, name: str) -> list[Row]:
    """A Parquet file's rows; none where the file is not there yet."""
    try:
        return pq.read_table(io.BytesIO(storage.read_bytes(name))).to_pylist()
    except FileNotFoundError:
        return []
    except pa.ArrowException as error:
        raise CorruptFileError(
            f"{storage.join(name)} is not a Parquet file or is damaged: {first_line(error)}"
        ) from error


def _stages(storage: RunStorage, manifest: dict[str, Any] | None) -> list[tuple[int, list[Row]]]:
    """The curves of the published model's stages, or of all that are there where none is published."""
    present = set(storage.list("finetune"))
    numbers = sorted(
        int(match[1])
        for file in present
        if (match := re.fullmatch(r"finetune/stage-(\d+)/curve\.parquet", file))
    )
    if manifest is not None:
        # Another recipe's stages may lie beside those of the model.
        numbers = [
            n
            for n in numbers
            if any(entry["step"] == f"stage-{n}" for entry in manifest["lineage"])
        ]
    return [(n, _table(storage, f"{layout.stage_folder(n)}/{layout.STAGE_CURVE}")) for n in numbers]


# ---- trials as Optuna has them


def _journal(storage: RunStorage, study_name: str) -> list[FrozenTrial]:
    """The trials of `study.journal`; none where it is missing or cannot be read (the tables know most of it too)."""
    if not storage.exists("study.journal"):
        return []
    with tempfile.TemporaryDirectory(prefix="mray-report-") as folder:
        # A copy: the backend would put its lock beside the original.
        path = Path(folder, "study.journal")
        path.write_bytes(storage.read_bytes("study.journal"))
        try:
            journal = JournalStorage(JournalFileBackend(str(path)))
            trials = journal.get_all_trials(
                journal.get_study_id_from_name(study_name), deepcopy=False
            )
        except (
            KeyError,
            IndexError,
            ValueError,
            TypeError,
            AssertionError,
        ):  # what the backend raises on other content
            return []
    return [trial for trial in trials if trial.state != TrialState.WAITING]


def _frozen(trials: list[Row], history: list[Row], metric: str) -> list[FrozenTrial]:
    """The trials that the tables hold, for a run whose study lies in a database; when they ran is not known."""
    names = [
        key.removeprefix("params_")
        for key in (trials[0] if trials else {})
        if key.startswith("params_")
    ]
    kinds = {
        name: distribution(
            [row[f"params_{name}"] for row in trials if row[f"params_{name}"] is not None]
        )
        for name in names
    }
    values: dict[int, dict[int, float]] = {}
    for row in history:
        if row[metric] is not None:
            values.setdefault(row["number"], {})[row["epoch"]] = row[metric]
    frozen = []
    for row in trials:
        params = {
            name: row[f"params_{name}"] for name in names if row[f"params_{name}"] is not None
        }
        trial = optuna.trial.create_trial(
            state=TrialState[row["state"]],
            value=row["value"] if row["state"] == "COMPLETE" else None,
            params=params,
            distributions={name: kinds[name] for name in params},
            intermediate_values=values.get(row["number"], {}),
        )
        trial.number = row["number"]
        frozen.append(trial)
    return frozen


def distribution(values: list[Any]) -> BaseDistribution:
    """The narrowest distribution that the values can come from; two powers of ten or more between them are taken for a log scale."""
    if any(isinstance(v, bool | str) for v in values) or not values:
        return CategoricalDistribution(list(dict.fromkeys(values)) or [None])
    low, high = min(values), max(values)
    if all(isinstance(v, int) for v in values):
        return IntDistribution(low, high)
    return FloatDistribution(float(low), float(high), log=low > 0 and high / low >= 100)


def varied(trials: Sequence[FrozenTrial]) -> list[str]:
    """Names of the parameters that took more than one value, in the order of their first appearance."""
    values: dict[str, set[Any]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(value)
    return [name for name, found in values.items() if len(found) > 1]


def thinned(trials: list[FrozenTrial], most: int, maximize: bool) -> list[FrozenTrial]:
    """At most so many of the trials, in their order: the best quarter of them, and the others evenly over the search.

    A trial counts by its value or, where it was stopped, by its last intermediate value.
    """
    if len(trials) <= most:
        return trials

    def worth(trial: FrozenTrial) -> float:
        value = value_of(trial)
        return -math.inf if math.isnan(value) else value if maximize else -value

    ordered = sorted(trials, key=worth, reverse=True)
    best, others = ordered[: most // 4], sorted(ordered[most // 4 :], key=lambda t: t.number)
    places = most - len(best)
    kept = best + [others[i * len(others) // places] for i in range(places)]
    return sorted(kept, key=lambda t: t.number)
