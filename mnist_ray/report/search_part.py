"""The search: Optuna's figures of its trials, each with the numbers behind it as a table."""

import heapq
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna import visualization as draw
from optuna.trial import FrozenTrial, TrialState
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from mnist_ray.report.page import Figure, Markup, Number, count, numbers, table
from mnist_ray.report.read import Run, as_study, thinned, value_of, varied
from mnist_ray.run.records import Row
from mnist_ray.settings import objectives
from mnist_ray.study import importance

LINES = 200  # most trials drawn as a line each
POINTS = 300  # most trials in figures that repeat every trial in several panels
NODES = 100  # most trials that a contour is drawn through; more of them give stripes
PER_ROW = 4  # panels of the slice figure side by side
# Low to high, readable on white and on black, and without the help of red against green.
SCALE = ["#2f6fd0", "#7b6cc9", "#b95fa6", "#dd6b6b", "#eb8a3a"]
STATE_COLOURS = {
    "COMPLETE": "#3f7fe0",
    "PRUNED": "#9aa3b0",
    "FAIL": "#d1432f",
    "RUNNING": "#16906a",
}


def search_part(run: Run, prefix: str) -> Markup:
    """The part of one run; `prefix` keeps the anchors of several runs apart."""
    if not run.frozen:
        return Markup(
            f"<p>{'This run began with a model, not with a search.' if run.stages else 'No trial has ended yet.'}</p>"
        )
    figures = [figure.html(prefix) for figure in search_figures(run, prefix)]
    return Markup("\n".join([_states(run), _front(run), *figures, all_trials(run, prefix)]))


def search_figures(run: Run, prefix: str = "") -> Iterator[Figure]:
    """The figures for which there are enough trials, most telling first."""
    in_trials = Markup(
        f'<p class=note>Its numbers: the table <a href="#{prefix}all-trials">All trials</a>.</p>'
    )
    done = run.completed
    if done:
        yield _history(run)
    yield _intermediate(run)
    parameters = varied(done)
    if len(done) >= 2 and parameters:
        weights = importances(run)
        order = [
            name
            for name in (*weights, *(p for p in parameters if p not in weights))
            if name in parameters
        ]
        if weights:
            yield _importances(run, weights)
        for x, y in contour_pairs(done, order):
            yield _contour(run, x, y, in_trials)
        yield _parallel(run, parameters, in_trials)
        yield _slice(run, order, in_trials)
        yield _rank(run, order[:3], in_trials)
    if len(done) >= 2:
        yield edf([run], [run.name])
    for name in (
        "parameters",
        *(n for n in run.objectives if n not in ("parameters", objectives.OF_METRIC[run.metric])),
    ):
        if len({t.values[0] for t in _pairs(run, name)}) >= 2:
            yield _pareto(run, name)
    if run.timed:
        yield _timeline(run, in_trials)


# ---- Optuna's figures


def _history(run: Run) -> Figure:
    figure = plain(draw.plot_optimization_history(run.gapless(), target_name=run.metric))
    for trace in figure.data:
        if trace.mode == "lines":
            trace.update(name="best so far", line={"shape": "hv"})
    rows: list[tuple[int, float]] = []
    for trial in run.completed:
        value = value_of(trial)
        if not rows or (value > rows[-1][1] if run.maximize else value < rows[-1][1]):
            rows.append((trial.number, value))
    return Figure(
        "history",
        "Optimisation history",
        figure,
        f"The value of each of the {len(run.completed)} trials that trained all their epochs, and the best so far.",
        numbers("Every time the best improved", table(("trial", run.metric), rows, "Improvements")),
    )


