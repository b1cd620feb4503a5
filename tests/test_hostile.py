"""Files from elsewhere are data: hostile values in all that a run holds, tried with every command.

No code runs, no file outside the run changes or is read, no socket is opened, no variable of the
environment goes anywhere. `make test` tries a sample; `-m slow` all of them.
"""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mnist_ray as mr
from mnist_ray import cli, data, draw, handover, report
from mnist_ray.data.decoding import Reading
from mnist_ray.errors import CorruptFileError, MnistRayError, SettingsError
from mnist_ray.finetune_job import chain, job
from mnist_ray.run import checkpoint
from mnist_ray.run.about import About
from mnist_ray.run.publication import publish
from mnist_ray.search_job import engine
from mnist_ray.search_job.keeper import claim
from mnist_ray.search_job.plan import prepare
from mnist_ray.serve.app import app_of
from mnist_ray.settings import (
    EvaluateSettings,
    FinetuneSettings,
    PredictSettings,
    SearchSettings,
    resolved,
)
from mnist_ray.storage import RunStorage
from tests.support import ROOT, hostile
from tests.support.hostile import SECRET, VARIABLE, as_text, changed, keys, values, with_metadata

KEPT = ROOT / "tests" / "kept_runs" / "finished"
MODEL = (KEPT / "model.onnx").read_bytes()
SAMPLED, ALL = 12, 672  # values in `make test`, and in all; each meets every command that reads it


def a_search_in(run: Path) -> dict[str, Any]:
    return {"storage": str(run.parent), "name": run.name, "resume": True}


def resume(run: Path) -> None:
    plan = prepare(SearchSettings(**a_search_in(run)))
    assert SECRET not in plan.resume_command
    claim(plan)
    with engine.opened_study(plan) as (study, _):
        engine.restore(plan, study)


def fine_tune(run: Path) -> None:
    settings = FinetuneSettings(run=str(run))
    about = About.read(RunStorage(str(run)), "--run")
    task, _, _ = job._prepare(settings, about)
    assert SECRET not in job.resume_command(settings, about)
    chain.begin(task, about.storage)


def face(run: Path) -> None:
    found = mr.open_run(run)
    for read in ("settings", "trials", "history", "best", "study", "report_path"):
        try:
            print(read, getattr(found, read))
        except MnistRayError as error:
            print(error)
    print(mr.load_model(run).predict(picture(run)))


def picture(run: Path) -> str:
    return str(run.parent.parent / "digit.png")


def warm_start(run: Path) -> None:
    options: dict[str, Any] = {
        "dataset": "digits",
        "storage": str(run.parent),
        "name": "new",
        "dry_run": True,
    }
    space = ("min_width=4", "max_width=4", "min_layers=1", "max_layers=1", "max_kernel=3")
    cli.search(SearchSettings(**options, space_args=space, max_epochs=3, warm_start=str(run)))


OF_A_RUN: dict[str, Callable[[Path], object]] = {
    "search --resume --dry-run": lambda run: cli.search(
        SearchSettings(**a_search_in(run), dry_run=True)
    ),
    "search --resume": resume,
    "search --warm-start": warm_start,
    "finetune --run": fine_tune,
    "report": lambda run: report.make([str(run)], None, None, None),
    "export --to huggingface": lambda run: handover.huggingface(str(run)),
    "the Python face": face,
}
OF_A_MODEL: dict[str, Callable[[Path], object]] = {
    "evaluate": lambda run: cli.evaluate(EvaluateSettings(str(run / "model.onnx"))),
    "evaluate of a run": lambda run: cli.evaluate(EvaluateSettings(str(run))),
    "predict": lambda run: cli.predict(PredictSettings(str(run / "model.onnx"), (picture(run),))),
    "finetune --onnx": lambda run: job._new_run(
        FinetuneSettings(onnx=str(run / "model.onnx"), storage=str(run.parent), name="new")
    ),
    "finetune --run --onnx": lambda run: chain.begin(
        job._prepare(
            FinetuneSettings(run=str(run), onnx=str(run / "model.onnx")),
            About.read(RunStorage(str(run)), "--run"),
        )[0],
        RunStorage(str(run)),
    ),
    "search --onnx": lambda run: prepare(
        SearchSettings(
            dataset="digits",
            space="optimizer",
            onnx=str(run / "model.onnx"),
            storage=str(run.parent),
            name="new",
            dry_run=True,
        )
    ),
    "draw": lambda run: draw.build.page_of(str(run / "model.onnx")),
    "export --to triton": lambda run: handover.triton(mr.load_model(run)),
    "serve": lambda run: app_of(mr.load_model(run)),
    "the Python face": lambda run: mr.load_model(run / "model.onnx").evaluate(),
}


