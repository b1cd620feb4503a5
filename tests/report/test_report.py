"""The report: its numbers against those of the run, what it must not touch, and its size."""

import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from PIL import Image

pytest.importorskip("plotly", reason="the extra `report` is not installed")
pytest.importorskip("matplotlib", reason="the extra `report` is not installed")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text

from mnist_ray import data, open_run, report
from mnist_ray.errors import CorruptFileError, SettingsError
from mnist_ray.report.read import read_run
from mnist_ray.run import layout, tables
from mnist_ray.run.records import INTERRUPTED, Record, Records
from mnist_ray.run.tables import parquet, trials_table
from mnist_ray.settings import command
from mnist_ray.storage import RunStorage
from tests.support.report_runs import Tables, answer, made_up_trials, write_run, wrong_numbers

ROOT = Path(__file__).resolve().parents[2]


def test_numbers_are_the_runs(finished: RunStorage, page: str) -> None:
    shown = Tables(page)
    manifest = finished.read_json("model.json")
    n, errors = manifest["test_images"], manifest["test_errors"]
    assert errors > 3, "the fixture's model is too good for this test"
    accuracy = f"{100 * manifest['test_accuracy']:.2f}\u00a0%"
    assert f"{accuracy} of {n:,} test images right: {errors:,} errors" in shown.text
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
    assert all(f"test image {i}" in " ".join(wrong) for i in wrong_numbers(finished))
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


def test_one_file_without_network(page: str) -> None:
    assert len(page.encode()) < 6e6
    assert not re.search(r"""(src|href)=["']?(https?:|//)""", page)
    assert "@import" not in page
    assert "url(" not in page.split("<script type=application/gzip")[0]
    assert "default-src 'none'" in page


def test_every_figure_is_there(page: str) -> None:
    figures = re.findall(r"<figure class=chart id=\"figure-([^\"]+)\"", page)
    wanted = {
        "history",
        "intermediate",
        "importances",
        "contour-batch_size-lr_sgd",
        "contour-batch_size-lr_adamw",
        "parallel",
        "slice",
        "rank",
        "edf",
        "pareto",
        "timeline",
        "chain",
        "calibration",
    }
    assert wanted == set(figures)
    assert len(figures) == len(set(figures))


def test_equal_runs_give_equal_pages(finished: RunStorage, page: str) -> None:
    assert report.build([finished]) == page


def test_without_a_model_the_test_images_stay_shut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = write_run(tmp_path / "searched")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the test set is not to be touched")

    monkeypatch.setattr(data, "load", refuse)
    shown = Tables(report.build([storage]))
    assert "validation images right" in shown.text
    assert "so rather too high" in shown.text
    assert "Confusion matrix" not in shown.tables
    assert report.write_png(storage, str(tmp_path / "figures"))


@pytest.mark.parametrize("state", ["searched", "finetuning", "interrupted"])
def test_a_run_that_ended_with_its_search_awaits_no_fine_tuning(tmp_path: Path, state: str) -> None:
    text = Tables(report.build([write_run(tmp_path / "x", state=state)])).text
    head, _, training = text.partition("Winning trial and stages")
    for part, awaited in (
        (head, "The test images are looked at when the fine-tuning has ended."),
        (training, "The fine-tuning has not ended yet: this is the search’s best trial."),
    ):
        assert ("It was not fine-tuned" in part) == (state == "searched")
        assert (awaited in part) == (state != "searched")


def test_eight_test_images_are_shown_also_where_all_are_right(
    finished: RunStorage, page: str, tmp_path: Path
) -> None:
    test = data.load("digits", "test")
    first = [int(np.flatnonzero(test.labels == c)[0]) for c in range(8)]
    wrong = wrong_numbers(finished)
    shown = [alt for alt in Tables(page).pictures if "answered" in alt]
    assert [alt.partition(",")[0] for alt in shown] == [
        f"test image {i}: truth {c}" for c, i in enumerate(first)
    ]
    right = [alt.partition("truth ")[2] == f"{c}, answered {c}" for c, alt in enumerate(shown)]
    assert right == [i not in wrong for i in first]
    shutil.copytree(finished.uri, tmp_path / "right")
    storage = RunStorage(str(tmp_path / "right"))
    answer(storage, test.labels, 9 * np.eye(10, dtype=np.float32)[test.labels])
    page = report.build([storage])
    found = Tables(page)
    assert "There is none." in found.text
    assert [alt for alt in found.pictures if "test image" in alt] == [
        f"test image {i}: truth {c}, answered {c}" for c, i in enumerate(first)
    ]
    assert re.search("truth 7, answered 7\\s+at 99.9\u00a0%", found.text)
    assert len("".join(re.findall(r'alt="test image[^>]*>', page))) < 20_000


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
        assert not Tables(page).pictures


