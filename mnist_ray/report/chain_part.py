"""The chain: the winning trial and the fine-tune stages after it, epoch by epoch on one axis."""

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.subplots import make_subplots

from mnist_ray.report.page import (
    BLUE,
    GREY,
    ORANGE,
    Figure,
    Table,
    count,
    interval,
    percent,
    render,
)
from mnist_ray.report.read import Row, RunData, known
from mnist_ray.run.publication import Manifest

ACCURACIES = (("train_accuracy", "training", "dot"), ("val_accuracy", "validation", "solid"))
LOSSES = (("train_loss", "training", "dot"), ("val_loss", "validation", "solid"))
COLUMNS = {
    "train_loss": "training loss", "train_accuracy": "training accuracy",
    "val_loss": "validation loss", "val_accuracy": "validation accuracy", "lr": "learning rate",
}  # fmt: skip


@dataclass
class Step:
    """One part of the chain: its rows, which begin `offset` epochs after the chain's beginning."""

    name: str
    rows: list[Row]
    offset: int

    @property
    def middle(self) -> float:
        """Its place on the axis of epochs."""
        return self.offset + (len(self.rows) + 1) / 2

    def label(self, steps: int) -> str:
        """Its name, short if there is no room among so many steps."""
        short = steps > 2 and len(self.rows) < 3
        return self.name.replace("stage ", "S") if short else self.name


def chain(run: RunData) -> list[Step]:
    """The winning trial, if the chain comes from one, and the stages."""
    steps = []
    if run.manifest:
        number = run.manifest.lineage[0].get("trial")
    else:
        number = run.best["number"] if run.best else None
    if number is not None:
        rows = [row for row in run.history if row["number"] == number]
        steps.append(Step(f"trial {number}", rows, 0))
    for n, rows in run.stages:
        offset = steps[-1].offset + len(steps[-1].rows) if steps else 0
        steps.append(Step(f"stage {n}", rows, offset))
    return [step for step in steps if step.rows]


def chain_part(run: RunData, prefix: str) -> Markup:
    """The chain as a figure and tables."""
    steps = chain(run)
    if not steps:
        return Markup(f"<p>{_gone(run) or 'No epoch has ended yet.'}</p>")
    figure = Figure(
        "chain", "Winning trial and stages", chain_figure(run, steps), _caption(run, steps),
        _epochs(steps), "Every epoch", height=680,
    )  # fmt: skip
    lineage = _lineage(run.manifest) if run.manifest else None
    return render(
        "chain.html", lineage=lineage, chain=figure, prefix=prefix, searched=run.only_searched
    )


def chain_figure(run: RunData, steps: list[Step]) -> go.Figure:
    """Accuracy, loss and learning rate above each other, over the chain's epochs."""
    figure = make_subplots(
        rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.4, 0.37, 0.23]
    )
    lines = [(1, *line) for line in ACCURACIES] + [(2, *line) for line in LOSSES]
    for row, key, name, dash in [*lines, (3, "lr", "learning rate", "solid")]:
        x, y, text = _line(steps, key)
        colour = {"training": GREY, "validation": BLUE}.get(name, ORANGE)
        if any(value is not None for value in y):
            figure.add_scatter(
                x=x, y=y, text=text, name=name, legendgroup=name, showlegend=row == 1,
                mode="lines+markers", line={"color": colour, "dash": dash, "width": 2},
                marker={"size": 6}, row=row, col=1,
                hovertemplate="%{text}: %{y:.4g}<extra>" + name + "</extra>",
            )  # fmt: skip
    _mark_chosen(figure, run, steps)
    for step in steps:
        if step.offset:
            line = {"width": 1, "dash": "dash", "color": GREY}
            figure.add_vline(x=step.offset + 0.5, line=line)
        figure.add_annotation(
            x=step.middle, y=1, xref="x", yref="paper", text=step.label(len(steps)),
            showarrow=False, yanchor="bottom", font={"size": 12},
        )  # fmt: skip
    last = steps[-1].offset + len(steps[-1].rows)
    accuracies = accuracy_range(steps)
    figure.update_yaxes(title_text="accuracy", tickformat="~%", range=accuracies, row=1, col=1)
    figure.update_yaxes(title_text="loss", type="log", row=2, col=1)
    figure.update_yaxes(title_text="learning rate", rangemode="tozero", row=3, col=1)
    figure.update_xaxes(range=[0.4, last + 0.6], dtick=1 if last <= 8 else None)
    figure.update_xaxes(title_text="epoch of the chain", row=3, col=1)
    figure.update_layout(margin={"t": 60, "r": 15, "b": 50, "l": 60}, legend={"y": 1.05})
    return figure