def _intermediate(run: Run) -> Figure:
    trials = [t for t in run.frozen if t.intermediate_values and t.state != TrialState.FAIL]
    chosen = thinned(trials, LINES, run.maximize)
    figure = plain(draw.plot_intermediate_values(run.study(chosen)))
    states = {t.number: t.state.name for t in chosen}
    best = run.best["number"] if run.best else None
    for trace in figure.data:
        number = int(trace.name.removeprefix("Trial"))
        winner, state = number == best, states[number]
        trace.update(
            name=f"trial {number} ({state.lower()})",
            line={
                "color": SCALE[-1] if winner else STATE_COLOURS[state],
                "width": 3 if winner else 1.3,
            },
            marker={"size": 8 if winner else 5, "maxdisplayed": 0},
            opacity=1 if winner else 0.7,
        )
    figure.update_layout(
        xaxis={"title": {"text": "epoch"}, "dtick": 1 if run.settings["max_epochs"] <= 20 else None}
    )
    figure.update_yaxes(title_text=run.metric)
    stopped = sum(t.state == TrialState.PRUNED for t in trials)
    return Figure(
        "intermediate",
        "Values after each epoch",
        figure,
        f"Blue: trained to the end; grey: stopped early ({stopped} of {len(trials)} trials); orange, thick: the best."
        + _thinning(chosen, trials),
        numbers("Every trial’s value after each epoch", _epoch_table(run)),
    )


