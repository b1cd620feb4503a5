"""The acts of a search, called in this process without Ray: plan, keeper, summary."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import yaml

from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.run import layout, lease
from mnist_ray.run.about import About
from mnist_ray.run.records import Record, Records
from mnist_ray.search_job import engine, job, summary
from mnist_ray.search_job.keeper import Keeper, claim
from mnist_ray.search_job.plan import Placement, prepare
from mnist_ray.search_job.summary import describe
from mnist_ray.settings import RECIPES, SearchSettings
from mnist_ray.storage import RunStorage
from mnist_ray.study import journal, studies, trials
from mnist_ray.study.journal import journal_file
from mnist_ray.study.optuna_private import started
from mnist_ray.tune.suggestions import Suggestions
from tests.support.about import facts


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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stages": "train.yaml"}, "; then the best is fine-tuned on 1,000 images"),
        ({"stages": "all.yaml"}, "; then the best is fine-tuned on 1,437 images"),
        ({"finetune": False}, ""),
    ],
)
def test_the_first_line_says_how_many_images_search_and_fine_tuning_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for part in ("train", "all"):
        recipe = {**yaml.safe_load((RECIPES / "stages-tiny.yaml").read_text()), "train_on": part}
        Path(f"{part}.yaml").write_text(yaml.safe_dump(recipe))
    plan = prepare(settings(tmp_path / "runs", train_images=1000, trials=3, **options))
    placed = dataclasses.replace(plan, placement=Placement(0, 2, "fp32", {}))
    restored: Any = None  # of a resume alone
    line = job._begins(placed, restored)
    images = "each on 1,000 training and 215 validation images"
    assert line == f"run {plan.storage.uri}: 3 trials, 2 at a time, {images}{said}"


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

    monkeypatch.setattr("mnist_ray.spaces.find", lambda name, **_: mine)
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


def test_a_confirmed_run_keeps_its_retrainings(tmp_path: Path) -> None:
    """best/ holds the weights of one, and no trial's own would take their place."""
    plan = prepare(settings(tmp_path, confirm=2))
    claim(plan)
    again = {"storage": str(tmp_path), "name": "a", "resume": True, "dry_run": True}
    assert prepare(SearchSettings.of(**again, confirm=0)).settings.confirm == 0
    plan.storage.write_bytes(layout.CONFIRMED, b"x")
    with pytest.raises(SettingsError, match="^--confirm: 0 was given, but the run's best"):
        prepare(SearchSettings.of(**again, confirm=0))
    assert prepare(SearchSettings.of(**again)).settings.confirm == 2
    with pytest.raises(SettingsError, match="^--max-epochs: 99 and --confirm-epochs 30"):
        prepare(SearchSettings.of(**again, max_epochs=99, confirm_epochs=30))


def test_only_a_run_that_exists_can_be_resumed(tmp_path: Path) -> None:
    plan = prepare(settings(tmp_path))
    assert job._to_go_on(plan) == ""
    claim(plan)
    assert job._to_go_on(plan).endswith("--resume")
    in_memory = dataclasses.replace(plan.settings, study="memory")
    assert job._to_go_on(dataclasses.replace(plan, settings=in_memory)) == ""


@pytest.mark.parametrize("study", [None, "sqlite:///FOLDER/studies.db"])
def test_a_run_whose_folder_was_renamed_is_left_as_it_is(tmp_path: Path, study: str | None) -> None:
    place = study and study.replace("FOLDER", str(tmp_path))
    plan = prepare(settings(tmp_path / "runs", study=place, study_name=place and "s"))
    claim(plan)
    with engine.opened_study(plan) as (made, _):
        made.ask()
    folder = (tmp_path / "runs" / "a").rename(tmp_path / "runs" / "b")
    before = content(folder)
    again = {"storage": str(tmp_path / "runs"), "name": "b", "resume": True}
    with pytest.raises(SettingsError) as caught:
        prepare(SearchSettings.of(**again, study=place, study_name=place and "s"))
    assert str(caught.value).startswith(f"--name: the run at {folder} is 'a' by its run.json and")
    assert content(folder) == before


class Slip(optuna.samplers.RandomSampler):
    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        raise KeyError("nothing")


def test_a_dry_run_names_an_error_in_ones_own_sampler(tmp_path: Path) -> None:
    plan = prepare(settings(tmp_path, sampler=f"{__name__}:Slip", dry_run=True))
    with pytest.raises(SettingsError, match=rf"^--sampler: {__name__}:Slip failed: .*KeyError"):
        describe(plan)