class Place:
    """A folder with a run, and beside it what must stay as it is."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.outside = folder, folder / "outside"
        self.run = folder / "runs" / "finished"
        for made in (self.outside, folder / "runs", folder / "home"):
            made.mkdir()
        (self.outside / "secret.yaml").write_text("stages: []\n")
        Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save(folder / "digit.png")
        hostile.canary(folder)

    def fresh(self) -> None:
        shutil.rmtree(self.folder / "runs", ignore_errors=True)
        shutil.copytree(KEPT, self.run)

    def surroundings(self) -> dict[str, bytes]:
        return {
            str(file): file.read_bytes()
            for folder in (self.outside, self.folder / "home")
            for file in folder.rglob("*")
            if file.is_file()
        } | {name: b"" for name in os.listdir(self.folder) if name != "__pycache__"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = Place(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, SECRET)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("mnist_ray.cluster.running", lambda: True)  # this machine is not looked at
    monkeypatch.setattr("mnist_ray.search_job.keeper._git_commit", lambda: None)
    monkeypatch.setattr("mnist_ray.draw.build.runtime", lambda: {})
    if not warm:  # what packages do when they are first imported is not looked at
        for call in (*OF_A_RUN.values(), *OF_A_MODEL.values()):
            made.fresh()
            attempt(made, call)
        warm.append(True)
    return made


warm: list[bool] = []


def attempt(place: Place, call: Callable[[Path], object]) -> tuple[list[str], Exception | None]:
    """What a command did that it must not, and the error that was no line for a person."""
    before, unexpected = place.surroundings(), None
    allowed = (str(place.folder / "runs"), f"{tempfile.gettempdir()}/mray-", "/dev/shm")
    with hostile.watched(allowed, str(place.outside)) as watch:
        try:
            call(place.run)
        except (MnistRayError, SystemExit):
            pass
        except Exception as error:
            unexpected = error
    if place.surroundings() != before:
        watch.seen.append("the surroundings changed")
    return watch.seen, unexpected


def told(place: Place, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Where the environment's secret, or a terminal's control character, came out."""
    captured = capsys.readouterr()
    found = [text for text in captured if SECRET in text or "\x1b[2J" in text]
    for file in (place.folder / "runs").rglob("*"):
        if file.is_file() and SECRET.encode() in file.read_bytes():
            found.append(str(file))
    return found


Case = tuple[str, Callable[[Place], object], dict[str, Callable[[Path], object]]]


def of_json(
    file: str, commands: dict[str, Callable[[Path], object]], *, newer: bool = False
) -> Iterator[Case]:
    """newer: of the options that have been added since the run was made, and those alone."""
    content = json.loads((KEPT / file).read_text())
    places: list[tuple[str | int, ...]] = [*keys(content), ("of_no_key",)]
    if newer:
        added = resolved(SearchSettings()).keys() - content["settings"].keys()
        places = [("settings", key) for key in sorted(added)]
        content["settings"] |= dict.fromkeys(added)
    for at in places:
        for i in range(len(values(Path()))):

            def write(place: Place, at: Any = at, i: int = i) -> None:
                new = changed(content, at, values(place.outside)[i])
                (place.run / file).write_text(json.dumps(new))

            yield f"{file} {'.'.join(map(str, at))} #{i}", write, commands


def of_metadata() -> Iterator[Case]:
    import onnx

    pairs = {p.key: p.value for p in onnx.load_model_from_string(MODEL).metadata_props}
    hp = json.loads(pairs["hyperparameters"])
    for i in range(len(values(Path()))):
        for key in [*pairs, "of_no_key"]:

            def write(place: Place, key: str = key, i: int = i) -> None:
                text = as_text(values(place.outside)[i])
                _published(place, with_metadata(MODEL, key, text))

            yield f"metadata {key} #{i}", write, OF_A_MODEL
        for key in vars(Reading()):

            def write_reading(place: Place, key: str = key, i: int = i) -> None:
                text = json.dumps({key: values(place.outside)[i]})
                _published(place, with_metadata(MODEL, "reading", text))

            yield f"metadata reading.{key} #{i}", write_reading, OF_A_MODEL
        for at in keys(hp):

            def write_hp(place: Place, at: Any = at, i: int = i) -> None:
                text = json.dumps(changed(hp, at, values(place.outside)[i]))
                _published(place, with_metadata(MODEL, "hyperparameters", text))

            yield f"metadata hyperparameters.{'.'.join(map(str, at))} #{i}", write_hp, OF_A_MODEL


