"""The acts of a search, called in this process without Ray: plan, keeper, summary."""

import dataclasses
from pathlib import Path
from typing import Any

import optuna
import pytest

from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.run import layout
from mnist_ray.run.about import About
from mnist_ray.run.records import Record, Records
from mnist_ray.search_job import summary
from mnist_ray.search_job.keeper import Keeper, claim
from mnist_ray.search_job.plan import Placement, describe, prepare
from mnist_ray.settings import SearchSettings


def settings(folder: Path, **options: Any) -> SearchSettings:
    small = {"dataset": "digits", "space_args": ("min_width=8", "max_width=16"), "name": "a"}
    return SearchSettings(**{**small, "storage": str(folder), **options})


def row(epoch: int, accuracy: float) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "train_loss": 1.0,
        "train_accuracy": 0.5,
        "val_loss": 1 - accuracy,
        "val_accuracy": accuracy,
        "lr": 0.1,
        "images_per_second": 10.0,
        "seconds": 1.0,
    }


def test_a_plan_is_whole_and_nothing_is_started(tmp_path: Path) -> None:
    plan = prepare(settings(tmp_path / "runs", time_budget="2m", trials=3))
    assert plan.time_budget == 120
    assert plan.finetune
    assert len(plan.split.val) == 215
    assert plan.space(optuna.create_study().ask())["classes"] == 10
    assert not (tmp_path / "runs").exists()
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.name = "b"  # type: ignore[misc]


def test_a_description_begins_with_the_settings(tmp_path: Path) -> None:
    text = describe(prepare(settings(tmp_path, trials=2, dry_run=True)))
    assert "\ntrials: 2\n" in text
    assert [line.split(":")[0] for line in text.splitlines()[-2:]] == [
        "suggestion 0",
        "suggestion 1",
    ]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"time_budget": "soon"}, "--time-budget"),
        ({"sampler": "nothing"}, "--sampler"),
        ({"sampler_args": ("nothing=1",)}, "--sampler-args"),
        ({"scheduler": "asha", "scheduler_args": ("x=1",)}, "--scheduler-args"),
        ({"points": "/does/not/exist.yaml"}, "--points"),
        ({"stages": "nowhere"}, "--stages"),
        ({"study": "nothing://x"}, "--study"),
        ({"onnx": "none.onnx"}, "--onnx"),
        ({"resume": True}, "--resume"),
    ],
)
def test_every_refusal_is_the_plans(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=f"^{named}"):
        prepare(settings(tmp_path / "runs", **options))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"optimizer": "lion"}, "optimizer is 'lion': expected one of adam, adamw, sgd, rmsprop"),
        ({"lr": None}, "lr"),
        ({"batch_size": 0}, "batch_size is 0: expected a whole number of at least 1"),
    ],
)
def test_a_space_that_cannot_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returned: dict[str, Any], message: str
) -> None:
    def mine(trial: optuna.Trial, data: Any) -> dict[str, Any]:
        x = trial.suggest_float("x", 0.1, 1)
        common = {"model": "m:n", "optimizer": "adam", "lr": x, "batch_size": 8}
        return {**common, **data.hyperparameters(), **returned}

    monkeypatch.setattr("mnist_ray.spaces.find", lambda name: mine)
    with pytest.raises(SettingsError, match=f"^--space: 'a:b' .*{message}"):
        prepare(settings(tmp_path, space="a:b", space_args=()))


def test_what_a_cluster_decides_is_recorded_for_a_resume(tmp_path: Path) -> None:
    plan = prepare(settings(tmp_path, gpus_per_trial="auto"))
    plan = dataclasses.replace(plan, placement=Placement(0.25, 4, "bf16", {}))
    assert claim(plan).settings["gpus_per_trial"] == 0.25
    again = prepare(SearchSettings(storage=str(tmp_path), name="a", resume=True, dry_run=True))
    assert again.settings.gpus_per_trial == 0.25
    assert again.settings.dataset == "digits"
    with pytest.raises(SettingsError, match="^--name: a run is there already"):
        prepare(settings(tmp_path))


def test_overwrite_keeps_the_lease_of_its_owner(tmp_path: Path) -> None:
    claim(prepare(settings(tmp_path)))
    (tmp_path / "a" / "old").mkdir()
    (tmp_path / "a" / "old" / "file").touch()
    (tmp_path / "a" / layout.lease_file("search")).write_text("mine")
    claim(prepare(settings(tmp_path, overwrite=True)))
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"run.json", "search.lease"}


