"""upstream/: each reproducer is short, shows its fault, and passes with its change."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

UPSTREAM = ROOT / "upstream"
FOLDERS = sorted(path for path in UPSTREAM.iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_report_is_short_and_listed(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"reproduce.py", "change.diff"}
    program = (folder / "reproduce.py").read_text()
    assert len(program.splitlines()) <= 30
    assert "mnist_ray" not in program
    added = re.findall(r"^\+(?!\+\+)", (folder / "change.diff").read_text(), re.MULTILINE)
    assert 1 <= len(added) <= 20
    assert f"| `{folder.name}` |" in (UPSTREAM / "README.md").read_text()


def test_all_reports_are_there() -> None:
    listed = re.findall(r"^\| `([\w-]+)` \|", (UPSTREAM / "README.md").read_text(), re.MULTILINE)
    assert set(listed) == {folder.name for folder in FOLDERS}


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(UPSTREAM / "run.py"), name, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow  # two processes each, most of which import Ray
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_fault_is_there_and_the_change_mends_it(folder: Path) -> None:
    stock = run(folder.name)
    assert "FAULT: " in stock.stderr.splitlines()[-1], stock.stderr
    assert stock.returncode == 1
    changed = run(folder.name, "--changed")
    assert changed.returncode == 0, changed.stderr
