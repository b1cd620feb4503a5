"""The report: its numbers against those of the run, what it must not touch, its size, and how a browser shows it."""

import dataclasses
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("plotly", reason="the extra `report` is not installed")
pytest.importorskip("matplotlib", reason="the extra `report` is not installed")

from mnist_ray import data, report, spaces
from mnist_ray.errors import CorruptFileError, SettingsError
from mnist_ray.export.session import Session
from mnist_ray.export.write import export
from mnist_ray.finetune_job.chain import run_chain
from mnist_ray.finetune_job.recipe import ChainTask, Recipe, Stage
from mnist_ray.report import cost_part, model_part, network_part, search_figures, search_part
from mnist_ray.report.page import picture
from mnist_ray.report.read import distribution, read_run, thinned
from mnist_ray.run import layout, predictions
from mnist_ray.run.publication import Manifest
from mnist_ray.run.records import INTERRUPTED, Record, Records, parquet
from mnist_ray.settings import SearchSettings, resolved
from mnist_ray.storage import RunStorage
from mnist_ray.study import importance

ROOT = Path(__file__).resolve().parent.parent.parent
EPOCHS = 9
START = datetime(2026, 1, 2, 3, 4, 5)  # of the made-up searches, local time as Optuna keeps it

# ---- runs


def made_up_trials(
    n: int, metric: str, seed: int = 0
) -> list[tuple[optuna.trial.FrozenTrial, Record]]:
    """Trials of the real space on two workers with invented values: stopped as ASHA does, one failed, none trained."""
    rng = np.random.default_rng(seed)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    shape = spaces.DataShape(1, (28, 28), 10, (0.15,), (0.3,))
    free = [START, START + timedelta(seconds=0.5)]
    made = []
    for number in range(n):
        asked = study.ask()
        spaces.find("convnet")(asked, shape)
        goal = 0.99 - 0.1 * asked.params["dropout"] ** 2 - 0.02 * rng.random()
        failed = number == 2
        last = 0 if failed else EPOCHS if rng.random() < 0.6 else int(rng.choice([1, 3]))
        worker = int(np.argmin([f.timestamp() for f in free]))
        rows = {
            epoch: {
                "epoch": epoch, "train_loss": 2.0 / epoch, "train_accuracy": goal - 0.5 / epoch**2, "val_loss": 1 - goal + 1 / epoch,
                "val_accuracy": goal - 0.4 / epoch**2, "lr": 0.1 / epoch, "images_per_second": 1000.0 + number, "seconds": 2.0,
            }
            for epoch in range(1, last + 1)
        }  # fmt: skip
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
            dict(asked.params),
            state,
            reason,
            int(1000 * asked.params["width"]),
            "" if failed else "node-a",
            rows,
        )
        best = record.best(metric)
        frozen = optuna.trial.create_trial(
            state=optuna.trial.TrialState[state],
            value=best[metric] if state == "COMPLETE" and best else None,
            params=asked.params,
            distributions=asked.distributions,
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
    metric: str = "val_accuracy",
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
        "name": folder.name, "state": "searched", "settings": resolved(settings), "seed": 0,
        "command": f"jobs/search.py --name {folder.name}",
        "versions": {"mnist_ray": "0.1.0", "ray": "2.60.0"}, "python": "3.11", "git_commit": None,
        "data": {"name": "digits", "sha256": train.sha256, "train": 1222, "val": 215, "classes": list(train.classes)},
        "machine": {"node": "node-a", "system": "Linux", "cpus": 2},
        "start": "2026-01-02T03:04:00+00:00", "end": "2026-01-02T03:14:00+00:00",
    }  # fmt: skip
    storage.write_json("run.json", {**run, **about})
    storage.write_bytes("trials.parquet", parquet(records.trials_table()))
    storage.write_bytes("history.parquet", parquet(records.history_table()))
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


