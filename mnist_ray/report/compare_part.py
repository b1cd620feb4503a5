"""Several runs beside each other: accuracies with their intervals, which answers differ, and the searches on one axis."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import plotly.graph_objects as go
from optuna import visualization as draw
from scipy.stats import binomtest

from mnist_ray.report.model_part import Answers
from mnist_ray.report.page import Figure, Markup, Number, count, numbers, percent, table
from mnist_ray.report.read import Run, value_of
from mnist_ray.report.search_part import edf, plain

PALETTE = ["#2f6fd0", "#d1601a", "#16906a", "#9c4fa8", "#947a10", "#6b7688"]


def compare_part(
    runs: Sequence[Run], names: Sequence[str], answers: Sequence[Answers | None]
) -> Markup:
    """names: what each run is called on the page, each once; answers: of the models that are published and could be asked."""
    parts = [_overview(runs, names)]
    published = [(run, name) for run, name in zip(runs, names, strict=True) if run.manifest]
    if len(published) > 1:
        asked = {
            name: found for name, found in zip(names, answers, strict=True) if found is not None
        }
        parts += [
            _intervals({name: run for run, name in published}).html("compare-"),
            _paired(asked),
        ]
    for metric in sorted({run.metric for run in runs}):
        alike = [
            (run, name)
            for run, name in zip(runs, names, strict=True)
            if run.metric == metric and run.completed
        ]
        if len(alike) > 1:
            parts += [
                figure.html(f"compare-{metric}-")
                for figure in (_histories(alike), edf(*zip(*alike, strict=True)))
            ]
    return Markup("\n".join(parts))


def _overview(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    rows = []
    for run, name in zip(runs, names, strict=True):
        m, best = run.manifest, run.best
        rows.append(
            [
                name, run.about["data"]["name"], run.settings["space"], count(len(run.trials)),
                percent(best["val_accuracy"] if best else None),
                count(m["n_parameters"]) if m else None, percent(m["test_accuracy"]) if m else None,
                f"{m['test_errors']:,} of {m['test_images']:,}" if m else None,
                "{} to {}".format(*map(percent, m["test_accuracy_interval"])) if m else None,
            ]
        )  # fmt: skip
    header = (
        "run",
        "data set",
        "space",
        "trials",
        "best validation accuracy",
        "parameters",
        "test accuracy",
        "errors",
        "95 % interval",
    )
    return table(header, rows, "The runs")


def _intervals(runs: Mapping[str, Run]) -> Figure:
    figure = go.Figure()
    accuracy, above, below = [], [], []
    for run in runs.values():
        assert run.manifest is not None
        low, high = run.manifest["test_accuracy_interval"]
        accuracy.append(run.manifest["test_accuracy"])
        above.append(high - accuracy[-1])
        below.append(accuracy[-1] - low)
    figure.add_scatter(
        x=accuracy, y=list(runs), mode="markers", marker={"size": 11, "color": "#2f6fd0"},
        error_x={"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.5},
        hovertemplate="%{y}: %{x:.2%}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="test accuracy", tickformat=".2~%")
    figure.update_yaxes(type="category", autorange="reversed")
    figure.update_layout(margin={"t": 20, "r": 20, "b": 50, "l": 60})
    return Figure(
        "intervals",
        "Test accuracy",
        figure,
        "Dots: measured; bars: Wilson’s 95 % intervals. Models measured on the same images are better told apart by the answers that "
        "differ.",
        "",
        height=130 + 34 * len(runs),
    )


def _paired(answers: Mapping[str, Answers]) -> Markup:
    """Exact McNemar tests of the models that were measured on the same images."""
    right = {name: (labels, given.argmax(1) == labels) for name, (labels, given) in answers.items()}
    rows = []
    for (a, (labels_a, right_a)), (b, (labels_b, right_b)) in combinations(right.items(), 2):
        if np.array_equal(labels_a, labels_b):
            only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
            p = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
            rows.append(
                (
                    a,
                    b,
                    count(int((~right_a & ~right_b).sum())),
                    count(only_a),
                    count(only_b),
                    Number(f"{p:.2g}"),
                )
            )
    if not rows:
        return Markup("")
    header = (
        "first",
        "second",
        "both wrong",
        "only the first right",
        "only the second right",
        "p (McNemar, exact)",
    )
    return Markup(
        f"<figure><h3>Answers that differ</h3>{table(header, rows, 'Answers that differ')}<figcaption>On the same test images. A "
        "small p says that the difference is hardly chance; among many pairs, some small p are.</figcaption></figure>"
    )


def _histories(runs: Sequence[tuple[Run, str]]) -> Figure:
    figure = plain(
        draw.plot_optimization_history(
            [run.gapless(name) for run, name in runs], target_name=runs[0][0].metric
        )
    )
    for trace in figure.data:
        place = next(
            (i for i, (_, name) in enumerate(runs) if (trace.name or "").endswith(f" of {name}")), 0
        )
        colour = PALETTE[place % len(PALETTE)]
        if trace.mode == "lines":
            trace.update(
                name=f"{runs[place][1]}, best so far", line={"shape": "hv", "color": colour}
            )
        else:
            trace.update(name=runs[place][1], marker={"color": colour})
    rows = [
        (name, trial.number, trial.value)
        for run, name in runs
        for trial in [
            max(run.completed, key=lambda t: value_of(t) if run.maximize else -value_of(t))
        ]
    ]
    return Figure(
        "history",
        "Optimisation histories",
        figure,
        "The complete trials of each run, and the best so far.",
        numbers(
            "The best complete trial of each",
            table(("run", "trial", runs[0][0].metric), rows, "The best of each run"),
        ),
    )
