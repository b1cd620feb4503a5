"""The wheel, in an empty folder and without the checkout: the command, its second job, Python."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from PIL import Image

from mnist_ray import data
from tests.support import ROOT

PROGRAM = Path(__file__).parent / "programs" / "design_lines.py"
STAGE = """start: best
train_on: all
stages:
  - {epochs: 1, batch_size: 128, optimizer: adam, lr: 1.0e-3, weight_decay: 0.0, seed: 1}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the files that git knows, so that the checkout stays as it is."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "mnist_ray", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out)]
    subprocess.run(
        [sys.executable, "-m", "pip", *build, str(source)], check=True, capture_output=True
    )
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the wheel, and this one's packages but not its checkout."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    install = ["install", "--no-deps", "--no-index", "--quiet", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    # As plain paths: the .pth files in them, of which one leads to the checkout, are not read.
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "others.pth").write_text("\n".join(others))
    return folder / "bin" / "python"


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "mnist_ray"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = {name for name in listed.stdout.split("\n") if name and (ROOT / name).exists()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name for name in names if name.endswith(".dist-info/METADATA"))
        facts = message_from_bytes(archive.read(info))
    assert tracked - names == set()
    assert {name for name in names if not name.startswith("mnist_ray/")} == {
        info.replace("METADATA", name)
        for name in (
            "METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE",
        )
    }  # fmt: skip
    assert (facts["License-Expression"], facts["Author"]) == (
        "Apache-2.0",
        "the mnist_ray developers",
    )
    assert {"all", "dev", "report"} <= set(facts.get_all("Provides-Extra", []))
    assert facts.get_all("Project-URL") is None


def test_the_wheel_works_in_an_empty_folder(python: Path, tmp_path: Path) -> None:
    kept = {"PATH", "LANG", "OMP_NUM_THREADS", "LD_LIBRARY_PATH"}
    env = {name: value for name, value in os.environ.items() if name in kept}
    env |= {"HOME": str(tmp_path / "home"), "COLUMNS": "120", "RAY_ADDRESS": "local"}
    (tmp_path / "home").mkdir()
    folder = tmp_path / "empty"
    folder.mkdir()
    test = data.load("digits", "test")
    seven = Image.fromarray(255 - test.images[int((test.labels == 7).argmax()), 0])
    seven.resize((120, 120)).save(folder / "a.png")
    seven.resize((120, 120)).save(folder / "seven.png")
    command = str(next(python.parent.parent.rglob("bin/mnist-ray")))

    def run(*words: str) -> str:
        done = subprocess.run(
            [str(python), *words], cwd=folder, env=env, capture_output=True, text=True, timeout=480
        )
        assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
        return done.stdout

    assert run(command, "--version").startswith("mnist-ray ")
    (folder / "one-stage.yaml").write_text(STAGE)
    search = "search --dataset digits --trials 2 --max-epochs 1 --storage runs --name w"
    out = run(command, *search.split(), "--stages", "one-stage.yaml", "--calibrate", "none")
    assert re.search(r"^test accuracy \d+/360 = ", out, re.M), out
    found = run(command, "predict", "runs/w", "a.png")
    assert re.fullmatch(r"a\.png  \d  [01]\.\d{4}\n", found)

    lines = run(str(PROGRAM)).splitlines()
    package = Path(lines[0].removeprefix("package: "))
    assert package.is_relative_to(python.parent.parent)
    assert not package.is_relative_to(ROOT)
    assert "refused: --trials: 0 is not allowed; expected a number of at least 1" in lines
    assert lines[-1] == "done"
