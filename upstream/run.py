"""Runs a reproducer on the installed Ray and Optuna, or with its change.

python upstream/run.py ray-asha-rungs               # exit code 1 and a line FAULT: it is there
python upstream/run.py ray-asha-rungs --changed     # with change.diff: exit code 0

No installed file is changed: the modules that the diff names are imported from patched copies.
"""

import importlib.util
import re
import runpy
import subprocess
import sys
import tempfile
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Copies(MetaPathFinder):
    """Finds modules in patched copies."""

    def __init__(self, files: dict[str, Path]) -> None:
        self.files = files

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """The copy's, if there is one."""
        file = self.files.get(name)
        return importlib.util.spec_from_file_location(name, file) if file else None


def patched(diff: Path, folder: Path) -> dict[str, Path]:
    """Module -> its copy in the folder, to which the diff is applied."""
    copies = {}
    for file in re.findall(r"^--- a/(\S+)", diff.read_text(), re.MULTILINE):
        inside = Path(file.removeprefix("python/"))  # Ray's repository has it below that folder
        package = importlib.util.find_spec(inside.parts[0])
        assert package is not None
        assert package.origin is not None
        copy = folder / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((Path(package.origin).parent.parent / inside).read_text())
        copies[".".join(inside.with_suffix("").parts)] = copy
    subprocess.run(["git", "apply", str(diff.resolve())], cwd=folder, check=True)
    return copies


def main(name: str, *options: str) -> None:
    """Runs one; it exits with the reproducer's code."""
    with tempfile.TemporaryDirectory(prefix="upstream-") as folder:
        if "--changed" in options:
            copies = patched(HERE / name / "change.diff", Path(folder))
            sys.meta_path.insert(0, Copies(copies))
        runpy.run_path(str(HERE / name / "reproduce.py"), run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