def test_a_dry_run_shows_what_the_space_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = prepare(settings(tmp_path, trials=2, dry_run=True))

    def space(trial: optuna.Trial) -> dict[str, Any]:
        if trial.number:
            raise optuna.TrialPruned("too large")
        return {"width": np.int64(8)}

    *_, first, second = describe(dataclasses.replace(plan, space=space)).splitlines()
    assert first == 'suggestion 0: {"width": 8}'
    assert second == "suggestion 1: pruned by the space: too large"


def test_a_run_keeps_its_first_rung(tmp_path: Path) -> None:
    again = SearchSettings(storage=str(tmp_path), name="a", resume=True, dry_run=True)
    about = claim(prepare(settings(tmp_path, max_epochs=52)))
    assert about.settings["grace_period"] == 5
    for older in ({"grace_period": 1}, {}):  # as runs recorded it when 1 was the default
        kept = {k: v for k, v in about.settings.items() if k != "grace_period"}
        about.patch(settings={**kept, **older})
        assert prepare(again).scheduler.grace_period == 1


def test_overwrite_keeps_the_lease_of_its_owner_and_files_of_others(tmp_path: Path) -> None:
    claim(prepare(settings(tmp_path)))
    for name in ("tune/old", "best/old", "notes/mine"):
        (tmp_path / "a" / name).parent.mkdir()
        (tmp_path / "a" / name).touch()
    (tmp_path / "a" / layout.lease_file("search")).write_text("mine")
    claim(prepare(settings(tmp_path, overwrite=True)))
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"run.json", "search.lease", "notes"}


def test_overwrite_removes_runs_only(tmp_path: Path) -> None:
    (tmp_path / "a" / "photos").mkdir(parents=True)
    (tmp_path / "a" / "photos" / "one.png").write_text("mine")
    with pytest.raises(SettingsError, match=r"^--overwrite: .*/a is no run: it holds photos/one"):
        prepare(settings(tmp_path, overwrite=True))
    (tmp_path / "a" / "run.json").write_text('{"name": "of another program"}')
    with pytest.raises(SettingsError, match=r"^--overwrite: .*/a is no run: it holds photos/one"):
        prepare(settings(tmp_path, overwrite=True))
    (tmp_path / "a" / "run.json").unlink()
    (tmp_path / "a" / "photos" / "one.png").unlink()
    for ours in ("search.lease", "tune/checkpoints/00000/latest.safetensors", "model.onnx"):
        (tmp_path / "a" / ours).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / ours).write_text("left by one that was killed while it replaced a run")
    prepare(settings(tmp_path, overwrite=True))


def test_a_new_run_takes_no_files_of_an_old_one(tmp_path: Path) -> None:
    """As an interrupted --overwrite of an earlier version left them, without the run.json."""
    folder = finished(tmp_path)
    (folder / layout.RUN).unlink()
    before = content(folder)
    with pytest.raises(
        SettingsError,
        match=r"^--name: files of a run without its run.json lie at .*/a, as history.parquet; "
        "give --overwrite or another name$",
    ):
        prepare(settings(tmp_path))
    assert content(folder) == before
    claim(prepare(settings(tmp_path, overwrite=True)))
    assert content(folder).keys() == {"run.json"}


