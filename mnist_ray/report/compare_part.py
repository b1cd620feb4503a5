"""Several runs beside each other: accuracies, answers that differ, searches on one axis."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from optuna import visualization as draw
from scipy.stats import binomtest

from mnist_ray.report.page import BLUE, Figure, Number, Table, count, percent, render
from mnist_ray.report.read import RunData, feasible, value_of
from mnist_ray.report.search_figures import edf, plain

if TYPE_CHECKING:
    from mnist_ray.report.model_part import Answers

PALETTE = [BLUE, "#d1601a", "#16906a", "#9c4fa8", "#947a10", "#6b7688"]


def compare_part(runs: Mapping[str, RunData], answers: Mapping[str, "Answers"]) -> Markup:
    """The comparison.

    Args:
        runs: By the names that they have on the page.
        answers: Of the published models whose answers are at hand, by the same names.
    """
    published = {name: run for name, run in runs.items() if run.manifest}
    figures = []
    for metric in sorted({run.metric for run in runs.values()}):
        alike = {n: run for n, run in runs.items() if run.metric == metric and run.completed}
        if len(alike) > 1:
            figures.append((metric, _histories(alike)))
            figures.append((metric, edf(list(alike.values()), list(alike))))
    return render(
        "compare.html",
        names=list(runs),
        overview=_overview(runs),
        intervals=_intervals(published) if len(published) > 1 else None,
        paired=_paired(answers, runs),
        figures=figures,
    )


def _overview(runs: Mapping[str, RunData]) -> Table:
    rows = []
    for name, run in runs.items():
        m, best = run.manifest, run.best
        searched = percent(best["val_accuracy"] if best and not run.own else None)
        tested = (
            [count(m.n_parameters), percent(m.test_accuracy),
             f"{m.test_errors:,} of {m.test_images:,}",
             " to ".join(map(percent, m.test_accuracy_interval))]
            if m
            else [None, percent(None), None, None]
        )  # fmt: skip
        space = None if run.from_model else run.settings["space"]
        rows.append([name, run.about.data.name, space, count(len(run.trials)), searched, *tested])
    header = (
        "run", "data set", "space", "trials", "best validation accuracy", "parameters",
        "test accuracy", "errors", "95 % interval",
    )  # fmt: skip
    return Table("The runs", header, rows)


def _intervals(runs: Mapping[str, RunData]) -> Figure:
    found = {name: run.manifest for name, run in runs.items() if run.manifest}
    accuracy = [m.test_accuracy for m in found.values()]
    reach = [m.test_accuracy_interval for m in found.values()]
    above = [high - a for (_, high), a in zip(reach, accuracy, strict=True)]
    below = [a - low for (low, _), a in zip(reach, accuracy, strict=True)]
    bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    figure = go.Figure(
        go.Scatter(
            x=accuracy, y=list(found), mode="markers", marker={"size": 11, "color": BLUE},
            error_x={**bars, "thickness": 1.5}, hovertemplate="%{y}: %{x:.2%}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title_text="test accuracy", tickformat=".2~%")
    figure.update_yaxes(type="category", autorange="reversed")
    figure.update_layout(margin={"t": 20, "r": 20, "b": 50, "l": 60})
    rows = [
        (name, percent(m.test_accuracy), " to ".join(map(percent, m.test_accuracy_interval)))
        for name, m in found.items()
    ]
    return Figure(
        "intervals",
        "Test accuracy",
        figure,
        "Dots: measured; bars: Wilson’s 95 % intervals. Models measured on the same images are "
        "better told apart by the answers that differ.",
        Table("Test accuracies", ("run", "test accuracy", "95 % interval"), rows),
        "Accuracies",
        height=130 + 34 * len(runs),
    )


def _paired(answers: Mapping[str, "Answers"], runs: Mapping[str, RunData]) -> Table | None:
    """Exact McNemar tests of the models that were measured on the same images."""
    rows = []
    for (a, (labels_a, given_a)), (b, (labels_b, given_b)) in combinations(answers.items(), 2):
        # Labels alone tell no folders apart: in the order of the classes they often agree.
        data_a, data_b = runs[a].about.data, runs[b].about.data
        same = (data_a.name, data_a.sha256) == (data_b.name, data_b.sha256)
        if not same or not np.array_equal(labels_a, labels_b):
            continue
        right_a, right_b = given_a.argmax(1) == labels_a, given_b.argmax(1) == labels_b
        neither = int((~right_a & ~right_b).sum())
        only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
        p = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
        rows.append((a, b, *map(count, (neither, only_a, only_b)), Number(f"{p:.2g}")))
    header = (
        "first", "second", "both wrong", "only the first right", "only the second right",
        "p (McNemar, exact)",
    )  # fmt: skip
    return Table("Answers that differ", header, rows) if rows else None


def _histories(runs: Mapping[str, RunData]) -> Figure:
    names, metric = list(runs), next(iter(runs.values())).metric
    studies = [run.gapless(name) for name, run in runs.items()]
    figure = plain(draw.plot_optimization_history(studies, target_name=metric))
    ends = {f" of {name}": i for i, name in enumerate(names)}
    for trace in figure.data:
        place = next((i for end, i in ends.items() if (trace.name or "").endswith(end)), 0)
        colour = PALETTE[place % len(PALETTE)]
        if trace.mode == "lines":
            line = {"shape": "hv", "color": colour}
            trace.update(name=f"{names[place]}, best so far", line=line)
        else:
            trace.update(name=names[place], marker={"color": colour})
    rows: list[Sequence[object]] = []
    for name, run in runs.items():
        # None keeps all limits of --constraint where there is no best.
        kept = filter(feasible, run.completed)
        best = (max if run.maximize else min)(kept, key=value_of, default=None)
        rows.append((name, best and best.number, best and best.value))
    return Figure(
        "history",
        "Optimisation histories",
        figure,
        "The complete trials of each run, and the best so far.",
        Table("The best of each run", ("run", "trial", metric), rows),
        "The best complete trial of each",
    )