def _mark_chosen(figure: go.Figure, run: RunData, steps: list[Step]) -> None:
    """A circle around the trial's epoch whose weights the stages start from."""
    if run.manifest:
        chosen = run.manifest.lineage[0].get("epoch")
    else:
        chosen = run.best["epoch"] if run.best else None
    if run.confirmed or _anew(run):  # the weights are a retraining's, or random
        return
    if steps[0].name.startswith("trial") and chosen is not None and len(steps) > 1:
        value = next((r["val_accuracy"] for r in steps[0].rows if r["epoch"] == chosen), None)
        ring = {"symbol": "circle-open", "size": 15, "color": ORANGE, "line": {"width": 2.5}}
        figure.add_scatter(
            x=[chosen], y=[value], name="the chain goes on from here", mode="markers",
            marker=ring, hoverinfo="skip", row=1, col=1,
        )  # fmt: skip


def _anew(run: RunData) -> bool:
    """Whether the stages began from random weights: the first is stage 0 then."""
    if run.manifest:
        return any(entry["step"] == "stage-0" for entry in run.manifest.lineage)
    return any(number == 0 for number, _ in run.stages)


def _gone(run: RunData) -> str:
    """The sentence about stages whose curves are not the model's; empty if there are none."""
    if not run.retrained:
        return ""
    numbers = " and ".join(map(str, run.retrained))
    they = "it was" if len(run.retrained) == 1 else "they were"
    return f"The curves of stage {numbers} are gone: {they} trained again."


def accuracy_range(steps: list[Step]) -> list[float] | None:
    """The axis without the very first epoch, beside which all others would be one flat line."""
    rows = [row for step in steps for row in step.rows if step.offset + row["epoch"] > 1]
    values = [row[key] for row in rows for key, _, _ in ACCURACIES if known(row[key])]
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
        x += [*(step.offset + row["epoch"] for row in step.rows), None]
        y += [*(row[key] if known(row[key]) else None for row in step.rows), None]
        text += [*(f"{step.name}, epoch {row['epoch']}" for row in step.rows), ""]
    return x, y, text


def _caption(run: RunData, steps: list[Step]) -> str:
    text = (
        "The first epoch may lie below the accuracy’s axis. The loss, on a logarithmic axis, is "
        "the optimised one: label smoothing counts in training, not in validation. The learning "
        "rate is that of an epoch’s last step."
    )
    if run.stages and not any(known(row["val_loss"]) for _, rows in run.stages for row in rows):
        text += " The stages train on all training images, so none are left to validate on."
    if not steps[0].name.startswith("trial") and run.manifest:
        text += " The chain begins with an ONNX file, not with a trial."
    if _anew(run):
        text += " Stage 0 began from random weights."
    return f"{text} {_gone(run)}".rstrip()


def _epochs(steps: list[Step]) -> Table:
    rows: list[list[Any]] = []
    for step in steps:
        for row in step.rows:
            speed = row["images_per_second"]
            shown_speed = count(round(speed)) if known(speed) else None
            values = (row[key] for key in COLUMNS)
            rows.append([step.name, row["epoch"], *values, shown_speed, row["seconds"]])
    header = ["step", "epoch", *COLUMNS.values(), "images/s", "s"]
    return Table("Every epoch of the chain", header, rows)


def _lineage(manifest: Manifest) -> Table:
    """The published steps with their test accuracies."""
    n, rows = manifest.test_images, []
    settings = {
        "epochs": "epochs", "batch_size": "batch", "lr": "learning rate", "optimizer": "optimiser",
        "schedule": "schedule",
    }  # fmt: skip
    for entry in manifest.lineage:
        measured: list[str | None] = [None, None, None]
        if "test_accuracy" in entry:  # the published step alone, unless --test-steps
            right = round(entry["test_accuracy"] * n)
            measured = [percent(right / n), count(n - right), interval(right, n)]
        validation = percent(entry.get("val_accuracy"))
        rows.append([entry["step"], *map(entry.get, settings), validation, *measured])
    measures = ["validation", f"test, n = {n:,}", "errors", "95 % interval"]
    return Table("The steps of the chain", ["step", *settings.values(), *measures], rows)