def test_a_lease_and_files_of_others_are_no_run(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("search.lease", "README.md", "notes.txt"):
        (tmp_path / "a" / name).write_text("left by one that was killed, or mine")
    claim(prepare(settings(tmp_path)))


def test_one_of_two_that_prepare_at_once_gets_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the other one begins while this one looks."""
    first, exists = prepare(settings(tmp_path)), RunStorage.exists

    def slow(self: RunStorage, name: str = "") -> bool:
        found = exists(self, name)
        if name == layout.RUN and not found:
            monkeypatch.setattr(RunStorage, "exists", exists)
            claim(first)
            first.storage.write_bytes(layout.JOURNAL, b"{}")
        return found

    monkeypatch.setattr(RunStorage, "exists", slow)
    second = prepare(settings(tmp_path))
    with pytest.raises(SettingsError, match="^--name: another search has just taken the name at"):
        claim(second)


def test_an_interrupted_overwrite_leaves_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(tmp_path)
    removed, delete = [], RunStorage.delete

    def noted(self: RunStorage, name: str) -> None:
        removed.append(name)
        delete(self, name)

    monkeypatch.setattr(RunStorage, "delete", noted)
    claim(prepare(settings(tmp_path, overwrite=True)))
    assert len(removed) > 3
    assert removed[-1] == layout.RUN


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


def test_a_resume_removes_only_the_checkpoints_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an object store a removal is two requests, and a run may have thousands of trials."""
    storage = prepare(settings(tmp_path)).storage
    records = Records("val_accuracy", 1000)
    for number in range(1000):
        records.add(Record(number, {}, state="RUNNING" if number == 2 else "PRUNED"))
    for number in (1, 2):
        storage.write_bytes(f"{layout.trial_folder(number)}/latest", b"cut off")
    removed, delete = [], RunStorage.delete

    def noted(self: RunStorage, name: str) -> None:
        removed.append(name)
        delete(self, name)

    monkeypatch.setattr(RunStorage, "delete", noted)
    keeper = Keeper(storage, records, {}, None, resumed=True)
    keeper.save()
    assert removed == [layout.trial_folder(1)]
    assert storage.list(layout.CHECKPOINTS) == [f"{layout.trial_folder(2)}/latest"]
    keeper.save()
    assert len(removed) == 1


def test_who_has_lost_the_run_writes_nothing(tmp_path: Path) -> None:
    storage = prepare(settings(tmp_path)).storage
    held = lease.Lease(storage, "search")
    held.take("--name")
    About.claim(held.owned, facts(), "")
    study = optuna.create_study(storage=journal_file(tmp_path / "j", held.owned.check))
    storage.write_json("search.lease", {**storage.read_json("search.lease"), "token": "another"})
    for write in (
        Keeper(held.owned, Records("val_accuracy", 1), {}, None).save,
        lambda: About.read(held.owned, "").ended("interrupted"),
        study.ask,
    ):
        with pytest.raises(WorkError, match="taken over"):
            write()
    assert storage.list() == ["run.json", "search.lease"]
    assert storage.read_json("run.json")["state"] == "searching"
    assert study.trials == []


@pytest.mark.parametrize(("before", "after"), [("finetuning", "interrupted"), ("done", "done")])
def test_an_interrupt_does_not_hide_that_the_second_job_has_ended(
    before: str, after: str, tmp_path: Path
) -> None:
    storage = prepare(settings(tmp_path)).storage
    held = lease.Lease(storage, "search")
    held.take("--name")
    about = About.claim(held.owned, facts(), "")
    with pytest.raises(KeyboardInterrupt), job._outcome(held.owned, held):
        about.patch(state=before)
        raise KeyboardInterrupt
    assert About.read(storage, "--name").state == after


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


def finished(folder: Path, metric: str = "val_accuracy", **options: Any) -> Path:
    """A run with one trial that has ended, as the keeper leaves it."""
    plan = prepare(settings(folder, trials=3, max_epochs=1, **options))
    claim(plan)
    study = studies.open_study(
        journal_file(folder / "a" / layout.JOURNAL),
        plan.study_name,
        metric,
        plan.sampler(0),
        purpose=plan.purpose,
    )
    records = Records(metric, 3)
    trial = started(study, {trials.RUN: "a"}, {})
    plan.space(trial)
    record = records.add(Record(trial.number, dict(trial.params)))
    records.report(trial.number, row(1, 0.5))  # type: ignore[arg-type]
    records.end(trial.number, "COMPLETE")
    trial.set_user_attr(trials.SUMMARY, record.summary())
    study.tell(trial, 0.5)
    Keeper(plan.storage, records, {"best.bin": "model.bin"}, None, resumed=True).save()
    return folder / "a"


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_a_run_goes_on_with_the_trials_of_its_journal(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    before = content(folder)
    plan = prepare(SearchSettings(storage=str(tmp_path), name="a", resume=True))
    assert plan.resumed is not None
    assert content(folder) == before
    (folder / layout.TRIALS).write_bytes(b"damaged")  # it is made from the journal
    prepare(SearchSettings(storage=str(tmp_path), name="a", resume=True))


def overwrite_one_byte(journal: bytes) -> bytes:
    lines = journal.splitlines(keepends=True)
    return b"".join([*lines[:3], b"x" + lines[3][1:], *lines[4:]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda journal: None, r"study\.journal is missing, though trials\.parquet has 1: put ba"),
        (lambda journal: b"", r"study\.journal has no trial of this run, though trials\.parquet"),
        (lambda journal: journal.splitlines(keepends=True)[0], "has no trial of this run"),
        (lambda journal: journal + b"garbage\n", r"study\.journal is damaged in line \d+: "),
        (overwrite_one_byte, r"study\.journal is damaged in line 4: "),
        (
            lambda journal: journal.replace(b'"val_loss"', b'"epoch"'),
            r"study 'a' is damaged: trial 0: epoch is 0.5",
        ),
    ],
)
def test_a_run_without_what_it_has_done_is_refused_and_left_as_it_is(
    tmp_path: Path, change: Callable[[bytes], bytes | None], message: str
) -> None:
    folder = finished(tmp_path)
    changed = change((folder / layout.JOURNAL).read_bytes())
    (folder / layout.JOURNAL).unlink()
    if changed is not None:
        (folder / layout.JOURNAL).write_bytes(changed)
    before = content(folder)
    with pytest.raises(SettingsError, match=f"^--resume: .*{message}") as caught:
        prepare(SearchSettings(storage=str(tmp_path), name="a", resume=True))
    assert "\n" not in str(caught.value)
    assert content(folder) == before


def test_a_run_that_was_cut_off_before_its_first_trial_goes_on(tmp_path: Path) -> None:
    claim(prepare(settings(tmp_path)))
    again = SearchSettings(storage=str(tmp_path), name="a", resume=True)
    assert prepare(again).resumed
    given = frozenset({"target", "storage", "name", "resume"})
    with pytest.raises(SettingsError, match=r"^--target: 99 is not allowed with --metric val_acc"):
        prepare(dataclasses.replace(again, target=99.0, given=given))


def test_the_stored_journal_is_never_behind_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume after a kill in between refuses tables that know more than the study."""
    storage, written = RunStorage(str(tmp_path / "run")), []
    real = RunStorage.write_bytes

    def noted(self: RunStorage, name: str, data: bytes) -> None:
        written.append(name)
        real(self, name, data)

    monkeypatch.setattr(RunStorage, "write_bytes", noted)
    local = tmp_path / "study.journal"
    local.write_bytes(b"{}\n")
    Keeper(storage, Records("val_accuracy", 1), {}, local).save()
    assert written == [layout.JOURNAL, layout.TRIALS, layout.HISTORY]


def test_a_trial_is_handed_out_when_the_stored_journal_knows_it(tmp_path: Path) -> None:
    """In an object store the journal is a copy of the local file."""
    bucket = RunStorage(str(tmp_path / "bucket"))
    bucket.create_exclusive("run.json", b"{}")
    local = tmp_path / "study.journal"
    study = optuna.create_study(storage=journal_file(local), study_name="s")
    keeper = Keeper(bucket, Records("val_accuracy", 9), {}, local)

    def space(trial: optuna.Trial) -> dict[str, Any]:
        return {"x": trial.suggest_float("x", 0, 1)}

    asked = Suggestions(study, space, Records("val_accuracy", 9), "a", keep=keeper.keep_journal)
    for number in range(3):
        found = asked.next()
        assert found is not None
        kept = journal.read(bucket, layout.JOURNAL).get_all_trials(0)
        assert [trial.params for trial in kept][-1] == found.trial.params
        assert len(kept) == number + 1


def test_a_slow_line_does_not_hold_up_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, uploads = [1000.0], 0

    def slow(name: str, data: bytes) -> None:
        nonlocal uploads
        uploads += 1
        now[0] += 3.0

    storage, local = RunStorage(str(tmp_path)), tmp_path / "local"
    monkeypatch.setattr(storage, "write_bytes", slow)
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("mnist_ray.search_job.keeper.time", clock)
    keeper = Keeper(storage, Records("val_accuracy", 9), {}, local)
    for second in range(300):
        with local.open("a") as file:
            file.write("x")
        keeper.keep_journal()
        now[0] += 1.0
        if second == 200:
            before = uploads
            keeper.keep_journal(at_once=True)
            assert uploads == before + 1
    assert 8 < uploads < 13  # a tenth of the time
    before = uploads
    keeper.keep_journal(at_once=True)
    keeper.keep_journal(at_once=True)
    assert uploads <= before + 1  # what has not grown is there already