def _published(place: Place, model: bytes) -> None:
    manifest = json.loads((KEPT / "model.json").read_text())
    publish(
        RunStorage(str(place.run)),
        {"model.onnx": model},
        {k: v for k, v in manifest.items() if k != "sha256"},
    )


def of_the_checkpoint() -> Iterator[Case]:
    tensors, metadata = checkpoint.unpack((KEPT / "best/model.safetensors").read_bytes(), "best")
    commands: dict[str, Callable[[Path], object]] = {"finetune --run": fine_tune}
    for at in keys(metadata):
        for i in range(len(values(Path()))):

            def write(place: Place, at: Any = at, i: int = i) -> None:
                new = changed(metadata, at, values(place.outside)[i])
                (place.run / "best/model.safetensors").write_bytes(checkpoint.pack(tensors, new))

            yield f"checkpoint {'.'.join(map(str, at))} #{i}", write, commands


def cases() -> list[Case]:
    older = [
        *of_json("run.json", OF_A_RUN),
        *of_json("model.json", {k: OF_A_RUN[k] for k in ("report", "the Python face")}),
        *of_metadata(),
        *of_the_checkpoint(),
    ]
    newer = [*of_json("run.json", OF_A_RUN, newer=True)]
    newer += [case for case in older if case[0].startswith("metadata reading.")]
    for found in (older, newer):
        random.Random(20).shuffle(found)
    # Three of those that were always there to one of the newer ones.
    return [case for i, case in enumerate(newer) for case in (*older[3 * i : 3 * i + 3], case)]


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, ALL // SAMPLED))]
)
def test_no_file_of_a_run_chooses_what_happens(
    place: Place, capsys: pytest.CaptureFixture[str], part: int
) -> None:
    tried, harm = 0, {}
    for name, write, commands in cases()[part * SAMPLED : (part + 1) * SAMPLED]:
        for command, call in commands.items():
            place.fresh()
            write(place)
            seen, _ = attempt(place, call)  # a damaged file is another subject
            seen += told(place, capsys)
            tried += 1
            if seen:
                harm[f"{name}: {command}"] = seen
    assert not harm, "\n".join(f"{what}: {seen}" for what, seen in harm.items())
    assert tried >= SAMPLED  # most values meet several commands


class Harmful:
    """Runs the canary when its pickle is loaded."""

    def __reduce__(self) -> Any:
        return exec, (f"import {hostile.CANARY}",)


def test_the_state_of_a_sampler_in_a_study_runs_no_code(place: Place) -> None:
    """Optuna's cmaes pickles its state into the study, and would load it at a resume."""
    place.fresh()
    facts = json.loads((place.run / "run.json").read_text())
    facts["settings"]["sampler"] = "cmaes"
    (place.run / "run.json").write_text(json.dumps(facts))
    lines = (place.run / "study.journal").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if json.loads(line)["op_code"] == 4)
    state = {"cma:optimizer:0": pickle.dumps(Harmful()).hex()}
    worker = json.loads(lines[first])["worker_id"]
    added = {"op_code": 9, "worker_id": worker, "trial_id": 0, "system_attr": state}
    lines.insert(first + 1, json.dumps(added))
    (place.run / "study.journal").write_text("\n".join([*lines, ""]))
    for call in OF_A_RUN.values():
        assert attempt(place, call) == ([], None)
    with pytest.raises(CorruptFileError, match=r"^--sampler: .* trial 0 .*builtins.exec"):
        resume(place.run)


@pytest.mark.parametrize("command", ["search --resume", "finetune --run", "report"])
def test_a_run_does_not_choose_where_images_are_downloaded_to(place: Place, command: str) -> None:
    """Nor whether: a folder that only run.json names is read, if the images are there."""
    place.fresh()
    facts = json.loads((place.run / "run.json").read_text())
    facts["settings"] |= {"dataset": "mnist", "data_dir": str(place.outside)}
    facts["data"]["name"] = "mnist"
    (place.run / "run.json").write_text(json.dumps(facts))
    before = sorted(place.outside.iterdir())
    seen, unexpected = attempt(place, OF_A_RUN[command])
    assert (seen, unexpected) == ([], None)
    assert sorted(place.outside.iterdir()) == before