@pytest.fixture(autouse=True)
def calm() -> None:
    import torch

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunStorage:
    """A run on digits whose chain was really trained, though briefly: a poor model, so that there are wrong answers."""
    import torch

    from mnist_ray.training.trainer import Trainer

    torch.set_num_threads(1)
    storage = write_run(tmp_path_factory.mktemp("runs") / "first")
    winner = read_run(storage).best
    assert winner is not None
    train, test = data.load("digits", "train"), data.load("digits", "test")
    split = data.Split(train, *data.split(train.labels, val_images=215, seed=0), "class")
    hp = {
        "model": "convnet", "in_channels": 1, "image_size": [28, 28], "classes": 10, "mean": list(train.mean), "std": list(train.std),
        "blocks": 2, "layers_per_block": 1, "width": 4, "kernel_size": 5, "activation": "relu", "activation_position": "after_norm",
        "pooling": "max", "pool_position": "end", "dropout": 0.1 + 0.2, "dropout_place": "head", "batch_size": 64, "optimizer": "sgd",
        "lr": 0.02,
    }  # fmt: skip
    trainer = Trainer(hp, epochs=1, seed=0)
    storage.write_bytes(
        "best/model.safetensors", trainer.weights_bytes({"number": winner["number"], "row": winner})
    )
    stages = tuple(
        Stage(epochs, 64, lr, 0.0, "sgd", seed=1) for epochs, lr in ((2, 0.02), (1, 0.005))
    )
    recipe = Recipe("short", "best", "train", stages)
    task = ChainTask(
        uri=storage.uri, run="first", dataset="digits", recipe=recipe, committee=1, onnx=None, network=None, precision="fp32",
    )  # fmt: skip
    *_, manifest = run_chain(task, split, test)
    assert isinstance(manifest, Manifest)
    return storage


@pytest.fixture(scope="session")
def page(finished: RunStorage) -> str:
    return report.build([finished])


class _Tables(HTMLParser):
    """The page's tables by their label, as lists of rows of texts; its pictures, and its text outside scripts."""

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


# ---- the page of a finished run


def test_numbers_are_the_runs(finished: RunStorage, page: str) -> None:
    shown = _Tables(page)
    manifest = finished.read_json("model.json")
    n, errors = manifest["test_images"], manifest["test_errors"]
    assert errors > 3, "the fixture's model is too good for this test"
    assert (
        f"{100 * manifest['test_accuracy']:.2f}\u00a0% of {n:,} test images right: {errors:,} errors"
        in shown.text
    )
    confusion = np.array(
        [[int(c or 0) for c in row[1:]] for row in shown.tables["Confusion matrix"][1:]]
    )
    assert confusion.shape == (10, 10)
    assert confusion.sum() == n
    assert n - np.trace(confusion) == errors
    classes = shown.tables["Accuracy of each class"][1:]
    assert [int(row[1]) for row in classes] == confusion.sum(1).tolist()
    assert sum(int(row[2]) for row in classes) == errors
    wrong = [alt for alt in shown.pictures if "taken for" in alt]
    assert len(wrong) == errors
    assert all(f"test image {i}" in " ".join(wrong) for i in _wrong_numbers(finished))
    layers = shown.tables["Architecture"][1:]
    assert sum(int(row[3].replace(",", "")) for row in layers) == manifest["n_parameters"]
    assert [row[:3] for row in layers[:2]] == [
        ["Normalize", "", "1\u00a0×\u00a028\u00a0×\u00a028"],
        ["Conv2d", "1, 4, 5×5, padding=same, bias=False", "4\u00a0×\u00a028\u00a0×\u00a028"],
    ]
    assert ["dropout", "0.3"] in shown.tables["Hyperparameters"]
    run = read_run(finished)
    assert len(shown.tables["All trials"]) == 1 + len(run.trials)
    assert len(shown.tables["val_accuracy after each epoch"]) == 1 + len(
        {row["number"] for row in run.history}
    )
    chain = shown.tables["Every epoch of the chain"][1:]
    assert [row[0] for row in chain].count("stage 1") == 2
    assert [row[0] for row in chain].count("stage 2") == 1
    assert [row[0] for row in shown.tables["The steps of the chain"][1:]] == [
        "search",
        "stage-1",
        "stage-2",
    ]
    shares = [
        [float(cell.replace("–", "0")) for cell in row[1:]]
        for row in shown.tables["Importances"][1:]
    ]
    assert shares == sorted(shares, key=sum, reverse=True)
    assert [sum(measure) for measure in zip(*shares, strict=True)] == pytest.approx(
        [1] * len(shares[0]), abs=1e-2
    )
    assert "python jobs/search.py --name first" in shown.text


def _wrong_numbers(storage: RunStorage) -> list[int]:
    test = data.load("digits", "test")
    found = Session(storage.read_bytes("model.onnx"), "model").logits(test.images).argmax(1)
    return np.flatnonzero(found != test.labels).tolist()


def test_one_file_without_network(page: str) -> None:
    assert len(page.encode()) < 6e6
    assert not re.search(r"""(src|href)=["']?(https?:|//)""", page)
    assert "@import" not in page
    assert "url(" not in page.split("<script type=application/gzip")[0]
    assert "default-src 'none'" in page


def test_every_figure_is_there(page: str) -> None:
    figures = re.findall(r"<figure class=chart id=\"figure-([^\"]+)\"", page)
    wanted = {
        "history", "intermediate", "importances", "contour-batch_size-lr_sgd", "contour-batch_size-lr_adamw", "parallel", "slice", "rank",
        "edf", "pareto", "timeline", "chain", "calibration",
    }  # fmt: skip
    assert wanted == set(figures)
    assert len(figures) == len(set(figures))


