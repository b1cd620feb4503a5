"""A small space, a study of it, and the one line of an error."""

from typing import Any

import optuna
import pytest

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


def one_line(caught: pytest.ExceptionInfo) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert SECRET not in text
    return text
