"""The fine-tuning as a job: resumed to the byte, from an ONNX file, from Python, its refusals."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_ray.cli import console
from mnist_ray.run.publication import read_verified
from mnist_ray.storage import RunStorage
from tests.support import ROOT
from tests.support.runs import SMALL, finetune, finish, search, wait_for

STAGES = """
train_on: train
stages:
  - epochs: 4
    batch_size: 64
    optimizer: sgd
    lr: 0.02
    weight_decay: 5.0e-4
    schedule: one_cycle
    ema: 0.9
    seed: 1
  - {epochs: 2, batch_size: 64, optimizer: adam, lr: 0.001, weight_decay: 0, seed: 2}
  - {epochs: 1, batch_size: 128, optimizer: sgd, lr: 0.001, weight_decay: 0, seed: 3}
"""

PROGRAMS = Path(__file__).parents[1] / "programs"


@pytest.fixture(scope="module")
def searched(ray_head: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose search is done."""
    folder = tmp_path_factory.mktemp("searched")
    arguments = [
        *SMALL,
        "--trials",
        "2",
        "--max-epochs",
        "2",
        "--storage",
        str(folder),
        "--name",
        "run",
        "--no-finetune",
    ]
    code, output = finish(search(ray_head, *arguments))
    assert code == 0, output
    (folder / "stages.yaml").write_text(STAGES)
    return folder


@pytest.fixture(scope="module")
def undisturbed(ray_head: dict[str, str], searched: Path) -> dict[str, str]:
    """SHA-256 of the model and of each stage's weights, of a run that nothing disturbed."""
    shutil.copytree(searched / "run", searched / "whole")
    code, output = finish(
        finetune(
            ray_head,
            "--run",
            str(searched / "whole"),
            "--stages",
            str(searched / "stages.yaml"),
            "--cpus",
            "1",
        )
    )
    assert code == 0, output
    assert "stage 3 epoch 1/1" in output
    return digests(searched / "whole")


def digests(folder: Path) -> dict[str, str]:
    names = ["model.onnx", *(f"finetune/stage-{n}/model.safetensors" for n in (1, 2, 3))]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


@pytest.mark.parametrize(
    "stopped_at",
    [
        "stage 1 epoch 2/4",
        pytest.param("stage 2 epoch 1/2", marks=pytest.mark.slow),
        pytest.param("stage 3 epoch 1/1", marks=pytest.mark.slow),
        pytest.param("stage 2 epoch 2/2", marks=pytest.mark.slow),
    ],
)
def test_killed_and_started_again_it_gives_the_same_bytes(
    ray_head: dict[str, str], searched: Path, undisturbed: dict[str, str], stopped_at: str
) -> None:
    folder = searched / stopped_at.replace(" ", "-").replace("/", "-")
    shutil.copytree(searched / "run", folder)
    arguments = ["--run", str(folder), "--stages", str(searched / "stages.yaml"), "--cpus", "1"]
    process = finetune(ray_head, *arguments)
    wait_for(process, stopped_at)
    process.kill()
    finish(process, 30)
    assert not (folder / "model.json").exists()
    code, output = finish(finetune(ray_head, *arguments))
    assert code == 0, output
    assert "done already" in output or "going on after epoch" in output
    assert digests(folder) == undisturbed
    manifest, _ = read_verified(RunStorage(str(folder)))
    assert manifest["sha256"] == undisturbed["model.onnx"]