def test_equal_runs_give_equal_pages(finished: RunStorage, page: str) -> None:
    assert report.build([finished]) == page


# ---- what it may not do


def test_without_a_model_the_test_images_stay_shut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = write_run(tmp_path / "searched")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the test set is not to be touched")

    monkeypatch.setattr(data, "load", refuse)
    shown = _Tables(report.build([storage]))
    assert "validation images right" in shown.text
    assert "so rather too high" in shown.text
    assert "Confusion matrix" not in shown.tables
    assert report.write_png(storage, str(tmp_path / "figures"))


def test_text_of_a_run_is_never_markup(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"

    def edit(frozen: optuna.trial.FrozenTrial, record: Record) -> None:
        choices = ["relu", "leaky_relu", "gelu", "silu", evil]
        frozen._distributions["activation"] = optuna.distributions.CategoricalDistribution(choices)
        if record.number % 3 == 0:
            frozen.params = {**frozen.params, "activation": evil}
            record.params["activation"] = evil
            record.reason, record.node = record.reason + evil, evil

    storage = write_run(tmp_path / "evil", edit=edit)
    raw = storage.read_json("run.json")
    texts = {"scheduler": evil, "sampler": evil, "space": evil, "grace_period": evil}
    raw |= {"settings": {**raw["settings"], **texts}, "command": evil, "git_commit": evil}
    raw |= {"state": evil, "name": evil, "versions": {evil: evil}, "machine": {"node": evil}}
    storage.write_json("run.json", raw)
    for page in (report.build([storage]), report.build([storage, storage])):
        assert "&lt;img src=x" in page
        assert "<img src=x" not in page
        assert not _Tables(page).pictures


@pytest.mark.parametrize(
    ("file", "column"),
    [("history.parquet", "number"), ("history.parquet", "val_loss"), ("trials.parquet", "epochs")],
)
def test_text_in_a_column_of_numbers_is_refused(tmp_path: Path, file: str, column: str) -> None:
    storage = write_run(tmp_path / "evil")
    table = pq.read_table(tmp_path / "evil" / file)
    text = pa.array(["<img src=x onerror=alert(1)>"] * len(table))
    place = table.schema.get_field_index(column)
    storage.write_bytes(file, parquet(table.set_column(place, column, text)))
    with pytest.raises(CorruptFileError, match=file):
        report.build([storage])
    line = report.write_or_warn(storage)
    assert line.startswith("no report: ")
    assert "\n" not in line


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    storage = write_run(tmp_path / "less")
    table = pq.read_table(tmp_path / "less" / "trials.parquet").drop_columns(["seconds"])
    storage.write_bytes("trials.parquet", parquet(table))
    with pytest.raises(CorruptFileError, match=r"trials\.parquet .* is damaged: .*seconds"):
        report.build([storage])


def test_few_complete_trials_have_no_importances(tmp_path: Path) -> None:
    """As in the terminal: FEWEST complete trials are needed for what is a conclusion."""

    def keep(complete: int) -> Callable[[optuna.trial.FrozenTrial, Record], None]:
        left = iter(range(1000))

        def edit(frozen: optuna.trial.FrozenTrial, record: Record) -> None:
            if record.state == "COMPLETE" and next(left) >= complete:
                record.state = "PRUNED"
                frozen.state, frozen._values = optuna.trial.TrialState.PRUNED, None

        return edit

    conclusions = {"importances", "rank", "contour-batch_size-lr_sgd"}
    for n in (importance.FEWEST - 1, importance.FEWEST):
        storage = write_run(tmp_path / str(n), edit=keep(n))
        page = report.build([storage])
        figures = set(re.findall(r"<figure class=chart id=\"figure-([^\"]+)\"", page))
        enough = n == importance.FEWEST
        assert (conclusions & figures == conclusions) if enough else not conclusions & figures
        assert {"slice", "parallel"} <= figures
        note = f"need {importance.FEWEST} complete trials, and here are {n}"
        assert (note in _Tables(page).text) == (not enough)


def test_data_set_of_ones_own_is_not_imported(finished: RunStorage, tmp_path: Path) -> None:
    shutil.copytree(finished.uri, tmp_path / "own")
    storage = RunStorage(str(tmp_path / "own"))
    run = storage.read_json("run.json")
    storage.write_json("run.json", {**run, "data": {**run["data"], "name": "antigravity:fly"}})
    sys.modules.pop("antigravity", None)
    assert (
        "the data set antigravity:fly is not one of this package"
        in _Tables(report.build([storage])).text
    )
    assert "antigravity" not in sys.modules


# ---- the answers that are kept


def test_kept_predictions_are_used_and_only_for_their_model(
    finished: RunStorage, tmp_path: Path
) -> None:
    shutil.copytree(finished.uri, tmp_path / "kept")
    storage = RunStorage(str(tmp_path / "kept"))
    sha = storage.read_json("model.json")["sha256"]
    test = data.load("digits", "test")
    logits = np.random.default_rng(0).normal(size=(len(test.labels), 10)).astype(np.float32)
    storage.write_bytes(layout.PREDICTIONS, predictions.pack(test.labels, logits, sha))
    kept = predictions.read(storage, sha)
    assert kept is not None
    np.testing.assert_array_equal(kept[0], test.labels)
    np.testing.assert_array_equal(kept[1], logits)
    wrong = int((logits.argmax(1) != test.labels).sum())
    assert f"Every wrong answer ({wrong} of" in report.build([storage])
    storage.write_bytes(layout.PREDICTIONS, predictions.pack(test.labels, logits, "0" * 64))
    assert predictions.read(storage, sha) is None
    assert (
        f"Every wrong answer ({storage.read_json('model.json')['test_errors']} of"
        in report.build([storage])
    )
    storage.write_bytes(layout.PREDICTIONS, b"PAR1 and then nothing")
    with pytest.raises(CorruptFileError, match=r"predictions\.parquet is damaged"):
        report.build([storage])


def test_other_test_images_give_no_pictures(finished: RunStorage) -> None:
    run = read_run(finished)
    test = data.load("digits", "test")
    sha = finished.read_json("model.json")["sha256"]
    finished.write_bytes(
        layout.PREDICTIONS,
        predictions.pack(test.labels, np.eye(10, dtype=np.float32)[(test.labels + 1) % 10], sha),
    )
    try:
        other = dataclasses.replace(test, labels=test.labels[::-1].copy())
        tested = model_part.load_tested(run, None, other)
    finally:
        finished.delete(layout.PREDICTIONS)
    assert tested.images is None
    assert "not those that the model was measured on" in tested.why_not
    assert tested.answers is not None


# ---- parts


def test_calibration_of_known_answers() -> None:
    labels = np.zeros(10, np.int64)
    # Eight answers at 0.95, of which six are right; two at 0.55, both wrong.
    given = np.array([[0.95, 0.05]] * 6 + [[0.05, 0.95]] * 2 + [[0.45, 0.55]] * 2)
    bins, error = model_part.calibration(labels, given)
    assert [(bin.n, bin.right) for bin in bins] == [(2, 0), (8, 6)]
    assert error == pytest.approx(0.8 * abs(0.75 - 0.95) + 0.2 * 0.55)
    # One is inside the last bin, not in one of its own.
    assert model_part.calibration(labels[:1], np.array([[1.0, 0.0]]))[0] == [
        model_part.Bin(14 / 15, 1.0, 1, 1, 1.0)
    ]


def test_confusion_counts_rows_by_truth() -> None:
    assert model_part.confusion(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3).tolist() == [
        [1, 1, 0],
        [0, 1, 0],
        [1, 0, 0],
    ]


@pytest.mark.parametrize("shape", [(28, 28), (32, 32, 3)])
def test_picture_holds_the_pixels(shape: tuple[int, ...]) -> None:
    import base64
    import io

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    text = picture(pixels, "a picture", 84, 84)
    png = base64.b64decode(text.source.partition("base64,")[2])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), pixels)
    assert text.source.startswith("data:image/png;base64,")


