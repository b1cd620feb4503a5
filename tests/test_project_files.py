"""Files that services read: one version everywhere, the same images, right by their schemas."""

import re
import subprocess
import sys
from importlib.metadata import version

import pytest
import yaml

import mnist_ray
from tests.support import ROOT


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_stands_in_one_place() -> None:
    assert 'version = { attr = "mnist_ray.__version__" }' in text("pyproject.toml")
    assert mnist_ray.__version__ == version("mnist_ray")
    assert yaml.safe_load(text("CITATION.cff"))["version"] == mnist_ray.__version__
    released = re.findall(r"^## (\d\S*)", text("CHANGELOG.md"), re.MULTILINE)
    assert "## Unreleased\n" in text("CHANGELOG.md") or mnist_ray.__version__ in released


def test_the_image_is_that_of_the_cluster_files() -> None:
    used = set(re.findall(r"rayproject/ray:\S+[a-z]", text("cluster.yaml") + text("kuberay.yaml")))
    named = set(re.findall(r"rayproject/ray:\S+[a-z]", text("Dockerfile")))
    assert named == used
    ray = version("ray")
    assert all(re.search(rf":{re.escape(ray)}-py311-(cpu|gpu)$", image) for image in used)


def test_the_image_copies_files_that_are_there() -> None:
    allowed = re.findall(r"^!(\w[\w.]*)", text(".dockerignore"), re.MULTILINE)
    for line in re.findall(r"^COPY --chown=ray (.*) \S+$", text("Dockerfile"), re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists()
            assert name in allowed


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ("github-workflows", ".github/workflows/*.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("citation-file-format", "CITATION.cff"),
    ],
)
def test_files_of_the_code_host_are_right(schema: str, pattern: str) -> None:
    files = sorted(map(str, ROOT.glob(pattern)))
    assert files
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_runs_all_checks() -> None:
    steps = yaml.safe_load(text(".github/workflows/ci.yml"))["jobs"]["check"]["steps"]
    assert steps[-1] == {"run": ".ci/run"}
    lines = re.findall(r"^make ([\w ]+)", text(".ci/run"), re.MULTILINE)
    targets = " ".join(lines).split()
    assert sorted(targets) == ["demo", "docs", "faults", "lint", "test"]
