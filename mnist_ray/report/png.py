"""The main figures drawn by matplotlib: PNG files without a browser, for papers and READMEs."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed, and none is looked for

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from optuna.trial import TrialState
from optuna.visualization.matplotlib import plot_contour as optuna_contour

from mnist_ray.export.session import reliability
from mnist_ray.report.chain_part import ACCURACIES, LOSSES, Step, accuracy_range, chain
from mnist_ray.report.model_part import (
    Answers,
    Tested,
    load_tested,
    reach,
    wrong_answers,
)  # fmt: skip
from mnist_ray.report.network_part import as_pixels
from mnist_ray.report.page import BLUE, GREY
from mnist_ray.report.read import (
    RunData,
    feasible,
    quiet_optuna,
    read_run,
    thinned,
    value_of,
    varied,
)
from mnist_ray.report.search_figures import LINES, NODES, contour_pairs, ped_anova
from mnist_ray.storage import RunStorage
from mnist_ray.study import importance
from mnist_ray.training.metrics import confusion

ORANGE = "#d1601a"
DPI = 160
LONGEST_NAME = 60  # characters of a file's name, of up to four bytes each
SIZE = (6.4, 3.6)  # inches


def draw_run(storage: RunStorage, folder: Path, data_dir: str | None) -> list[Path]:
    """Draws the run's figures into the folder, which is made; returns the files."""
    run = read_run(storage)
    tested = load_tested(run, data_dir, None) if run.manifest else None
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    # A style of its own: Optuna sets another one for the whole process.
    with quiet_optuna(), plt.style.context("default"):
        plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
        plt.rcParams["text.parse_math"] = False  # names with a $ are no formulas
        for name, figure in [*_figures(run, tested), *_contours(run)]:
            _read_powers(figure)
            files.append(folder / f"{_file_name(name, [path.stem for path in files])}.png")
            figure.savefig(files[-1], dpi=DPI, bbox_inches="tight", metadata={"Software": None})
            plt.close(figure)
    return files


def _read_powers(figure: Figure) -> None:
    """Has the ticks of logarithmic axes read as formulas: they are the only texts that are one."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if axis.get_scale() == "log":
            for label in axis.get_ticklabels(which="both"):
                label.set_parse_math(True)


def _file_name(name: str, taken: list[str]) -> str:
    """A figure's name as a file's: a parameter may be called `opt/lr`, or anything else.

    Args:
        name: It may hold names of parameters.
        taken: Names of other files in the folder, which may not tell small letters from large.
    """
    plain = re.sub(r"[^\w.-]", "_", name)[:LONGEST_NAME]
    lower = {each.lower() for each in taken}
    found, n = plain, 1
    while found.lower() in lower:
        n += 1
        found = f"{plain}-{n}"
    return found


def _figures(run: RunData, tested: Tested | None) -> Iterator[tuple[str, Figure]]:
    if run.completed:
        yield "history", _history(run)
    if any(t.intermediate_values for t in run.frozen):
        yield "intermediate", _intermediate(run)
    if weights := ped_anova(run):
        yield "importances", _importances(run, weights)
    if not run.own and (steps := chain(run)):
        yield "chain", _chain(steps)
    if run.manifest is not None and tested is not None and tested.answers is not None:
        classes = list(run.manifest.classes)
        yield "confusion", _confusion(tested.answers, classes)
        yield "calibration", _calibration(tested.answers)
        if tested.images is not None and (wrong := wrong_answers(*tested.answers)):
            yield "wrong", _wrong(tested.images.images, tested.answers, wrong[:100], classes)


def _history(run: RunData) -> Figure:
    figure, axes = plt.subplots(figsize=SIZE)
    numbers, values = [t.number for t in run.completed], [value_of(t) for t in run.completed]
    axes.plot(numbers, values, "o", color=BLUE, ms=4, label=f"{len(values)} complete trials")
    # A trial that breaks a limit is none of the best; fmax and fmin pass NaN over.
    kept = [value_of(t) if feasible(t) else np.nan for t in run.completed]
    best = (np.fmax if run.maximize else np.fmin).accumulate(kept)
    axes.step(numbers, best, where="post", color=ORANGE, label="best so far")
    axes.set(xlabel="trial", ylabel=run.metric)
    axes.legend(frameon=False)
    return figure


def _intermediate(run: RunData) -> Figure:
    figure, axes = plt.subplots(figsize=SIZE)
    trials = [t for t in run.frozen if t.intermediate_values and t.state != TrialState.FAIL]
    winner = run.best["number"] if run.best else None
    for trial in sorted(thinned(trials, LINES, run.maximize), key=lambda t: t.number == winner):
        steps = sorted(trial.intermediate_values)
        values = [trial.intermediate_values[step] for step in steps]
        look: dict[str, Any] = {"color": ORANGE, "lw": 2.2}
        if trial.number != winner:
            colour = BLUE if trial.state == TrialState.COMPLETE else GREY
            look = {"color": colour, "lw": 0.9, "alpha": 0.6}
        axes.plot(steps, values, marker="o", ms=2.5, **look)
    axes.set(xlabel="epoch", ylabel=run.metric)
    return figure


def _contours(run: RunData) -> Iterator[tuple[str, Figure]]:
    """Optuna's own, last, because it changes the style."""
    if len(run.completed) < importance.FEWEST:
        return
    some = thinned(run.completed, NODES, run.maximize)
    axes: Any  # of one contour; Optuna's annotation allows for several
    for x, y in contour_pairs(some, varied(run.completed)):
        axes = optuna_contour(run.study(some), params=[x, y], target_name=run.metric)
        axes.set_title("")
        yield f"contour-{x}-{y}", axes.figure


