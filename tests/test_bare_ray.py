"""A cluster whose nodes have nothing but Ray: the job brings the rest."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from tests.support import ROOT
from tests.support.runs import SMALL, check_published, check_two_jobs, flags
from tests.support.servers import head_of


@pytest.mark.slow
def test_a_ray_of_another_environment(tmp_path: Path) -> None:
    """As docs/cluster.md says it: both jobs succeed where torch and Optuna were missing."""
    programs = tmp_path / "bare" / "bin"
    subprocess.run([sys.executable, "-m", "venv", str(programs.parent)], check=True)
    subprocess.run(
        [str(programs / "pip"), "install", "--quiet", f"ray[default]=={ray.__version__}"],
        check=True,
    )
    assert subprocess.run(
        [str(programs / "python"), "-c", "import torch"], capture_output=True
    ).returncode
    needs = {
        "pip": ["${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"],
        "config": {"setup_timeout_seconds": 1800},
    }
    arguments = [*SMALL, *flags(trials=3, max_epochs=2, storage=tmp_path, name="bare")]
    with head_of(programs) as env:
        command = [
            "ray",
            "job",
            "submit",
            *flags(working_dir=".", runtime_env_json=json.dumps(needs)),
        ]
        submit = subprocess.run(
            [*command, "--", "python", "jobs/search.py", *arguments],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=1800,
        )
        assert submit.returncode == 0, submit.stdout + submit.stderr
        check_two_jobs(env, tmp_path)
    check_published(f"{tmp_path}/bare")
