"""A run's directory as plain values, for the report: nothing is trained or drawn here."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, cast

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from mnist_ray.errors import CorruptFileError, SettingsError
from mnist_ray.run import best, layout, tables
from mnist_ray.run.about import About
from mnist_ray.run.best import Confirmed
from mnist_ray.run.publication import Manifest, read_verified
from mnist_ray.settings import SearchSettings, constraints, objectives, resolved
from mnist_ray.settings.objectives import Direction
from mnist_ray.storage import RunStorage
from mnist_ray.study import importance, journal
from mnist_ray.study.objectives import single
from mnist_ray.study.trials import PAUSED

Row = dict[str, Any]  # of a table, by column


@dataclass(frozen=True)
class RunData:
    """All that the report needs of one run."""

    storage: RunStorage
    about: About
    settings: Mapping[str, Any]  # of the search; options that the run does not know have defaults
    start: datetime
    end: datetime | None
    trials: list[Row]  # trials.parquet, one row a settled trial
    history: list[Row]  # history.parquet, one row a trial and epoch
    frozen: list[FrozenTrial]  # Optuna's trials with one value, running ones too
    timed: bool  # whether `frozen` knows when trials started and ended
    stages: list[tuple[int, list[Row]]]  # number and curve of each fine-tune stage
    manifest: Manifest | None  # model.json; None before the chain has ended
    onnx: bytes  # the published model, verified; empty before
    confirmed: tuple[Confirmed, ...] = ()  # the chosen one first
    damaged: str = ""  # the file that could not be read, if the tables stand in for it, and why
    retrained: tuple[int, ...] = ()  # stages of the model whose curves a later training replaced

    @property
    def name(self) -> str:
        """The run's name."""
        return self.about.name

    @property
    def metric(self) -> str:
        """The value that the search optimised, as "val_accuracy"."""
        return objectives.function_of(self.goal)

    @property
    def goal(self) -> str:
        """The same with its direction."""
        return objectives.goal(self.settings)

    @property
    def own(self) -> bool:
        """Whether a training function of one's own made it: then there are no images."""
        return bool(self.settings["train"])

    @property
    def from_model(self) -> bool:
        """Whether it began with a model, not with a search."""
        return not self.frozen and bool(self.stages or self.retrained)

    @property
    def only_searched(self) -> bool:
        """Whether nothing is fine-tuned, as with --no-finetune and where the best is no network."""
        return self.about.state == "searched"

    @property
    def maximize(self) -> bool:
        """Whether more of the metric is better."""
        return self.direction == "maximize"

    @property
    def direction(self) -> Direction:
        """The same in Optuna's words."""
        return objectives.direction(self.goal)

    @property
    def objectives(self) -> tuple[str, ...]:
        """The names in --objectives; () if the metric is the only objective."""
        return objectives.names(self.settings["objectives"])

    @property
    def limits(self) -> tuple[constraints.Constraint, ...]:
        """Those of --constraint."""
        return constraints.read(self.settings["constraint"])

    @cached_property
    def completed(self) -> list[FrozenTrial]:
        """Trials that trained all their epochs and have a finite value."""
        done = (t for t in self.frozen if t.state == TrialState.COMPLETE)
        return [t for t in done if t.value is not None and math.isfinite(t.value)]

    @cached_property
    def best(self) -> Row | None:
        """The best epoch of the search with its trial's `number`; None without a finite loss."""
        chosen = self.confirmed[0] if self.confirmed else None
        found = best.best_epoch(self.history, self.goal, chosen, self.trials)
        return cast(Row | None, found)

    @cached_property
    def importances(self) -> dict[str, dict[str, float]]:
        """Measure -> parameter -> share; empty with too few trials, as in the terminal."""
        return importance.importances(self.completed, self.direction)

    @property
    def spans(self) -> list[tuple[datetime, datetime]]:
        """When the ended trials began and ended; empty if that is not known."""
        return [
            (t.datetime_start, t.datetime_complete)
            for t in self.frozen
            if self.timed
            and t.datetime_start
            and t.datetime_complete
            # After a clock that was set back nobody knows how long it took.
            and t.datetime_start <= t.datetime_complete
        ]

    def study(self, trials: Sequence[FrozenTrial], name: str = "") -> optuna.Study:
        """The trials as a study in memory, for Optuna's figures; `name` in place of the run's."""
        return as_study(trials, name or self.name, [self.direction])

    def gapless(self, name: str = "") -> optuna.Study:
        """The completed trials with failed ones in the gaps: Optuna's history numbers by place."""
        done = {trial.number: trial for trial in self.completed}
        failed = optuna.trial.create_trial
        trials = [done.get(n) or failed(state=TrialState.FAIL) for n in range(max(done) + 1)]
        for number, trial in enumerate(trials):
            trial.number = number
        return self.study(trials, name)