def test_committee_and_mlp(finished: RunStorage) -> None:
    from mnist_ray import models
    from mnist_ray.models import Committee

    shared = {"in_channels": 1, "image_size": [28, 28], "classes": 10, "mean": [0.5], "std": [0.5]}
    hp = {"model": "mlp", "units": [12], "dropouts": [0.1], **shared}
    networks = [models.build(hp).eval() for _ in range(2)]
    run = read_run(finished)
    asked = model_part.Tested(None, "they are not here", None)
    alone = dataclasses.replace(run, onnx=export(networks[0], hp, {}))
    text = model_part.model_part(alone, asked, "")
    assert "All 12 filters" in text
    assert "<td>784, 12</td>" in text
    assert "they are not here" in text
    together = dataclasses.replace(run, onnx=export(Committee(networks), [hp, hp], {}))
    assert "committee of 2 networks" in model_part.model_part(together, asked, "")


def test_layers_see_what_passes_before_inplace_changes() -> None:
    import torch
    from torch import nn

    passed = network_part.layers(
        nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True)), torch.tensor([[-1.0, -2.0]])
    )
    assert [name for name, _, _ in passed] == ["0", "1"]
    with torch.no_grad():
        before = passed[0][1](torch.tensor([[-1.0, -2.0]]))
    torch.testing.assert_close(passed[0][2], before)


