"""Prints as JSON how each part of tests/programs/extensions works in a package that has them all.

It runs in an empty folder. The command line is called as people type it, without a Ray.
"""

import contextlib
import io
import json
import math
import sys
import traceback
from pathlib import Path

import numpy as np
import optuna
import torch
from PIL import Image

from mnist_ray import cli, data, trackers
from mnist_ray.run.records import Record, Records, epoch_row
from mnist_ray.settings import SearchSettings, parse
from mnist_ray.storage import RunStorage
from mnist_ray.study.pruners import read_scheduler
from mnist_ray.training.metrics import score_of
from mnist_ray.training.trainer import Trainer

OWN = """
def space(trial, data):
    return {"model": "mlp", **data.hyperparameters(), "units": [8], "dropouts": [0.0],
            "optimizer": "adagrad", "lr": 0.01, "batch_size": 64}
"""


def dry_run(*flags):
    """What `mnist-ray search` prints of its plan."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            cli.console(["search", "--storage", "runs", "--dry-run", *flags])
    except SystemExit as end:
        if end.code:
            raise RuntimeError(output.getvalue()) from end
    return output.getvalue()


def trained(optimizer, metric):
    """One epoch of a small network on digits; its trainer."""
    part = data.load("digits", "train")
    hp = {
        "model": "mlp", "in_channels": 1, "image_size": [28, 28], "classes": 10,
        "mean": [0.1], "std": [0.3], "units": [8], "dropouts": [0.0],
        "optimizer": optimizer, "lr": 0.01, "batch_size": 64,
    }  # fmt: skip
    trainer = Trainer(hp, epochs=1, seed=0, precision="fp32")
    trainer.score = score_of(metric)
    arrays = (part.images[:600], part.labels[:600], np.arange(400), np.arange(400, 600))
    trainer.run_epoch(*map(torch.tensor, arrays))
    return trainer


def metric():
    labels = np.array([0, 0, 1, 1])
    score = score_of("worst_class")
    assert score is not None
    value = score(labels, np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0, 1]]))
    shown = "metric: worst_class" in dry_run("--dataset", "digits", "--metric", "worst_class")
    return [shown, value, 0 <= trained("adam", "worst_class").rows[0]["val_metric"] < 1]


def optimizer():
    Path("own.py").write_text(OWN)
    shown = '"optimizer": "adagrad"' in dry_run("--dataset", "digits", "--space", "own:space")
    trainer = trained("adagrad", "val_accuracy")
    return [shown, type(trainer.optimizer).__name__, math.isfinite(trainer.rows[0]["val_loss"])]


def source():
    random = np.random.default_rng(0)
    for name, low in (("bright", 128), ("dark", 0)):
        tiles = random.integers(low, low + 128, (40 * 8, 8), dtype=np.uint8)
        Path("sheets").mkdir(exist_ok=True)
        Image.fromarray(tiles).save(f"sheets/{name}.png")
    shown = dry_run("--dataset", "sheets:sheets", "--space", "mlp")
    part = data.load(f"sheets:{Path('sheets').absolute()}", "train")
    return ['"image_size": [8, 8]' in shown, part.classes, len(part.labels)]


def tracker():
    shown = "csv_log: log.csv" in dry_run("--dataset", "digits", "--csv-log", "log.csv")
    storage, records = RunStorage("runs/tracked"), Records("val_accuracy", 1)
    [one] = opened = trackers.opened(parse(SearchSettings, ["--csv-log", "log.csv"]))
    known = trackers.begin(opened, "tracked", {}, storage, {})
    with trackers.following(opened, records):
        row = epoch_row({"epoch": 1, "val_accuracy": 0.5, "val_loss": 2.0})
        records.add(Record(0, {}, rows={1: row}))
    lines = Path("log.csv").read_text().splitlines()
    return [shown, one.viewer, known, lines]


def space():
    shown = dry_run("--dataset", "digits", "--space", "narrow", "--space-args", "most=8")
    suggestions = [json.loads(line.split(": ", 1)[1]) for line in shown.splitlines()[-3:]]
    return [all(4 <= each["units"][0] <= 8 for each in suggestions), len(suggestions)]


def scheduler():
    flags = ["--scheduler", "plateau", "--scheduler-args", "patience=2"]
    shown = "scheduler: plateau" in dry_run("--dataset", "digits", *flags)
    pruner = read_scheduler(parse(SearchSettings, flags)).pruner()
    trial = optuna.create_study(direction="maximize", pruner=pruner).ask()
    stops = []
    for epoch, value in enumerate([0.5, 0.6, 0.5, 0.5, 0.5], start=1):
        trial.report(value, epoch)
        stops.append(trial.should_prune())
    return [shown, stops.index(True)]


def main():
    """Each part by itself: one that fails does not hide the others."""
    found = {}
    for part in (metric, optimizer, source, tracker, space, scheduler):
        try:
            found[part.__name__] = part()
        except Exception:
            found[part.__name__] = traceback.format_exc()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
