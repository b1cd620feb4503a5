"""README and docs against the code, both ways: options, commands, code and links."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from mnist_ray.cli import COMMANDS
from mnist_ray.settings import help, parse
from tests.support import ROOT
from tests.support.pages import PAGES, blocks, commands

DOCS = ROOT / "docs"
# Flags of other programs that pages name.
OTHERS = {
    *("working-dir", "runtime-env-json", "entrypoint-num-gpus", "head", "dashboard-host"),  # Ray
    *("logdir", "generate", "help", "version", "watch"),
    *("instance-types", "product-descriptions"),  # aws
    "data-binary",  # curl
    "hypothesis-profile",  # pytest
    *("recipe", "folds", "change"),  # benchmarks/crossval.py
    "unshared",  # benchmarks/search_peers.py
}
OPTIONS = {
    name: [option for group in help.groups(command.settings) for option in group.options]
    for name, command in COMMANDS.items()
}
FLAGS = {name: {f for option in options for f in option.flags} for name, options in OPTIONS.items()}
KNOWN = set().union(*FLAGS.values()) | {f"--help-{part}" for part in help.PARTS}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    made: dict[str, str] = runpy.run_path(str(DOCS / "generate.py"))["pages"]()
    return made


def test_generated_pages_agree_with_the_code(generated: dict[str, str]) -> None:
    for page, text in generated.items():
        found = (DOCS / page).read_text(encoding="utf-8")
        if page == "part-options.md" and f"Optuna {version('optuna')}." not in found:
            # The samplers' options are another version's: only the spaces' are compared.
            text, found = (
                each.partition("## Spaces")[2].partition("## Samplers")[0] for each in (text, found)
            )
        assert found == text, f"docs/{page} is old: run `python docs/generate.py`"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_documented(command: str) -> None:
    page = PAGES[DOCS / "options.md"]
    section = page.partition(f"## mnist-ray {command}\n")[2].partition("\n## mnist-ray ")[0]
    for flag in FLAGS[command]:
        assert flag.startswith("--no-") or f"| `{flag}` |" in section, flag


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_flag_in_the_text_exists(path: Path) -> None:
    text = PAGES[path]
    spans = [*re.findall(r"`([^`\n]+)`", text), *(c for c in commands(text) if ours(c))]
    found = {flag for span in spans for flag in re.findall(r"(?<!\S)--[a-z][a-z-]+[a-z]", span)}
    assert found - KNOWN - {f"--{other}" for other in OTHERS} == set()


def ours(command: str) -> list[str] | None:
    """Command and flags of a line that calls this program, else None."""
    line = command.rpartition(" -- ")[2]
    words = shlex.split(line) if line.startswith(("mnist-ray ", "python jobs/")) else []
    if words[:1] == ["mnist-ray"]:
        return words[1:]
    if len(words) > 1 and (script := re.fullmatch(r"jobs/(\w+)\.py", words[1])):
        return [script[1], *words[2:]]
    return None


CALLS = [
    (name(path), line) for path, text in PAGES.items() for line in commands(text) if ours(line)
]


@pytest.mark.parametrize(("page", "call"), CALLS)
def test_every_command_parses(page: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command, *flags = ours(call) or []
    own_file = {"my.yaml": "mnist_ray/recipes/small.yaml"}  # a file that the reader has
    flags = [own_file.get(flag, flag) for flag in flags]
    if flags == ["--help"] or flags[0].removeprefix("--help-") in help.PARTS:
        return  # see tests/settings/test_help.py
    assert parse(COMMANDS[command].settings, flags) is not None


DRY = [call for call in CALLS if "--dry-run" in call[1] and "mine:" not in call[1]]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "call"), DRY)
def test_a_dry_run_on_a_page_runs(page: str, call: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mnist_ray", *(ours(call) or [])],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "suggestion 0" in done.stdout
    assert not (tmp_path / "mnist_ray").exists()


def test_commands_are_found() -> None:
    assert len(CALLS) > 40
    assert len(DRY) > 5


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_python_on_a_page_is_python(path: Path) -> None:
    for code in blocks("python", PAGES[path]):
        compile(code, str(path), "exec")


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", PAGES[path]):
        assert "://" in target or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_anchor_is_a_heading(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s:]*\.md|)#([^)]+)\)", PAGES[path]):
        file = path.parent / target if target else path
        headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {slug(heading) for heading in headings}, f"{target}#{anchor}"


def slug(heading: str) -> str:
    """The anchor that GitHub and the docs site make of a heading."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def test_every_command_of_the_results_is_whole() -> None:
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    cut_off = [line for line in results.splitlines() if line[:1] == "`" and line.count("`") % 2]
    assert not cut_off


def test_docs_have_an_example_for_each_1000_words() -> None:
    words = sum(len(text.split()) for text in PAGES.values())
    examples = sum(text.count("\n```") // 2 for text in PAGES.values())
    assert examples >= words / 1000


def test_the_site_has_every_page() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert set(re.findall(r"- ([\w/-]+\.md)", nav)) == pages
