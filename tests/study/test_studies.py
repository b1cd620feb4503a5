"""The right study: refused where it is another's; and two searches that share one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest

from mnist_ray.errors import SettingsError
from mnist_ray.study import storages, studies
from mnist_ray.study.trials import RUN
from tests.support import ROOT
from tests.support.processes import own_ray
from tests.support.servers import SECRET, Server
from tests.support.studies import new_study, one_line, space


def test_the_other_direction_is_refused() -> None:
    storage = optuna.storages.InMemoryStorage()
    new_study(storage)
    with pytest.raises(SettingsError) as caught:
        studies.open_study(storage, "s", "val_loss", optuna.samplers.RandomSampler())
    assert (
        one_line(caught)
        == "--metric: val_loss is to minimize, but study 's' is to maximize already"
    )


def test_another_purpose_is_refused_and_one_of_ones_own_is_noted() -> None:
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(
        storage=storage, study_name="s", direction="maximize"
    )  # as the optuna CLI makes it: nothing is known of it
    new_study(storage, purpose={"dataset": "digits", "space_args": ["a=1"]})
    new_study(storage, purpose={"dataset": "digits", "space_args": ["a=1"]})
    with pytest.raises(SettingsError) as caught:
        new_study(storage, purpose={"dataset": "mnist", "space_args": ["a=1"]})
    assert "dataset='digits'" in one_line(caught)
    assert "space_args" not in one_line(caught)
    with pytest.raises(SettingsError, match=r"already for space_args=\['a=1'\], unlike"):
        new_study(storage, purpose={"dataset": "digits"})


def test_facts_that_an_older_study_lacks_are_not_compared() -> None:
    storage = optuna.storages.InMemoryStorage()
    new_study(storage, purpose={"dataset": "digits"})
    new_study(storage, purpose={"dataset": "digits", "val_by": "class", "images_sha256": "a"})
    later = optuna.storages.InMemoryStorage()
    new_study(later, purpose={"dataset": "digits", "val_by": "class"})
    with pytest.raises(SettingsError, match="already for val_by='class', unlike"):
        new_study(later, purpose={"dataset": "digits", "val_by": "group"})


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (
            lambda trial: {
                "x": trial.suggest_float("x", 0, 2),
                "kind": trial.suggest_categorical("kind", ["a", "b"]),
            },
            "'x'",
        ),
        (
            lambda trial: {
                "x": trial.suggest_float("x", 0, 1),
                "kind": trial.suggest_categorical("kind", ["a", "c"]),
            },
            "'kind'",
        ),
        (lambda trial: {"x": trial.suggest_int("x", 0, 1)}, "'x'"),
        (lambda trial: {"y": trial.suggest_int("y", 0, 1)}, "none of the parameters"),
    ],
)
def test_a_contradicting_space_is_refused(
    other: Callable[[optuna.Trial], dict[str, Any]], named: str
) -> None:
    study = new_study(optuna.storages.InMemoryStorage())
    studies.check_study(study, "val_accuracy", None, other)  # an empty study contradicts nothing
    space(study.ask())
    studies.check_study(study, "val_accuracy", None, space)
    with pytest.raises(SettingsError) as caught:
        studies.check_study(study, "val_accuracy", None, other)
    assert named in one_line(caught)


def test_a_space_with_ranges_that_depend_on_each_other_contradicts_nothing() -> None:
    def nested(trial: optuna.Trial) -> dict[str, Any]:
        return {
            "n": trial.suggest_int("n", 1, 3),
            "m": trial.suggest_int("m", 1, trial.params["n"]),
            "o": trial.suggest_float("o", 0, 1),
        }

    study = new_study(optuna.storages.InMemoryStorage())
    nested(study.ask())
    studies.check_study(study, "val_accuracy", None, nested)


def test_a_run_s_name_is_taken_once() -> None:
    study = new_study(optuna.storages.InMemoryStorage())
    study.ask().set_user_attr(RUN, "mine")
    studies.check_run(study, "yours")
    with pytest.raises(SettingsError) as caught:
        studies.check_run(study, "mine")
    assert "--name" in one_line(caught)


# ---- the whole search


def search(*arguments: str, study: str, storage: Path, name: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "jobs/search.py",
        "--storage",
        str(storage),
        "--name",
        name,
        *arguments,
    ]
    if study:
        command += ["--study", study]
    command += ["--space", "tests.study.test_studies:tiny"]
    if "--resume" not in arguments:
        command += ["--dataset", "digits", "--train-images", "200", "--study-name", "both"]
        command += ["--no-finetune"]
    env = own_ray(OF_THE_TEST=SECRET)
    return subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def tiny(trial: optuna.Trial, data: Any) -> dict[str, Any]:
    """A space of networks that train in no time."""
    hp = {
        "model": "mlp",
        "units": [8],
        "dropouts": [0.1],
        "optimizer": "adam",
        "batch_size": 32,
        **data.hyperparameters(),
    }
    return {**hp, "lr": trial.suggest_float("lr", 1e-4, 1e-1, log=True)}


def ended(process: subprocess.Popen, code: int) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    assert SECRET not in output
    return output


@pytest.mark.slow
def test_two_searches_share_a_study_and_keep_its_password_to_themselves(
    servers: Callable[[str], Server], tmp_path: Path
) -> None:
    url = servers("postgresql").url
    named = url.replace(SECRET, "${OF_THE_TEST}")
    points = tmp_path / "points.yaml"
    points.write_text("- {lr: 0.01}\n- {lr: 0.02}\n")
    size = ["--trials", "4", "--max-epochs", "2", "--scheduler", "median"]
    one = search(*size, "--points", str(points), study=url, storage=tmp_path / "runs", name="one")
    two = search(*size, study=named, storage=tmp_path / "runs", name="two")
    assert "2 starting configurations are tried first" in ended(one, 0)
    assert "starting configurations" not in ended(two, 0)

    def trials(run: str) -> list[optuna.trial.FrozenTrial]:
        with storages.opened(url) as storage:
            study = studies.existing(storage, "both")
            assert study is not None
            return [t for t in study.get_trials() if t.user_attrs[RUN] == run]

    assert [len(trials("one")), len(trials("two"))] == [4, 4]
    assert [t.params["lr"] for t in trials("one")[:2]] == [0.01, 0.02]
    assert not {t.params["lr"] for t in trials("one")} & {t.params["lr"] for t in trials("two")}
    assert len(pq.read_table(tmp_path / "runs" / "one" / "trials.parquet")) == 4

    # one goes on with the password given anew, two with its variable
    assert "give it yourself" in ended(
        search("--resume", "--trials", "5", study="", storage=tmp_path / "runs", name="one"), 2
    )
    ended(search("--resume", "--trials", "5", study=url, storage=tmp_path / "runs", name="one"), 0)
    ended(
        search("--resume", "--trials", "5", study=named, storage=tmp_path / "runs", name="two"), 0
    )
    assert [len(trials("one")), len(trials("two"))] == [5, 5]
    assert [t.params["lr"] for t in trials("one")].count(0.01) == 1

    for wrong, named_there in (
        (["--max-epochs", "3"], "max_epochs=2"),
        (["--metric", "val_loss"], "minimize"),
        (["--val-images", "50"], "val_images=215"),
    ):
        output = ended(
            search(*size, *wrong, study=named, storage=tmp_path / "runs", name="three"), 2
        )
        assert output.count("\n") == 1
        assert named_there in output
        assert not (tmp_path / "runs" / "three").exists()
    output = ended(search(*size, study=named, storage=tmp_path / "elsewhere", name="one"), 2)
    assert "--name: a run 'one'" in output
    output = ended(
        search("--resume", study="mysql://u:x@127.0.0.1/y", storage=tmp_path / "runs", name="two"),
        2,
    )
    assert "which stays" in output

    output = ended(
        search(
            *size,
            "--warm-start",
            str(tmp_path / "runs" / "two"),
            study="memory",
            storage=tmp_path / "runs",
            name="warm",
        ),
        2,
    )
    assert "give that, with #STUDY_NAME" in output
    output = ended(
        search(
            *size,
            "--warm-start",
            f"{url}#both",
            study="memory",
            storage=tmp_path / "runs",
            name="warm",
        ),
        0,
    )
    assert "learning from 10 trials" in output
    assert len(pq.read_table(tmp_path / "runs" / "warm" / "trials.parquet")) == 4
    assert "in memory" in ended(
        search("--resume", study="", storage=tmp_path / "runs", name="warm"), 2
    )

    kept = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(kept) > 8
    for path in kept:
        assert SECRET.encode() not in path.read_bytes(), path
    assert (
        json.loads((tmp_path / "runs" / "two" / "run.json").read_text())["settings"]["study"]
        == named
    )