def test_data_set_of_ones_own_is_not_imported(finished: RunStorage, tmp_path: Path) -> None:
    shutil.copytree(finished.uri, tmp_path / "own")
    storage = RunStorage(str(tmp_path / "own"))
    run = storage.read_json("run.json")
    storage.write_json("run.json", {**run, "data": {**run["data"], "name": "antigravity:fly"}})
    sys.modules.pop("antigravity", None)
    assert (
        "the data set antigravity:fly is not one of this package"
        in Tables(report.build([storage])).text
    )
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_trials(tmp_path: Path, n: int) -> None:
    def edit(frozen: optuna.trial.FrozenTrial, record: Record) -> None:
        if n == 3:  # a space without parameters
            frozen.params, frozen._distributions, record.params = {}, {}, {}

    storage = (
        write_run(tmp_path / "few", n=n, edit=edit) if n else RunStorage(str(tmp_path / "few"))
    )
    if n == 0:
        full = write_run(tmp_path / "full", n=1)
        storage.write_json(
            "run.json", {**full.read_json("run.json"), "state": "searching", "end": None}
        )
    text = Tables(report.build([storage])).text
    assert ("No trial has ended yet" in text) == (n == 0)


@pytest.mark.parametrize(
    ("n", "state", "limits", "sentence"),
    [
        (3, "FAIL", [], "All 3 trials failed."),
        (3, "FAIL", ["parameters<=30000"], "All 3 trials failed."),
        (1, "FAIL", [], "The only trial failed."),
        (3, "INTERRUPTED", [], "No trial has ended yet."),
        (3, "NaN", [], "No trial has a finite value."),
        (3, "beyond", ["parameters<=1"], "No trial keeps the limits."),
    ],
)
def test_the_head_says_why_there_is_no_best_trial(
    tmp_path: Path, n: int, state: str, limits: list[str], sentence: str
) -> None:
    def edit(frozen: optuna.trial.FrozenTrial, record: Record) -> None:
        for row in record.rows.values():
            if state == "beyond":
                row["violation"] = 1.0
            else:
                row["val_accuracy"] = row["val_loss"] = np.nan
        if state in ("FAIL", "INTERRUPTED"):
            frozen.state, frozen._values = optuna.trial.TrialState.FAIL, None
            record.state, record.rows = "FAIL", {}
            record.reason = INTERRUPTED if state == "INTERRUPTED" else "ValueError: no"

    storage = write_run(tmp_path / "none", n=n, edit=edit)
    raw = storage.read_json("run.json")
    raw["settings"]["constraint"] = limits
    storage.write_json("run.json", raw)
    head = report.build([storage]).partition("<section")[0]
    assert f"<p class=result>{sentence}</p>" in head


def test_the_head_has_the_front_and_the_limits(tmp_path: Path) -> None:
    def limit(_: optuna.trial.FrozenTrial, record: Record) -> None:
        for row in record.rows.values():
            row["violation"] = max(0.0, (record.n_parameters or 0) / 30_000 - 1)
            if row["violation"]:
                row["val_accuracy"] = 0.995  # the best of all

    storage = write_run(tmp_path / "two", edit=limit)
    records = Records("val_accuracy", 30, ("accuracy", "parameters"))
    for frozen, record in made_up_trials(30, "val_accuracy"):
        limit(frozen, record)
        records.add(record)
    storage.write_bytes(layout.TRIALS, parquet(trials_table(records)))
    raw = storage.read_json("run.json")
    raw["settings"] |= {
        "objectives": "accuracy,parameters",
        "constraint": ["parameters<=30000"],
        "study": "sqlite:///elsewhere.db",
    }
    storage.write_json("run.json", raw)
    storage.delete(layout.JOURNAL)
    run, page = read_run(storage), report.build([storage])
    head = page.partition("<section")[0]
    assert head.count('id="figure-pareto"') == page.count('id="figure-pareto"') == 1
    kept = [r for r, _ in records.top(30)]
    assert 5 < len(kept) < 25
    assert f"parameters&lt;=30,000: kept by {len(kept)} of 30 trials" in page
    front = records.front()
    assert f"{len(front)} complete trials are on the Pareto front" in page
    assert records.best is not None
    assert records.best[1]["val_accuracy"] < max(row["val_accuracy"] for row in run.history)
    assert f"Of trial {records.best[0]} after" in head
    history = tables.read(storage, layout.HISTORY).drop_columns(["violation"])
    storage.write_bytes(layout.HISTORY, parquet(history))  # as some versions wrote it
    assert f"Of trial {records.best[0]} after" in report.build([storage]).partition("<section")[0]
    assert open_run(storage.uri).best.number == records.best[0]
    assert all((records.trials[n].n_parameters or 99_999) <= 30_000 for n in front)


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

    text = Tables(report.build([write_run(tmp_path / "cut-off", edit=edit)])).text
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
    shown = Tables(report.build([storage]))
    assert "This run began with a model, not with a search." in shown.text
    assert "No trial was trained: this run began with a model." in shown.text
    assert "No epoch has ended yet" not in shown.text
    both = Tables(report.build([storage, finished])).tables["The runs"]
    assert [row[2] for row in both] == ["space", "–", "convnet"]
    assert [row[0] for row in shown.tables["Every epoch of the chain"][1:]] == [
        "stage 1",
        "stage 1",
        "stage 2",
    ]


