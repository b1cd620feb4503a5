"""README and docs: commands and code run as written, flags and links exist."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import optuna
import pytest
import torch
from PIL import Image

from mnist_ray import data, models
from mnist_ray.spaces import DataShape
from tests.support import ROOT, pages
from tests.support.runs import finish, flags, search
from tests.support.servers import free_port

README = (ROOT / "README.md").read_text()


# A test cannot run these: the environment is there, and so is a Ray head of the tests' own.
ELSEWHERE = ("make ", "source ", "export ", "ray get-auth-token", "ray start", "ray stop")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks, with the files that the README's commands name."""
    folder = tmp_path_factory.mktemp("tree")
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    digits = data.load("digits", "train")
    for number in range(120):  # pictures of three classes
        own = folder / "photos" / f"class {digits.labels[number] % 3}"
        own.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[number, 0]).save(own / f"{number}.png")
    (folder / "my-stages.yaml").write_text(
        "stages:\n  - {epochs: 1, batch_size: 64, lr: 0.001, weight_decay: 0, "
        "optimizer: adam, seed: 1}\n"
    )
    return folder


@pytest.mark.slow
def test_every_command_runs(tree: Path, ray_head: dict[str, str], tmp_path: Path) -> None:
    env = {**ray_head, "HOME": str(tmp_path)}
    ran = []
    for command in pages.commands(README):
        if command.startswith(ELSEWHERE):
            continue
        ran.append(command)
        if " draw " in command and shutil.which("npm") is None:
            continue  # the browser's runtime comes from npm; tests/test_draw.py says so
        out = subprocess.run(
            command, shell=True, cwd=tree, env=env, capture_output=True, text=True, timeout=300
        )
        assert out.returncode == 0, f"{command}\n{out.stdout}{out.stderr}"
        if " evaluate " in command:
            assert re.search(r"accuracy  (9\d|100)\.", out.stdout)
        if " predict " in command:
            assert re.fullmatch(r"examples/seven\.png  7  0\.\d+\n", out.stdout)
    assert len(ran) == 8
    study = f"{tmp_path}/mnist_ray/first/study.journal"
    check_dashboard(f"optuna-dashboard {study}", env)
    (tree / "readme_lines.py").write_text(pages.blocks("python", README)[0])
    out = subprocess.run(
        [sys.executable, "readme_lines.py"],
        cwd=tree,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert out.returncode == 0, out.stdout + out.stderr


def check_dashboard(command: str, env: dict[str, str]) -> None:
    """Starts it on a free port and asks it for its studies."""
    port = free_port()
    home = Path(env["HOME"])
    words = [word.replace("~", str(home)) for word in shlex.split(command)]
    server = subprocess.Popen(
        [*words, "--port", str(port)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                answer = urllib.request.urlopen(
                    f"http://127.0.0.1:{port}/api/studies", timeout=5
                ).read()
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.3)
        assert b"first" in answer
    finally:
        server.terminate()
        server.wait(20)


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1200
    prose = re.sub(r"```.*?```|^\|.*$|^- .*$", "", README, flags=re.DOTALL | re.MULTILINE)
    for sentence in re.split(r"[.:!?]\s", prose):
        assert len(sentence.split()) <= 30, sentence


def test_the_two_commands_come_first() -> None:
    assert pages.blocks("bash", README)[0].splitlines()[0].startswith("make demo")
    assert pages.blocks("bash", README)[0].splitlines()[1].startswith("make test")


def test_a_space_and_network_of_ones_own_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's example module, through a dry run and one step of its network."""
    (tmp_path / "mine.py").write_text(pages.example("def space(trial, data"))
    options = flags(space="mine:space", space_args="most=32", dataset="digits", dry_run=True)
    code, output = finish(search(dict(os.environ), *options, cwd=tmp_path))
    assert code == 0, output
    assert '"width"' in output
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("mine")
    hp = mine.space(optuna.create_study().ask(), DataShape(1, (28, 28), 10, (0.5,), (0.5,)))
    assert models.build(hp)(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_a_data_set_of_ones_own_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = pages.example("def symbols")
    filled = code.replace(
        "images, labels = ...",
        "images, labels = np.zeros((20, 1, 9, 9), np.uint8), np.arange(20) % 2",
    )
    assert filled != code
    (tmp_path / "symbols_of_readme.py").write_text("import numpy as np\n" + filled)
    monkeypatch.syspath_prepend(tmp_path)
    assert data.load("symbols_of_readme:symbols", "train").shape == (1, 9, 9)
