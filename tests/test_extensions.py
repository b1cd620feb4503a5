"""The exam of the house: six parts, each added by a patch of at most two files of the package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

PATCHES = sorted((ROOT / "tests" / "programs" / "extensions").glob("*.patch"))
# What tests/programs/extended.py finds of each: first, that the command line has it.
WORKS: dict[str, list[Any]] = {
    "metric": [True, 0.5, True],
    "optimizer": [True, "Adagrad", True],
    "source": [True, ["bright", "dark"], 64],
    "tracker": [
        True,
        "tail -f log.csv",
        {"--csv-log": "log.csv"},
        ["trial,epoch,val_accuracy,val_loss", "0,1,0.5,2.0"],
    ],
    "space": [True, 3],
    "scheduler": [True, 4],
}


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_an_extension_touches_two_files_at_most(patch: Path) -> None:
    files = re.findall(r"^diff --git a/(\S+) b/\1$", patch.read_text(), re.MULTILINE)
    assert 1 <= len(files) <= 2
    assert all(file.startswith("mnist_ray/") for file in files)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How each part works in a copy of the package that has all of them."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(
        ROOT / "mnist_ray", folder / "mnist_ray", ignore=shutil.ignore_patterns("__pycache__")
    )
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    for patch in PATCHES:  # -C1: other lines nearby may change
        command = ["git", "apply", "-C1", str(patch)]
        subprocess.run(command, cwd=folder, env=environment, check=True)
    work = folder / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "programs" / "extended.py")],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_there_is_a_patch_for_each() -> None:
    assert {patch.stem for patch in PATCHES} == set(WORKS)


@pytest.mark.parametrize("part", WORKS)
def test_the_part_works(part: str, found: dict[str, Any]) -> None:
    assert found[part] == WORKS[part]
