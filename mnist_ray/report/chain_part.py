"""The chain: the winning trial and the fine-tune stages after it, epoch by epoch on one axis."""

import math
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mnist_ray.export.onnx_model import confidence_interval
from mnist_ray.report.page import Figure, Markup, count, numbers, percent, table
from mnist_ray.report.read import Run
from mnist_ray.run.records import Row

ACCURACIES = (("train_accuracy", "training", "dot"), ("val_accuracy", "validation", "solid"))
LOSSES = (("train_loss", "training", "dot"), ("val_loss", "validation", "solid"))


@dataclass
class Step:
    """One part of the chain: `rows` as in history.parquet, `offset` epochs after the chain's beginning."""

    name: str
    rows: list[Row]
    offset: int


def chain(run: Run) -> list[Step]:
    """The winning trial, where the chain comes from one, and the stages."""
    steps = []
    start = run.manifest["lineage"][0] if run.manifest else None
    number = start.get("trial") if start else run.best["number"] if run.best else None
    if number is not None:
        steps.append(
            Step(f"trial {number}", [row for row in run.history if row["number"] == number], 0)
        )
    for n, rows in run.stages:
        offset = steps[-1].offset + len(steps[-1].rows) if steps else 0
        steps.append(Step(f"stage {n}", rows, offset))
    return [step for step in steps if step.rows]


def chain_part(run: Run, prefix: str) -> Markup:
    steps = chain(run)
    if not steps:
        return Markup("<p>No epoch has ended yet.</p>")
    figure = Figure(
        "chain",
        "Winning trial and stages",
        chain_figure(run, steps),
        _caption(run, steps),
        numbers("Every epoch", _epochs(steps)),
        height=680,
    )
    return Markup(f"{_lineage(run)}{figure.html(prefix)}")


def chosen_epoch(run: Run) -> int | None:
    """The trial's epoch whose weights the chain goes on from."""
    if run.manifest:
        return run.manifest["lineage"][0].get("epoch")
    return run.best["epoch"] if run.best else None


def chain_figure(run: Run, steps: list[Step]) -> go.Figure:
    """Accuracy, loss and learning rate above each other, over the chain's epochs."""
    figure = make_subplots(
        rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.4, 0.37, 0.23]
    )
    colours = {"training": "#8f9bb0", "validation": "#2f6fd0"}
    for row, lines in ((1, ACCURACIES), (2, LOSSES)):
        for key, name, dash in lines:
            x, y, text = _line(steps, key)
            if any(v is not None for v in y):
                figure.add_scatter(
                    x=x, y=y, text=text, name=name, legendgroup=name, showlegend=row == 1, mode="lines+markers", row=row, col=1,
                    line={"color": colours[name], "dash": dash, "width": 2}, marker={"size": 6},
                    hovertemplate="%{text}: %{y:.4f}<extra>" + name + "</extra>",
                )  # fmt: skip
    x, y, text = _line(steps, "lr")
    figure.add_scatter(
        x=x, y=y, text=text, name="learning rate", mode="lines+markers", showlegend=False, row=3, col=1,
        line={"color": "#eb8a3a", "width": 2}, marker={"size": 6}, hovertemplate="%{text}: %{y:.3g}<extra>learning rate</extra>",
    )  # fmt: skip
    best = chosen_epoch(run)
    if steps[0].name.startswith("trial") and best is not None and len(steps) > 1:
        value = next((r["val_accuracy"] for r in steps[0].rows if r["epoch"] == best), None)
        figure.add_scatter(
            x=[best], y=[value], name="the chain goes on from here", mode="markers", row=1, col=1,
            marker={"symbol": "circle-open", "size": 15, "color": "#eb8a3a", "line": {"width": 2.5}}, hoverinfo="skip",
        )  # fmt: skip
    for step in steps:
        if step.offset:
            figure.add_vline(
                x=step.offset + 0.5, line={"width": 1, "dash": "dash", "color": "#8f9bb0"}
            )
        short = len(steps) > 2 and len(step.rows) < 3
        figure.add_annotation(
            x=step.offset + (len(step.rows) + 1) / 2, y=1, xref="x", yref="paper", 
            text=step.name.replace("stage ", "S") if short else step.name, showarrow=False, yanchor="bottom", font={"size": 12},
        )  # fmt: skip
    last = steps[-1].offset + len(steps[-1].rows)
    figure.update_yaxes(
        title_text="accuracy", tickformat="~%", range=accuracy_range(steps), row=1, col=1
    )
    figure.update_yaxes(title_text="loss", type="log", row=2, col=1)
    figure.update_yaxes(title_text="learning rate", rangemode="tozero", row=3, col=1)
    figure.update_xaxes(range=[0.4, last + 0.6], dtick=1 if last <= 8 else None)
    figure.update_xaxes(title_text="epoch of the chain", row=3, col=1)
    figure.update_layout(margin={"t": 60, "r": 15, "b": 50, "l": 60}, legend={"y": 1.05})
    return figure


