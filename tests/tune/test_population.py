"""Population Based Training: what is refused, what is perturbed, how a state is handed over, what
is noted, and a real search.
"""

import dataclasses
import io
import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest
import torch

from mnist_ray.errors import SettingsError
from mnist_ray.run.records import Records
from mnist_ray.run.tables import trials_table
from mnist_ray.settings import SearchSettings
from mnist_ray.study.pruners import check_population, read_scheduler
from mnist_ray.study.samplers import make_sampler
from mnist_ray.study.studies import open_study
from mnist_ray.study.trials import SUMMARY, read_trials
from mnist_ray.tune import population as pbt
from mnist_ray.tune.outcomes import EXPLOITS
from mnist_ray.tune.schedulers import make_scheduler
from mnist_ray.tune.searcher import StudySearch
from mnist_ray.tune.trial import NUMBER, TrialContext
from tests.support import ROOT
from tests.support.trials import HP, Here
from tests.support.tune_loop import FakeTrial, result

optuna.logging.set_verbosity(optuna.logging.ERROR)

PBT = SearchSettings(scheduler="pbt", trials=4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"resume": True, "name": "n"}, "--resume"),
        ({"trials": 1}, "--trials"),
        ({"deterministic": True}, "--deterministic"),
        ({"objectives": "accuracy,parameters"}, "--objectives"),
        ({"sampler": "gp", "given": frozenset({"sampler"})}, "--sampler"),
        ({"max_concurrent": 2}, "--max-concurrent"),
        ({"scheduler_args": ("speed=1",)}, "--scheduler-args"),
        ({"scheduler_args": ("perturbation_interval=0",)}, "--scheduler-args"),
        ({"scheduler_args": ("quantile_fraction=0.6",)}, "--scheduler-args"),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_one_line(
    changes: dict[str, Any], named: str
) -> None:
    check_population(PBT)
    check_population(dataclasses.replace(PBT, sampler="random", given=frozenset({"sampler"})))
    with pytest.raises(SettingsError, match=named) as refused:
        check_population(dataclasses.replace(PBT, **changes))
        read_scheduler(dataclasses.replace(PBT, **changes))
    assert "\n" not in str(refused.value)


def test_it_is_no_pruner() -> None:
    assert (
        read_scheduler(dataclasses.replace(PBT, scheduler_args=("quantile_fraction=0.5",))).pruner()
        is None
    )
    with pytest.raises(SettingsError, match="patient cannot wrap 'pbt'"):
        read_scheduler(
            dataclasses.replace(PBT, scheduler="patient", scheduler_args=("wraps=pbt",))
        ).pruner()


def test_only_what_does_not_change_the_network_is_perturbed() -> None:
    config = {
        "lr": 0.1,
        "weight_decay": 0.01,
        "label_smoothing": 0.45,
        "dropout": 0.3,
        "width": 8,
        "momentum": 0.9,
    }
    seen = set()
    for seed in range(40):
        new = pbt.perturbed(config, random.Random(seed))
        assert {key for key in config if new[key] != config[key]} == {
            "lr",
            "weight_decay",
            "label_smoothing",
        }
        assert new["lr"] / 0.1 in (pytest.approx(0.8), pytest.approx(1.2))
        assert new["label_smoothing"] in (pytest.approx(0.36), 0.5)
        seen.add(round(new["lr"], 3))
    assert seen == {0.08, 0.12}
    assert pbt.perturbed({"lr": 1.0, "label_smoothing": 0.0}, random.Random(0)).keys() == {
        "lr",
        "label_smoothing",
    }


class Controller:
    """As much of Tune's controller as the scheduler asks."""

    def __init__(self, trials: list[Any]) -> None:
        self.trials = trials

    def get_live_trials(self) -> list[Any]:
        return self.trials


