"""Made-up runs as a search leaves them, and what a reader finds on a report's page."""

import dataclasses
from collections.abc import Callable
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna

from mnist_ray import data, spaces
from mnist_ray.export.session import Session
from mnist_ray.run import layout, predictions
from mnist_ray.run.records import Record, Records, value_of
from mnist_ray.run.tables import history_table, parquet, trials_table
from mnist_ray.settings import SearchSettings, resolved
from mnist_ray.storage import RunStorage

EPOCHS = 9
START = datetime(2026, 1, 2, 3, 4, 5)  # of the made-up searches, local time as Optuna keeps it


def made_up_trials(
    n: int, metric: str, seed: int = 0
) -> list[tuple[optuna.trial.FrozenTrial, Record]]:
    """Trials of the real space on two workers, with invented values; one failed, some stopped."""
    rng = np.random.default_rng(seed)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    shape = spaces.DataShape(1, (28, 28), 10, (0.15,), (0.3,))
    free = [START, START + timedelta(seconds=0.5)]
    made = []
    for number in range(n):
        proposed = study.ask()
        spaces.find("convnet")(proposed, shape)
        goal = 0.99 - 0.1 * proposed.params["dropout"] ** 2 - 0.02 * rng.random()
        failed = number == 2
        last = 0 if failed else EPOCHS if rng.random() < 0.6 else int(rng.choice([1, 3]))
        worker = int(np.argmin([f.timestamp() for f in free]))
        rows: dict[int, Any] = {
            epoch: {
                "epoch": epoch,
                "train_loss": 2.0 / epoch,
                "train_accuracy": goal - 0.5 / epoch**2,
                "val_loss": 1 - goal + 1 / epoch,
                "val_accuracy": goal - 0.4 / epoch**2,
                "lr": 0.1 / epoch,
                "images_per_second": 1000.0 + number,
                "seconds": 2.0,
            }
            for epoch in range(1, last + 1)
        }
        state = "FAIL" if failed else "COMPLETE" if last == EPOCHS else "PRUNED"
        reason = (
            "ValueError: too small"
            if failed
            else ""
            if last == EPOCHS
            else f"stopped by the scheduler after epoch {last}"
        )
        record = Record(
            number,
            dict(proposed.params),
            state,
            reason,
            int(1000 * proposed.params["width"]),
            "" if failed else "node-a",
            rows,
        )
        best = record.best(metric)
        frozen = optuna.trial.create_trial(
            state=optuna.trial.TrialState[state],
            value=value_of(best, metric) if state == "COMPLETE" and best else None,
            params=proposed.params,
            distributions=proposed.distributions,
            intermediate_values={epoch: row[metric] for epoch, row in rows.items()},
        )
        frozen.datetime_start = free[worker]
        frozen.datetime_complete = free[worker] = frozen.datetime_start + timedelta(
            seconds=2.0 * last + 1
        )
        made.append((frozen, record))
    return made


def write_run(
    folder: Path,
    n: int = 30,
    metric: Literal["val_accuracy", "val_loss"] = "val_accuracy",
    study: str | None = None,
    edit: Callable[[optuna.trial.FrozenTrial, Record], None] | None = None,
    **about: Any,
) -> RunStorage:
    """A run's directory as the search leaves it."""
    storage = RunStorage(str(folder))
    made = made_up_trials(n, metric)
    for frozen, record in made:
        if edit:
            edit(frozen, record)
    records = Records(metric, n)
    for _, record in made:
        records.add(record)
    settings = dataclasses.replace(
        SearchSettings(),
        dataset="digits",
        data_dir="/nowhere",
        trials=n,
        max_epochs=EPOCHS,
        metric=metric,
        name=folder.name,
        study=study,
    )
    train = data.load("digits", "train")
    run = {
        "name": folder.name,
        "state": "searched",
        "settings": resolved(settings),
        "seed": 0,
        "command": f"jobs/search.py --name {folder.name}",
        "versions": {"mnist_ray": "0.1.0", "ray": "2.60.0"},
        "python": "3.11",
        "git_commit": None,
        "data": {
            "name": "digits",
            "sha256": train.sha256,
            "train": 1222,
            "val": 215,
            "classes": list(train.classes),
        },
        "machine": {"node": "node-a", "system": "Linux", "cpus": 2},
        "start": "2026-01-02T03:04:00+00:00",
        "end": "2026-01-02T03:14:00+00:00",
    }
    storage.write_json("run.json", {**run, **about})
    storage.write_bytes("trials.parquet", parquet(trials_table(records)))
    storage.write_bytes("history.parquet", parquet(history_table(records)))
    if study is None:
        journal = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
        )
        kept = optuna.create_study(
            storage=journal,
            study_name=folder.name,
            direction="minimize" if metric == "val_loss" else "maximize",
        )
        kept.add_trials([frozen for frozen, _ in made])
    return storage


class Tables(HTMLParser):
    """The page's tables by label, as rows of texts; its pictures; its text outside scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.pictures: list[str] = []
        self.text = ""
        self.label = ""
        self.inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.inside.append(tag)
        if tag == "div" and "aria-label" in given:
            self.label = given["aria-label"]
        elif tag == "table":
            self.tables[self.label] = []
        elif tag == "tr":
            self.tables[self.label].append([])
        elif tag in ("td", "th"):
            self.tables[self.label][-1].append("")
        elif tag == "img":
            self.pictures.append(given["alt"])

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, text: str) -> None:
        if "script" in self.inside or "style" in self.inside:
            return
        self.text += text
        if {"td", "th"} & set(self.inside):
            self.tables[self.label][-1][-1] += text


def answer(storage: RunStorage, labels: np.ndarray, logits: np.ndarray) -> None:
    """Gives a run other answers to the test images: its predictions, and what model.json counts."""
    manifest = storage.read_json(layout.MANIFEST)
    right = int((logits.argmax(1) == labels).sum())
    counts = {"test_images": len(labels), "test_errors": len(labels) - right}
    storage.write_json(
        layout.MANIFEST, {**manifest, **counts, "test_accuracy": right / len(labels)}
    )
    storage.write_bytes(layout.PREDICTIONS, predictions.pack(labels, logits, manifest["sha256"]))


def wrong_numbers(storage: RunStorage) -> list[int]:
    test = data.load("digits", "test")
    found = Session(storage.read_bytes("model.onnx"), "model").logits(test.images).argmax(1)
    return np.flatnonzero(found != test.labels).tolist()