def test_study_elsewhere_gives_the_same_figures(tmp_path: Path) -> None:
    here = read_run(write_run(tmp_path / "here"))
    elsewhere = read_run(write_run(tmp_path / "elsewhere", study="sqlite:///gone.db"))
    assert here.timed
    assert not elsewhere.timed
    for a, b in zip(here.frozen, elsewhere.frozen, strict=True):
        assert (a.number, a.state, a.value, a.params) == (b.number, b.state, b.value, b.params)
        assert a.intermediate_values == b.intermediate_values
    assert (
        type(elsewhere.frozen[0].distributions["activation"]).__name__ == "CategoricalDistribution"
    )
    page = report.build([RunStorage(str(tmp_path / "elsewhere"))])
    assert "The study lies in a database" in page
    assert 'id="figure-timeline"' not in page
    assert 'id="figure-rank"' in page


def test_damaged_journal_falls_back_to_the_tables(tmp_path: Path) -> None:
    storage = write_run(tmp_path / "cut")
    storage.write_bytes("study.journal", b'{"op_code": 99}\nnot json\n')
    assert not read_run(storage).timed
    assert 'id="figure-history"' in report.build([storage])


def test_distributions_of_values() -> None:
    assert distribution(["a", "b", "a"]) == optuna.distributions.CategoricalDistribution(["a", "b"])
    assert distribution([True, False]) == optuna.distributions.CategoricalDistribution(
        [True, False]
    )
    assert distribution([3, 5]) == optuna.distributions.IntDistribution(3, 5)
    assert distribution([1e-4, 1e-1]) == optuna.distributions.FloatDistribution(
        1e-4, 1e-1, log=True
    )
    assert distribution([0.0, 0.5]) == optuna.distributions.FloatDistribution(0.0, 0.5)


def test_numbers_of_a_shared_study_stay(tmp_path: Path) -> None:
    """Trials of a shared study have numbers with gaps; Optuna's history would take them for places in a list."""

    def edit(frozen: optuna.trial.FrozenTrial, record: Record) -> None:
        record.number = 3 * record.number + 5

    run = read_run(write_run(tmp_path / "shared", study="sqlite:///gone.db", edit=edit))
    assert [t.number for t in run.study(run.frozen).get_trials()] == [3 * i + 5 for i in range(30)]
    figure = next(
        f for f in search_part.search_figures(run, search_part.lanes(run)) if f.key == "history"
    ).figure
    points = {int(x): y for x, y in zip(figure.data[0].x, figure.data[0].y, strict=True)}
    assert points == {t.number: t.value for t in run.completed}


def test_thinning_keeps_the_best_and_spreads_the_rest() -> None:
    trials = []
    for number in range(1000):
        trial = optuna.trial.create_trial(
            state=optuna.trial.TrialState.COMPLETE, value=math.sin(number)
        )
        trial.number = number
        trials.append(trial)
    for maximize in (True, False):
        kept = thinned(trials, 200, maximize)
        assert len({t.number for t in kept}) == 200
        assert kept == sorted(kept, key=lambda t: t.number)
        best = sorted(trials, key=lambda t: t.value or 0, reverse=maximize)[:50]
        assert {t.number for t in best} <= {t.number for t in kept}
        gaps = np.diff([t.number for t in kept])
        assert gaps.max() < 20
    assert (
        thinned(trials[:200], 200, True) is trials[:200]
        or thinned(trials[:200], 200, True) == trials[:200]
    )


def test_lanes_and_where_the_time_went(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "lanes"))
    lanes = search_part.lanes(run)
    assert set(lanes.values()) == {"node-a · 1", "node-a · 2", "worker unknown · 1"}
    by_lane: dict[str, list[tuple[datetime, datetime]]] = {}
    for trial in run.frozen:
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        by_lane.setdefault(lanes[trial.number], []).append(
            (trial.datetime_start, trial.datetime_complete)
        )
    for spans in by_lane.values():
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    shares = cost_part.time_shares(run)
    assert shares is not None
    assert shares.workers == 2
    assert shares.epochs == pytest.approx(sum(2.0 * row["epochs"] for row in run.trials))
    # Each trial was a second outside its epochs.
    assert shares.inside == pytest.approx(shares.epochs + len(run.trials))
    assert shares.inside <= shares.capacity + 1e-6
    stopped, saved, seconds = cost_part.saved_epochs(run)
    pruned = [row for row in run.trials if row["state"] == "PRUNED"]
    assert stopped == len(pruned)
    assert saved == sum(EPOCHS - row["epochs"] for row in pruned)
    assert seconds == pytest.approx(2.0 * saved)


