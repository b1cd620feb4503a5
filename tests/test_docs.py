"""README and docs against the code, both ways: options, commands, code and links."""

import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from mnist_ray import data
from mnist_ray.cli import COMMANDS
from mnist_ray.finetune_job.recipe import Stage, read_stages
from mnist_ray.settings import help, parse
from mnist_ray.settings.text import recipes
from tests.support import ROOT
from tests.support.pages import PAGES, blocks, commands, example

DOCS = ROOT / "docs"
# Flags of other programs that pages name.
OTHERS = {
    *(
        "working-dir",
        "runtime-env-json",
        "entrypoint-num-cpus",
        "entrypoint-num-gpus",
        "head",
        "dashboard-host",
    ),  # Ray
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


# ---- facts of the code that a page repeats


def section(page: str, heading: str) -> str:
    """The text below a heading of a page of docs/, up to the next one of that level."""
    level = heading.partition(" ")[0]
    found = re.split(rf"^{level} ", PAGES[DOCS / page], flags=re.MULTILINE)
    [text] = [each for each in found if each.startswith(heading.removeprefix(f"{level} ") + "\n")]
    return text


def rows(text: str) -> set[str]:
    """The words in code of the first column of all tables."""
    cells = re.findall(r"^\|([^|]*)\|", text, re.MULTILINE)
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


def test_the_page_has_the_stages_that_are_built_in(tmp_path: Path) -> None:
    text = section("own-parts.md", "## Fine-tuning stages")
    (tmp_path / "default.yaml").write_text(blocks("yaml", text)[0])
    assert read_stages(str(tmp_path / "default.yaml")) == read_stages("default")
    for key in fields(Stage):
        assert f"`{key.name}`" in text, key.name


def test_the_page_has_every_recipe() -> None:
    of_searches, of_stages = section("own-parts.md", "## Recipes").split("| `--stages` |")
    assert rows(of_searches) - {"--config"} == set(recipes())
    assert rows(of_stages) == set(recipes(of_stages=True))


def test_the_page_has_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].keys() - {"all"}
    assert rows(section("quickstart.md", "## 1. Install")) == extras


def test_the_page_has_every_variable_of_the_environment() -> None:
    sources = (file.read_text(encoding="utf-8") for file in (ROOT / "mnist_ray").rglob("*.py"))
    used = {name for source in sources for name in re.findall(r"MNIST_RAY_[A-Z_]+", source)}
    assert used <= rows(section("options.md", "## Environment variables"))
    assert len(used) > 3


def test_the_page_has_every_metric_of_the_server() -> None:
    from mnist_ray.serve.app import Metrics

    told = " ".join(rows(section("shipped-file.md", "## Served")))
    for family in Metrics().registry.collect():
        assert family.name in told


def test_a_server_in_a_container_has_what_it_needs() -> None:
    """The page says which words of the Dockerfile to change."""
    page = section("shipped-file.md", "## Served")
    words = re.search(r"Write `(.+?)` for `(.+?)` in the `Dockerfile`", page)
    assert words is not None
    assert f"mnist_ray{words[2]}" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_the_page_and_the_card_read_a_picture_alike() -> None:
    card = (ROOT / "mnist_ray" / "finetune_job" / "card.md.jinja").read_text(encoding="utf-8")
    assert example("exif_transpose") in blocks("python", card)


def test_the_small_examples_of_data_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    exec(compile(example('np.savez("images.npz"'), "own-data.md", "exec"), {})
    for name in ("npz:images.npz", "csv:labels.csv"):
        parts = [data.load(name, part) for part in ("train", "test")]
        assert [part.classes for part in parts] == [("cat", "dog")] * 2
        assert [len(part.labels) for part in parts] == [160, 40]
    train, test = parts
    assert train.groups is not None
    assert test.groups is not None
    assert not np.intersect1d(train.groups, test.groups).size


def test_a_page_imports_no_images_from_an_inner_module() -> None:
    for path, text in PAGES.items():
        for code in blocks("python", text):
            assert "from mnist_ray.data import Images" not in code, path