def importances(run: Run) -> dict[str, float]:
    """How much each parameter decides, the most important first; the shares add up to 1.

    Optuna before 5.0 leaves out parameters that some trials do not have.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.importance.get_param_importances(
            run.study(run.completed), evaluator=importance.ped_anova()
        )


def _importances(run: Run, weights: dict[str, float]) -> Figure:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = plain(
            draw.plot_param_importances(
                run.study(run.completed), evaluator=importance.ped_anova(), target_name=run.metric
            )
        )
    found = importance.importances(run.completed, run.direction) or {"PED-ANOVA": weights}
    figure.update_layout(xaxis={"title": {"text": "share"}}, yaxis={"title": {"text": ""}})
    return Figure(
        "importances",
        "Importance of each parameter",
        figure,
        f"PED-ANOVA (Watanabe et al. 2023): what sets the best tenth of {len(run.completed)} complete trials apart."
        + (" With so few trials the order is a hint at most." if len(run.completed) < 30 else ""),
        numbers(
            "Shares",
            table(
                ("parameter", *found),
                [[name, *shares] for name, shares in importance.rows(found)],
                "Importances",
            ),
        ),
        height=110 + 26 * len(weights),
    )


def contour_pairs(trials: Sequence[FrozenTrial], order: Sequence[str]) -> list[tuple[str, str]]:
    """Batch size with every learning rate of the space; where there is none of these, the two most important numbers."""

    def spread(x: str, y: str) -> bool:
        pairs = {(t.params[x], t.params[y]) for t in trials if x in t.params and y in t.params}
        return len({p[0] for p in pairs}) > 1 and len({p[1] for p in pairs}) > 1

    rates = [name for name in order if name == "lr" or name.startswith("lr_")]
    pairs = [("batch_size", rate) for rate in rates if "batch_size" in order]
    if not pairs:
        numeric = [
            n
            for n in order
            if all(not isinstance(t.params[n], bool | str) for t in trials if n in t.params)
        ]
        pairs = [(numeric[0], numeric[1])] if len(numeric) > 1 else []
    return [pair for pair in pairs if spread(*pair)]


def _contour(run: Run, x: str, y: str, in_trials: str) -> Figure:
    trials = [t for t in run.completed if x in t.params and y in t.params]
    chosen = thinned(trials, NODES, run.maximize)
    figure = plain(draw.plot_contour(run.study(chosen), params=[x, y], target_name=run.metric))
    for update in (figure.for_each_xaxis, figure.for_each_yaxis):
        update(
            lambda axis: axis.update(log_ticks(10 ** axis.range[0], 10 ** axis.range[1])),
            selector={"type": "log"},
        )
    figure.update_traces(
        line={"width": 0.4 if len(chosen) < 40 else 0},
        contours={"coloring": "fill"},
        selector={"type": "contour"},
    )
    figure.update_traces(
        marker={"color": "white", "size": 6, "line": {"width": 1, "color": "#333"}},
        selector={"type": "scatter"},
    )
    return Figure(
        f"contour-{x}-{y}",
        f"Contour: {x} × {y}",
        figure,
        f"{run.metric}, interpolated between the {len(chosen)} trials that are dots."
        + _thinning(chosen, trials),
        in_trials,
        height=420,
    )


def _parallel(run: Run, parameters: Sequence[str], in_trials: str) -> Figure:
    chosen = thinned(run.completed, LINES, run.maximize)
    names = varied(chosen) or list(parameters)
    figure = draw.plot_parallel_coordinate(run.study(chosen), params=names, target_name=run.metric)
    if not figure.data:  # Optuna before 5.0 draws only trials that have every parameter
        names = [name for name in names if all(name in t.params for t in chosen)]
        figure = draw.plot_parallel_coordinate(
            run.study(chosen), params=names, target_name=run.metric
        )
    figure = plain(figure)
    lines = [trace for trace in figure.data if trace.type == "scatter" and trace.mode == "lines"]
    if len(lines) == len(chosen):  # Optuna 5; before it one WebGL trace with a scale of its own
        values = [value_of(t) for t in chosen]
        low, high = min(values), max(values)
        for trace, value in zip(lines, values, strict=True):
            share = (value - low) / (high - low) if high > low else 1.0
            trace.update(line={"color": sample_colorscale(SCALE, share)[0]}, opacity=0.7)
    figure.update_layout(plot_bgcolor=None, margin={"t": 30, "l": 30, "r": 10, "b": 60})
    figure.update_xaxes(tickangle=20)
    figure.update_annotations(font={"color": None, "size": 10.5})
    return Figure(
        "parallel",
        "Parallel coordinates",
        figure,
        "One line a complete trial, through the values it had." + _thinning(chosen, run.completed),
        in_trials,
        height=430,
        min_width=72 * (len(names) + 1),
    )


def _slice(run: Run, order: Sequence[str], in_trials: str) -> Figure:
    """Optuna's panels, in rows of four instead of all in one row."""
    rows = [order[i : i + PER_ROW] for i in range(0, len(order), PER_ROW)]
    study = run.study(run.completed)
    columns = min(PER_ROW, len(order))
    figure = make_subplots(
        rows=len(rows),
        cols=columns,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.42 / (len(rows) + 1),
    )
    for i, names in enumerate(rows, start=1):
        # One at a time: Optuna would draw them in the order of their names.
        for j, name in enumerate(names, start=1):
            single = draw.plot_slice(study, params=[name], target_name=run.metric)
            axis = single.layout.xaxis
            figure.update_xaxes(title_text=name, type=axis.type, row=i, col=j)
            for trace in single.data:
                trace.update(
                    marker={
                        "showscale": False,
                        "size": 6 if len(run.completed) < 200 else 4,
                        "line": {"width": 0.5, "color": "#777"},
                    }
                )
                if axis.type == "category":
                    trace.x = [str(value).strip("'") for value in trace.x]
                figure.add_trace(trace, row=i, col=j)
            values = [value for trace in single.data for value in trace.x]
            if axis.type == "category":
                figure.update_xaxes(range=[-0.5, len(set(values)) - 0.5], row=i, col=j)
            elif axis.type == "log":
                figure.update_xaxes(log_ticks(min(values), max(values)), row=i, col=j)
        figure.update_yaxes(title_text=run.metric, row=i, col=1)
    return Figure(
        "slice",
        "Slices",
        plain(figure),
        f"Value by each parameter, most important first; {len(run.completed)} complete trials, early ones blue, late ones orange.",
        in_trials,
        height=80 + 230 * len(rows),
        min_width=165 * columns,
    )