def test_ticks_of_small_axes() -> None:
    assert search_figures.log_ticks(4e-5, 7e-3)["tickvals"] == pytest.approx([1e-4, 1e-3])
    assert search_figures.log_ticks(0.012, 0.21)["tickvals"] == pytest.approx(
        [0.02, 0.05, 0.1, 0.2]
    )
    assert search_figures.log_ticks(0.0015, 0.0019)["ticktext"] == ["0.0015", "0.0019"]
    assert len(search_figures.log_ticks(1e-10, 1e3)["tickvals"]) <= 6


def test_metric_that_is_minimised(tmp_path: Path) -> None:
    storage = write_run(tmp_path / "loss", metric="val_loss")
    run = read_run(storage)
    assert run.best is not None
    assert run.best["val_loss"] == min(row["val_loss"] for row in run.history)
    shown = _Tables(report.build([storage]))
    improvements = [float(row[1]) for row in shown.tables["Improvements"][1:]]
    assert improvements == sorted(improvements, reverse=True)
    assert len(improvements) > 1


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_trials(tmp_path: Path, n: int) -> None:
    def edit(frozen: optuna.trial.FrozenTrial, record: Record) -> None:
        frozen.params, record.params = ({}, {}) if n == 3 else (frozen.params, record.params)

    storage = write_run(tmp_path / "few", n=n) if n else RunStorage(str(tmp_path / "few"))
    if n == 0:
        full = write_run(tmp_path / "full", n=1)
        storage.write_json(
            "run.json", {**full.read_json("run.json"), "state": "searching", "end": None}
        )
    text = _Tables(report.build([storage])).text
    assert ("No trial has ended yet" in text) == (n == 0)


def test_interrupted_and_running_trials(tmp_path: Path) -> None:
    def edit(frozen: optuna.trial.FrozenTrial, record: Record) -> None:
        if record.number == 4:
            frozen.state, frozen.datetime_complete, frozen._values = (
                optuna.trial.TrialState.RUNNING,
                None,
                None,
            )
            record.state = "RUNNING"
        elif record.number == 5:
            record.state, record.reason, record.rows = "FAIL", INTERRUPTED, {}
            frozen.state, frozen._values = optuna.trial.TrialState.FAIL, None

    text = _Tables(report.build([write_run(tmp_path / "cut-off", edit=edit)])).text
    assert "; 1 not ended." in text
    assert INTERRUPTED in text


def test_run_that_began_with_a_model(finished: RunStorage, tmp_path: Path) -> None:
    shutil.copytree(finished.uri, tmp_path / "tuned")
    storage = RunStorage(str(tmp_path / "tuned"))
    run, manifest = storage.read_json("run.json"), storage.read_json("model.json")
    for name in ("trials.parquet", "history.parquet", "study.journal", "best"):
        storage.delete(name)
    storage.write_json(
        "run.json", {key: run[key] for key in ("name", "state", "settings", "data", "start")}
    )
    lineage = [
        {"step": "onnx", "sha256": "0", "val_accuracy": None, "test_accuracy": 0.5},
        *manifest["lineage"][1:],
    ]
    storage.write_json("model.json", {**manifest, "lineage": lineage})
    shown = _Tables(report.build([storage]))
    assert "This run began with a model, not with a search." in shown.text
    assert [row[0] for row in shown.tables["Every epoch of the chain"][1:]] == [
        "stage 1",
        "stage 1",
        "stage 2",
    ]


# ---- several runs


def test_runs_compared(finished: RunStorage, tmp_path: Path) -> None:
    """Two runs of one name; the second's answers are made up, so that every number of the paired test is known."""
    shutil.copytree(finished.uri, tmp_path / "first")
    second = RunStorage(str(tmp_path / "first"))
    test = data.load("digits", "test")
    wrong = _wrong_numbers(finished)
    found = test.labels.copy()
    found[wrong[0]] += 1  # wrong in both, whatever it says
    right = [i for i in range(len(found)) if i not in wrong][:2]
    found[[wrong[0], *right]] = (test.labels[[wrong[0], *right]] + 1) % 10
    second.write_bytes(
        layout.PREDICTIONS,
        predictions.pack(
            test.labels,
            np.eye(10, dtype=np.float32)[found],
            second.read_json("model.json")["sha256"],
        ),
    )
    searched = write_run(tmp_path / "third")
    page = report.build([finished, second, searched])
    shown = _Tables(page)
    assert [row[0] for row in shown.tables["The runs"][1:]] == ["first (1)", "first (2)", "third"]
    (row,) = shown.tables["Answers that differ"][1:]
    assert row[:5] == ["first (1)", "first (2)", "1", "2", str(len(wrong) - 1)]
    ids = re.findall(r"\sid=\"([^\"]+)\"", page)
    assert len(ids) == len(set(ids))
    assert {
        "compare-figure-intervals",
        "compare-val_accuracy-figure-history",
        "compare-val_accuracy-figure-edf",
        "r1-model",
        "r2-model",
    } <= set(ids)
    assert "r3-model" not in ids
    assert all(link in ids for link in re.findall(r'href="#([^"]+)"', page))


