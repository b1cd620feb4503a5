"""The search on a real Ray: the run's directory, what Optuna is told, resumption after signals, S3,
and refusals.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mnist_ray import open_run
from mnist_ray.cli import console
from mnist_ray.errors import SettingsError
from mnist_ray.search_job.resumed import resumed_settings
from mnist_ray.settings import SearchSettings, check_search, parse, resolved
from mnist_ray.storage import RunStorage
from mnist_ray.study.trials import PAUSED
from tests.support import PROGRAMS, ROOT
from tests.support.processes import outside, own_ray
from tests.support.runs import (
    SMALL,
    check_published,
    check_run,
    check_two_jobs,
    finish,
    flags,
    load_study,
    quick,
    search,
    tables,
    wait_for,
)

# After four of six epochs about 0.8 and 0.2: far apart, whatever else the sampler draws. After one
# epoch both answer by chance, and which is stopped then depends on the machine.
LEARNS = (
    "- {optimizer: adamw, lr_adamw: 0.005, batch_size: 64, dropout: 0.1, schedule: one_cycle}\n"
)
HARDLY_LEARNS = "- {optimizer: sgd, lr_sgd: 0.01, batch_size: 256, schedule: one_cycle}\n"


def test_a_search_tells_optuna_the_truth(ray_head: dict[str, str], tmp_path: Path) -> None:
    # two of each: ASHA has something to stop, whatever the sampler draws
    points = tmp_path / "points.yaml"
    points.write_text(2 * LEARNS + 2 * HARDLY_LEARNS)
    size = [*SMALL, *flags(trials=8, max_epochs=6, grace_period=4, seed=3, points=points)]
    for tracker in (
        "mlflow",
        "wandb",
        "comet_ml",
    ):  # installed, but not asked for: Ray by itself would import each
        (tmp_path / f"{tracker}.py").write_text(
            f"open({str(tmp_path / 'imported')!r}, 'a').write(__name__)\n"
        )
    env = {**ray_head, "PYTHONPATH": str(tmp_path)}
    code, output = finish(
        search(env, *size, "--storage", str(tmp_path), "--name", "truth", "--no-finetune")
    )
    assert code == 0, output
    assert not (tmp_path / "imported").exists()
    folder = tmp_path / "truth"
    check_run(str(folder), 8)
    lines = [
        line for line in output.splitlines() if line.startswith("trial ") and "epochs=" in line
    ]
    assert len(lines) == 8
    study = load_study(folder)
    rows, history = tables(RunStorage(str(folder)))
    states = {row["number"]: row["state"] for row in rows}
    assert {t.number: t.state.name for t in study.trials} == states
    assert states[2] == states[3] == "PRUNED"
    for trial in study.trials:
        expected = {h["epoch"]: h["val_accuracy"] for h in history if h["number"] == trial.number}
        assert trial.intermediate_values == expected
        if trial.state.name == "COMPLETE":
            assert trial.value == max(expected.values())
    run = json.loads((folder / "run.json").read_text())
    assert run["state"] == "searched"
    assert (run["data"]["train"], run["data"]["val"]) == (400, 200)
    # the tables come from what the study keeps
    again = finish(search(ray_head, "--storage", str(tmp_path), "--name", "truth", "--resume"))
    assert again[0] == 0, again[1]
    assert "8 of 8 trials are done" in again[1]
    assert tables(RunStorage(str(folder)))[1] == history


@pytest.mark.parametrize(
    "how",
    [signal.SIGINT, signal.SIGTERM, signal.SIGKILL],
)
@pytest.mark.slow  # tests/faults too: test_interrupts.py, and test_driver.py for SIGKILL
def test_a_stopped_search_goes_on(
    ray_head: dict[str, str], tmp_path: Path, how: signal.Signals
) -> None:
    arguments = ["--storage", str(tmp_path), "--name", "cut", "--no-finetune"]
    process = search(ray_head, *SMALL, "--trials", "6", "--max-epochs", "4", *arguments)
    wait_for(process, "trial ")
    wait_for(process, "epochs=")
    finished = {t.number for t in load_study(tmp_path / "cut").trials if t.state.is_finished()}
    started = time.monotonic()
    process.send_signal(how)
    code, output = finish(process, 30)
    assert time.monotonic() - started < 10
    if how != signal.SIGKILL:
        assert code == 130, output
        assert "--name cut --resume" in output
        assert json.loads((tmp_path / "cut" / "run.json").read_text())["state"] == "interrupted"
    code, output = finish(search(ray_head, "--storage", str(tmp_path), "--name", "cut", "--resume"))
    assert code == 0, output
    run_again = {
        int(line.split()[1])
        for line in output.splitlines()
        if line.startswith("trial ") and "epochs=" in line
    }
    assert not run_again & finished
    check_run(str(tmp_path / "cut"), 6)
    assert not [t for t in load_study(tmp_path / "cut").trials if t.state.name == "RUNNING"]


@pytest.mark.slow  # without Ray: tests/tune/test_promotion.py
def test_paused_trials_go_on_also_after_a_kill(ray_head: dict[str, str], tmp_path: Path) -> None:
    # One that learns, which must wait for others at the first rung, and some that hardly do.
    points = tmp_path / "points.yaml"
    points.write_text(LEARNS + 8 * HARDLY_LEARNS)
    # rungs at 2 and 6: three go on at the first, and one of them at the second
    budget = flags(trials=9, max_epochs=8, grace_period=2, seed=3)
    options = [*budget, *flags(scheduler="asha-promote", points=points)]
    place = flags(storage=tmp_path, name="p")

    def waiting() -> set[int]:
        with contextlib.suppress(KeyError):  # there is no study yet
            trials = load_study(tmp_path / "p").trials
            return {t.number for t in trials if t.user_attrs.get(PAUSED)}
        return set()

    process = search(ray_head, *SMALL, *options, *place, "--no-finetune")
    wait_for(process, "run ")
    while len(waiting()) < 2:
        assert process.poll() is None
        time.sleep(0.2)
    process.kill()
    finish(process, 30)
    paused = waiting()
    code, output = finish(search(ray_head, *place, "--resume"))
    assert code == 0, output
    check_run(str(tmp_path / "p"), 9)
    trials = load_study(tmp_path / "p").trials
    rows, history = tables(RunStorage(str(tmp_path / "p")))
    for row in rows:  # one that was killed before its first epoch is tried again
        assert row["state"] in ("COMPLETE", "PRUNED") or "tried again" in row["reason"]
    assert (trials[0].state.name, trials[0].user_attrs[PAUSED]) == ("COMPLETE", 0)
    assert paused - {0}
    assert all(trials[n].state.name == "PRUNED" for n in paused - {0})
    epochs = [(row["number"], row["epoch"]) for row in history]
    assert len(set(epochs)) == len(epochs)


@pytest.mark.slow
def test_a_confirmation_goes_on_and_its_best_is_fine_tuned(
    ray_head: dict[str, str], tmp_path: Path
) -> None:
    one = tmp_path / "one.yaml"
    stage = "{epochs: 1, batch_size: 64, optimizer: adam, lr: 0.001, weight_decay: 0, seed: 1}"
    one.write_text(f"train_on: train\nstages: [{stage}]\n")
    options = flags(trials=2, max_epochs=2, confirm=1, stages=one)
    process = search(ray_head, *SMALL, *options, "--storage", str(tmp_path), "--name", "sure")
    wait_for(process, "trained again, with 2 fresh seeds each")
    process.kill()
    finish(process, 30)
    again = ["--storage", str(tmp_path), "--name", "sure", "--resume", "--stages", str(one)]
    code, output = finish(search(ray_head, *again))
    assert code == 0, output
    assert "2 of 2 trials are done" in output
    run = open_run(tmp_path / "sure")
    assert len(load_study(tmp_path / "sure").trials) == 2
    assert run.best.confirmed is not None
    assert len(run.best.confirmed.values) == 2
    first = run.model.manifest["lineage"][0]
    assert first["trial"] == run.best.number
    assert first["val_accuracy"] == max(run.best.confirmed.values)


def test_a_search_that_reaches_its_target_leaves_no_trial_open(
    ray_head: dict[str, str], tmp_path: Path
) -> None:
    """The trials that run then are told as pruned, the winner among them."""
    size = [*SMALL, *flags(trials=6, max_epochs=40, scheduler="none", seed=3, target=0.3)]
    place = flags(storage=tmp_path, name="t", finetune=False)
    code, output = finish(search(ray_head, *size, *place))
    assert code == 0, output
    folder = tmp_path / "t"
    run = open_run(str(folder))
    check_run(str(folder), len(run.trials))
    states = {t.number: t.state.name for t in load_study(folder).trials}
    assert "RUNNING" not in states.values()
    rows, _ = tables(RunStorage(str(folder)))
    assert {row["number"]: row["state"] for row in rows} == states
    winner = next(row for row in rows if row["number"] == run.best.number)
    assert (winner["state"], winner["value"]) == ("PRUNED", run.best.value)
    assert winner["reason"] == f"stopped by --target after epoch {winner['epochs']}"
    assert winner["value"] >= 0.3
    again = finish(search(ray_head, *place, "--resume"))
    assert again[0] == 0, again[1]
    assert len(load_study(folder).trials) == len(states)  # nothing new was begun


def test_all_trials_failing_is_exit_code_1(ray_head: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(PROGRAMS / "broken_space.py", tmp_path)
    # A module of the user's own lies where search.py is called from; the trials' processes must
    # find it there too.
    arguments = [
        "--dataset",
        "digits",
        "--space",
        "broken_space:space",
        "--trials",
        "2",
        "--max-epochs",
        "1",
    ]
    code, output = finish(
        search(ray_head, *arguments, "--storage", str(tmp_path), "--name", "f", cwd=tmp_path)
    )
    assert code == 1, output
    assert output.splitlines()[-1].startswith("search.py: no trial of 2 succeeded")
    assert "no such network" in output
    assert json.loads((tmp_path / "f" / "run.json").read_text())["state"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", [{"storage": "runs"}, {"study": "sqlite:///file.db", "storage": "/tmp"}]
)
def test_a_submitted_job_refuses_a_relative_place(
    ray_head: dict[str, str], place: dict[str, str]
) -> None:
    """It would lie in Ray's temporary copy of the working directory, and be lost with it."""
    words = ["python", "jobs/search.py", *SMALL, *flags(trials=2, name="relative", **place)]
    submit = subprocess.run(
        ["ray", "job", "submit", "--working-dir", ".", "--", *words],
        cwd=ROOT,
        env=ray_head,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert submit.returncode == 1, submit.stdout + submit.stderr
    flag = f"--{next(iter(place))}"
    assert f"search.py: {flag}: " in submit.stdout
    assert "is relative to Ray's temporary copy of the working directory" in submit.stdout
    assert not (ROOT / "runs" / "relative").exists()


def test_two_jobs_from_submit_to_a_verified_model(ray_head: dict[str, str], tmp_path: Path) -> None:
    arguments = [
        *SMALL,
        *quick(tmp_path),
        "--trials",
        "3",
        "--max-epochs",
        "2",
        "--storage",
        str(tmp_path),
        "--name",
        "jobs",
    ]
    submit = subprocess.run(
        [
            "ray",
            "job",
            "submit",
            "--working-dir",
            ".",
            "--",
            "python",
            "jobs/search.py",
            *arguments,
        ],
        cwd=ROOT,
        env=ray_head,
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert submit.returncode == 0, submit.stdout + submit.stderr
    check_two_jobs(ray_head, tmp_path)
    check_published(f"{tmp_path}/jobs")


def test_s3_has_the_same_files_and_no_secret(s3_server: str, tmp_path: Path) -> None:
    """On a Ray that search.py starts itself, which inherits the keys from the environment."""
    env = own_ray()
    base, _, query = s3_server.partition("?")
    arguments = [
        *SMALL,
        "--trials",
        "2",
        "--max-epochs",
        "2",
        *quick(tmp_path, stages=1),
        "--storage",
        f"{base}/runs?{query}",
        "--name",
        "there",
    ]
    code, output = finish(search(env, *arguments))
    assert code == 0, output
    assert "test-secret" not in output
    run = f"{base}/runs/there?{query}"
    check_run(run, 2)
    check_published(run, stages=1)
    storage = RunStorage(run)
    for name in storage.list():
        assert b"test-secret" not in storage.read_bytes(name), name
    names = {name.split("/")[0] for name in storage.list()}
    assert names >= {
        "run.json",
        "study.journal",
        "trials.parquet",
        "history.parquet",
        "best",
        "finetune",
        "model.onnx",
        "model.json",
        "README.md",
    }


def test_a_name_is_never_overwritten(ray_head: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text("{}")
    code, output = finish(search(ray_head, *SMALL, "--storage", str(tmp_path), "--name", "mine"))
    assert (code, output.count("\n")) == (2, 1)
    assert "--overwrite" in output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--gpus-per-trial", "3"], "--gpus-per-trial"),
        (["--space-args", "nothing=1"], "--space-args"),
    ],
)
def test_wrong_settings_leave_nothing_behind(
    tmp_path: Path, arguments: list[str], named: str
) -> None:
    """As whole processes; the cluster knows the first, the settings the second."""
    storage = tmp_path / "runs"
    code, output = finish(
        search(outside(), "--dataset", "digits", "--storage", str(storage), *arguments), 60
    )
    assert code == 2, output
    assert output.count("\n") == 1
    assert named in output
    assert not storage.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--space", "nowhere"],
        ["--storage", "/proc/nothing"],
        ["--storage", "s3://key:secret@bucket/runs"],
        ["--name", "../up"],
        ["--stages", "nowhere"],
        ["--dataset", "nothing"],
        ["--data-dir", "/does/not/exist", "--dataset", "mnist"],
        ["--sampler", "nothing"],
        ["--resume", "--name", "nothing"],
        ["--val-images", "5"],
    ],
)
def test_wrong_settings_are_one_line(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "runs"
    with pytest.raises(SystemExit) as ended:
        console(["search", "--dataset", "digits", "--storage", str(storage), *arguments])
    assert ended.value.code == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert arguments[0] in error
    assert not storage.exists()


def test_a_folder_whose_name_is_no_utf_8_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, storage = tmp_path / os.fsdecode(b"caf\xe9"), tmp_path / "runs"
    photos.mkdir()
    words = ["--dataset", f"folder:{photos}", "--storage", str(storage), "--name", "x"]
    with pytest.raises(SystemExit) as ended:
        console(["search", *words])
    assert ended.value.code == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert "--dataset: folder:" in error
    assert r"caf\udce9 is no UTF-8" in error
    assert not storage.exists()


def test_a_dry_run_prints_settings_and_suggestions(tmp_path: Path) -> None:
    points = tmp_path / "points.yaml"
    points.write_text("- {width: 16, lr_sgd: 0.125, optimizer: sgd}\n")
    flags = [
        "--trials",
        "2",
        "--points",
        str(points),
        "--dry-run",
        "--storage",
        str(tmp_path / "runs"),
    ]
    code, output = finish(search(dict(os.environ), *SMALL, *flags), 60)
    assert code == 0
    assert "trials: 2" in output
    first, second = (
        json.loads(line.partition(": ")[2])
        for line in output.splitlines()
        if line.startswith("suggestion ")
    )
    assert (first["width"], first["lr"], first["optimizer"]) == (16, 0.125, "sgd")
    assert second["lr"] != 0.125
    assert not (tmp_path / "runs").exists()


def test_resume_refuses_another_value() -> None:
    before = resolved(
        parse(SearchSettings, ["--trials", "5", "--sampler", "random", "--name", "a"])
    )
    now = parse(
        SearchSettings, ["--name", "a", "--resume", "--trials", "9", "--cpus-per-trial", "2"]
    )
    kept = resumed_settings(now, before)
    assert (kept.trials, kept.cpus_per_trial, kept.sampler, kept.resume) == (9, 2, "random", True)
    for words in (["--sampler", "tpe"], ["--max-epochs", "7"], ["--seed", "1"]):
        with pytest.raises(SettingsError, match=words[0]):
            resumed_settings(parse(SearchSettings, ["--name", "a", "--resume", *words]), before)
    assert (
        resumed_settings(
            parse(SearchSettings, ["--name", "a", "--resume", "--sampler", "random"]), before
        ).sampler
        == "random"
    )


@pytest.mark.parametrize(
    ("before", "words", "confirm", "epochs"),
    [
        ([], ["--max-epochs", "20"], 3, 20),
        (["--confirm", "2"], ["--max-epochs", "20"], 2, 20),
        (["--confirm", "2", "--confirm-epochs", "15"], ["--max-epochs", "20"], 2, 20),
        (["--confirm", "2"], ["--max-epochs", "20", "--confirm", "4"], 4, 20),
        (["--confirm", "2"], ["--confirm-epochs", "12"], 2, 12),
        (["--confirm", "2", "--confirm-epochs", "12"], [], 2, 12),
        ([], ["--max-epochs", "10"], 0, None),
    ],
)
def test_a_resume_with_more_epochs_trains_the_best_for_longer(
    before: list[str], words: list[str], confirm: int, epochs: int | None
) -> None:
    run = resolved(parse(SearchSettings, [*before, "--name", "a"]))
    now = resumed_settings(parse(SearchSettings, ["--name", "a", "--resume", *words]), run)
    assert (now.max_epochs, now.confirm, now.confirm_epochs) == (10, confirm, epochs)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--confirm-epochs", "20"], "--confirm-epochs: is for --confirm; give that too"),
        (["--confirm", "1", "--confirm-epochs", "9"], "9 is less than --max-epochs 10"),
        (["--confirm", "1", "--confirm-epochs", "0"], "--confirm-epochs: 0 is not allowed"),
    ],
)
def test_epochs_of_confirm_that_cannot_be(words: list[str], error: str) -> None:
    with pytest.raises(SettingsError, match=error):
        check_search(parse(SearchSettings, words))


@pytest.mark.slow
def test_a_network_of_ones_own_goes_all_the_way(ray_head: dict[str, str], tmp_path: Path) -> None:
    """A module beside the caller, through the search, the stages and ONNX."""
    shutil.copy(PROGRAMS / "own_network.py", tmp_path)
    arguments = [
        "--dataset",
        "digits",
        "--space",
        "own_network:space",
        "--trials",
        "1",
        "--max-epochs",
        "3",
    ]
    code, output = finish(
        search(ray_head, *arguments, "--storage", str(tmp_path), "--name", "own", cwd=tmp_path)
    )
    assert code == 0, output
    check_published(str(tmp_path / "own"))
