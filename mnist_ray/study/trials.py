"""A run's trials in a study: asked for, read back, and tried again after an interruption."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mnist_ray.errors import CorruptFileError
from mnist_ray.run.records import INTERRUPTED, Record, checked, checked_row, rows_from
from mnist_ray.settings.objectives import column
from mnist_ray.study.objectives import curve
from mnist_ray.study.optuna_private import FIXED, reopened

# User attributes of a trial.
RUN = "mnist_ray:run"  # of every trial: the run that it belongs to
SUMMARY = "mnist_ray:summary"  # of every trial that ended or was paused: Record.summary()
ROWS = "mnist_ray:rows"  # ROWS:0, ROWS:1 …: the first rows of a SUMMARY that is too long for one
PAUSED = "mnist_ray:paused"  # of one that waits for its promotion: its last epoch, else 0
LEGS = "mnist_ray:legs"  # of each of an ordered promotion: the places of its parts
POINT = "mnist_ray:point"  # of one from --points: the run that named the point, its place there
AGAIN = "mnist_ray:again"  # of one that tries another's values again: the other's number
SOURCE = "mnist_ray:source"  # of one that --warm-start took over: its study and number there
ATTRIBUTES: Mapping[str, type] = {
    SUMMARY: dict, PAUSED: int, LEGS: list, POINT: list, AGAIN: int, SOURCE: list
}  # fmt: skip

LONGEST = 32_000  # bytes of rows in one attribute: MySQL and MariaDB take 65,535 in all


def keep_summary(trial: optuna.Trial, record: Record) -> None:
    """Writes what the study is to know of a trial that ends or pauses: SUMMARY, and its ROWS.

    SUMMARY says how many ROWS there are, and is written last. ROWS only grow: after a kill between
    the two the older SUMMARY is still right.
    """
    summary = record.summary()
    parts: list[list[Any]] = [[]]
    room = LONGEST
    for row in summary["rows"]:
        length = len(json.dumps(row))
        if parts[-1] and length > room:
            parts.append([])
            room = LONGEST
        parts[-1].append(row)
        room -= length
    *first, summary["rows"] = parts
    for i, rows in enumerate(first):
        trial.set_user_attr(f"{ROWS}:{i}", rows)
    trial.set_user_attr(SUMMARY, {**summary, "parts": len(first)} if first else summary)


def _kept_summary(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `keep_summary` wrote, in one; empty if it wrote nothing. Raises ValueError."""
    summary: Mapping[str, Any] = attributes.get(SUMMARY, {})
    rows: list[Any] = []
    for i in range(checked(summary.get("parts", 0), int, "parts")):
        rows += checked(attributes.get(f"{ROWS}:{i}"), list, ROWS)
    if not rows:
        return summary
    return {**summary, "rows": rows + checked(summary.get("rows"), list, "rows")}


def read_trials(study: optuna.Study, run: str, metric: str) -> list[tuple[FrozenTrial, Record]]:
    """The run's trials in a study, with all that the study knows of them.

    Args:
        study: the run's.
        run: the run's name.
        metric: the run's goal, see `objectives.goal`.

    Raises:
        CorruptFileError: what the study says of a trial is not what was written.
    """
    pairs = []
    for frozen in study.get_trials(deepcopy=False):
        if frozen.user_attrs.get(RUN) == run:
            try:
                pairs.append((frozen, record_of(frozen, metric)))
            except ValueError as error:
                raise CorruptFileError(
                    f"study {study.study_name!r} is damaged: trial {frozen.number}: {error}"
                ) from error
    return pairs


def record_of(frozen: FrozenTrial, metric: str) -> Record:
    """A trial of this package's. Raises ValueError if its attributes are not as written."""
    attributes: Mapping[str, Any] = frozen.user_attrs
    for name, kind in ATTRIBUTES.items():
        checked(attributes.get(name, kind()), kind, name)
    for place in attributes.get(LEGS, []):
        checked(place, int, LEGS)
    summary = _kept_summary(attributes)
    numbers, known, ended = (int, float, type(None)), curve(frozen), frozen.state.is_finished()
    record = Record(
        frozen.number,
        dict(frozen.params),
        state=frozen.state.name if ended else "RUNNING",
        # A running trial has one if the process was killed just before it told the trial's end.
        reason=checked(summary.get("reason", ""), str, "reason") if ended else "",
        n_parameters=checked(summary.get("n_parameters"), (int, type(None)), "n_parameters"),
        size=checked(summary.get("size"), (int, type(None)), "size"),
        latency_ms=checked(summary.get("latency_ms"), numbers, "latency_ms"),
        exploits=checked(summary.get("exploits", []), list, "exploits"),
        node=checked(summary.get("node", ""), str, "node"),
        rows=rows_from(summary),
    )
    if not summary or record.state == "RUNNING":  # of some epochs it has the metric alone
        rows = [
            checked_row({"epoch": epoch, column(metric): value}) for epoch, value in known.items()
        ]
        record.rows = {row["epoch"]: row for row in rows} | record.rows
    return record


def close_interrupted(study: optuna.Study, frozen: FrozenTrial, record: Record) -> None:
    """Ends a trial that a killed run left RUNNING without a checkpoint: FAIL, with the reason."""
    record.state, record.reason = "FAIL", INTERRUPTED
    trial = reopened(study, frozen)
    keep_summary(trial, record)
    study.tell(trial, state=TrialState.FAIL)


def to_try_again(study: optuna.Study, run: str) -> list[tuple[int, dict[str, Any]]]:
    """Number and values of the run's interrupted trials that no other trial has taken up yet."""
    trials = study.get_trials(deepcopy=False)
    again = {trial.user_attrs.get(AGAIN) for trial in trials}
    return [
        (trial.number, {**trial.system_attrs.get(FIXED, {}), **trial.params})
        for trial in trials
        if trial.user_attrs.get(RUN) == run
        and trial.user_attrs.get(SUMMARY, {}).get("reason") == INTERRUPTED
        and trial.number not in again
    ]


def remaining_points(
    study: optuna.Study, run: str, points: Sequence[dict[str, Any]]
) -> list[tuple[int, dict[str, Any]]]:
    """The points, with their places in the list, that nobody has tried yet.

    That is no process of the run, no other run of the study, and no trial of --warm-start.
    """
    trials = study.get_trials(deepcopy=False)
    tried = {tuple(trial.user_attrs[POINT]) for trial in trials if POINT in trial.user_attrs}
    known = [
        values
        for trial in trials
        if trial.user_attrs.get(RUN) != run and trial.state != TrialState.FAIL
        for values in (trial.params, trial.system_attrs.get(FIXED))
    ]
    return [
        (i, point) for i, point in enumerate(points) if (run, i) not in tried and point not in known
    ]


def take_over(study: optuna.Study, trials: Sequence[FrozenTrial]) -> int:
    """Adds the older trials of --warm-start that the study does not have yet; how many."""
    known = {
        tuple(trial.user_attrs[SOURCE])
        for trial in study.get_trials(deepcopy=False)
        if SOURCE in trial.user_attrs
    }
    new = [trial for trial in trials if tuple(trial.user_attrs[SOURCE]) not in known]
    study.add_trials(new)
    return len(new)