# ---- where it is written, and what goes wrong


def test_written_to_s3(s3_server: str, tmp_path: Path) -> None:
    local = write_run(tmp_path / "local")
    base, _, query = s3_server.partition("?")
    remote = RunStorage(f"{base}/runs/local?{query}")
    for name in local.list():
        remote.write_bytes(name, local.read_bytes(name))
    assert report.write_or_warn(remote) == f"report: {remote.join('report.html')}"
    assert remote.read_bytes("report.html") == report.build([local]).encode()


def test_a_broken_report_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = write_run(tmp_path / "broken")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "plotly", None)
        with pytest.raises(SettingsError, match=r"pip install 'mnist_ray\[report\]'"):
            report.build([storage])
        line = report.write_or_warn(storage)
        assert line.startswith("no report: the report needs plotly")
        assert f"python jobs/report.py {storage.uri}" in line
    (tmp_path / "broken" / "trials.parquet").write_bytes(b"PAR1\n\nnothing")
    line = report.write_or_warn(storage)
    assert line.startswith("no report: ")
    assert "trials.parquet is not a Parquet file or is damaged" in line
    assert "\n" not in line
    with pytest.raises(CorruptFileError):
        report.build([storage])
    storage.write_json("run.json", {"name": "broken"})
    with pytest.raises(CorruptFileError, match=r"run\.json is damaged"):
        report.build([storage])
    with pytest.raises(SettingsError, match="there is no run at"):
        report.build([RunStorage(str(tmp_path / "none"))])


def test_model_that_was_altered_is_refused(finished: RunStorage, tmp_path: Path) -> None:
    shutil.copytree(finished.uri, tmp_path / "altered")
    (tmp_path / "altered" / "model.onnx").write_bytes(b"other")
    with pytest.raises(CorruptFileError, match="is not the file that"):
        report.build([RunStorage(str(tmp_path / "altered"))])


def test_job(finished: RunStorage, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def job(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "jobs" / "report.py"), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
        )

    shutil.copytree(finished.uri, tmp_path / "run")
    done = job("run")
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == (f"report: {tmp_path / 'run' / 'report.html'}\n", "")
    assert (tmp_path / "run" / "report.html").stat().st_size > 1e6
    refused = job("nothing")
    assert refused.returncode == 2
    assert re.fullmatch(r"report\.py: RUN: there is no run at .*nothing\n", refused.stderr)
    capfd.readouterr()
    assert (
        report.make([str(tmp_path / "run"), finished.uri], str(tmp_path / "both.html"), None, None)
        == 0
    )
    assert (tmp_path / "both.html").read_text().count("class=result") == 2
    assert capfd.readouterr().out == f"report: {tmp_path / 'both.html'}\n"
    with pytest.raises(SettingsError, match="no run is given"):
        report.make([], None, None, None)


def test_png_files(finished: RunStorage, tmp_path: Path) -> None:
    from PIL import Image

    files = report.write_png(finished, str(tmp_path / "new" / "figures"))
    names = {"history", "intermediate", "importances", "chain", "confusion", "calibration", "wrong"}
    assert {path.stem for path in files} == names | {
        "contour-batch_size-lr_sgd",
        "contour-batch_size-lr_adamw",
    }
    for path in files:
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 100
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"--png: .*file"):
        report.write_png(finished, str(tmp_path / "file"))


# ---- size and speed


@pytest.mark.slow
def test_thousand_trials(tmp_path: Path) -> None:
    storage = write_run(tmp_path / "thousand", n=1000)
    start = time.perf_counter()
    report.write(storage)
    seconds = time.perf_counter() - start
    page = (tmp_path / "thousand" / "report.html").read_text()
    print(f"{seconds:.1f} s, {len(page) / 1e6:.1f} MB")
    assert seconds < 60
    assert len(page.encode()) < 15e6
    assert (
        "Drawn are 200 of 999 trials, the 50 best and the others evenly over the search; the tables have all."
        in page
    )
    assert len(_Tables(page).tables["All trials"]) == 1001


# ---- in a browser, with the network off


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    quiet = [
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=quiet)
        yield opened
        opened.close()