def a_scheduler(n: int, interval: int = 1) -> tuple[pbt.StudyPBT, list[Any]]:
    told: list[Any] = []
    alg = SimpleNamespace(exploited=lambda *story: told.append(story))
    settings = dataclasses.replace(PBT, scheduler_args=(f"perturbation_interval={interval}",))
    found = read_scheduler(settings)
    scheduler: Any = make_scheduler(found, {}, alg, settings.seed)  # type: ignore[arg-type]
    scheduler.set_search_properties("val_accuracy", "max")
    trials: list[Any] = [FakeTrial(str(i), {NUMBER: i, "lr": 0.1, "width": i}) for i in range(n)]
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    return scheduler, trials


def test_the_donor_s_configuration_is_taken_over_with_the_own_number() -> None:
    scheduler, (one, two) = a_scheduler(2)
    config = scheduler.explored(one, two)
    assert (config[NUMBER], config["width"]) == (0, 1)
    assert config["lr"] != 0.1
    assert two.config == {NUMBER: 1, "lr": 0.1, "width": 1}


@pytest.mark.parametrize("ended", ["on_trial_complete", "on_trial_error"])
def test_the_others_go_on_where_the_one_that_all_wait_for_fails(ended: str) -> None:
    scheduler, trials = a_scheduler(3, interval=2)
    for trial in trials[:2]:
        scheduler._trial_state[trial].last_train_time = 2
    controller = Controller(trials)

    def end(trial: Any) -> None:
        getattr(scheduler, ended)(
            controller, trial, *([{}] if ended == "on_trial_complete" else [])
        )

    assert scheduler._next_perturbation_sync == 2
    end(trials[2])
    assert scheduler._next_perturbation_sync == 4
    end(trials[0])  # nobody waits: the other one has two more epochs to go
    assert scheduler._next_perturbation_sync == 4


@pytest.fixture
def trial_class(tmp_path: Path) -> type[Here]:
    context = TrialContext(str(tmp_path), "val_accuracy", 4, 0, "fp32", 1, 0)
    return type("HereAtTmp", (Here,), {"context_of_test": context})


def weights(trial: Here) -> dict[str, torch.Tensor]:
    return {
        name: tensor.clone() for name, tensor in trial.worker.trainer.model.state_dict().items()
    }


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_paused_trial_goes_on_as_if_it_had_not_been(
    trial_class: type[Here], tmp_path: Path
) -> None:
    whole = trial_class({**HP, NUMBER: 1})
    expected = [whole.train() for _ in range(4)]
    trial = trial_class({**HP, NUMBER: 2})
    results = [trial.train(), trial.train()]
    (tmp_path / "state").mkdir()
    trial.save_checkpoint(str(tmp_path / "state"))
    trial.reset_config({**HP, NUMBER: 3})  # another's turn in the same process
    trial.train()
    trial.reset_config({**HP, NUMBER: 2})
    trial.load_checkpoint(str(tmp_path / "state"))
    results += [trial.train(), trial.train()]
    assert [r["epoch"] for r in results] == [1, 2, 3, 4]
    assert [r["val_loss"] for r in results] == [r["val_loss"] for r in expected]
    assert equal(weights(trial), weights(whole))
    assert results[-1]["done"]
    for each in (whole, trial):
        each.stop()


def test_a_donor_s_state_is_taken_over_and_the_own_curve_stays(
    trial_class: type[Here], tmp_path: Path
) -> None:
    donor = trial_class({**HP, "width": 8, NUMBER: 1})
    for _ in range(2):
        donor.train()
    (tmp_path / "state").mkdir()
    donor.save_checkpoint(str(tmp_path / "state"))
    trial = trial_class({**HP, "lr": 1e-6, NUMBER: 2})
    own = [trial.train(), trial.train()]
    trial.reset_config({**HP, "width": 8, "lr": 0.04, NUMBER: 2})
    trial.load_checkpoint(str(tmp_path / "state"))
    assert equal(weights(trial), weights(donor))
    mine, theirs = (each.worker.trainer.optimizer.state_dict() for each in (trial, donor))
    assert torch.equal(mine["state"][0]["momentum_buffer"], theirs["state"][0]["momentum_buffer"])
    third = trial.train()
    assert third["epoch"] == 3
    assert "rows" not in third
    assert third["n_parameters"] > own[0]["n_parameters"]
    assert [row["val_loss"] for row in trial.worker.trainer.rows] == [
        r["val_loss"] for r in (*own, third)
    ]
    assert third["lr"] < 0.04
    for each in (donor, trial):
        each.stop()


