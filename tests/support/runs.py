"""Searches and fine-tunings as processes, and what is true of the runs that they leave."""

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from mnist_ray.run import checkpoint
from mnist_ray.run.publication import read_verified
from mnist_ray.storage import RunStorage
from tests.support import ROOT
from tests.support.processes import finish as finish


def flags(**options: object) -> list[str]:
    """Options as a command line has them: trials=2, space_args=["width=8"], resume=True.

    finetune=False is --no-finetune.
    """
    words = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is True or value is False:
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [f"--{flag}", *map(str, values)]
    return words


SPACE = ["min_width=8", "max_width=16"]
SMALL = flags(
    dataset="digits", space_args=SPACE, train_images=400, val_images=200, calibrate="none"
)


QUICK_STAGES = """stages:
  - {epochs: 2, batch_size: 64, optimizer: sgd, lr: 0.02, weight_decay: 5.0e-4, seed: 1}
  - {epochs: 1, batch_size: 64, optimizer: adam, lr: 0.001, weight_decay: 0, seed: 2}
  - {epochs: 1, batch_size: 128, optimizer: sgd, lr: 0.001, weight_decay: 0, seed: 3}
"""


def quick(folder: Path, stages: int = 3) -> list[str]:
    """Options for stages of seconds, without a twin: for tests of all but the training."""
    file = folder / "quick.yaml"
    file.write_text("".join(QUICK_STAGES.splitlines(keepends=True)[: stages + 1]))
    return flags(stages=file, calibrate="none")


def start(script: str, env: dict[str, str], *arguments: str, cwd: Path = ROOT) -> subprocess.Popen:
    """A script of jobs/, whose one stream of output `wait_for` and `finish` read."""
    command = [sys.executable, str(ROOT / "jobs" / script), *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def search(env: dict[str, str], *arguments: str, cwd: Path = ROOT) -> subprocess.Popen:
    return start("search.py", env, *arguments, cwd=cwd)


def finetune(env: dict[str, str], *arguments: str, cwd: Path = ROOT) -> subprocess.Popen:
    return start("finetune.py", env, *arguments, cwd=cwd)


def wait_for(process: subprocess.Popen, words: str) -> str:
    """Reads the output up to the line with the words."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"{words!r} never came:\n{seen}")


def ended(output: str) -> set[int]:
    """Numbers of the trials that the output says have ended."""
    return {int(n) for n in re.findall(r"^trial (\d+) .*epochs=", output, re.MULTILINE)}


def load_study(folder: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    return optuna.load_study(study_name=folder.name, storage=storage)


def tables(storage: RunStorage) -> tuple[list[dict], list[dict]]:
    def read(name: str) -> list[dict]:
        return pq.read_table(io.BytesIO(storage.read_bytes(name))).to_pylist()

    return read("trials.parquet"), read("history.parquet")


def check_run(folder: str, trials: int) -> None:
    """What is true of every finished search."""
    storage = RunStorage(folder)
    rows, history = tables(storage)
    assert [row["number"] for row in rows if not row["reason"].startswith("interrupted")] != []
    assert len([row for row in rows if "tried again" not in row["reason"]]) == trials
    epochs = [(row["number"], row["epoch"]) for row in history]
    assert len(set(epochs)) == len(epochs)
    for row in rows:
        own = [h["epoch"] for h in history if h["number"] == row["number"]]
        assert own == list(range(1, row["epochs"] + 1))
    _, story = checkpoint.unpack(storage.read_bytes("best/model.safetensors"), "best")
    best = max(history, key=lambda h: (h["val_accuracy"], -h["val_loss"]))
    assert (story["number"], story["row"]["epoch"]) == (best["number"], best["epoch"])
    assert storage.list("tune/checkpoints") == []


def check_two_jobs(env: dict[str, str], folder: Path) -> None:
    """The search in that folder and its fine-tuning, both done."""
    listing = subprocess.run(
        ["ray", "job", "list"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    ).stdout
    jobs = [part for part in listing.split("JobDetails(") if str(folder) in part]
    assert len(jobs) == 2
    assert all("SUCCEEDED" in job for job in jobs)


def check_published(run: str, stages: int = 3) -> None:
    storage = RunStorage(run)
    manifest, data = read_verified(storage)
    assert manifest["test_images"] == 360
    assert manifest["test_accuracy"] > (0.8 if stages == 3 else 0.2)
    assert manifest["max_difference_from_torch"] <= 1e-4
    assert [entry["step"] for entry in manifest["lineage"]] == [
        "search",
        *(f"stage-{number}" for number in range(1, stages + 1)),
    ]
    assert storage.read_bytes("README.md").startswith(b"---\n")
    assert len(data) > 1000
    assert storage.read_json("run.json")["state"] == "done"


def results(storage: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """The table of trials, the curves without their clocks, and the best weights."""
    folder = storage / "d"
    trials = pq.read_table(folder / "trials.parquet").drop_columns(["seconds", "node"]).to_pylist()
    history = (
        pq.read_table(folder / "history.parquet")
        .drop_columns(["seconds", "images_per_second"])
        .to_pylist()
    )
    weights, story = checkpoint.unpack((folder / "best" / "model.safetensors").read_bytes(), "best")
    return (
        trials,
        history,
        {"number": story["number"], **{k: v.numpy().tobytes() for k, v in weights.items()}},
    )