@pytest.mark.parametrize("where", ["/dev/zero", "pipe"])
@pytest.mark.parametrize("kind", ["csv", "npz", "parquet", "folder"])
def test_a_data_set_that_never_ends_is_no_file(tmp_path: Path, kind: str, where: str) -> None:
    """A run.json may name it; what is no regular file is not opened."""
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(5):
            pipe = tmp_path / label / f"pipe{number}.png"
            os.mkfifo(pipe)
    path = where if where != "pipe" else str(tmp_path if kind == "folder" else pipe)
    signal.alarm(20)  # opening it would wait for ever
    try:
        with pytest.raises(
            SettingsError, match=r"^--dataset: .*(pipe\d.png|/dev/zero|no such file)"
        ):
            data.load(f"{kind}:{path}", "train")
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("name", ["run.json", "study.journal", "trials.parquet", "model.onnx"])
def test_a_pipe_in_a_run_is_not_waited_for(place: Place, name: str) -> None:
    for command, call in OF_A_RUN.items():
        place.fresh()
        (place.run / name).unlink()
        os.mkfifo(place.run / name)
        seen, unexpected = attempt(place, call)
        assert (command, seen, unexpected) == (command, [], None)


QUICK = ("study.journal", "tune", "best/model.safetensors", "run.json")
LINKED = [
    "run.json", "study.journal", "trials.parquet", "history.parquet", "model.json", "model.onnx",
    "predictions.parquet", "report.html", "README.md", "best", "best/model.safetensors", "tune",
    "finetune", "finetune/stage-1", "search.lease",
]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in LINKED],
)
def test_no_link_of_a_run_leads_out_of_it(
    place: Place, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """What lies at its end is neither read nor written nor removed."""
    for command, call in OF_A_RUN.items():
        place.fresh()
        link = place.run / name
        target = place.outside / "target"
        if link.is_dir() or "." not in name:
            target.mkdir(exist_ok=True)
            for number in ("00000", "00099"):  # a trial's, and one that a resume would sweep
                (target / "checkpoints" / number).mkdir(parents=True, exist_ok=True)
                (target / "checkpoints" / number / "latest.safetensors").write_text("mine")
            shutil.rmtree(link, ignore_errors=True)
        else:
            if target.is_dir():
                shutil.rmtree(target)
            target.write_bytes(link.read_bytes() if link.exists() else b"mine")
            link.unlink(missing_ok=True)
        link.symlink_to(target)
        seen, unexpected = attempt(place, call)
        assert (command, seen, unexpected) == (command, [], None)
        assert told(place, capsys) == []


PROCESSES = [
    ("search", "--storage", "runs", "--name", "finished", "--resume", "--dry-run"),
    ("finetune", "--run", "runs/finished"),
    ("evaluate", "runs/finished"),
    ("predict", "runs/finished", "digit.png"),
    ("report", "runs/finished"),
]


@pytest.mark.slow
@pytest.mark.parametrize("words", PROCESSES, ids=lambda words: words[0])
@pytest.mark.parametrize("key", ["dataset", "space", "sampler", "stages"])
def test_as_whole_processes(place: Place, key: str, words: tuple[str, ...]) -> None:
    place.fresh()
    about = json.loads((place.run / "run.json").read_text())
    about["settings"][key] = f"{hostile.CANARY}:run"
    (place.run / "run.json").write_text(json.dumps(about))
    _published(place, with_metadata(MODEL, "dataset", f"{hostile.CANARY}:run"))
    (place.folder / f"{hostile.CANARY}.py").write_text(
        f"from pathlib import Path\nPath({str(place.folder / 'ran')!r}).touch()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "mnist_ray", *words],
        cwd=place.folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert not (place.folder / "ran").exists()
    assert "Traceback" not in done.stderr
    used = {"search": key, "finetune": key in ("dataset", "stages"), "evaluate": True}
    if used.get(words[0]):  # fine-tuning asks for neither space nor sampler, and is not refused
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stderr.count("\n") == 1
