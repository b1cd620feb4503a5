"""The accuracy of the recipes: each run from nothing by one command.

    python benchmarks/accuracy.py --data-dir DIR --storage DIR --recipe default --repeats 5
    python benchmarks/accuracy.py --repeats 0          # the table alone, from the kept files

Started again, it goes on. A run's run.json, model.json and trials.parquet are kept under accuracy/.

A run is `python jobs/search.py --config jobs/recipes/RECIPE.yaml --seed SEED`, with seeds 1, 2, 3
and so on, one at a time: search, fine-tuning, ONNX file, and the one look at the test set through
it. Nothing is left out: every run that was begun is finished and stands in the table. With
--committee each search is followed by so many fine-tunings with seeds of their own, each counted as
a network of its own, and their mean probabilities as one file more. The run itself looks at the
test set for the committee's file alone; the members are exported and evaluated here, once, when the
run is kept (members.json).
"""

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from common import ROOT, BenchmarkSettings, mean_sd, section

from mnist_ray.errors import WorkError
from mnist_ray.settings import default_storage, main

KEPT = ROOT / "benchmarks" / "accuracy"
OF_THE_MACHINE = ("storage", "data_dir")  # settings that only name a place


@dataclass(frozen=True)
class AccuracySettings(BenchmarkSettings):
    """Run a recipe from nothing with several seeds, and write the table of all recipes' runs."""

    recipe: str = "default"
    """A file of jobs/recipes, without .yaml."""
    storage: str = default_storage()
    """Where the runs with their weights are kept."""
    dataset: str | None = None
    """Another data set than the recipe's."""
    committee: int = 1
    """Networks to fine-tune after each search."""


def measure(settings: AccuracySettings) -> None:
    """The runs that are missing, one after the other; then the table."""
    for seed in range(1, settings.repeats + 1):
        name = (
            f"{settings.recipe}-{settings.dataset}-{seed}"
            if settings.dataset
            else f"{settings.recipe}-{seed}"
        )
        if not (KEPT / name / "model.json").exists():
            run(settings, name, seed)
    rows = [row for folder in groups().items() for row in rows_of(*folder)]
    section(
        "Accuracy of the recipes",
        [
            "recipe",
            "data",
            "networks",
            "test accuracy, %, mean ± sd",
            "errors in each",
            "parameters",
            "a network's stages, at most",
            "the whole command",
        ],
        rows,
        n="every run that was made",
        out=settings.out,
        by_cpu=False,
        notes=[
            "`RECIPE-SEED × k`: k networks were fine-tuned after one search, each with seeds of "
            "its own; `committee` is the file that gives their mean probabilities. All accuracies "
            "are those of the exported files on the test images, looked at once, at the end. "
            "A run's command is in its run.json; remarks on single runs are in accuracy/README.md, "
            "and docs/honest-results.md has the processors. The one below wrote the table."
        ],
    )


def run(settings: AccuracySettings, name: str, seed: int) -> None:
    """One run, or the rest of one that was interrupted."""
    storage = os.path.abspath(settings.storage)
    folder = Path(storage, name)
    if (folder / "run.json").exists():
        words = ["--resume"]
    else:
        words = [
            "--config",
            f"jobs/recipes/{settings.recipe}.yaml",
            "--seed",
            str(seed),
            "--data-dir",
            os.path.abspath(settings.data_dir),
        ]
        words += ["--committee", str(settings.committee)] if settings.committee > 1 else []
        words += ["--dataset", settings.dataset] if settings.dataset else []
    command = [sys.executable, "jobs/search.py", *words, "--storage", storage, "--name", name]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise WorkError(f"{name} did not end well; started again, it goes on")
    (KEPT / name).mkdir(parents=True, exist_ok=True)
    for file in ("run.json", "model.json"):
        content = json.loads((folder / file).read_text())
        if file == "run.json":
            for place in OF_THE_MACHINE:
                content["command"] = content["command"].replace(content["settings"][place], "DIR")
                content["settings"][place] = "DIR"
        (KEPT / name / file).write_text(json.dumps(content, indent=1) + "\n")
    shutil.copy(folder / "trials.parquet", KEPT / name)
    if settings.committee > 1:
        members = test_accuracies(folder, settings.committee)
        (KEPT / name / "members.json").write_text(json.dumps(members) + "\n")


