"""The head of a run's page, which answers the first questions; and its last part, the details."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from urllib.parse import quote

from markupsafe import Markup

from mnist_ray.report.page import count, percent, render, span
from mnist_ray.report.read import RunData, known, varied
from mnist_ray.report.search_part import pareto_figures
from mnist_ray.run import layout
from mnist_ray.run.records import INTERRUPTED, EpochRow, value_of
from mnist_ray.run.tuned import Tuned

WINNER = 12  # most settings of the best trial; the table of all trials has the others


def header_part(run: RunData, out: str | None, prefix: str = "") -> Markup:
    """The head: the accuracy, cards with size, speed and time, and the best trial's settings.

    Args:
        run: The run.
        out: The local folder of the page; None: the run's own directory, beside the model.
        prefix: Keeps the anchors of several runs apart.
    """
    best = run.best
    number = best["number"] if best else None
    settings = next((trial.params for trial in run.frozen if trial.number == number), {})
    # A setting that all trials share says nothing of the winner.
    names = [name for name in settings if name in varied(run.completed)] or list(settings)
    return render(
        "header.html",
        m=run.manifest,
        best=best,
        own=run.own,
        searched=run.only_searched,
        metric=run.metric,
        value=value_of(cast(EpochRow, best), run.goal) if best else None,
        number=number,
        n_val=run.about.data.val,
        trials=len(run.trials),
        cards=list(_cards(run)),
        winner=[(name, settings[name]) for name in names[:WINNER]],
        files=[(name, _link(run, name, out)) for name in _files(run)],
        front=next(pareto_figures(run), None) if run.objectives else None,
        prefix=prefix,
        without_best=_without_best(run),
        confirmed=bool(run.confirmed),
        damaged=run.damaged,
    )


def _without_best(run: RunData) -> str:
    """Why there is no best trial, where there is none."""
    ended = [row for row in run.trials if row["reason"] != INTERRUPTED]
    if not ended:
        return "No trial has ended yet."
    if all(row["state"] == "FAIL" for row in ended):
        failed = f"All {len(ended):,} trials" if len(ended) > 1 else "The only trial"
        return f"{failed} failed{'' if run.end else ' so far'}."
    if run.limits and any(row.get("violation") is not None for row in ended):
        return "No trial keeps the limits."
    return "No trial has a finite value."


def _cards(run: RunData) -> Iterator[tuple[str, str, str]]:
    """Title, value and remark of each card."""
    m, best = run.manifest, run.best
    if m is not None:
        yield "Parameters", count(m.n_parameters), f"{len(run.onnx) / 1e6:,.2f} MB as ONNX"
        yield "Latency", f"{m.latency_ms:.2f}\u00a0ms", "an image, one thread, onnxruntime"
        calibration = m.calibration or {}
        if known(calibration.get("ece_after")):
            before = f"{percent(calibration['ece_before'], 1)} before the temperature"
            remark = "not calibrated" if calibration["by"] == "none" else before
            yield "Calibration error", percent(calibration["ece_after"], 1), remark
    elif best and known(parameters := _parameters(run, best["number"])):
        yield "Parameters", count(int(parameters or 0)), "of the best trial"
    if run.confirmed:
        yield from _confirmed(run)
    if run.own and run.storage.exists(layout.TUNED):
        tuned = Tuned.read(run.storage)
        before = f"{run.metric}; {tuned.manifest['value_before']:.4g} before"
        yield "By the second function", f"{tuned.value:.4g}", before
    if run.end is not None and run.end >= run.start:
        yield "Time", span((run.end - run.start).total_seconds()), "the whole run"
    if run.trials:
        stopped = sum(row["state"] == "PRUNED" for row in run.trials)
        yield "Trials", count(len(run.trials)), f"{stopped:,} stopped early"


def _confirmed(run: RunData) -> Iterator[tuple[str, str, str]]:
    """The card of the chosen trial's retrainings."""
    chosen, several = run.confirmed[0], len(run.confirmed)
    shown = percent if run.metric == "val_accuracy" else "{:.4g}".format
    low, high = min(chosen.values), max(chosen.values)
    longer = run.settings["confirm_epochs"]
    yield (
        "With fresh seeds",
        shown(chosen.mean),
        f"{shown(low)} to {shown(high)}, {shown(chosen.found)} in the search; "
        f"best of {several} trained again" + (f" for {longer} epochs" if longer else ""),
    )


def _parameters(run: RunData, number: int) -> float | None:
    found = (row["n_parameters"] for row in run.trials if row["number"] == number)
    return next(found, None)


def _files(run: RunData) -> list[str]:
    """The published files."""
    if run.manifest is None:
        return []
    picture = [layout.PICTURE] if run.manifest.picture else []
    return [layout.MODEL, *picture, layout.CARD]


def _link(run: RunData, name: str, out: str | None) -> str | None:
    """Relative to the page, so that a copied run's page still finds its files."""
    if out is None:
        return quote(name)
    local = run.storage.local_path
    return None if local is None else quote(Path(os.path.relpath(local / name, out)).as_posix())


def details_part(run: RunData) -> Markup:
    """Data, settings, machine, versions, digests, and the command."""
    raw = run.about.raw
    machine = raw.get("machine") or {}
    cpus = f"{machine['cpus']} CPUs" if machine.get("cpus") else None
    versions = {"Python": raw.get("python"), **(raw.get("versions") or {})}
    command = str(raw.get("command") or "")
    return render(
        "details.html",
        about=run.about,
        s=run.settings,
        m=run.manifest,
        trials=len(run.trials),
        limits=", ".join(map(str, run.limits)),
        kept=sum(row.get("violation") == 0 for row in run.trials),
        uri=run.storage.join(layout.MODEL),
        when=_when(run),
        where=[value for value in (machine.get("node"), cpus, machine.get("system")) if value],
        nodes=len({row["node"] for row in run.trials if row["node"]}),
        versions=[f"{name} {version}" for name, version in versions.items() if version],
        commit=raw.get("git_commit"),
        command=f"python {command}" if command.partition(" ")[0].endswith(".py") else command,
    )


def _when(run: RunData) -> str:
    start, end = run.start, run.end
    if end is None or end < start:  # a clock that was set back
        return f"from {start:%Y-%m-%d %H:%M} UTC"
    end_shown = f"{end:%H:%M}" if end.date() == start.date() else f"{end:%Y-%m-%d %H:%M}"
    return f"{start:%Y-%m-%d %H:%M} to {end_shown} UTC, {span((end - start).total_seconds())}"