def feasible(trial: FrozenTrial) -> bool:
    """Whether a trial keeps the limits of --constraint; True where there are none."""
    return all(excess <= 0 for excess in trial.constraints.values())


def known(value: float | None) -> bool:
    """Whether there is a value, and it is finite."""
    return value is not None and math.isfinite(value)


def value_of(trial: FrozenTrial) -> float:
    """A trial's value; of a stopped one its last intermediate value; NaN if it has none."""
    if trial.value is not None:
        return trial.value
    return trial.intermediate_values.get(trial.last_step or 0, math.nan)


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
    """A study in memory of these trials under their own numbers (a storage numbers anew)."""
    study = optuna.create_study(
        directions=list(directions), study_name=name, sampler=optuna.samplers.RandomSampler(0)
    )
    study.add_trials(trials)
    for kept, given in zip(study.get_trials(deepcopy=False), trials, strict=True):
        kept.number = given.number
    return study


# ---- files


def read_run(storage: RunStorage) -> RunData:
    """Reads a run, finished or not.

    Raises:
        SettingsError: There is no run.
        CorruptFileError: A file of it is damaged.
    """
    if not storage.exists(layout.RUN):
        raise SettingsError(f"RUN: there is no run at {storage.uri}")
    about = About.of(storage, storage.read_json(layout.RUN))
    settings = {**resolved(SearchSettings()), **about.settings}
    try:
        start = datetime.fromisoformat(about.start)
        end = datetime.fromisoformat(about.end) if about.end else None
    except ValueError as error:
        raise CorruptFileError(f"{storage.join(layout.RUN)} is damaged: {error}") from error
    trials, history = _table(storage, layout.TRIALS), _table(storage, layout.HISTORY)
    several, metric = objectives.names(settings["objectives"]), objectives.goal(settings)
    elsewhere = settings["study"]
    kept: list[FrozenTrial] = []
    damaged = ""
    try:
        if not elsewhere:
            kept = _journal(storage, settings["study_name"] or about.name)
    except CorruptFileError as error:
        damaged = str(error)
    try:
        kept = [single(trial, several, metric) for trial in kept]
        frozen = kept or _frozen(trials, history, metric)
    except (ValueError, TypeError) as error:
        raise CorruptFileError(
            f"{storage.join(layout.TRIALS)} or the study of the run is damaged: {error}"
        ) from error
    # A paused trial's time is not one span.
    timed = bool(kept) and not any(PAUSED in trial.user_attrs for trial in frozen)
    manifest: Manifest | None = None
    onnx = b""
    if storage.exists(layout.MANIFEST):
        described, onnx = read_verified(storage)
        manifest = Manifest.of(storage, described)
    stages, retrained = _stages(storage, manifest)
    return RunData(
        storage, about, settings, start, end, trials, history, frozen, timed, stages,
        manifest, onnx, best.read(storage), damaged, retrained,
    )  # fmt: skip


def _table(storage: RunStorage, name: str) -> list[Row]:
    """A table's rows; none if the file is not there yet."""
    try:
        rows: list[Row] = tables.read(storage, name).to_pylist()
    except FileNotFoundError:
        return []
    return rows