def test_runs_compared(finished: RunStorage, tmp_path: Path) -> None:
    """Two runs of one name; made-up answers of the second make every number of the test known."""
    shutil.copytree(finished.uri, tmp_path / "first")
    second = RunStorage(str(tmp_path / "first"))
    test = data.load("digits", "test")
    wrong = wrong_numbers(finished)
    found = test.labels.copy()
    found[wrong[0]] += 1  # wrong in both, whatever it says
    right = [i for i in range(len(found)) if i not in wrong][:2]
    found[[wrong[0], *right]] = (test.labels[[wrong[0], *right]] + 1) % 10
    answer(second, test.labels, np.eye(10, dtype=np.float32)[found])
    searched = write_run(tmp_path / "third")
    page = report.build([finished, second, searched])
    shown = Tables(page)
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
        assert line.endswith(f"again: {command('report', storage.uri)}")
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
    both = [str(tmp_path / "run"), finished.uri]
    report.make(both, str(tmp_path / "both.html"), None, None)
    assert (tmp_path / "both.html").read_text().count("class=result") == 2
    assert capfd.readouterr().out == f"report: {tmp_path / 'both.html'}\n"
    with pytest.raises(SettingsError, match="no run is given"):
        report.make([], None, None, None)


@pytest.mark.parametrize("out", ["pipe", "folder", "s3://bucket/page.html", "file/page.html", "."])
def test_a_page_that_cannot_be_written_is_one_line(
    finished: RunStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """Root would have replaced /dev/stdout, or a pipe that another program reads, by a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "build", lambda *_, **__: "a page")
    os.mkfifo("pipe")
    Path("folder").mkdir()
    Path("file").touch()
    with pytest.raises(SettingsError, match="^--out: "):
        report.make([finished.uri], out, None, None)
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)
    assert sorted(os.listdir()) == ["file", "folder", "pipe"]


def test_png_files(finished: RunStorage, tmp_path: Path) -> None:
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


def test_png_files_of_parameters_of_any_name(tmp_path: Path) -> None:
    """`opt/lr` is no folder, and two names that are alike have a file each."""
    names = {"lr_sgd": "lr_a/b", "lr_adamw": "lr_A_b"}

    def rename(frozen: optuna.trial.FrozenTrial, record: Record) -> None:
        for old, new in names.items():
            if old in record.params:
                record.params[new] = record.params.pop(old)
                frozen._distributions[new] = frozen._distributions.pop(old)
        frozen.params = dict(record.params)

    storage = write_run(tmp_path / "odd", edit=rename)
    files = report.write_png(storage, str(tmp_path / "figures"))
    contours = {path.stem.lower() for path in files if path.stem.startswith("contour")}
    assert contours == {"contour-batch_size-lr_a_b", "contour-batch_size-lr_a_b-2"}
    assert sorted(files) == sorted((tmp_path / "figures").iterdir())


def test_names_of_classes_are_no_formulas(
    finished: RunStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But the powers of ten beside a logarithmic axis are."""
    drawn: list[Figure] = []
    monkeypatch.setattr(plt, "close", drawn.append)
    shutil.copytree(finished.uri, tmp_path / "dollars")
    storage = RunStorage(str(tmp_path / "dollars"))
    manifest = storage.read_json(layout.MANIFEST)
    manifest["classes"] = ["$5", "$10", r"$\no$", "$x^$", *manifest["classes"][4:]]
    storage.write_json(layout.MANIFEST, manifest)
    files = report.write_png(storage, str(tmp_path / "figures"))
    assert {"confusion", "wrong"} <= {path.stem for path in files}
    texts = [text for figure in drawn for text in figure.findobj(Text) if text.get_visible()]
    formulas = [text for text in texts if text.get_parse_math() and text.get_text()]
    assert formulas
    assert all(text.get_text().startswith(r"$\mathdefault{") for text in formulas)
    assert not any(r"\mathdefault" in text.get_text() for text in texts if text not in formulas)
    assert "$10" in [text.get_text() for text in texts]


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
    drawn = "Drawn are 200 of 999 trials, the 50 best and the others evenly over the search; "
    assert f"{drawn}the tables have all." in page
    assert len(Tables(page).tables["All trials"]) == 1001
