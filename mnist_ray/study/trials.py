"""A run's trials in a study: asked for, read back, and tried again after an interruption."""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mnist_ray.run.records import INTERRUPTED, Record, epoch_row, rows_from
from mnist_ray.study.objectives import curve
from mnist_ray.study.optuna_private import FIXED, reopened

# User attributes of a trial.
RUN = "mnist_ray:run"  # of every trial: the run that it belongs to
SUMMARY = "mnist_ray:summary"  # of every settled trial: Record.summary()
POINT = "mnist_ray:point"  # of one from --points: the run that named the point, its place there
AGAIN = "mnist_ray:again"  # of one that tries another's values again: the other's number
SOURCE = "mnist_ray:source"  # of one that --warm-start took over: its study and number there


def read_trials(
    study: optuna.Study, run: str, metric: str | None = None
) -> list[tuple[FrozenTrial, Record]]:
    """The run's trials in a study, with what the study knows of them.

    Args:
        study: the run's.
        run: the run's name.
        metric: the run's metric; a study with one objective tells it itself.
    """
    pairs = []
    for frozen in study.get_trials(deepcopy=False):
        if frozen.user_attrs.get(RUN) != run:
            continue
        summary: Mapping[str, Any] = frozen.user_attrs.get(SUMMARY, {})
        record = Record(
            frozen.number,
            dict(frozen.params),
            state=frozen.state.name if frozen.state.is_finished() else "RUNNING",
            reason=summary.get("reason", ""),
            n_parameters=summary.get("n_parameters"),
            latency_ms=summary.get("latency_ms"),
            exploits=summary.get("exploits", []),
            node=summary.get("node", ""),
            rows=rows_from(summary),
        )
        if not summary:  # cut off: of its epochs the study has the metric alone
            if metric is None:
                metric = "val_loss" if study.direction.name == "MINIMIZE" else "val_accuracy"
            record.rows = {
                epoch: epoch_row({"epoch": epoch, metric: value})
                for epoch, value in curve(frozen).items()
            }
        pairs.append((frozen, record))
    return pairs


def close_interrupted(study: optuna.Study, frozen: FrozenTrial, record: Record) -> None:
    """Ends a trial that a killed run left RUNNING without a checkpoint: FAIL, with the reason."""
    record.state, record.reason = "FAIL", INTERRUPTED
    trial = reopened(study, frozen)
    trial.set_user_attr(SUMMARY, record.summary())
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
    """The points, with their places in the list, that no process of the run has tried yet."""
    tried = {
        tuple(trial.user_attrs[POINT])
        for trial in study.get_trials(deepcopy=False)
        if POINT in trial.user_attrs
    }
    return [(i, point) for i, point in enumerate(points) if (run, i) not in tried]


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