def _importances(run: RunData, weights: dict[str, float]) -> Figure:
    figure, axes = plt.subplots(figsize=(6, 0.6 + 0.28 * len(weights)))
    axes.barh(list(weights), list(weights.values()), color=BLUE)
    axes.invert_yaxis()
    axes.set_xlabel(f"importance for {run.metric} (PED-ANOVA)")
    return figure


def _chain(steps: list[Step]) -> Figure:
    figure, axes = plt.subplots(3, 1, sharex=True, figsize=(7, 6.5), height_ratios=[3, 3, 1.6])
    for panel, lines in zip(axes, (ACCURACIES, LOSSES), strict=False):
        for key, name, dash in lines:
            colour, style = GREY if name == "training" else BLUE, ":" if dash == "dot" else "-"
            for step in steps:
                x = [step.offset + row["epoch"] for row in step.rows]
                y = [np.nan if row[key] is None else row[key] for row in step.rows]
                if not np.isnan(y).all():
                    seen = any(line.get_label() == name for line in panel.lines)
                    look = {"color": colour, "marker": "o", "ms": 3.5}
                    panel.plot(x, y, style, label="_" if seen else name, **look)
    for step in steps:
        x = [step.offset + row["epoch"] for row in step.rows]
        axes[2].plot(x, [row["lr"] for row in step.rows], color=ORANGE, marker="o", ms=3.5)
        for panel in axes:
            if step.offset:
                panel.axvline(step.offset + 0.5, color=GREY, lw=0.8, ls="--")
        place = {"xycoords": ("data", "axes fraction"), "ha": "center"}
        axes[0].annotate(step.label(len(steps)), (step.middle, 1.02), **place)
    axes[0].set(ylabel="accuracy", ylim=accuracy_range(steps))
    axes[0].legend(frameon=False)
    axes[1].set(ylabel="loss", yscale="log")
    axes[2].set(ylabel="learning rate", xlabel="epoch of the chain")
    axes[2].xaxis.get_major_locator().set_params(integer=True)
    return figure


def _confusion(answers: Answers, classes: list[str]) -> Figure:
    labels, given = answers
    matrix = confusion(labels, given.argmax(1), len(classes))
    size = 1.2 + 0.42 * len(classes)
    figure, axes = plt.subplots(figsize=(size, size))
    errors = matrix - np.diag(matrix.diagonal())
    shades = np.ma.masked_equal(errors, 0)
    axes.imshow(shades, cmap="Oranges", vmin=0, vmax=max(1.5 * errors.max(), 1))
    for i, j in zip(*np.nonzero(matrix), strict=True):
        axes.text(j, i, f"{matrix[i, j]}", ha="center", va="center", fontsize=7.5)
    axes.set_xticks(range(len(classes)), classes, rotation=0 if max(map(len, classes)) < 3 else 90)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="taken for", ylabel="is")
    return figure


def _calibration(answers: Answers) -> Figure:
    bins, error = reliability(*answers)
    figure, axes = plt.subplots(figsize=(4.2, 4.2))
    axes.plot([0, 1], [0, 1], "--", color=GREY, lw=1)
    mean, accuracy = [bin.mean for bin in bins], [bin.accuracy for bin in bins]
    bars = np.abs(reach(bins))
    axes.errorbar(mean, accuracy, yerr=bars, fmt="o", color=BLUE, ms=4, lw=1.2)
    axes.set(xlabel="probability of the answer", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    n = len(answers[0])
    axes.text(0.03, 1.04, f"ECE {error:.2%}, n = {n:,}", transform=axes.transAxes)
    return figure


def _wrong(images: np.ndarray, answers: Answers, wrong: list[int], classes: list[str]) -> Figure:
    """The first hundred wrong answers, the surest first."""
    labels, given = answers
    columns = min(10, len(wrong))
    rows = -(-len(wrong) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(0.85 * columns, 1.1 * rows), squeeze=False)
    for panel in axes.flat:
        panel.axis("off")
    for panel, i in zip(axes.flat, wrong, strict=False):
        found = given[i].argmax()
        panel.imshow(as_pixels(images[i]), cmap="gray", vmin=0, vmax=255)
        title = f"{classes[labels[i]]} → {classes[found]}\n{given[i, found]:.0%}"
        panel.set_title(title, fontsize=7)
    return figure
