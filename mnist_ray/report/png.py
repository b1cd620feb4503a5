"""The main figures once more, drawn by matplotlib: PNG files without a browser, for papers and READMEs."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed, and none is looked for

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from optuna.trial import TrialState
from optuna.visualization.matplotlib import plot_contour as optuna_contour

from mnist_ray import data
from mnist_ray.export.onnx_model import confidence_interval
from mnist_ray.report.chain_part import ACCURACIES, LOSSES, Step, accuracy_range, chain
from mnist_ray.report.model_part import Tested, as_pixels, calibration, confusion
from mnist_ray.report.read import Run, quiet_optuna, thinned, value_of, varied
from mnist_ray.report.search_part import LINES, NODES, contour_pairs, importances

BLUE, ORANGE, GREY = "#2f6fd0", "#d1601a", "#8f9bb0"
DPI = 160
SIZE = (6.4, 3.6)  # inches


def draw(run: Run, folder: Path, tested: Tested | None) -> list[Path]:
    """Draws what the run has into the folder, which is made; returns the files. tested: None where no model is published."""
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    # A style of its own: Optuna sets another one for the whole process.
    with quiet_optuna(), plt.style.context("default"):
        plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
        figures |= _search(run)
        if steps := chain(run):
            figures["chain"] = _chain(steps)
        if run.manifest is not None and tested is not None and tested.answers is not None:
            figures |= _model(tested, run.manifest["classes"], *tested.answers)
        figures |= _contours(run)
        files = []
        for name, figure in figures.items():
            files.append(folder / f"{name}.png")
            figure.savefig(files[-1], dpi=DPI, bbox_inches="tight", metadata={"Software": None})
            plt.close(figure)
    return files


def _search(run: Run) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    if run.completed:
        figures["history"] = _history(run)
    if any(t.intermediate_values for t in run.frozen):
        figures["intermediate"] = _intermediate(run)
    if len(run.completed) >= 2 and varied(run.completed):
        figures["importances"] = _importances(run)
    return figures


def _history(run: Run) -> Figure:
    figure, axes = plt.subplots(figsize=SIZE)
    numbers, values = [t.number for t in run.completed], [value_of(t) for t in run.completed]
    axes.plot(numbers, values, "o", color=BLUE, ms=4, label=f"{len(values)} complete trials")
    best = np.maximum.accumulate(values) if run.maximize else np.minimum.accumulate(values)
    axes.step(numbers, best, where="post", color=ORANGE, label="best so far")
    axes.set(xlabel="trial", ylabel=run.metric)
    axes.legend(frameon=False)
    return figure


def _intermediate(run: Run) -> Figure:
    figure, axes = plt.subplots(figsize=SIZE)
    trials = [t for t in run.frozen if t.intermediate_values and t.state != TrialState.FAIL]
    winner = run.best["number"] if run.best else None
    for trial in sorted(thinned(trials, LINES, run.maximize), key=lambda t: t.number == winner):
        steps = sorted(trial.intermediate_values)
        best, whole = trial.number == winner, trial.state == TrialState.COMPLETE
        colour, width, alpha = (ORANGE, 2.2, 1.0) if best else (BLUE if whole else GREY, 0.9, 0.6)
        axes.plot(
            steps,
            [trial.intermediate_values[step] for step in steps],
            marker="o",
            ms=2.5,
            color=colour,
            lw=width,
            alpha=alpha,
        )
    axes.set(xlabel="epoch", ylabel=run.metric)
    return figure


def _contours(run: Run) -> dict[str, Figure]:
    """Optuna's own, last, because it changes the style."""
    parameters = varied(run.completed)
    if len(run.completed) < 2 or not parameters:
        return {}
    some = thinned(run.completed, NODES, run.maximize)
    figures = {}
    axes: Any  # of one contour; Optuna's annotation allows for several
    for x, y in contour_pairs(some, parameters):
        axes = optuna_contour(run.study(some), params=[x, y], target_name=run.metric)
        axes.set_title("")
        figures[f"contour-{x}-{y}"] = axes.figure
    return figures


def _importances(run: Run) -> Figure:
    weights = importances(run)
    figure, axes = plt.subplots(figsize=(6, 0.6 + 0.28 * len(weights)))
    axes.barh(list(weights), list(weights.values()), color=BLUE)
    axes.invert_yaxis()
    axes.set_xlabel(f"importance for {run.metric} (PED-ANOVA)")
    return figure


