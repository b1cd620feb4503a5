"""The head of a run's page: its result, its model, time and machine, and its command."""

from markupsafe import Markup

from mnist_ray.report.page import render, span
from mnist_ray.report.read import RunData
from mnist_ray.report.search_part import pareto_figures
from mnist_ray.run import layout


def header_part(run: RunData, out: str | None, prefix: str = "") -> Markup:
    """The head.

    Args:
        run: The run.
        out: The local folder of the page; None: the run's own directory, beside the model.
        prefix: Keeps the anchors of several runs apart.
    """
    local, raw = run.storage.local_path, run.about.raw
    if out is None:
        link: str | None = layout.MODEL
    else:
        link = (local / layout.MODEL).as_uri() if local is not None else None
    machine = raw.get("machine") or {}
    cpus = f"{machine['cpus']} CPUs" if machine.get("cpus") else None
    versions = {"Python": raw.get("python"), **(raw.get("versions") or {})}
    command = str(raw.get("command") or "")
    return render(
        "header.html",
        about=run.about,
        s=run.settings,
        m=run.manifest,
        best=run.best,
        trials=len(run.trials),
        front=next(pareto_figures(run), None) if run.objectives else None,
        prefix=prefix,
        limits=", ".join(map(str, run.limits)),
        kept=sum(row.get("violation") == 0 for row in run.trials),
        uri=run.storage.join(layout.MODEL),
        link=link,
        beside=out is None,
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