def accuracy_range(steps: list[Step]) -> list[float] | None:
    """From the lowest accuracy after the very first epoch, which is so far below the others that they would be one flat line."""
    values = [
        row[key]
        for step in steps
        for row in step.rows
        if step.offset + row["epoch"] > 1
        for key, _, _ in ACCURACIES
        if _known(row[key])
    ]
    if not values:
        return None
    margin = 0.06 * max(1 - min(values), 0.001)
    return [min(values) - margin, 1 + margin]


def _line(steps: list[Step], key: str) -> tuple[list[float | None], list[float | None], list[str]]:
    """Points of one line, broken between the steps."""
    x: list[float | None] = []
    y: list[float | None] = []
    text = []
    for step in steps:
        for row in step.rows:
            x.append(step.offset + row["epoch"])
            y.append(row[key] if _known(row[key]) else None)
            text.append(f"{step.name}, epoch {row['epoch']}")
        x.append(None)
        y.append(None)
        text.append("")
    return x, y, text


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _caption(run: Run, steps: list[Step]) -> str:
    text = (
        "The first epoch may lie below the accuracy’s axis. The loss, on a logarithmic axis, is that which was optimised: label smoothing "
        "included in training, not in validation. "
    )
    text += "The learning rate is that of an epoch’s last step."
    if run.stages and not any(_known(row["val_loss"]) for _, rows in run.stages for row in rows):
        text += " The stages train on all training images, so none are left to validate on."
    if not steps[0].name.startswith("trial") and run.manifest:
        text += " The chain begins with an ONNX file, not with a trial."
    return text


def _epochs(steps: list[Step]) -> Markup:
    header = [
        "step",
        "epoch",
        "training loss",
        "training accuracy",
        "validation loss",
        "validation accuracy",
        "learning rate",
        "images/s",
        "s",
    ]
    keys = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr")
    rows = [
        [
            step.name,
            row["epoch"],
            *(row[key] for key in keys),
            count(round(row["images_per_second"])),
            row["seconds"],
        ]
        for step in steps
        for row in step.rows
    ]
    return table(header, rows, "Every epoch of the chain")


def _lineage(run: Run) -> Markup:
    """The published steps with their test accuracies."""
    if run.manifest is None:
        return Markup("<p>The fine-tuning has not ended yet: this is the search’s best trial.</p>")
    n = run.manifest["test_images"]
    rows = []
    for entry in run.manifest["lineage"]:
        right = round(entry["test_accuracy"] * n)
        low, high = confidence_interval(right, n)
        rows.append(
            [
                entry["step"], entry.get("epochs"), entry.get("batch_size"), entry.get("lr"), entry.get("optimizer"), entry.get("schedule"),
                percent(entry.get("val_accuracy")), percent(right / n), count(n - right), f"{percent(low)} to {percent(high)}",
            ]
        )  # fmt: skip
    header = [
        "step",
        "epochs",
        "batch",
        "learning rate",
        "optimiser",
        "schedule",
        "validation",
        f"test, n = {n:,}",
        "errors",
        "95 % interval",
    ]
    return Markup(
        table(header, rows, "The steps of the chain")
        + "<p class=note>Every step was measured on the test images once, after the last had ended; none was chosen by it.</p>"
    )