def test_the_study_and_the_tables_say_what_became_of_a_trial() -> None:
    study = open_study(
        optuna.storages.InMemoryStorage(), "s", "val_accuracy", make_sampler("random", 0)
    )
    records = Records("val_accuracy", 2)
    search = StudySearch(
        study,
        lambda trial: {"lr": trial.suggest_float("lr", 0, 1)},
        records,
        run="r",
        max_epochs=3,
        on_settled=lambda number: None,
    )
    config = search.suggest("a")
    assert isinstance(config, dict)

    search.on_trial_result("a", result(1, 0.1, n_parameters=10))
    story = {"after_epoch": 1, "from": 7, "lr": 0.5}
    search.exploited("a", story)
    search.on_trial_result("a", result(2, 0.9, n_parameters=20))
    search.exploited("a", {**story, "after_epoch": 2})
    search.on_trial_complete("a", result(3, 0.8, n_parameters=30))
    [trial] = study.trials
    assert trial.params == {"lr": config["lr"]}
    assert (
        trial.user_attrs[EXPLOITS]
        == trial.user_attrs[SUMMARY]["exploits"]
        == [story, {**story, "after_epoch": 2}]
    )
    [row] = trials_table(records).to_pylist()
    assert json.loads(row["exploits"]) == trial.user_attrs[EXPLOITS]
    assert row["params_lr"] == config["lr"]
    assert row["n_parameters"] == 20  # of the network that reached the value
    [(_, record)] = read_trials(study, "r", "val_accuracy")
    assert record.exploits == records.trials[0].exploits


SMALL = [
    "--dataset",
    "digits",
    "--space-args",
    "min_width=8",
    "max_width=16",
    "--train-images",
    "400",
    "--val-images",
    "200",
]


@pytest.mark.slow
def test_a_search_with_more_trials_than_cores(ray_head: dict[str, str], tmp_path: Path) -> None:
    arguments = [
        "--scheduler",
        "pbt",
        "--trials",
        "6",
        "--max-epochs",
        "4",
        "--storage",
        str(tmp_path),
        "--name",
        "pbt",
        "--no-finetune",
    ]
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs/search.py"), *SMALL, *arguments],
        cwd=ROOT,
        env=ray_head,
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "pbt"
    assert json.loads((run / "run.json").read_text())["settings"]["sampler"] == "random"
    trials, history = (
        pq.read_table(io.BytesIO((run / f"{name}.parquet").read_bytes())).to_pylist()
        for name in ("trials", "history")
    )
    assert len(trials) == 6
    exploits = {
        row["number"]: json.loads(row["exploits"]) for row in trials if row["state"] == "COMPLETE"
    }
    assert any(exploits.values())
    assert "continued with another's weights" in done.stdout
    values = {(h["number"], h["epoch"]): h["val_accuracy"] for h in history}
    for row in trials:
        epochs = [h["epoch"] for h in history if h["number"] == row["number"]]
        assert epochs == list(range(1, row["epochs"] + 1))
        for story in exploits.get(row["number"], []):
            assert story["from"] != row["number"]
            # the donor was better when it gave its weights away
            assert (
                values[story["from"], story["after_epoch"]]
                >= values[row["number"], story["after_epoch"]]
            )
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(run / "study.journal"))
    )
    study = optuna.load_study(study_name="pbt", storage=storage)
    for trial, row in zip(study.trials, trials, strict=True):
        assert trial.state.name == row["state"]
        assert trial.user_attrs.get(EXPLOITS, []) == exploits.get(trial.number, [])
        assert trial.intermediate_values == {
            h["epoch"]: h["val_accuracy"] for h in history if h["number"] == trial.number
        }
    assert not list((run / "tune").glob("*/checkpoint_*"))
    assert "began with" in (run / "report.html").read_text()
