"""What holds the house: short files, few imports in functions, rooms that know only those below."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

import mnist_ray
from tests.support import ROOT

PACKAGE = Path(mnist_ray.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
Node = TypeVar("Node", bound=ast.stmt | ast.expr)
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

LONGEST_FILE, LONGEST_CLASS, LONGEST_FUNCTION = 400, 200, 60
MOST_IMPORTS_IN_FUNCTIONS = 40
# Why an import may stand in a function; a module of the standard library never does.
REASONS = ("seconds at start", "optional package", "Ray's environment", "named trainable")


def name(file: Path) -> str:
    return file.relative_to(PACKAGE.parent).as_posix()


def nodes(*kinds: type[Node]) -> Iterator[tuple[Path, Node]]:
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, kinds):
                yield file, node


def longer_than(limit: int, *kinds: type[Definition]) -> dict[str, int]:
    return {
        f"{name(file)}:{node.name}": lines
        for file, node in nodes(*kinds)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > limit
    }


def test_files_classes_and_functions_are_short() -> None:
    lines = {name(file): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {file: n for file, n in lines.items() if n > LONGEST_FILE} == {}
    assert longer_than(LONGEST_CLASS, ast.ClassDef) == {}
    assert longer_than(LONGEST_FUNCTION, *FUNCTION) == {}


def imports_in_functions() -> Iterator[tuple[str, str, set[str]]]:
    """Place, line and names of the packages."""
    for file, function in nodes(*FUNCTION):
        text = file.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(function):
            if isinstance(node, ast.Import):
                packages = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                packages = {(node.module or "").partition(".")[0]}
            else:
                continue
            lines = "\n".join(text[node.lineno - 1 : node.end_lineno])
            yield f"{name(file)}:{node.lineno}", lines, packages


def test_imports_in_functions_are_few_and_have_a_reason() -> None:
    found = {place: (line, packages) for place, line, packages in imports_in_functions()}
    assert len(found) <= MOST_IMPORTS_IN_FUNCTIONS
    reason = re.compile(rf"# noqa: PLC0415 \(({'|'.join(REASONS)})\b")
    assert [place for place, (line, _) in found.items() if not reason.search(line)] == []
    standard = {p: packages & sys.stdlib_module_names for p, (_, packages) in found.items()}
    assert {place: packages for place, packages in standard.items() if packages} == {}


def test_nothing_reads_a_folder_outside_the_package() -> None:
    """From `__file__` no path leads above the package, which may lie in a wheel."""
    outside = []
    for file, node in nodes(ast.Attribute, ast.Subscript):
        chain = ast.unparse(node)
        if "__file__" in chain:
            up = chain.count(".parent") - chain.count(".parents")
            up += sum(int(n) + 1 for n in re.findall(r"\.parents\[(\d+)\]", chain))
            if up > len(file.relative_to(PACKAGE.parent).parts) - 1:
                outside.append(f"{name(file)}:{node.lineno}")
    assert outside == []


FACES = sorted(
    "mnist_ray" if file.parent == PACKAGE else f"mnist_ray.{file.parent.name}"
    for file, tree in TREES.items()
    if file.name == "__init__.py" and any(isinstance(n, ast.ImportFrom) for n in tree.body)
)


@pytest.mark.parametrize("face", FACES)
def test_a_face_names_what_it_gives(face: str) -> None:
    """Everything in a room's `__all__` is there; its order is ruff's (RUF022)."""
    room = importlib.import_module(face)
    assert len(set(room.__all__)) == len(room.__all__)
    assert [each for each in room.__all__ if not hasattr(room, each)] == []


def test_rooms_know_only_the_rooms_below() -> None:
    """The contracts of pyproject.toml."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[done.stdout.find("Broken contracts") :]