def _rank(run: Run, parameters: Sequence[str], in_trials: str) -> Figure:
    chosen = thinned(run.completed, POINTS, run.maximize)
    figure = plain(
        draw.plot_rank(run.study(chosen), params=list(parameters), target_name=run.metric)
    )
    figure.update_traces(hovertext=None, hovertemplate="%{x}, %{y}<extra></extra>")
    for update in (figure.for_each_xaxis, figure.for_each_yaxis):
        update(
            lambda axis: axis.update(log_ticks(10 ** axis.range[0], 10 ** axis.range[1])),
            selector={"type": "log"},
        )
    return Figure(
        "rank",
        "Ranks",
        figure,
        f"The {len(parameters)} most important parameters against each other; colour: the trial’s rank by {run.metric}."
        + _thinning(chosen, run.completed),
        in_trials,
        height=620 if len(parameters) > 2 else 420,
        min_width=560 if len(parameters) > 2 else 0,
    )


def edf(runs: Sequence[Run], names: Sequence[str]) -> Figure:
    """The distribution of the values of each run."""
    studies = [run.study(run.completed, name) for run, name in zip(runs, names, strict=True)]
    figure = plain(draw.plot_edf(studies, target_name=runs[0].metric))
    figure.update_traces(line={"shape": "hv"})
    figure.update_layout(
        yaxis={"title": {"text": "share of trials"}, "range": [0, 1.03]}, showlegend=len(runs) > 1
    )
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    rows = []
    for run, name in zip(runs, names, strict=True):
        values = sorted(t.value for t in run.completed if t.value is not None)
        rows.append(
            (
                name,
                len(values),
                *(values[min(int(s * len(values)), len(values) - 1)] for s in shares),
            )
        )
    return Figure(
        "edf",
        "Distribution of the values",
        figure,
        f"The share of complete trials whose {runs[0].metric} is at most that on the axis.",
        numbers(
            "Quantiles", table(("run", "trials", *(f"{s:.0%}" for s in shares)), rows, "Quantiles")
        ),
    )


def _pairs(run: Run, name: str) -> list[FrozenTrial]:
    """The complete trials with two values: that of the objective of this name, and the run's metric."""
    column = "n_parameters" if name == "parameters" else f"values_{name}"
    known = {row["number"]: row.get(column) for row in run.trials}
    pairs = []
    for trial in run.completed:
        value = known.get(trial.number)
        if value is not None:
            pair = optuna.trial.create_trial(values=[float(value), value_of(trial)])
            pair.number = trial.number
            pairs.append(pair)
    return pairs


# What the figure of an objective is called, its axis, and what its front's caption says of it.
PARETO = {
    "parameters": ("Size against value", "parameters (trainable numbers)", "smaller"),
    "latency": ("Latency against value", "latency (ms for one image, one thread)", "faster"),
    "loss": ("Loss against value", "val_loss", "lower in its loss"),
    "accuracy": ("Accuracy against value", "val_accuracy", "more accurate"),
}


def _pareto(run: Run, name: str) -> Figure:
    title, axis, smaller = PARETO[name]
    study = as_study(_pairs(run, name), run.name, [objectives.DIRECTIONS[name], run.direction])
    figure = plain(draw.plot_pareto_front(study, target_names=[name, run.metric]))
    for trace in figure.data:
        # Optuna's text is the whole trial as JSON.
        found = [json.loads(text.replace("<br>", ""))["number"] for text in trace.text or ()]
        trace.update(
            text=[f"trial {n}" for n in found],
            marker={"color": None, "colorscale": None, "showscale": False, "size": 9},
            showlegend=True,
        )
    figure.data[0].update(name="others", marker={"color": STATE_COLOURS["PRUNED"]})
    figure.data[1].update(name="front", marker={"color": SCALE[-1]})
    figure.update_xaxes(title_text=axis)
    if name == "parameters":
        figure.update_xaxes(type="log", exponentformat="SI")
    front = sorted(
        ((t.number, _cell(name, t.values[0]), t.values[1]) for t in study.best_trials),
        key=lambda row: row[2],
    )
    return Figure(
        "pareto" if name == "parameters" else f"pareto-{name}",
        title,
        figure,
        f"Pareto front: no complete trial is both {smaller} and better than one of these.",
        numbers("The front", table(("trial", name, run.metric), front, "Pareto front")),
    )


