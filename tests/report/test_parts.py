"""The parts of the page: the model's answers, its network, the search's time and figures."""

import base64
import dataclasses
import io
import re
import shutil
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import optuna
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("plotly", reason="the extra `report` is not installed")
pytest.importorskip("matplotlib", reason="the extra `report` is not installed")

from plotly.colors import sample_colorscale

from mnist_ray import data, models, report
from mnist_ray.errors import CorruptFileError
from mnist_ray.export import session
from mnist_ray.export.write import export
from mnist_ray.models import Committee
from mnist_ray.report import (
    chain_part,
    compare_part,
    cost_part,
    model_part,
    network_part,
    png,
    search_figures,
    search_part,
)
from mnist_ray.report.page import picture
from mnist_ray.report.read import read_run, varied
from mnist_ray.run import layout, predictions, tables
from mnist_ray.run.records import Record
from mnist_ray.storage import RunStorage
from mnist_ray.study import importance
from tests.support.report_runs import EPOCHS, Tables, answer, write_run


def test_kept_predictions_are_used_and_only_for_their_model(
    finished: RunStorage, tmp_path: Path
) -> None:
    shutil.copytree(finished.uri, tmp_path / "kept")
    storage = RunStorage(str(tmp_path / "kept"))
    sha = storage.read_json("model.json")["sha256"]
    test = data.load("digits", "test")
    logits = np.random.default_rng(0).normal(size=(len(test.labels), 10)).astype(np.float32)
    before = storage.read_json("model.json")
    answer(storage, test.labels, logits)
    kept = predictions.read(storage, sha)
    assert kept is not None
    np.testing.assert_array_equal(kept[0], test.labels)
    np.testing.assert_array_equal(kept[1], logits)
    wrong = int((logits.argmax(1) != test.labels).sum())
    assert f"Every wrong answer ({wrong} of" in report.build([storage])
    storage.write_json("model.json", before)
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
    test = data.load("digits", "test")
    before = finished.read_json("model.json")
    answer(finished, test.labels, np.eye(10, dtype=np.float32)[(test.labels + 1) % 10])
    run = read_run(finished)
    try:
        other = dataclasses.replace(test, labels=test.labels[::-1].copy())
        tested = model_part.load_tested(run, None, other)
    finally:
        finished.delete(layout.PREDICTIONS)
        finished.write_json("model.json", before)
    assert tested.images is None
    assert "not those that the model was measured on" in tested.why_not
    assert tested.answers is not None


def test_calibration_of_known_answers() -> None:
    labels = np.zeros(10, np.int64)
    # Eight answers at 0.95, of which six are right; two at 0.55, both wrong.
    given = np.array([[0.95, 0.05]] * 6 + [[0.05, 0.95]] * 2 + [[0.45, 0.55]] * 2)
    bins, error = session.reliability(labels, given)
    assert [(bin.n, bin.right) for bin in bins] == [(2, 0), (8, 6)]
    assert error == pytest.approx(0.8 * abs(0.75 - 0.95) + 0.2 * 0.55)
    # One is inside the last bin, not in one of its own.
    assert session.reliability(labels[:1], np.array([[1.0, 0.0]]))[0] == [
        session.Bin(14 / 15, 1.0, 1, 1, 1.0)
    ]


@pytest.mark.parametrize("shape", [(28, 28), (32, 32, 3)])
def test_picture_holds_the_pixels(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    text = picture(pixels, "a picture", 84, 84)
    png = base64.b64decode(text.source.partition("base64,")[2])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), pixels)
    assert text.source.startswith("data:image/png;base64,")


def trained_again(finished: RunStorage, folder: Path) -> RunStorage:
    """The run while a second fine-tuning goes on, which has ended stage 1 and not published."""
    shutil.copytree(finished.uri, folder)
    storage = RunStorage(str(folder))
    curve = f"{layout.stage_folder(1)}/{layout.STAGE_CURVE}"
    table = tables.read(storage, curve)
    other = pa.array([value.as_py() + 1 for value in table["seconds"]])
    place = table.schema.get_field_index("seconds")
    storage.write_bytes(curve, tables.parquet(table.set_column(place, "seconds", other)))
    return storage


def test_curves_of_a_later_fine_tuning_are_not_the_model_s(
    finished: RunStorage, tmp_path: Path
) -> None:
    assert [number for number, _ in read_run(finished).stages] == [1, 2]
    storage = trained_again(finished, tmp_path / "again")
    run = read_run(storage)
    assert [number for number, _ in run.stages] == [2]
    page = Tables(report.build([storage])).text
    assert "The curves of stage 1 are gone: it was trained again." in page
    storage.write_bytes(
        f"{layout.stage_folder(2)}/{layout.STAGE_CURVE}",
        storage.read_bytes(f"{layout.stage_folder(1)}/{layout.STAGE_CURVE}"),
    )  # of other epochs
    for name in ("trials.parquet", "history.parquet", "study.journal", "best"):
        storage.delete(name)
    manifest = storage.read_json(layout.MANIFEST)
    manifest["lineage"][0] = {"step": "onnx", "val_accuracy": None}
    storage.write_json(layout.MANIFEST, manifest)
    page = Tables(report.build([storage])).text
    assert "The curves of stage 1 and 2 are gone: they were trained again." in page
    assert "This run began with a model, not with a search." in page
    assert "No epoch has ended yet" not in page