def _chain(steps: list[Step]) -> Figure:
    figure, axes = plt.subplots(3, 1, sharex=True, figsize=(7, 6.5), height_ratios=[3, 3, 1.6])
    for panel, lines in zip(axes, (ACCURACIES, LOSSES), strict=False):
        for key, name, dash in lines:
            colour = GREY if name == "training" else BLUE
            for step in steps:
                x = [step.offset + row["epoch"] for row in step.rows]
                y = [np.nan if row[key] is None else row[key] for row in step.rows]
                if not np.isnan(y).all():
                    seen = any(line.get_label() == name for line in panel.lines)
                    style = ":" if dash == "dot" else "-"
                    panel.plot(
                        x, y, style, color=colour, marker="o", ms=3.5, label="_" if seen else name
                    )
    for step in steps:
        x = [step.offset + row["epoch"] for row in step.rows]
        axes[2].plot(x, [row["lr"] for row in step.rows], color=ORANGE, marker="o", ms=3.5)
        for panel in axes:
            if step.offset:
                panel.axvline(step.offset + 0.5, color=GREY, lw=0.8, ls="--")
        label = (
            step.name.replace("stage ", "S") if len(step.rows) < 3 and len(steps) > 2 else step.name
        )
        middle = step.offset + (len(step.rows) + 1) / 2
        axes[0].annotate(label, (middle, 1.02), xycoords=("data", "axes fraction"), ha="center")
    axes[0].set(ylabel="accuracy", ylim=accuracy_range(steps))
    axes[0].legend(frameon=False)
    axes[1].set(ylabel="loss", yscale="log")
    axes[2].set(ylabel="learning rate", xlabel="epoch of the chain")
    axes[2].xaxis.get_major_locator().set_params(integer=True)
    return figure


def _model(
    tested: Tested, classes: list[str], labels: np.ndarray, given: np.ndarray
) -> dict[str, Figure]:
    figures = {
        "confusion": _confusion(labels, given, classes),
        "calibration": _calibration(labels, given),
    }
    wrong = np.flatnonzero(given.argmax(1) != labels)
    if tested.images is not None and len(wrong):
        figures["wrong"] = _wrong(tested.images, given, wrong, classes)
    return figures


def _confusion(labels: np.ndarray, given: np.ndarray, classes: list[str]) -> Figure:
    matrix = confusion(labels, given.argmax(1), len(classes))
    size = 1.2 + 0.42 * len(classes)
    figure, axes = plt.subplots(figsize=(size, size))
    errors = matrix - np.diag(matrix.diagonal())
    axes.imshow(
        np.ma.masked_equal(errors, 0), cmap="Oranges", vmin=0, vmax=max(1.5 * errors.max(), 1)
    )
    for i, j in zip(*np.nonzero(matrix), strict=True):
        axes.text(j, i, f"{matrix[i, j]}", ha="center", va="center", fontsize=7.5)
    axes.set_xticks(range(len(classes)), classes, rotation=0 if max(map(len, classes)) < 3 else 90)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="taken for", ylabel="is")
    return figure


def _calibration(labels: np.ndarray, given: np.ndarray) -> Figure:
    bins, error = calibration(labels, given)
    figure, axes = plt.subplots(figsize=(4.2, 4.2))
    axes.plot([0, 1], [0, 1], "--", color=GREY, lw=1)
    accuracy = np.array([good / n for _, _, n, good, _ in bins])
    intervals = np.array([confidence_interval(good, n) for _, _, n, good, _ in bins])
    reach = np.abs(np.stack([accuracy - intervals[:, 0], intervals[:, 1] - accuracy]))
    axes.errorbar([b[4] for b in bins], accuracy, yerr=reach, fmt="o", color=BLUE, ms=4, lw=1.2)
    axes.set(xlabel="probability of the answer", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.text(0.03, 1.04, f"ECE {error:.2%}, n = {len(labels):,}", transform=axes.transAxes)
    return figure


def _wrong(test: data.Images, given: np.ndarray, wrong: np.ndarray, classes: list[str]) -> Figure:
    """The first hundred wrong answers, the surest first."""
    found = given.argmax(1)
    order = wrong[np.argsort(-given[wrong, found[wrong]], kind="stable")][:100]
    columns = min(10, len(order))
    rows = -(-len(order) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(0.85 * columns, 1.1 * rows), squeeze=False)
    for panel in axes.flat:
        panel.axis("off")
    for panel, i in zip(axes.flat, order.tolist(), strict=False):
        panel.imshow(as_pixels(test.images[i]), cmap="gray", vmin=0, vmax=255)
        panel.set_title(
            f"{classes[test.labels[i]]} → {classes[found[i]]}\n{given[i, found[i]]:.0%}", fontsize=7
        )
    return figure
