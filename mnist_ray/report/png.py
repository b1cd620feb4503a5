"""The main figures once more, drawn by matplotlib: PNG files without a browser, for papers and READMEs."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed, and none is looked for

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from optuna.trial import TrialState
from optuna.visualization import matplotlib as draw_optuna

from mnist_ray import data
from mnist_ray.onnx_model import confidence_interval
from mnist_ray.report.chain_part import ACCURACIES, LOSSES, Step, chain
from mnist_ray.report.model_part import Tested, as_pixels, calibration, confusion
from mnist_ray.report.read import Run, quiet_optuna, thinned, varied
from mnist_ray.report.search_part import LINES, POINTS, contour_pairs, importances

BLUE, ORANGE, GREY = "#2f6fd0", "#d1601a", "#8f9bb0"
DPI = 160


def draw(run: Run, folder: Path, test: Tested | None) -> list[Path]:
    """Draws what the run has into the folder, which is made; returns the files. test: None where no model is published."""
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    with quiet_optuna(), plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figures |= _search(run)
        if steps := chain(run):
            figures["chain"] = _chain(steps)
        if run.manifest is not None and test is not None and test.answers is not None:
            figures |= _model(test, run.manifest["classes"], *test.answers)
        files = []
        for name, figure in figures.items():
            files.append(folder / f"{name}.png")
            figure.savefig(files[-1], dpi=DPI, bbox_inches="tight", metadata={"Software": None})
            plt.close(figure)
    return files


def _search(run: Run) -> dict[str, Figure]:
    figures: dict[str, Any] = {}
    done = run.completed
    if done:
        figures["history"] = draw_optuna.plot_optimization_history(run.gapless(), target_name=run.metric)
    going = [t for t in run.frozen if t.intermediate_values and t.state != TrialState.FAIL]
    if going:
        figures["intermediate"] = draw_optuna.plot_intermediate_values(run.study(thinned(going, LINES, run.maximize)))
        if figures["intermediate"].get_legend():
            figures["intermediate"].get_legend().remove()
    parameters = varied(done)
    if len(done) >= 2 and parameters:
        order = list(importances(run, parameters))
        figures["importances"] = _importances(run, parameters)
        some = thinned(done, POINTS, run.maximize)
        for x, y in contour_pairs(some, order):
            figures[f"contour-{x}-{y}"] = draw_optuna.plot_contour(run.study(some), params=[x, y], target_name=run.metric)
    for axes in figures.values():
        axes.set_title("")
    return {name: axes.figure for name, axes in figures.items()}


def _importances(run: Run, parameters: list[str]) -> Any:
    weights = importances(run, parameters)
    axes = plt.subplots(figsize=(6, 0.6 + 0.28 * len(weights)))[1]
    axes.barh(list(weights), list(weights.values()), color=BLUE)
    axes.invert_yaxis()
    axes.set_xlabel(f"importance for {run.metric} (PED-ANOVA)")
    return axes


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
                    panel.plot(x, y, style, color=colour, marker="o", ms=3.5, label="_" if seen else name)
    for step in steps:
        x = [step.offset + row["epoch"] for row in step.rows]
        axes[2].plot(x, [row["lr"] for row in step.rows], color=ORANGE, marker="o", ms=3.5)
        for panel in axes:
            if step.offset:
                panel.axvline(step.offset + 0.5, color=GREY, lw=0.8, ls="--")
        label = step.name.replace("stage ", "S") if len(step.rows) < 3 and len(steps) > 2 else step.name
        middle = step.offset + (len(step.rows) + 1) / 2
        axes[0].annotate(label, (middle, 1.02), xycoords=("data", "axes fraction"), ha="center")
    axes[0].set_ylabel("accuracy")
    axes[0].legend(frameon=False)
    axes[1].set(ylabel="loss", yscale="log")
    axes[2].set(ylabel="learning rate", xlabel="epoch of the chain")
    return figure


def _model(test: Tested, classes: list[str], labels: np.ndarray, given: np.ndarray) -> dict[str, Figure]:
    figures = {"confusion": _confusion(labels, given, classes), "calibration": _calibration(labels, given)}
    wrong = np.flatnonzero(given.argmax(1) != labels)
    if test.images is not None and len(wrong):
        figures["wrong"] = _wrong(test.images, given, wrong, classes)
    return figures


def _confusion(labels: np.ndarray, given: np.ndarray, classes: list[str]) -> Figure:
    matrix = confusion(labels, given.argmax(1), len(classes))
    size = 1.2 + 0.42 * len(classes)
    figure, axes = plt.subplots(figsize=(size, size))
    errors = matrix - np.diag(matrix.diagonal())
    axes.imshow(errors, cmap="Oranges", vmin=0, vmax=max(1.5 * errors.max(), 1))
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
    axes.errorbar([b[4] for b in bins], accuracy, yerr=reach, fmt="o-", color=BLUE, ms=4, lw=1.2)
    axes.set(xlabel="probability of the answer", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.text(0.03, 0.95, f"ECE {error:.2%}, n = {len(labels):,}", transform=axes.transAxes)
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
        panel.set_title(f"{classes[test.labels[i]]} → {classes[found[i]]}\n{given[i, found[i]]:.0%}", fontsize=7)
    return figure
