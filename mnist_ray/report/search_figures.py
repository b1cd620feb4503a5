"""Optuna's figures of one objective, each with the numbers behind it as a table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from optuna import visualization as draw
from optuna.trial import FrozenTrial, TrialState
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from mnist_ray.report.page import BLUE, Figure, Table
from mnist_ray.report.read import RunData, feasible, thinned, value_of, varied
from mnist_ray.settings.objectives import column
from mnist_ray.study import importance

LINES = 200  # most trials drawn as a line each
POINTS = 300  # most trials in figures that repeat every trial in several panels
NODES = 100  # most trials that a contour is drawn through; more of them give stripes
PER_ROW = 4  # panels of the slice figure side by side
# Low to high, readable on white and on black, and without the help of red against green.
SCALE = [BLUE, "#7b6cc9", "#b95fa6", "#dd6b6b", "#eb8a3a"]
STATE_COLOURS = {
    "COMPLETE": "#3f7fe0", "PRUNED": "#9aa3b0", "FAIL": "#d1432f", "RUNNING": "#16906a",
}  # fmt: skip


# ---- values


def history_figure(run: RunData) -> Figure:
    """The value of each trial, and the best so far."""
    figure = plain(draw.plot_optimization_history(run.gapless(), target_name=run.metric))
    for trace in figure.data:
        if trace.mode == "lines":
            trace.update(name="best so far", line={"shape": "hv"})
    stopped = [t for t in run.frozen if t.state == TrialState.PRUNED and t.intermediate_values]
    figure.add_scatter(
        x=[t.number for t in stopped], y=[value_of(t) for t in stopped], name="stopped early",
        mode="markers", marker={"color": STATE_COLOURS["PRUNED"], "size": 5}, visible=bool(stopped),
        text=[f"{len(t.intermediate_values)} epochs" for t in stopped],
        hovertemplate="trial %{x}: %{y:.4g} after %{text}<extra></extra>",
    )  # fmt: skip
    rows: list[tuple[int, float]] = []
    for trial in filter(feasible, run.completed):
        value = value_of(trial)
        if not rows or (value > rows[-1][1] if run.maximize else value < rows[-1][1]):
            rows.append((trial.number, value))
    return Figure(
        "history",
        "Optimisation history",
        figure,
        f"The value of each of the {len(run.completed)} trials that trained all their epochs, and "
        f"the best so far; small and grey: the last value of the {len(stopped)} stopped early.",
        Table("Improvements", ("trial", run.metric), rows),
        "Every time the best improved",
    )


def intermediate_figure(run: RunData) -> Figure:
    """The value of each trial after each epoch."""
    trials = [t for t in run.frozen if t.intermediate_values and t.state != TrialState.FAIL]
    chosen = thinned(trials, LINES, run.maximize)
    figure = plain(draw.plot_intermediate_values(run.study(chosen)))
    states = {t.number: t.state.name for t in chosen}
    best = run.best["number"] if run.best else None
    for trace in figure.data:
        number = int(trace.name.removeprefix("Trial"))
        winner, state = number == best, states[number]
        colour = SCALE[-1] if winner else STATE_COLOURS[state]
        trace.update(
            name=f"trial {number} ({state.lower()})",
            line={"color": colour, "width": 3 if winner else 1.3},
            marker={"size": 8 if winner else 5, "maxdisplayed": 0},
            opacity=1 if winner else 0.7,
        )
    every_epoch = 1 if run.settings["max_epochs"] <= 20 else None
    figure.update_layout(xaxis={"title": {"text": "epoch"}, "dtick": every_epoch})
    figure.update_yaxes(title_text=run.metric)
    stopped = sum(t.state == TrialState.PRUNED for t in trials)
    return Figure(
        "intermediate",
        "Values after each epoch",
        figure,
        f"Blue: trained to the end; grey: stopped early ({stopped} of {len(trials)} trials); "
        f"orange, thick: the best.{_thinning(chosen, trials)}",
        _epochs(run),
        "Every trial’s value after each epoch",
    )


def _epochs(run: RunData) -> Table:
    """One row a trial, one column an epoch."""
    epochs = range(1, max((row["epoch"] for row in run.history), default=0) + 1)
    values: dict[int, dict[int, float]] = {}
    for row in run.history:
        values.setdefault(row["number"], {})[row["epoch"]] = row[column(run.metric)]
    rows = [[number, *map(found.get, epochs)] for number, found in values.items()]
    header = ["trial", *(f"epoch {epoch}" for epoch in epochs)]
    return Table(f"{run.metric} after each epoch", header, rows)


def edf(runs: Sequence[RunData], names: Sequence[str]) -> Figure:
    """The distribution of the values of each run."""
    studies = [run.study(run.completed, name) for run, name in zip(runs, names, strict=True)]
    figure = plain(draw.plot_edf(studies, target_name=runs[0].metric))
    figure.update_traces(line={"shape": "hv"})
    share = {"title": {"text": "share of trials"}, "range": [0, 1.03]}
    figure.update_layout(yaxis=share, showlegend=len(runs) > 1)
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    rows = []
    for run, name in zip(runs, names, strict=True):
        values = sorted(map(value_of, run.completed))
        places = (min(int(share * len(values)), len(values) - 1) for share in shares)
        rows.append((name, len(values), *(values[place] for place in places)))
    return Figure(
        "edf",
        "Distribution of the values",
        figure,
        f"The share of complete trials whose {runs[0].metric} is at most that on the axis.",
        Table("Quantiles", ("run", "trials", *(f"{share:.0%}" for share in shares)), rows),
        "Quantiles",
    )


# ---- parameters


def ped_anova(run: RunData) -> dict[str, float]:
    """How much each parameter decides, the most important first; empty with too few trials."""
    return run.importances.get("PED-ANOVA", {})


def importances_figure(run: RunData, weights: Mapping[str, float]) -> Figure:
    """Bars of PED-ANOVA's shares; the table has all measures."""
    shares = list(weights.values())
    figure = go.Figure(
        go.Bar(
            x=shares, y=list(weights), orientation="h", marker={"color": BLUE},
            text=[f"{share:.2f}" for share in shares], textposition="outside", cliponaxis=False,
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_layout(xaxis={"title": {"text": "share"}}, yaxis={"autorange": "reversed"})
    n = len(run.completed)
    few = " With so few trials the order is a hint at most." if n < 30 else ""
    rows = [[name, *each] for name, each in importance.rows(run.importances)]
    return Figure(
        "importances",
        "Importance of each parameter",
        plain(figure),
        "PED-ANOVA (Watanabe et al. 2023): what sets the best tenth of "
        f"{n} complete trials apart.{few}",
        Table("Importances", ("parameter", *run.importances), rows),
        "Shares",
        height=110 + 26 * len(weights),
    )


def contour_pairs(trials: Sequence[FrozenTrial], order: Sequence[str]) -> list[tuple[str, str]]:
    """Batch size with every learning rate; without these the two most important numbers."""

    def spread(x: str, y: str) -> bool:
        pairs = {(t.params[x], t.params[y]) for t in trials if x in t.params and y in t.params}
        return all(len(set(values)) > 1 for values in zip(*pairs, strict=True)) and bool(pairs)

    rates = [name for name in order if name == "lr" or name.startswith("lr_")]
    pairs = [("batch_size", rate) for rate in rates if "batch_size" in order]
    if not pairs:
        text = {n for t in trials for n, v in t.params.items() if isinstance(v, bool | str)}
        numeric = [name for name in order if name not in text]
        pairs = [(numeric[0], numeric[1])] if len(numeric) > 1 else []
    return [pair for pair in pairs if spread(*pair)]


def contour_figure(run: RunData, x: str, y: str) -> Figure:
    """The metric over two parameters."""
    trials = [t for t in run.completed if x in t.params and y in t.params]
    chosen = thinned(trials, NODES, run.maximize)
    figure = plain(draw.plot_contour(run.study(chosen), params=[x, y], target_name=run.metric))
    _tick_log_axes(figure)
    lines = {"width": 0.4 if len(chosen) < 40 else 0}
    fill = {"coloring": "fill"}
    figure.update_traces(line=lines, contours=fill, selector={"type": "contour"})
    dots = {"color": "white", "size": 6, "line": {"width": 1, "color": "#333"}}
    figure.update_traces(marker=dots, selector={"type": "scatter"})
    return Figure(
        f"contour-{x}-{y}",
        f"Contour: {x} × {y}",
        figure,
        f"{run.metric}, interpolated between the {len(chosen)} trials that are dots."
        f"{_thinning(chosen, trials)}",
        height=420,
    )


def parallel_figure(run: RunData, parameters: Sequence[str]) -> Figure:
    """One line a trial, through its value of each parameter."""
    chosen = thinned(run.completed, LINES, run.maximize)
    names = varied(chosen) or list(parameters)
    drawn = draw.plot_parallel_coordinate(run.study(chosen), params=names, target_name=run.metric)
    figure = plain(drawn)
    for trace in figure.data:
        # A trial's line begins on the axis of the value, at 0 to 1; the legend's have no height.
        if trace.mode == "lines" and trace.y[0] is not None:
            trace.update(line={"color": sample_colorscale(SCALE, trace.y[0])[0]}, opacity=0.7)
    figure.update_layout(plot_bgcolor=None, margin={"t": 30, "l": 30, "r": 10, "b": 60})
    figure.update_xaxes(tickangle=20)
    figure.update_annotations(font={"color": None, "size": 10.5})
    return Figure(
        "parallel",
        "Parallel coordinates",
        figure,
        f"One line a complete trial, through its values.{_thinning(chosen, run.completed)}",
        height=430,
        min_width=72 * (len(names) + 1),
    )


def slice_figure(run: RunData, order: Sequence[str]) -> Figure:
    """Optuna's panels, in rows of four instead of all in one row."""
    rows, columns = math.ceil(len(order) / PER_ROW), min(PER_ROW, len(order))
    study, done = run.study(run.completed), len(run.completed)
    figure = make_subplots(
        rows=rows, cols=columns, shared_yaxes=True, horizontal_spacing=0.04,
        vertical_spacing=0.42 / (rows + 1),
    )  # fmt: skip
    outline = {"width": 0.5, "color": "#777"}
    marker = {"showscale": False, "size": 6 if done < 200 else 4, "line": outline}
    for place, name in enumerate(order):
        # One at a time: Optuna would draw them in the order of their names.
        single = draw.plot_slice(study, params=[name], target_name=run.metric)
        at = {"row": place // PER_ROW + 1, "col": place % PER_ROW + 1}
        axis = single.layout.xaxis
        figure.update_xaxes(title_text=name, type=axis.type, **at)
        for trace in single.data:
            trace.update(marker=marker)
            if axis.type == "category":
                trace.x = [str(value).strip("'") for value in trace.x]
            figure.add_trace(trace, **at)
        values = [value for trace in single.data for value in trace.x]
        if axis.type == "category":
            figure.update_xaxes(range=[-0.5, len(set(values)) - 0.5], **at)
        elif axis.type == "log":
            figure.update_xaxes(log_ticks(min(values), max(values)), **at)
    figure.update_yaxes(title_text=run.metric, col=1)
    return Figure(
        "slice",
        "Slices",
        plain(figure),
        f"Value by each parameter, most important first; {done} complete trials, early ones blue, "
        "late ones orange.",
        height=80 + 230 * rows,
        min_width=165 * columns,
    )


def rank_figure(run: RunData, parameters: Sequence[str]) -> Figure:
    """Parameters against each other, coloured by the trial's rank."""
    chosen = thinned(run.completed, POINTS, run.maximize)
    names = list(parameters)
    figure = plain(draw.plot_rank(run.study(chosen), params=names, target_name=run.metric))
    figure.update_traces(hovertext=None, hovertemplate="%{x}, %{y}<extra></extra>")
    _tick_log_axes(figure)
    return Figure(
        "rank",
        "Ranks",
        figure,
        f"The {len(parameters)} most important parameters against each other; colour: the trial’s "
        f"rank by {run.metric}.{_thinning(chosen, run.completed)}",
        height=620 if len(parameters) > 2 else 420,
        min_width=560 if len(parameters) > 2 else 0,
    )


# ---- looks


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """Two to five ticks for a small logarithmic axis: powers of ten, or 1, 2, 5, or the ends."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tens = [10.0**e for e in exponents if low <= 10.0**e <= high]
    finer = [m * 10.0**e for e in exponents for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    if len(tens) > 1:
        ticks = tens[:: 1 + len(tens) // 6]
    else:
        ticks = finer if len(finer) > 1 else [low, high]
    return {"tickvals": ticks, "ticktext": [f"{tick:.2g}" for tick in ticks]}


def _tick_log_axes(figure: go.Figure) -> None:
    def update(axis: Any) -> None:
        axis.update(log_ticks(10 ** axis.range[0], 10 ** axis.range[1]))

    figure.for_each_xaxis(update, selector={"type": "log"})
    figure.for_each_yaxis(update, selector={"type": "log"})


def _thinning(chosen: Sequence[FrozenTrial], trials: Sequence[FrozenTrial]) -> str:
    """The end of a caption if not every trial is drawn."""
    if len(chosen) == len(trials):
        return ""
    return (
        f" Drawn are {len(chosen)} of {len(trials):,} trials, the {len(chosen) // 4} best and the "
        "others evenly over the search; the tables have all."
    )


def plain(figure: go.Figure) -> go.Figure:
    """An Optuna figure in the page's colours, without Optuna's title, text colours and grid."""
    figure.update_layout(title=None, plot_bgcolor=None, margin={"t": 30, "r": 20, "b": 50, "l": 60})
    bar = {"thickness": 12, "outlinewidth": 0, "title": {"side": "right"}}
    looks = {"colorscale": SCALE, "reversescale": False, "colorbar": bar}
    for trace in figure.data:
        if trace.type == "contour":
            trace.update(looks)
        elif trace.type == "scatter" and _is_blues(trace.marker.colorscale):
            trace.marker.update(looks)
    return figure


def _is_blues(scale: Any) -> bool:
    """Whether these are the colours of Optuna's scales; its figure of ranks has others."""
    return scale is not None and scale[0][1].startswith("rgb(247,251,255")
