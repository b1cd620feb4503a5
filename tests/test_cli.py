"""The commands as people run them: `mnist-ray COMMAND` and the scripts in jobs/."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_ray import cli, data, models
from mnist_ray.data import read_picture
from mnist_ray.data.pictures import ENDINGS
from mnist_ray.errors import SettingsError
from mnist_ray.export.pictures import Preprocessor
from mnist_ray.export.session import Session, confidence_interval, probabilities
from mnist_ray.export.write import export
from mnist_ray.settings import PredictSettings
from tests.support.published import HEAVY, HP, published

JOBS = Path(__file__).parents[1] / "jobs"
PROGRAMS = Path(__file__).parent / "programs"


def mnist_ray(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mnist_ray", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def job(name: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(JOBS / name), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("runs") / "first")


def test_evaluate(run: Path) -> None:
    test = data.load("digits", "test")
    expected = Session((run / "model.onnx").read_bytes(), "model").evaluate(
        test.images, test.labels
    )
    assert expected.accuracy > 0.9
    done = job("evaluate.py", run)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"accuracy  {expected.accuracy:.4%} of 360 images of digits test"
    assert lines[1] == f"errors    {360 - expected.right}"
    low, high = confidence_interval(expected.right, 360)
    assert lines[2] == f"interval  {low:.4%} to {high:.4%} (95 %, Wilson)"
    assert re.fullmatch(
        r"latency   \d+\.\d{3} ms an image \(one at a time, 1 thread, median of 100\)", lines[3]
    )
    assert lines[4:] == [
        f"class     {c}  {accuracy:.4%}" for c, accuracy in enumerate(expected.per_class)
    ]


def test_evaluate_on_another_part(run: Path) -> None:
    done = job("evaluate.py", run / "model.onnx", "--dataset", "digits", "--part", "train")
    assert done.returncode == 0
    assert " of 1437 images of digits train\n" in done.stdout


def test_a_model_does_not_choose_the_code_that_runs(tmp_path: Path) -> None:
    """Its metadata name a function that deletes the folder `test` of the working directory."""
    torch.manual_seed(0)
    (tmp_path / "model.onnx").write_bytes(
        export(models.build(HP), HP, {"dataset": "shutil:rmtree"})
    )
    (tmp_path / "test").mkdir()
    done = job("evaluate.py", tmp_path / "model.onnx", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("evaluate.py: --dataset: ")
    assert "names 'shutil:rmtree'; a file does not choose code" in done.stderr
    assert (tmp_path / "test").is_dir()


def test_predict(run: Path, tmp_path: Path) -> None:
    test = data.load("digits", "test")
    files = []
    for i in range(10):
        files.append(tmp_path / f"{i} of ten.{'png' if i % 2 else 'jpg'}")
        Image.fromarray(255 - test.images[i, 0]).resize((200, 200), Image.Resampling.BICUBIC).save(
            files[-1], quality=90
        )
    done = job("predict.py", run, *files)
    assert (done.returncode, done.stderr) == (0, "")
    session, preprocess = (
        Session((run / "model.onnx").read_bytes(), "model"),
        Preprocessor((28, 28), 1),
    )
    names = ["0", "1", "2", "3", "4", "five", "6", "7", "8", "9"]
    right = 0
    for file, line, label in zip(files, done.stdout.splitlines(), test.labels, strict=False):
        found = probabilities(session.run(preprocess(read_picture(str(file)))))[0]
        assert line == f"{file}  {names[found.argmax()]}  {found.max():.4f}"
        right += found.argmax() == label
    assert right >= 9


def test_one_bad_picture_among_many_and_a_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are answered; the exit code tells of the bad one. No name orders a terminal."""
    digit = data.load("digits", "test").images[0, 0]
    for name in ("a.png", "b.jpg", "c\x1b[2J.png"):
        Image.fromarray(digit).resize((90, 90)).save(tmp_path / name)
    (tmp_path / "b2.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture either")
    Image.fromarray(np.ones((50, 50), np.float32)).save(tmp_path / "d.tiff")
    Image.fromarray(np.full((50, 50), 9, np.int32)).save(tmp_path / "e.tiff")
    code = cli.predict(PredictSettings(str(run), (str(tmp_path),)))
    out, err = capsys.readouterr()
    assert code == 2
    assert [line.split("  ")[0].rpartition("/")[2] for line in out.splitlines()] == [
        "a.png",
        "b.jpg",
        "c\\x1b[2J.png",
    ]
    assert [line.partition(" ")[0].rpartition("/")[2] for line in err.splitlines()] == [
        "b2.png",
        "d.tiff",
        "e.tiff",
    ]
    assert err.count("whose range is not known") == 2
    (tmp_path / "none").mkdir()
    with pytest.raises(SettingsError, match="the folder holds no picture; expected .png"):
        cli.predict(PredictSettings(str(run), (str(tmp_path / "none"),)))


def test_a_folder_has_the_pictures_that_a_data_set_would_have(tmp_path: Path) -> None:
    for ending in (*ENDINGS, ".txt"):
        (tmp_path / f"a{ending}").touch()
        (tmp_path / f"b{ending.upper()}").touch()
    found = {Path(file).suffix.lower() for file in cli._files([str(tmp_path)])}
    assert found == set(ENDINGS)
    assert {".jfif", ".jpe", ".dib", ".pbm", ".pnm"} < found


