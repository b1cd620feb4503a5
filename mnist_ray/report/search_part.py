"""The search: how its trials ended, its figures, and the table of all trials."""

import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import optuna
from markupsafe import Markup
from optuna import visualization as draw
from optuna.trial import FrozenTrial, TrialState

from mnist_ray.report.page import Figure, Number, Table, count, render
from mnist_ray.report.read import RunData, as_study, feasible, value_of, varied
from mnist_ray.report.search_figures import (
    SCALE,
    STATE_COLOURS,
    contour_figure,
    contour_pairs,
    edf,
    history_figure,
    importances_figure,
    intermediate_figure,
    parallel_figure,
    ped_anova,
    plain,
    rank_figure,
    slice_figure,
)  # fmt: skip
from mnist_ray.settings import objectives
from mnist_ray.study import importance

# Of an objective's figure: its title, its axis, and the comparison in its caption.
PARETO = {
    "parameters": ("Size against value", "parameters (trainable numbers)", "smaller"),
    "latency": ("Latency against value", "latency (ms for one image, one thread)", "faster"),
    "loss": ("Loss against value", "val_loss", "lower in its loss"),
    "accuracy": ("Accuracy against value", "val_accuracy", "more accurate"),
}


def search_part(run: RunData, prefix: str) -> Markup:
    """The part of one run; `prefix` keeps the anchors of several runs apart."""
    if not run.frozen:
        none = "This run began with a model, not with a search."
        return Markup(f"<p>{none if run.from_model else 'No trial has ended yet.'}</p>")
    workers = lanes(run)
    return render(
        "search.html",
        prefix=prefix,
        trials=len(run.trials),
        states={
            state: sum(row["state"] == state for row in run.trials)
            for state in ("COMPLETE", "PRUNED", "FAIL")
        },
        running=sum(trial.state == TrialState.RUNNING for trial in run.frozen),
        exploited=any(row.get("exploits") for row in run.trials),
        timed=run.timed,
        damaged=run.damaged,
        fewest=importance.FEWEST,
        complete=len(run.completed),
        front=_front(run),
        objectives=run.objectives,
        metric=run.metric,
        figures=list(search_figures(run, workers)),
        all_trials=_all_trials(run, workers),
    )


def search_figures(run: RunData, workers: Mapping[int, str]) -> Iterator[Figure]:
    """The figures for which there are enough trials, most telling first.

    Figures of parameters and distributions are conclusions: they need as many complete trials as
    the importances in the terminal.

    Args:
        run: The run.
        workers: Trial number -> its worker.
    """
    done = run.completed
    if done:
        yield history_figure(run)
    yield intermediate_figure(run)
    parameters = varied(done)
    enough = len(done) >= importance.FEWEST
    if enough and parameters:
        weights = ped_anova(run)
        order = sorted(parameters, key=lambda name: -weights.get(name, 0.0))
        if weights:
            yield importances_figure(run, weights)
        for x, y in contour_pairs(done, order):
            yield contour_figure(run, x, y)
        yield parallel_figure(run, parameters)
        yield slice_figure(run, order)
        yield rank_figure(run, order[:3])
    if enough:
        yield edf([run], [run.name])
    yield from list(pareto_figures(run))[bool(run.objectives) :]
    if run.timed:
        yield _timeline_figure(run, workers)


# ---- figures of other objectives, and of time


def pareto_figures(run: RunData) -> Iterator[Figure]:
    """The metric against each other objective; with --objectives the head shows the first."""
    own = ("parameters", objectives.OF_METRIC.get(run.metric))
    others = [name for name in run.objectives if name not in own]
    first = ["parameters"] if "parameters" in run.objectives or not others else []
    for name in (*first, *others, *(["parameters"] if not first else [])):
        pairs = _pairs(run, name)
        if len({trial.values[0] for trial in pairs}) >= 2:
            yield _pareto_figure(run, name, pairs)


def _pairs(run: RunData, name: str) -> list[FrozenTrial]:
    """The complete trials that keep the limits with two values: objective and the run's metric."""
    column = "n_parameters" if name == "parameters" else f"values_{name}"
    values = {row["number"]: row.get(column) for row in run.trials}
    pairs = []
    for trial in filter(feasible, run.completed):
        value = values.get(trial.number)
        if value is not None:
            pair = optuna.trial.create_trial(values=[float(value), value_of(trial)])
            pair.number = trial.number
            pairs.append(pair)
    return pairs


