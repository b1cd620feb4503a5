"""The runs that commit 61d3465 left (kept_runs/README.md): opened, resumed and reported."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from PIL import Image

from mnist_ray import data
from mnist_ray.storage import RunStorage
from tests.support import ROOT
from tests.support.processes import own_ray
from tests.support.runs import check_run, ended, finish, flags, load_study, quick, search

KEPT = Path(__file__).parent / "kept_runs"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A storage with a copy of each kept run."""
    return Path(shutil.copytree(KEPT, tmp_path / "runs"))


def job(script: str, *arguments: str, cwd: Path) -> str:
    """The output of one of the jobs that need no Ray."""
    command = [sys.executable, str(ROOT / "jobs" / script), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("finished", ["93.89", "3,010", "stage 3", "PRUNED"]),
        ("interrupted", ["COMPLETE", "interrupted"]),
        ("on-s3", ["COMPLETE", "interrupted"]),
    ],
)
def test_each_is_reported(runs: Path, tmp_path: Path, name: str, said: list[str]) -> None:
    job("report.py", str(runs / name), cwd=tmp_path)
    page = (runs / name / "report.html").read_text(encoding="utf-8")
    assert name in page
    assert [words for words in said if words not in page] == []


def test_the_model_of_the_finished_one_is_used(runs: Path, tmp_path: Path) -> None:
    manifest = json.loads((runs / "finished" / "model.json").read_text())
    for place in (runs / "finished", runs / "finished" / "model.onnx"):
        output = job("evaluate.py", str(place), *flags(dataset="digits"), cwd=tmp_path)
        assert re.search(rf"^errors +{manifest['test_errors']}$", output, re.MULTILINE)
    digit = data.load("digits", "test")
    Image.fromarray(digit.images[0, 0]).resize((120, 120)).save(tmp_path / "digit.png")
    output = job("predict.py", str(runs / "finished" / "model.onnx"), "digit.png", cwd=tmp_path)
    assert output.split()[:2] == ["digit.png", str(digit.labels[0])]


def test_the_finished_one_is_resumed_and_stays_as_it_was(
    ray_head: dict[str, str], runs: Path
) -> None:
    """Nothing is trained again, neither a trial nor a stage: the network is the same.

    Its metadata is not: since then a file carries the hyperparameters of its own stage.
    """
    folder = runs / "finished"
    before = onnx.load(folder / "model.onnx")
    code, output = finish(search(ray_head, *flags(storage=runs, name="finished", resume=True)))
    assert code == 0, output
    assert "4 of 4 trials are done" in output
    assert "epoch 1/" not in output
    assert onnx.load(folder / "model.onnx").graph == before.graph
    check_run(str(folder), 4)


@pytest.mark.slow  # more trials for a run: tests/trials/test_boosting.py
def test_the_finished_one_gets_more_trials(ray_head: dict[str, str], runs: Path) -> None:
    arguments = flags(storage=runs, name="finished", resume=True, finetune=False)
    code, output = finish(search(ray_head, *arguments, *flags(trials=5)))
    assert code == 0, output
    check_run(str(runs / "finished"), 5)


def test_the_interrupted_one_goes_on(ray_head: dict[str, str], runs: Path) -> None:
    """Its two running trials continue from their checkpoints; the third is not trained again."""
    folder = runs / "interrupted"
    arguments = flags(storage=runs, name="interrupted", resume=True, finetune=False)
    code, output = finish(search(ray_head, *arguments))
    assert code == 0, output
    assert "1 of 4 trials are done, 2 go on" in output
    assert ended(output) == {0, 2, 3}
    check_run(str(folder), 4)
    study = load_study(folder)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 4


@pytest.mark.parametrize("trials", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_has_begun_goes_on_with_fewer_trials_too(
    ray_head: dict[str, str], runs: Path, trials: int
) -> None:
    """One of them is done already: --trials leaves no room for both that run."""
    folder = runs / "interrupted"
    arguments = flags(storage=runs, name="interrupted", resume=True, finetune=False)
    code, output = finish(search(ray_head, *arguments, *flags(trials=trials)))
    assert code == 0, output
    assert f"1 of {trials} trials are done, 2 go on" in output
    assert ended(output) == {0, 2}
    assert {t.number: t.state.name for t in load_study(folder).trials} == {
        n: "COMPLETE" for n in range(3)
    }
    check_run(str(folder), 3)


@pytest.mark.slow  # a second job from a search to a model: tests/search_job, tests/finetune_job
def test_the_interrupted_one_is_fine_tuned_after_its_search(
    ray_head: dict[str, str], runs: Path, tmp_path: Path
) -> None:
    folder = runs / "interrupted"
    go_on = flags(storage=runs, name="interrupted", resume=True)
    code, output = finish(search(ray_head, *go_on, *quick(tmp_path, stages=1)))
    assert code == 0, output
    published = json.loads((folder / "model.json").read_text())
    assert [step["step"] for step in published["lineage"]][-1] == "stage-1"
    assert json.loads((folder / "run.json").read_text())["state"] == "done"


@pytest.fixture
def on_s3(s3_server: str) -> str:
    """The kept run in a bucket: its storage's URI."""
    base, _, query = s3_server.partition("?")
    storage = RunStorage(f"{base}/kept/on-s3?{query}")
    for file in sorted((KEPT / "on-s3").rglob("*")):
        if file.is_file():
            storage.write_bytes(file.relative_to(KEPT / "on-s3").as_posix(), file.read_bytes())
    return f"{base}/kept?{query}"


@pytest.mark.slow  # a search on S3 to a model: tests/search_job
def test_the_one_on_s3_goes_on(on_s3: str) -> None:
    arguments = flags(storage=on_s3, name="on-s3", resume=True)
    code, output = finish(search(own_ray(), *arguments))
    assert code == 0, output
    assert "1 of 4 trials are done" in output
    base, _, query = on_s3.partition("?")
    check_run(f"{base}/on-s3?{query}", 4)
    manifest = RunStorage(f"{base}/on-s3?{query}").read_json("model.json")
    assert manifest["test_images"] == 360