def test_accuracies(folder: Path, committee: int) -> list[float]:
    """The members' accuracies on the test set, through exported files."""
    from mnist_ray import data
    from mnist_ray.export.session import Session
    from mnist_ray.export.write import export
    from mnist_ray.finetune_job.recipe import read_stages
    from mnist_ray.run import layout
    from mnist_ray.storage import RunStorage
    from mnist_ray.training.trainer import load_network

    storage = RunStorage(str(folder))
    searched = json.loads((folder / layout.RUN).read_text())["settings"]
    test = data.load(searched["dataset"], "test", searched["data_dir"])
    last_stage = read_stages(searched["stages"]).numbered()[-1][0]
    found = []
    for member in range(1, committee + 1):
        name = f"{layout.stage_folder(last_stage, member)}/{layout.STAGE_NETWORK}"
        network, metadata = load_network(storage.read_bytes(name), name)
        file = export(network, metadata["hyperparameters"], {})
        found.append(Session(file, name).evaluate(test.images, test.labels).accuracy)
    return found


def groups() -> dict[tuple[str, str], list[Path]]:
    """The runs of each recipe and data set, by their folders' names; a recipe that has changed is
    kept as earlier-…, one that was renamed under its name of today.
    """
    found: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for folder in sorted(file.parent for file in KEPT.glob("*/model.json")):
        dataset = json.loads((folder / "run.json").read_text())["settings"]["dataset"]
        recipe = folder.name.rpartition("-")[0].removesuffix(f"-{dataset}")
        found[recipe, dataset].append(folder)
    return found


def rows_of(group: tuple[str, str], folders: list[Path]) -> Iterator[list[Any]]:
    """The row of the single networks, and one of each committee."""
    accuracies: list[float] = []
    names, parameters, training, walls, committees = [], set(), [], [], []
    for folder in folders:
        run, model = (
            json.loads((folder / file).read_text()) for file in ("run.json", "model.json")
        )
        stages = [entry for entry in model["lineage"] if entry["step"].startswith("stage-")]
        networks = [
            stages[-1],
            *(entry for entry in model["lineage"] if entry["step"].startswith("member-")),
        ]
        members = folder / "members.json"
        accuracies += (
            json.loads(members.read_text())
            if members.exists()
            else [entry["test_accuracy"] for entry in networks]
        )
        parameters.add(model["n_parameters"] // len(networks))
        training.append(sum(stage["seconds"] for stage in stages) / 60)
        training += [entry["seconds"] / 60 for entry in networks[1:] if "seconds" in entry]
        if len(networks) == 1:
            names.append(folder.name)
            took = datetime.fromisoformat(run["end"]) - datetime.fromisoformat(run["start"])
            walls.append(f"{took.total_seconds() / 60:.0f} min")
        else:
            names.append(f"{folder.name} × {len(networks)}")
            committees.append((folder.name, len(networks), model))
    n = model["test_images"]
    yield [
        f"`{group[0]}`",
        group[1],
        ", ".join(names),
        mean_sd([100 * a for a in accuracies]),
        ", ".join(f"{n * (1 - a):.0f}" for a in accuracies),
        " to ".join(f"{p:,}" for p in sorted({min(parameters), max(parameters)})),
        f"{max(training):.1f} min",
        ", ".join(walls),
    ]
    for name, k, model in committees:
        accuracy = f"{100 * model['test_accuracy']:.2f}"
        yield [
            f"`{group[0]}`, committee",
            group[1],
            f"{name} × {k} in one file",
            accuracy,
            model["test_errors"],
            f"{model['n_parameters']:,}",
            "",
            "",
        ]


if __name__ == "__main__":
    main(AccuracySettings, measure)
