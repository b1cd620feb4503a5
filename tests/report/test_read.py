"""What the report reads of a run: trials from the journal or the tables, and damaged files."""

import math
from datetime import timedelta
from pathlib import Path

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("plotly", reason="the extra `report` is not installed")
pytest.importorskip("matplotlib", reason="the extra `report` is not installed")

from mnist_ray import report
from mnist_ray.errors import CorruptFileError
from mnist_ray.report import search_part
from mnist_ray.report.read import distribution, read_run, thinned
from mnist_ray.run.records import Record
from mnist_ray.run.tables import parquet
from mnist_ray.storage import RunStorage
from mnist_ray.study.trials import PAUSED
from tests.support.report_runs import Tables, write_run


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
    page = report.build([storage])
    assert 'id="figure-history"' in page
    # It says so, and where.
    assert f"{storage.join('study.journal')} is damaged in line 1" in page
    assert "The study lies in a database" not in page


def test_times_that_say_nothing_are_not_drawn(tmp_path: Path) -> None:
    """Of a trial over which the clock was set back, and of a search whose trials were paused."""

    def back(frozen: optuna.trial.FrozenTrial, record: Record) -> None:
        if record.number == 3 and frozen.datetime_start:
            frozen.datetime_complete = frozen.datetime_start - timedelta(seconds=1)

    def paused(frozen: optuna.trial.FrozenTrial, record: Record) -> None:
        if record.number == 3:
            frozen.set_user_attr(PAUSED, 0)

    plain = read_run(write_run(tmp_path / "plain"))
    assert len(read_run(write_run(tmp_path / "back", edit=back)).spans) == len(plain.spans) - 1
    assert not read_run(write_run(tmp_path / "paused", edit=paused)).timed


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
    """Trials of a shared study have numbers with gaps; Optuna's history takes them for places."""

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


def test_metric_that_is_minimised(tmp_path: Path) -> None:
    storage = write_run(tmp_path / "loss", metric="val_loss")
    run = read_run(storage)
    assert run.best is not None
    assert run.best["val_loss"] == min(row["val_loss"] for row in run.history)
    shown = Tables(report.build([storage]))
    improvements = [float(row[1]) for row in shown.tables["Improvements"][1:]]
    assert improvements == sorted(improvements, reverse=True)
    assert len(improvements) > 1