@dataclasses.dataclass
class Seen:
    """A page in the browser, and what it said and asked for meanwhile."""

    page: Any
    messages: list[str]
    requests: list[str]


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Seen]]:
    """Opens a report; `before` is a script that runs ahead of the page's own."""
    contexts = []

    def open_page(html: str, width: int = 1280, before: str = "", **options: Any) -> Seen:
        file = tmp_path / "report.html"
        file.write_text(html)
        context = browser.new_context(
            viewport={"width": width, "height": 900}, offline=True, **options
        )
        contexts.append(context)
        page = context.new_page()
        seen = Seen(page, [], [])
        # A graphics driver's remarks on its own speed are not the page's.
        page.on(
            "console",
            lambda m: (
                None
                if "GL Driver Message" in m.text
                else seen.messages.append(f"{m.type}: {m.text}")
            ),
        )
        page.on("pageerror", lambda error: seen.messages.append(f"error: {error}"))
        page.on("request", lambda request: seen.requests.append(request.url[:60]))
        if before:
            page.add_init_script(before)
        page.goto(file.as_uri())
        return seen

    yield open_page
    for context in contexts:
        context.close()


# Of each figure: its name, the size of its drawing, and how many marks (lines, points, bars, areas) are in it.
MARKS = """() => [...document.querySelectorAll("figure.chart")].map((figure) => {
  const box = figure.querySelector(".plot svg.main-svg").getBoundingClientRect();
  const marks = figure.querySelectorAll(".scatterlayer path, .barlayer path, .contourlayer path, .cartesianlayer .hm image");
  return [figure.id, box.width, box.height, marks.length];
})"""


@pytest.mark.parametrize(
    ("width", "options"),
    [(1280, {}), (390, {"color_scheme": "dark", "has_touch": True, "is_mobile": True})],
)
def test_browser_draws_every_figure(
    page: str, show: Callable[..., Seen], width: int, options: dict[str, Any]
) -> None:
    seen = show(page, width, **options)
    seen.page.wait_for_selector("html[data-drawn]", timeout=60_000)
    figures = seen.page.evaluate(MARKS)
    assert len(figures) == len(re.findall("<figure class=chart", page))
    for name, shown_width, height, marks in figures:
        assert shown_width > 200, name
        assert height > 100, name
        assert marks > 0, name
    assert seen.messages == []
    assert [url for url in seen.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") == width
    assert seen.page.locator("details[open]").count() == 0
    colour = "getComputedStyle(document.querySelector('.xtick text')).fill"
    first = seen.page.evaluate(colour)
    seen.page.emulate_media(color_scheme="light" if options else "dark")
    deadline = time.monotonic() + 20  # by evaluate: wait_for_function needs the page's eval
    while seen.page.evaluate(colour) == first:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert seen.messages == []


def test_browser_without_javascript_has_the_tables(page: str, show: Callable[..., Seen]) -> None:
    seen = show(page, java_script_enabled=False)
    tables = seen.page.locator("table")
    assert tables.count() == len(_Tables(page).tables)
    assert all(tables.nth(i).is_visible() for i in range(tables.count()))
    assert not seen.page.locator(".plot").first.is_visible()
    assert seen.page.locator("img").first.is_visible()


def test_browser_that_cannot_draw_has_the_tables(page: str, show: Callable[..., Seen]) -> None:
    seen = show(page, before="delete window.DecompressionStream")
    seen.page.wait_for_selector("html.failed")
    assert seen.page.locator("details:not([open])").count() == 0
    assert not seen.page.locator(".plot").first.is_visible()
    assert len(seen.messages) == 1
    assert "cannot be drawn" in seen.messages[0]


def test_browser_runs_no_other_script(tmp_path: Path, show: Callable[..., Seen]) -> None:
    """Should HTML ever slip through the templates, the page's policy stops its scripts."""
    page = report.build([write_run(tmp_path / "first")])
    evil = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
    seen = show(page.replace("<body>", f"<body>{evil}<p onclick='window.ran = 3'>click</p>"))
    seen.page.wait_for_selector("html[data-drawn]", timeout=60_000)
    seen.page.get_by_text("click", exact=True).click()
    assert seen.page.evaluate("window.ran") is None
    assert sum("Content Security Policy" in message for message in seen.messages) >= 3


@pytest.mark.slow
def test_browser_draws_a_thousand_trials(tmp_path: Path, show: Callable[..., Seen]) -> None:
    seen = show(report.build([write_run(tmp_path / "thousand", n=1000)]))
    seen.page.wait_for_selector("html[data-drawn]", timeout=120_000)
    assert all(marks for *_, marks in seen.page.evaluate(MARKS))
    assert seen.messages == []