def _cell(name: str, value: float) -> Any:
    return count(int(value)) if name == "parameters" else value


def _front(run: Run) -> Markup:
    """The Pareto front of all objectives of a run that has several."""
    rows = [row for row in run.trials if row.get("pareto")]
    if not rows:
        return Markup("")
    lines = [
        [row["number"], *(_cell(name, row[f"values_{name}"]) for name in run.objectives)]
        for row in rows
    ]
    header = ["trial", *("latency (ms)" if name == "latency" else name for name in run.objectives)]
    return Markup(
        f"<p>{len(rows)} complete trials are on the Pareto front of {', '.join(run.objectives)}: none is better in one and as good in "
        f"the others. Figures of one value show {run.metric}.</p>{numbers('The front', table(header, lines, 'Pareto front'))}"
    )


def lanes(run: Run) -> dict[int, str]:
    """Trial number -> the worker that it ran on: node and, of its trials at the same time, which. Trials that began have one."""
    nodes = {row["number"]: row["node"] for row in run.trials}
    names: dict[int, str] = {}
    free: dict[str, list[int]] = {}
    busy: dict[str, list[tuple[datetime, int]]] = {}
    for trial in sorted(
        (t for t in run.frozen if t.datetime_start), key=lambda t: (t.datetime_start, t.number)
    ):
        node, start = nodes.get(trial.number) or "worker unknown", trial.datetime_start
        waiting, running = free.setdefault(node, []), busy.setdefault(node, [])
        while running and start is not None and running[0][0] <= start:
            heapq.heappush(waiting, heapq.heappop(running)[1])
        lane = heapq.heappop(waiting) if waiting else len(running) + 1
        heapq.heappush(running, (trial.datetime_complete or datetime.max, lane))
        names[trial.number] = f"{node} · {lane}"
    return names


def _timeline(run: Run, in_trials: str) -> Figure:
    figure = plain(draw.plot_timeline(run.study(run.frozen)))
    workers = lanes(run)
    for trace in figure.data:
        trace.update(
            text=[f"trial {n}" for n in trace.y],
            y=[workers[n] for n in trace.y],
            base=[
                datetime.fromisoformat(start).astimezone(UTC).replace(tzinfo=None).isoformat()
                for start in trace.base
            ],
            name=trace.name.lower(),
            marker={
                "color": STATE_COLOURS.get(trace.name, "#777"),
                "line": {
                    "width": 0.6 if len(run.frozen) < 200 else 0,
                    "color": "rgba(255,255,255,.6)",
                },
            },
        )
    order = sorted(set(workers.values()), reverse=True)
    figure.update_layout(
        barmode="overlay", xaxis={"title": {"text": ""}, "tickangle": 0, "nticks": 6}
    )
    figure.update_yaxes(title_text="", type="category", categoryorder="array", categoryarray=order)
    return Figure(
        "timeline",
        "Timeline of the workers",
        figure,
        "One bar a trial, from its suggestion to its end, in the row of the worker that ran it (UTC).",
        in_trials,
        height=160 + 30 * len(order),
    )


# ---- tables


def _states(run: Run) -> Markup:
    found = {
        state: sum(row["state"] == state for row in run.trials)
        for state in ("COMPLETE", "PRUNED", "FAIL")
    }
    running = sum(t.state == TrialState.RUNNING for t in run.frozen)
    words = f"{len(run.trials):,} trials: {found['COMPLETE']} trained to the end, {found['PRUNED']} stopped early, {found['FAIL']} failed"
    words += f"; {running} not ended." if running else "."
    if any(row.get("exploits") for row in run.trials):
        words += " With pbt, trials went on with others’ weights: the parameters shown are those that each began with."
    if not run.timed:
        words += " The study lies in a database: ranges and scales are read off the trials’ values, and when they ran is not known here."
    return Markup(f"<p>{words}</p>")


