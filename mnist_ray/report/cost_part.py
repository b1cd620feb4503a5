"""What the run cost: what the scheduler saved, how fast the training was, and where the time went."""

import math
from itertools import accumulate
from statistics import median

from mnist_ray.report.page import Markup, count, percent, span, table
from mnist_ray.report.read import Run

BY_SCHEDULER = "stopped by the scheduler"


def cost_part(run: Run) -> Markup:
    return Markup(_saved(run) + _time(run) + _speed(run))


def saved_epochs(run: Run) -> tuple[int, int, float]:
    """How many trials the scheduler stopped, the epochs that they were spared, and the seconds at each trial's own pace."""
    stopped = [
        row for row in run.trials if row["reason"].startswith(BY_SCHEDULER) and row["epochs"]
    ]
    left = [run.settings["max_epochs"] - row["epochs"] for row in stopped]
    return (
        len(stopped),
        sum(left),
        sum(n * row["seconds"] / row["epochs"] for n, row in zip(left, stopped, strict=True)),
    )


def _saved(run: Run) -> str:
    trained = sum(row["epochs"] for row in run.trials)
    stopped, epochs, seconds = saved_epochs(run)
    if not trained:
        return "<p>No epoch has ended yet.</p>"
    if not stopped:
        return f"<p>The trials trained {trained:,} epochs; the scheduler ({run.settings['scheduler']}) stopped none.</p>"
    return (
        f"<p>The scheduler ({run.settings['scheduler']}) stopped {stopped} of {len(run.trials)} trials. That saved {epochs:,} of "
        f"{trained + epochs:,} epochs ({percent(epochs / (trained + epochs), 0)}), about {span(seconds)} of training at those "
        "trials’ own pace.</p>"
    )


def time_shares(run: Run) -> tuple[float, int, float, float] | None:
    """Of the search: seconds from the first suggestion to the last end, most trials at a time, seconds within trials, seconds in epochs.

    None where the times of the trials are not known.
    """
    spans = run.spans
    if not spans:
        return None
    wall = (max(end for _, end in spans) - min(start for start, _ in spans)).total_seconds()
    inside = sum((end - start).total_seconds() for start, end in spans)
    epochs = sum(row["seconds"] for row in run.trials)
    # At equal times an end comes before a start.
    steps = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    return wall, max(accumulate(step for _, step in steps)), inside, epochs


def _time(run: Run) -> str:
    shares = time_shares(run)
    if shares is None:
        return ""
    wall, workers, inside, epochs = shares
    capacity = wall * workers
    if capacity <= 0:
        return ""
    rows = [
        ("in epochs (training and validation)", span(epochs), percent(epochs / capacity, 1)),
        ("in trials, outside their epochs (start, checkpoints, waiting for the scheduler)", span(max(0, inside - epochs)),
         percent(max(0, inside - epochs) / capacity, 1)),
        ("workers without a trial", span(max(0, capacity - inside)), percent(max(0, capacity - inside) / capacity, 1)),
    ]  # fmt: skip
    return (
        f"<p>The search took {span(wall)} with up to {workers} trial{'s' if workers > 1 else ''} at a time, which makes {span(capacity)} "
        f"of workers’ time. <strong>{percent(max(0.0, 1 - epochs / capacity), 1)} of it was not spent training.</strong></p>"
        + table(("workers’ time", "total", "share"), rows, "Where the time went", "whole")
        + "<p class=note>From the first suggestion to the last trial’s end; a run that was interrupted counts the pause too.</p>"
    )


def _speed(run: Run) -> str:
    groups = [("search", run.history), *((f"stage {n}", rows) for n, rows in run.stages)]
    rows = []
    for name, epochs in groups:
        speeds = [
            r["images_per_second"]
            for r in epochs
            if r["images_per_second"] is not None and math.isfinite(r["images_per_second"])
        ]
        if speeds:
            seconds = sum(r["seconds"] for r in epochs)
            rows.append(
                (
                    name,
                    count(len(epochs)),
                    span(seconds),
                    *(count(round(f(speeds))) for f in (median, min, max)),
                )
            )
    if not rows:
        return ""
    header = ("part", "epochs", "time in epochs", "images/s: median", "least", "most")
    return (
        table(header, rows, "Speed")
        + "<p class=note>Training images a second, of each epoch and one worker; validation not counted.</p>"
    )