@pytest.mark.slow
def test_stopping_the_parent_job_stops_the_child(ray_head: dict[str, str], searched: Path) -> None:
    arguments = [
        "--storage",
        str(searched),
        "--name",
        "run",
        "--resume",
        "--finetune",
        "--stages",
        str(searched / "stages.yaml"),
    ]
    process = search(ray_head, *arguments)
    wait_for(process, "stage 1 epoch 1")
    process.send_signal(signal.SIGTERM)
    code, output = finish(process, 20)
    assert code == 130
    assert "--resume" in output
    # Ray itself takes a moment to note that a stopped job has ended.
    for _ in range(30):
        listing = subprocess.run(
            ["ray", "job", "list"],
            cwd=ROOT,
            env=ray_head,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        jobs = [
            part
            for part in listing.split("JobDetails(")
            if f"{searched}/run" in part and "mnist_ray finetune" in part
        ]
        if not any("RUNNING" in job for job in jobs):
            break
    assert jobs
    assert not any("RUNNING" in job for job in jobs)
    code, output = finish(search(ray_head, *arguments))
    assert code == 0, output
    assert "epochs=" not in output  # no trial ran again
    assert (searched / "run" / "model.json").exists()


@pytest.mark.slow
def test_a_committee_is_one_file(ray_head: dict[str, str], searched: Path, tmp_path: Path) -> None:
    """Its networks differ, it is gone on with like one, and evaluate reads it."""
    shutil.copytree(searched / "run", tmp_path / "two")
    (tmp_path / "stages.yaml").write_text(
        "stages:\n  - {epochs: 1, batch_size: 64, optimizer: sgd, lr: 0.02, "
        "weight_decay: 0, seed: 1}\n"
    )
    arguments = [
        "--run",
        str(tmp_path / "two"),
        "--stages",
        str(tmp_path / "stages.yaml"),
        "--cpus",
        "1",
    ]
    code, output = finish(finetune(ray_head, *arguments))
    assert code == 0, output
    alone, _ = read_verified(RunStorage(str(tmp_path / "two")))
    code, output = finish(finetune(ray_head, *arguments, "--committee", "2"))
    assert code == 0, output
    assert output.count("done already") == 1  # the first network is the one that is there
    manifest, _ = read_verified(RunStorage(str(tmp_path / "two")))
    steps = {entry["step"]: entry for entry in manifest["lineage"]}
    assert list(steps) == ["search", "stage-1", "member-2", "committee"]
    assert (
        steps["stage-1"]["weights_sha256"]
        == alone["lineage"][1]["weights_sha256"]
        != steps["member-2"]["weights_sha256"]
    )
    assert manifest["n_parameters"] == 2 * alone["n_parameters"]
    command = [
        sys.executable,
        "jobs/evaluate.py",
        str(tmp_path / "two" / "model.onnx"),
        "--dataset",
        "digits",
    ]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert f"accuracy  {manifest['test_accuracy']:.2%}"[:12] in out.stdout, out.stdout + out.stderr


@pytest.mark.slow
def test_it_is_called_from_a_thread(
    ray_head: dict[str, str], searched: Path, tmp_path: Path
) -> None:
    """Beside it the caller's own handlers stay, and fields of run.json that others change."""
    shutil.copytree(searched / "run", tmp_path / "run")
    stages = tmp_path / "stages.yaml"
    stages.write_text(STAGES)
    out = subprocess.run(
        [sys.executable, str(PROGRAMS / "finetune_in_a_thread.py"), f"{tmp_path}/run", str(stages)],
        cwd=ROOT,
        env=ray_head,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert out.stdout.splitlines()[-1] == f"Finished(exit_code=0, uri='{tmp_path}/run')", (
        out.stdout + out.stderr
    )
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["state"], run["trials"]) == ("done", 99)
    assert run["end"] >= run["start"]
    read_verified(RunStorage(f"{tmp_path}/run"))


@pytest.mark.slow
def test_from_an_onnx_file(
    ray_head: dict[str, str], searched: Path, undisturbed: dict[str, str]
) -> None:
    model = searched / "whole" / "model.onnx"
    arguments = [
        "--onnx",
        str(model),
        "--storage",
        str(searched),
        "--name",
        "again",
        "--stages",
        str(searched / "stages.yaml"),
        "--test-steps",
    ]
    code, output = finish(finetune(ray_head, *arguments))
    assert code == 0, output
    manifest, _ = read_verified(RunStorage(str(searched / "again")))
    before = json.loads((searched / "whole" / "model.json").read_text())
    assert manifest["lineage"][0]["step"] == "onnx"
    # The chain begins with the very predictions of the file that it was given.
    assert manifest["lineage"][0]["test_accuracy"] == before["test_accuracy"]


def on_ray(program: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A program of tests/programs, which joins a Ray that runs."""
    command = [sys.executable, str(PROGRAMS / program)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=90)


def test_it_says_what_it_waits_for(ray_head: dict[str, str]) -> None:
    """Where other work has the CPUs, for hours perhaps."""
    out = on_ray("finetune_waits.py", ray_head)
    lines = out.stdout.splitlines()
    assert lines[0] == (
        "the fine-tuning has not begun; it waits for a worker on one node with "
        "2 CPUs (free in the cluster: 0 of 2)"
    ), out.stdout + out.stderr
    assert lines[-1] == "begun"


@pytest.mark.slow
def test_it_does_not_wait_for_a_cpu_that_its_own_job_holds(ray_head: dict[str, str]) -> None:
    """As the supervisor of a job that was submitted with `--entrypoint-num-cpus 1`."""
    out = on_ray("finetune_of_what_is_free.py", ray_head)
    assert out.stdout.splitlines() == ["1 CPUs begun"], out.stdout + out.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--run"),
        (["--run", "/does/not/exist"], "--run"),
        (["--onnx", "/does/not/exist.onnx"], "--onnx"),
        (["--onnx", str(ROOT / "README.md")], "README.md"),
    ],
)
def test_wrong_settings_are_one_line(
    tmp_path: Path, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--storage", str(tmp_path)] if "--onnx" in arguments else []
    with pytest.raises(SystemExit) as ended:
        console(["finetune", *arguments, *place])
    assert ended.value.code == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert named in error
    assert list(tmp_path.iterdir()) == []