@pytest.mark.parametrize(("size", "read"), [((9000, 6000), (1125, 750)), ((60, 40), (60, 40))])
def test_a_large_photo_is_read_at_a_fraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], read: tuple[int, int]
) -> None:
    monkeypatch.setattr("mnist_ray.data.pictures.FRACTION_OF", 700)
    Image.new("L", size, 200).save(tmp_path / "a.jpg")
    assert data.read_picture(tmp_path / "a.jpg").shape == (*reversed(read), 4)


def test_a_picture_that_is_too_long_is_refused(tmp_path: Path) -> None:
    Image.new("L", (66_000, 1)).save(tmp_path / "a.png")
    with pytest.raises(SettingsError, match="66000 x 1 pixels; at most .* 65,500 a side"):
        data.read_picture(tmp_path / "a.png")


def test_predict_says_that_nothing_is_drawn(run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (50, 40), "white").save(tmp_path / "empty.png")
    done = job("predict.py", run / "model.onnx", tmp_path / "empty.png")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/empty.png  -  nothing drawn\n")


def test_predict_on_colour(tmp_path: Path) -> None:
    hp = {
        **HP,
        "in_channels": 3,
        "image_size": [32, 32],
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "classes": 2,
    }
    torch.manual_seed(0)
    (tmp_path / "model.onnx").write_bytes(
        export(models.build(hp), hp, {"classes": '["cat", "dog"]'})
    )
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    done = job("predict.py", tmp_path / "model.onnx", tmp_path / "a.png")
    assert re.fullmatch(re.escape(f"{tmp_path}/a.png  ") + r"(cat|dog)  0\.\d{4}\n", done.stdout)


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_the_commands_are_listed_with_a_line_each(words: list[str]) -> None:
    done = mnist_ray(*words)
    assert (done.returncode, done.stderr) == (0, "")
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name} +[A-Z].*\.$", done.stdout, re.M), name


def test_the_version_is_the_package_s() -> None:
    assert mnist_ray("--version").stdout == f"mnist-ray {version('mnist_ray')}\n"


@pytest.mark.parametrize(
    ("name", "answer"), [("serach", "(did you mean search?)"), ("fly", "expected one of search, ")]
)
def test_an_unknown_command_is_one_line(name: str, answer: str) -> None:
    done = mnist_ray(name, "--help")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"mnist-ray: there is no command {name!r}")
    assert answer in done.stderr


def test_every_command_is_a_script_too() -> None:
    assert {path.stem for path in JOBS.glob("*.py")} == set(cli.COMMANDS)


def test_help_and_a_wrong_flag_answer_at_once() -> None:
    """By every door, and with nothing heavy imported."""
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / "first_answers.py"), str(JOBS), *HEAVY],
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 2 * 2 * len(cli.COMMANDS)
    for answer in answers:
        assert answer["imported"] == [], answer
        if answer["word"] == "--help":
            assert (answer["code"], answer["err"]) == (0, ""), answer
            assert "usage: " in answer["out"]
        else:
            prefix = "mnist-ray {name}: " if answer["door"] == "command" else "{name}.py: "
            assert answer["err"].startswith(prefix.format(**answer)), answer
            assert (answer["code"], answer["out"], answer["err"].count("\n")) == (2, "", 1), answer


def test_no_output_fails_for_a_character(run: Path, tmp_path: Path) -> None:
    """As in a container without a locale, and for a file name that is not UTF-8."""
    picture = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    Image.new("L", (40, 30), 255).save(tmp_path / "empty.png")
    os.rename(tmp_path / "empty.png", picture)
    for encoding in ("ascii", "utf-8"):
        done = subprocess.run(
            [sys.executable, "-m", "mnist_ray", "predict", str(run), picture],
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.endswith(b"/\\udcff\\udcfe.png  -  nothing drawn\n")


def test_the_command_names_itself_in_help_and_errors(run: Path) -> None:
    assert mnist_ray("predict", "--help").stdout.startswith("usage: mnist-ray predict ")
    assert mnist_ray("predict", run).stderr.startswith("mnist-ray predict: name at least one ")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("predict.py", ["RUN"], "name at least one picture"),
        ("predict.py", ["RUN", "none.png"], "none.png cannot be read: No such file or directory"),
        ("predict.py", ["none.onnx", "none.png"], "none.onnx: no model lies there"),
        ("evaluate.py", ["RUN", "--dataset", "nonsense"], "nonsense"),
        ("evaluate.py", ["RUN", "--part", "both"], "--part"),
    ],
)
def test_wrong_settings_are_one_line(
    run: Path, name: str, arguments: list[str], message: str
) -> None:
    done = job(name, *(run if a == "RUN" else a for a in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"{re.escape(name)}: .*{re.escape(message)}.*\n", done.stderr)


@pytest.mark.parametrize("name", ["evaluate.py", "predict.py", "draw.py"])
def test_damaged_model_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    whole = (run / "model.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    picture = [tmp_path / "a.png"] if name == "predict.py" else []
    done = job(name, tmp_path / "half.onnx", *picture)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        rf"{re.escape(name)}: .*half\.onnx is not an ONNX model or is damaged: .*\n", done.stderr
    )