def test_the_keeper_keeps_the_best_and_sweeps_the_others(tmp_path: Path) -> None:
    storage = prepare(settings(tmp_path)).storage
    records = Records("val_accuracy", 3)
    keeper = Keeper(storage, records, {"best.bin": "model.bin"}, None)
    for number, accuracy in enumerate((0.5, 0.9, 0.7)):
        records.add(Record(number, {"x": number}))
        storage.write_bytes(f"{layout.trial_folder(number)}/best.bin", bytes([number]))
        records.report(number, row(1, accuracy))  # type: ignore[arg-type]
        records.end(number, "COMPLETE")
        keeper.settled(number)
    keeper.save()
    assert storage.read_bytes("best/model.bin") == b"\x01"
    assert storage.list(layout.CHECKPOINTS) == []
    assert {layout.TRIALS, layout.HISTORY} <= set(storage.list())


def test_who_has_lost_the_run_writes_nothing(tmp_path: Path) -> None:
    storage = prepare(settings(tmp_path)).storage

    def taken() -> None:
        raise WorkError("another process has taken over its run")

    keeper = Keeper(storage, Records("val_accuracy", 1), {}, None, check=taken)
    with pytest.raises(WorkError, match="taken over"):
        keeper.save()
    assert not storage.exists()


def test_the_summary_tells_how_trials_ended() -> None:
    records = Records("val_accuracy", 3)
    study = optuna.create_study(direction="maximize")
    for number, state in enumerate(("COMPLETE", "PRUNED", "FAIL")):
        record = records.add(Record(number, {"beta2": 0.9999}))
        if state == "FAIL":
            record.reason = "too large"
        else:
            records.report(number, row(1, 0.5 + number / 10))  # type: ignore[arg-type]
        records.end(number, state)
    text = summary.text(records, study)
    assert text.startswith("3 trials: 1 complete, 1 pruned, 1 failed\n  1 × too large")
    assert "beta2=0.9999" in text
    assert text.index("0.6000") < text.index("0.5000")


def test_about_is_read_as_it_was_claimed(tmp_path: Path) -> None:
    plan = prepare(settings(tmp_path))
    claimed = claim(plan)
    assert About.read(plan.storage, "--run").settings == claimed.settings


HOSTILE = {
    "dataset": ["shutil:rmtree", "os:system"],
    "space": ["os:system"],
    "sampler": ["antigravity:x"],
    "scheduler": ["antigravity:x"],
    "study": ["postgresql://me:${SECRET}@host/db", "/etc/x.journal", "sqlite:////etc/x"],
    "mlflow": ["http://x:${SECRET}@host", "sqlite:///x.db"],
    "wandb": ["mine"],
    "stages": ["/etc/passwd", "../stages.yaml"],
    "warm_start": ["s3://bucket/run", "/etc"],
    "onnx": ["http://host/x.onnx", "/etc/model.onnx"],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in HOSTILE.items() for v in vs])
def test_a_run_json_chooses_no_code_no_host_and_no_path(
    tmp_path: Path, key: str, value: str
) -> None:
    about = claim(prepare(settings(tmp_path)))
    about.patch(settings={**about.settings, key: value})
    again: dict[str, Any] = {"storage": str(tmp_path), "name": "a", "resume": True}
    for dry_run in (False, True):
        with pytest.raises(SettingsError, match=rf"^--{key.replace('_', '-')}: .*give it yourself"):
            prepare(SearchSettings(**again, dry_run=dry_run))


def test_a_printed_command_repeats_ones_own_choices(tmp_path: Path) -> None:
    plan = prepare(settings(tmp_path / "a b", study="sqlite:////tmp/x?y.db", name="a"))
    assert plan.resume_command.endswith(
        f" search --storage '{tmp_path}/a b' --name a --resume --study 'sqlite:////tmp/x?y.db'"
    )


def test_packaged_recipes_are_known_by_name_and_by_their_old_path(tmp_path: Path) -> None:
    for stages in (
        "mnist",
        "jobs/recipes/stages-mnist.yaml",
        "/elsewhere/jobs/recipes/stages-s1.yaml",
    ):
        name = stages.rpartition("/")[2].removesuffix(".yaml")
        claim(prepare(settings(tmp_path, stages=stages, name=name)))
        assert prepare(SearchSettings(storage=str(tmp_path), name=name, resume=True)).finetune