def test_stages_from_random_weights_do_not_go_on_from_the_trial(
    finished: RunStorage, tmp_path: Path
) -> None:
    """The recipe's `start: random`, whose first stage is stage 0."""

    def marks(storage: RunStorage) -> list[str]:
        run = read_run(storage)
        return [line.name for line in chain_part.chain_figure(run, chain_part.chain(run)).data]

    assert "the chain goes on from here" in marks(finished)
    shutil.copytree(finished.uri, tmp_path / "anew")
    storage = RunStorage(str(tmp_path / "anew"))
    folder = tmp_path / "anew" / layout.FINETUNE
    for number in (1, 2):
        (folder / f"stage-{number}").rename(folder / f"stage-{number - 1}")
    manifest = storage.read_json(layout.MANIFEST)
    for number in (1, 2):
        manifest["lineage"][number]["step"] = f"stage-{number - 1}"
    storage.write_json(layout.MANIFEST, manifest)
    for _ in range(2):  # published, and before
        assert "the chain goes on from here" not in marks(storage)
        page = Tables(report.build([storage])).text
        assert "Stage 0 began from random weights." in page
        storage.delete(layout.MANIFEST)
    assert "random weights" not in Tables(report.build([finished])).text


def test_committee_and_mlp(finished: RunStorage) -> None:
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
    passed = network_part.layers(
        nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True)), torch.tensor([[-1.0, -2.0]])
    )
    assert [name for name, _, _ in passed] == ["0", "1"]
    with torch.no_grad():
        before = passed[0][1](torch.tensor([[-1.0, -2.0]]))
    torch.testing.assert_close(passed[0][2], before)


def test_trials_that_break_a_limit_are_none_of_the_best(tmp_path: Path) -> None:
    def limit(most: float) -> Callable[[optuna.trial.FrozenTrial, Record], None]:
        def edit(frozen: optuna.trial.FrozenTrial, _: Record) -> None:  # as if the best were large
            frozen._system_attrs["constraints:size"] = (frozen.value or 0) - most

        return edit

    some = read_run(write_run(tmp_path / "some", edit=limit(0.97)))
    none = read_run(write_run(tmp_path / "none", edit=limit(-1)))
    kept = {t.number: t.value or 0 for t in some.completed if t.constraints["size"] <= 0}
    best, at_all = max(kept.values()), max(t.value or 0 for t in some.completed)
    assert best < at_all
    table = compare_part._histories({"some": some, "none": none}).table
    assert table is not None
    number = next(n for n, value in kept.items() if value == best)
    assert table.rows == [("some", number, best), ("none", None, None)]
    for run, last in ((some, best), (none, np.nan)):
        drawn = {str(line.get_label()): line for line in png._history(run).axes[0].lines}
        assert np.array_equal(
            np.asarray(drawn["best so far"].get_ydata())[-1], last, equal_nan=True
        )


def test_answers_to_other_pictures_are_not_compared(tmp_path: Path) -> None:
    """Two folders in the order of their classes have equal labels, and other pictures."""
    run = read_run(write_run(tmp_path / "one"))
    labels = np.arange(10) % 2
    given = np.eye(2)[labels]
    answers = {"a": (labels, given), "b": (labels, given[::-1])}
    assert compare_part._paired(answers, {"a": run, "b": run}) is not None
    facts = run.about.data
    for other in (
        dataclasses.replace(facts, sha256="0" * 64),
        dataclasses.replace(facts, name="folder:/other"),
    ):
        about = dataclasses.replace(run.about, data=other)
        runs = {"a": run, "b": dataclasses.replace(run, about=about)}
        assert compare_part._paired(answers, runs) is None


def test_examples_are_of_all_classes_first() -> None:
    assert model_part.examples(np.array([1, 1, 0, 1, 0, 0, 0, 0, 0, 0])) == [2, 0, 4, 1, 5, 3, 6, 7]
    assert model_part.examples(np.arange(40) % 20)[:8] == list(range(8))
    assert model_part.examples(np.array([3])) == [0]


@pytest.mark.parametrize("limited", [False, True])
def test_a_line_of_the_parallel_figure_has_the_colour_of_its_value(
    tmp_path: Path, limited: bool
) -> None:
    def edit(frozen: optuna.trial.FrozenTrial, _: Record) -> None:
        if limited:
            frozen._system_attrs["constraints:size"] = (frozen.value or 0) - 0.97

    run = read_run(write_run(tmp_path / "x", edit=edit))
    figure = search_figures.parallel_figure(run, varied(run.completed)).figure
    traces = [trace for trace in figure.data if trace.mode == "lines"]
    lines = [trace for trace in traces if trace.y[0] is not None]
    assert len(lines) == len(run.completed)
    assert (len(traces) > len(lines)) == limited  # those of the legend
    for line in lines:
        expected = sample_colorscale(search_figures.SCALE, line.y[0])[0]
        assert line.line.color == expected
    assert len({line.line.color for line in lines}) > 1


def test_few_complete_trials_have_no_importances(tmp_path: Path) -> None:
    """As in the terminal: FEWEST complete trials are needed for what is a conclusion."""

    def keep(complete: int) -> Callable[[optuna.trial.FrozenTrial, Record], None]:
        left = iter(range(1000))

        def edit(frozen: optuna.trial.FrozenTrial, record: Record) -> None:
            if record.state == "COMPLETE" and next(left) >= complete:
                record.state = "PRUNED"
                frozen.state, frozen._values = optuna.trial.TrialState.PRUNED, None

        return edit

    conclusions = {"importances", "rank", "contour-batch_size-lr_sgd", "slice", "parallel"}
    for n in (importance.FEWEST - 1, importance.FEWEST):
        storage = write_run(tmp_path / str(n), edit=keep(n))
        page = report.build([storage])
        figures = set(re.findall(r"<figure class=chart id=\"figure-([^\"]+)\"", page))
        enough = n == importance.FEWEST
        assert (conclusions & figures == conclusions) if enough else not conclusions & figures
        note = f"need {importance.FEWEST} complete trials, and here are {n}"
        assert (note in Tables(page).text) == (not enough)


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