def _pareto_figure(run: RunData, name: str, pairs: Sequence[FrozenTrial]) -> Figure:
    title, axis, smaller = PARETO[name]
    study = as_study(pairs, run.name, [objectives.DIRECTIONS[name], run.direction])
    figure = plain(draw.plot_pareto_front(study, target_names=[name, run.metric]))
    for trace in figure.data:
        # Optuna's text is the whole trial as JSON.
        found = [json.loads(text.replace("<br>", ""))["number"] for text in trace.text or ()]
        marker = {"color": None, "colorscale": None, "showscale": False, "size": 9}
        trace.update(text=[f"trial {n}" for n in found], marker=marker, showlegend=True)
    figure.data[0].update(name="others", marker={"color": STATE_COLOURS["PRUNED"]})
    figure.data[1].update(name="front", marker={"color": SCALE[-1]})
    figure.update_xaxes(title_text=axis)
    if name == "parameters":
        figure.update_xaxes(type="log", exponentformat="SI")
    front = sorted(study.best_trials, key=lambda trial: trial.values[1])
    rows = [(t.number, _cell(name, t.values[0]), t.values[1]) for t in front]
    return Figure(
        "pareto" if name == "parameters" else f"pareto-{name}",
        title,
        figure,
        f"Pareto front: no complete trial is both {smaller} and better than one of these.",
        Table("Pareto front", ("trial", name, run.metric), rows),
        "The front",
    )


def _cell(name: str, value: float) -> Any:
    """An objective's value for a table."""
    return count(int(value)) if name == "parameters" else value


def _timeline_figure(run: RunData, workers: Mapping[int, str]) -> Figure:
    figure = plain(draw.plot_timeline(run.study(run.frozen)))
    edge = {"width": 0.6 if len(run.frozen) < 200 else 0, "color": "rgba(255,255,255,.6)"}
    for trace in figure.data:
        starts = (datetime.fromisoformat(start).astimezone(UTC) for start in trace.base)
        trace.update(
            text=[f"trial {n}" for n in trace.y],
            y=[workers[n] for n in trace.y],
            base=[start.replace(tzinfo=None).isoformat() for start in starts],
            name=trace.name.lower(),
            marker={"color": STATE_COLOURS.get(trace.name, "#777"), "line": edge},
        )
    order = sorted(set(workers.values()), reverse=True)
    hours = {"title": {"text": ""}, "tickangle": 0, "nticks": 6}
    figure.update_layout(barmode="overlay", xaxis=hours)
    figure.update_yaxes(title_text="", type="category", categoryorder="array", categoryarray=order)
    return Figure(
        "timeline",
        "Timeline of the workers",
        figure,
        "One bar a trial, from its suggestion to its end, in the row of its worker (UTC).",
        height=160 + 30 * len(order),
    )


def _front(run: RunData) -> Table:
    """The Pareto front of all objectives of a run that has several."""
    rows = [
        [row["number"], *(_cell(n, row[f"values_{n}"]) for n in run.objectives)]
        for row in run.trials
        if row.get("pareto")
    ]
    names = ("latency (ms)" if name == "latency" else name for name in run.objectives)
    return Table("Pareto front", ["trial", *names], rows)


def lanes(run: RunData) -> dict[int, str]:
    """Trial number -> its worker: the node, and a place among the node's trials at that time."""
    nodes = {row["number"]: row["node"] for row in run.trials}
    names: dict[int, str] = {}
    free: dict[str, list[int]] = {}
    busy: dict[str, list[tuple[datetime, int]]] = {}
    started = [(t.datetime_start, t.number, t) for t in run.frozen if t.datetime_start]
    for start, number, trial in sorted(started, key=lambda each: each[:2]):
        node = nodes.get(number) or "worker unknown"
        waiting, running = free.setdefault(node, []), busy.setdefault(node, [])
        while running and running[0][0] <= start:
            heapq.heappush(waiting, heapq.heappop(running)[1])
        lane = heapq.heappop(waiting) if waiting else len(running) + 1
        heapq.heappush(running, (trial.datetime_complete or datetime.max, lane))
        names[number] = f"{node} · {lane}"
    return names


def _all_trials(run: RunData, workers: dict[int, str]) -> Table:
    """Every trial that has ended: the numbers of the figures without a table of their own."""
    names = [key for key in (run.trials[0] if run.trials else {}) if key.startswith("params_")]
    started = {t.number: t.datetime_start for t in run.frozen if run.timed and t.datetime_start}
    first = min(started.values(), default=None)
    limited = ["limits"] if run.limits else []
    rows: list[list[Any]] = []
    for row in run.trials:
        begun, size = started.get(row["number"]), row["n_parameters"]
        after = (begun - first).total_seconds() if begun and first else None
        worker = workers.get(row["number"], row["node"]) if run.timed else row["node"]
        rows.append(
            [
                row["number"], row["state"].lower(), row["value"], row["epochs"], _tenths(after),
                _tenths(row["seconds"]), worker, None if size is None else count(size),
                *(row[name] for name in names), *(_limits(row) for _ in limited), row["reason"],
            ]
        )  # fmt: skip
    header = [
        "trial", "state", run.metric, "epochs", "started at s", "trained s", "worker", "parameters",
        *(name.removeprefix("params_") for name in names), *limited, "reason",
    ]  # fmt: skip
    return Table("All trials", header, rows)


def _limits(row: Mapping[str, Any]) -> str | None:
    known = row.get("violation")
    return None if known is None else "beyond" if known else "kept"


def _tenths(seconds: float | None) -> Number | None:
    return None if seconds is None else Number(f"{seconds:.1f}")