def all_trials(run: Run, prefix: str) -> Markup:
    """The table of every trial that has ended: what history, slices, contours, parallel coordinates, ranks and timeline show."""
    names = [key for key in (run.trials[0] if run.trials else {}) if key.startswith("params_")]
    started = {t.number: t.datetime_start for t in run.frozen if run.timed and t.datetime_start}
    workers = lanes(run) if run.timed else {}
    first = min(started.values(), default=None)

    def line(row: Row) -> list[Any]:
        begun = started.get(row["number"])
        after = (begun - first).total_seconds() if begun and first else None
        return [
            row["number"], row["state"].lower(), row["value"], row["epochs"], _tenths(after), _tenths(row["seconds"]),
            workers.get(row["number"], row["node"]), None if row["n_parameters"] is None else count(row["n_parameters"]),
            *(row[name] for name in names), row["reason"],
        ]  # fmt: skip

    label = f"{len(run.trials):,} trials"
    header = [
        "trial",
        "state",
        run.metric,
        "epochs",
        "started at s",
        "trained s",
        "worker",
        "parameters",
    ]
    header += [name.removeprefix("params_") for name in names] + ["reason"]
    return Markup(
        f'<h3 id="{prefix}all-trials">All trials</h3>{numbers(label, table(header, map(line, run.trials), "All trials"))}'
    )


def _epoch_table(run: Run) -> Markup:
    """One row a trial, one column an epoch."""
    last = max((row["epoch"] for row in run.history), default=0)
    values: dict[int, dict[int, float]] = {}
    for row in run.history:
        values.setdefault(row["number"], {})[row["epoch"]] = row[run.metric]
    rows = [
        [number, *(found.get(epoch) for epoch in range(1, last + 1))]
        for number, found in values.items()
    ]
    return table(
        ["trial", *(f"epoch {e}" for e in range(1, last + 1))],
        rows,
        f"{run.metric} after each epoch",
    )


def _tenths(seconds: float | None) -> Number | None:
    return None if seconds is None else Number(f"{seconds:.1f}")


# ---- looks


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """Two to five ticks for a small logarithmic axis: powers of ten, else 1, 2 and 5 times them, else the ends themselves."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tens = [10.0**e for e in exponents if low <= 10.0**e <= high]
    finer = [m * 10.0**e for e in exponents for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    ticks = (
        tens[:: 1 + len(tens) // 6] if len(tens) > 1 else finer if len(finer) > 1 else [low, high]
    )
    return {"tickvals": ticks, "ticktext": [f"{t:.2g}" for t in ticks]}


def _thinning(chosen: Sequence[FrozenTrial], trials: Sequence[FrozenTrial]) -> str:
    """What a caption says where not every trial is drawn."""
    if len(chosen) == len(trials):
        return ""
    best = len(chosen) // 4
    return f" Drawn are {len(chosen)} of {len(trials):,} trials, the {best} best and the others evenly over the search; the tables have all."


def plain(figure: go.Figure) -> go.Figure:
    """An Optuna figure without Optuna's own title and colours; text, grid and background are the page's."""
    figure.update_layout(title=None, plot_bgcolor=None, margin={"t": 30, "r": 20, "b": 50, "l": 60})
    for trace in figure.data:
        if trace.type == "contour":
            trace.update(
                colorscale=SCALE,
                reversescale=False,
                colorbar={"thickness": 12, "outlinewidth": 0, "title": {"side": "right"}},
            )
        elif trace.type == "scatter" and _is_blues(trace.marker.colorscale):
            trace.marker.update(
                colorscale=SCALE,
                reversescale=False,
                colorbar={"thickness": 12, "outlinewidth": 0, "title": {"side": "right"}},
            )
    return figure


def _is_blues(scale: Any) -> bool:
    """Whether these are the colours that Optuna gives all its scales; its figure of ranks has others, which stay."""
    return scale is not None and scale[0][1].startswith("rgb(247,251,255")
