"""A small space, a study of it, and the one line of an error."""

from typing import Any

import optuna
import pytest

from mnist_ray.run.records import COLUMNS, Record, epoch_row
from mnist_ray.study.studies import open_study
from tests.support.servers import SECRET


def space(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "x": trial.suggest_float("x", 0, 1),
        "kind": trial.suggest_categorical("kind", ["a", "b"]),
    }


def new_study(storage: optuna.storages.BaseStorage, name: str = "s", **others: Any) -> optuna.Study:
    return open_study(
        storage, name, "val_accuracy", optuna.samplers.RandomSampler(seed=1), **others
    )


MOST_BYTES = 65_535  # of an attribute in MySQL and MariaDB


def long_record(number: int, epochs: int, metrics: int = 0) -> Record:
    """A trial with so many epochs, each with so many metrics of a training function."""
    record = Record(number, {}, n_parameters=7, node="here")
    names = [*COLUMNS, *(f"metrics_number_{i}" for i in range(metrics))]
    for epoch in range(1, epochs + 1):
        values = {name: (epoch + i) / 7 for i, name in enumerate(names)}
        record.rows[epoch] = epoch_row({**values, "epoch": epoch})
    return record


def one_line(caught: pytest.ExceptionInfo) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert SECRET not in text
    return text
