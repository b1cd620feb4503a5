"""The cost of a run: epochs saved by the scheduler, training speed, the use of the time."""

from dataclasses import dataclass
from itertools import accumulate
from statistics import median

from markupsafe import Markup

from mnist_ray.report.page import Table, count, percent, render, span
from mnist_ray.report.read import RunData, known

BY_SCHEDULER = "stopped by the scheduler"


def cost_part(run: RunData) -> Markup:
    """The cost as sentences and tables."""
    stopped, saved, seconds = saved_epochs(run)
    time = time_shares(run)
    return render(
        "cost.html",
        from_model=run.from_model,
        scheduler=run.settings["scheduler"],
        trials=len(run.trials),
        trained=sum(row["epochs"] for row in run.trials),
        stopped=stopped,
        saved=saved,
        seconds=seconds,
        time=time,
        time_table=_time(time) if time else None,
        speed=_speed(run),
    )


def saved_epochs(run: RunData) -> tuple[int, int, float]:
    """The trials that the scheduler stopped: how many, epochs saved, seconds at their own pace."""
    rows = [r for r in run.trials if (r["reason"] or "").startswith(BY_SCHEDULER) and r["epochs"]]
    left = [run.settings["max_epochs"] - row["epochs"] for row in rows]
    pace = [row["seconds"] / row["epochs"] for row in rows]
    return len(rows), sum(left), sum(n * s for n, s in zip(left, pace, strict=True))


@dataclass
class TimeShares:
    """The time of a search, in seconds."""

    wall: float  # from the first suggestion to the last trial's end
    workers: int  # most trials at a time
    inside: float  # within trials
    epochs: float  # within epochs

    @property
    def capacity(self) -> float:
        """All workers' time."""
        return self.wall * self.workers


def time_shares(run: RunData) -> TimeShares | None:
    """The use of the search's time; None if the trials' times are not known."""
    spans = run.spans
    if not spans:
        return None
    wall = (max(end for _, end in spans) - min(start for start, _ in spans)).total_seconds()
    inside = sum((end - start).total_seconds() for start, end in spans)
    # At equal times an end comes before a start.
    steps = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    workers = max(accumulate(step for _, step in steps))
    epochs = sum(row["seconds"] for row in run.trials)
    return TimeShares(wall, workers, inside, epochs) if wall > 0 and workers > 0 else None


def _time(time: TimeShares) -> Table:
    outside, idle = max(0, time.inside - time.epochs), max(0, time.capacity - time.inside)
    shares = {
        "in epochs (training and validation)": time.epochs,
        "in trials, outside their epochs (start, checkpoints, waiting for the scheduler)": outside,
        "workers without a trial": idle,
    }
    rows = [(name, span(s), percent(s / time.capacity, 1)) for name, s in shares.items()]
    return Table("Where the time went", ("workers’ time", "total", "share"), rows, whole=True)


def _speed(run: RunData) -> Table:
    rows = []
    for name, epochs in [("search", run.history), *((f"stage {n}", r) for n, r in run.stages)]:
        speeds = [r["images_per_second"] for r in epochs if known(r["images_per_second"])]
        if speeds:
            seconds = span(sum(row["seconds"] for row in epochs))
            speed = (count(round(measure(speeds))) for measure in (median, min, max))
            rows.append((name, count(len(epochs)), seconds, *speed))
    header = ("part", "epochs", "time in epochs", "images/s: median", "least", "most")
    return Table("Speed", header, rows)