def _stages(
    storage: RunStorage, manifest: Manifest | None
) -> tuple[list[tuple[int, list[Row]]], tuple[int, ...]]:
    """The curves of the published model's stages, or of all stages if none is published.

    The second value has the numbers of its stages whose curves are a later training's.
    """
    files = [name for name in storage.list(layout.FINETUNE) if name.endswith(layout.STAGE_CURVE)]
    stages = [layout.stage_of(name) for name in files]
    numbers = sorted(stage[0] for stage in stages if stage is not None and stage[1] == 1)
    curves = {n: _table(storage, f"{layout.stage_folder(n)}/{layout.STAGE_CURVE}") for n in numbers}
    if manifest is None:
        return list(curves.items()), ()
    # Another recipe's stages may lie beside those of the model.
    entries = {entry["step"]: entry for entry in manifest.lineage}
    own = {n: rows for n, rows in curves.items() if f"stage-{n}" in entries}
    gone = tuple(n for n, rows in own.items() if not _fits(entries[f"stage-{n}"], rows))
    return [(n, rows) for n, rows in own.items() if n not in gone], gone


def _fits(entry: Mapping[str, Any], rows: list[Row]) -> bool:
    """Whether a curve is that of the lineage's entry: a second fine-tuning writes to its place."""
    seconds = round(sum(row["seconds"] for row in rows if known(row["seconds"])), 1)
    found = {"epochs": len(rows), "seconds": seconds}
    return all(entry.get(key, value) == value for key, value in found.items())


# ---- trials as Optuna has them


def _journal(storage: RunStorage, study_name: str) -> list[FrozenTrial]:
    """The trials of `study.journal`; none if it is missing. Raises CorruptFileError."""
    kept = journal.read(storage, layout.JOURNAL)
    try:
        trials = kept.get_all_trials(kept.get_study_id_from_name(study_name), deepcopy=False)
    except KeyError:
        return []
    return [trial for trial in trials if trial.state != TrialState.WAITING]


def _frozen(trials: list[Row], history: list[Row], metric: str) -> list[FrozenTrial]:
    """The trials of the tables, for a run whose study lies in a database; without times."""
    columns = [key for key in (trials[0] if trials else {}) if key.startswith("params_")]
    kinds = {
        column: distribution([row[column] for row in trials if row[column] is not None])
        for column in columns
    }
    values: dict[int, dict[int, float]] = {}
    for row in history:
        if (value := row.get(objectives.column(metric))) is not None:
            values.setdefault(row["number"], {})[row["epoch"]] = value
    frozen = []
    for row in trials:
        given = [column for column in columns if row[column] is not None]
        trial = optuna.trial.create_trial(
            state=TrialState[row["state"]],
            value=row["value"] if row["state"] == "COMPLETE" else None,
            params={column.removeprefix("params_"): row[column] for column in given},
            distributions={column.removeprefix("params_"): kinds[column] for column in given},
            intermediate_values=values.get(row["number"], {}),
            constraints={} if row.get("violation") is None else {"limits": row["violation"]},
        )
        trial.number = row["number"]
        frozen.append(trial)
    return frozen


def distribution(values: list[Any]) -> BaseDistribution:
    """The narrowest distribution of the values; over two powers of ten the scale is logarithmic."""
    if any(isinstance(v, bool | str) for v in values) or not values:
        return CategoricalDistribution(list(dict.fromkeys(values)) or [None])
    low, high = min(values), max(values)
    if all(isinstance(v, int) for v in values):
        return IntDistribution(low, high)
    return FloatDistribution(float(low), float(high), log=low > 0 and high / low >= 100)


def varied(trials: Sequence[FrozenTrial]) -> list[str]:
    """Names of the parameters with more than one value, in the order of their first appearance."""
    values: dict[str, set[Any]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(value)
    return [name for name, found in values.items() if len(found) > 1]


def thinned(trials: list[FrozenTrial], most: int, maximize: bool) -> list[FrozenTrial]:
    """At most `most` of the trials, in their order: the best, for a quarter, and others evenly.

    A trial counts by its value or, if it was stopped, by its last intermediate value.
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
