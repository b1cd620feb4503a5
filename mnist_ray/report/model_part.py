"""The published model: its layers, what it gets wrong, how far its probabilities can be believed, and what its first layer sees."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from plotly.subplots import make_subplots
from torch import Tensor, nn

from mnist_ray import data
from mnist_ray.errors import SettingsError
from mnist_ray.export.onnx_model import Session, confidence_interval, probabilities, rebuild
from mnist_ray.report.page import Figure, Markup, count, esc, numbers, percent, picture, table
from mnist_ray.report.read import Run
from mnist_ray.run import predictions

BINS = 15  # of equal width, as in Guo et al. 2017
MOST_WRONG = 2000  # pictures of wrong answers; more would make the page heavy without telling more
MOST_MAPS = 64  # filters and activation maps
USUAL = {
    "eps=1e-05", "momentum=0.1", "affine=True", "bias=True", "track_running_stats=True", "inplace=True", "inplace=False", "dilation=1",
    "ceil_mode=False", "stride=(1, 1)", "start_dim=1", "end_dim=-1", "padding=0", "approximate='none'",
}  # fmt: skip


Answers = tuple[
    np.ndarray, np.ndarray
]  # labels int64 [n] and the model's probabilities float64 [n, classes]


@dataclass
class Tested:
    """What is known of a run's test images: the images, where they are at hand, else why not, and the model's answers to them."""

    images: data.Images | None
    why_not: str
    answers: Answers | None


def load_tested(run: Run, data_dir: str | None, images: data.Images | None) -> Tested:
    """Loads the test images of a run with a model, and its answers from predictions.parquet or, without that, by running it."""
    assert run.manifest is not None
    why_not = ""
    if images is None:
        images, why_not = _load(run, data_dir)
    kept = predictions.read(run.storage, run.manifest["sha256"])
    if kept is None and images is not None:
        kept = (
            images.labels,
            Session(run.onnx, run.storage.join("model.onnx")).logits(images.images),
        )
    if kept is None:
        return Tested(None, why_not, None)
    if images is not None and not np.array_equal(kept[0], images.labels):
        images, why_not = (
            None,
            "the test images at hand are not those that the model was measured on",
        )
    return Tested(images, why_not, (kept[0], probabilities(kept[1].astype(np.float64))))


def _load(run: Run, data_dir: str | None) -> tuple[data.Images | None, str]:
    name = run.about["data"]["name"]
    if name not in data.DATASETS:
        # run.json may come from elsewhere: it must not choose what code runs here.
        return None, f"the data set {name} is not one of this package’s"
    try:
        return data.load(name, "test", data_dir or run.settings["data_dir"], download=False), ""
    except SettingsError as error:
        return None, f"the test images are not here ({error})"


def model_part(run: Run, test: Tested, prefix: str) -> Markup:
    """The part of a run with a model."""
    assert run.manifest is not None
    parts: list[str] = []
    if test.answers is None:
        parts.append(
            f"<p>What the model answers on the test images is not shown: {esc(test.why_not)}.</p>"
        )
    else:
        labels, given = test.answers
        classes = run.manifest["classes"]
        parts += [_confusion(labels, given, classes), _per_class(labels, given, classes)]
        parts += [_wrong(labels, given, classes, test), _calibration(labels, given).html(prefix)]
    return Markup("\n".join([_architecture(run, test.images), *parts]))


# ---- answers


def confusion(labels: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes, classes]: how many images of each class (rows) were taken for each (columns)."""
    return np.bincount(labels * classes + found, minlength=classes**2).reshape(classes, classes)


def _confusion(labels: np.ndarray, given: np.ndarray, classes: list[str]) -> Markup:
    matrix = confusion(labels, given.argmax(1), len(classes))
    most = max(1, int((matrix - np.diag(matrix.diagonal())).max()))

    def cell(i: int, j: int) -> str:
        n = int(matrix[i, j])
        if i == j:
            return f"<td class=right>{n:,}</td>"
        return (
            f'<td class=wrong-cell style="--a:{0.15 + 0.6 * n / most:.2f}">{n:,}</td>'
            if n
            else "<td></td>"
        )

    head = "".join(f"<th scope=col>{esc(c)}</th>" for c in classes)
    body = "\n".join(
        f"<tr><th scope=row>{esc(c)}</th>{''.join(cell(i, j) for j in range(len(classes)))}</tr>"
        for i, c in enumerate(classes)
    )
    return Markup(
        "<figure><h3>Confusion matrix</h3>"
        '<div class="scroll confusion" tabindex=0 role=region aria-label="Confusion matrix"><table>'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f"<figcaption>Rows: what the {len(labels):,} test images are; columns: what the model took them for.</figcaption></figure>"
    )


def _per_class(labels: np.ndarray, given: np.ndarray, classes: list[str]) -> Markup:
    right = given.argmax(1) == labels
    rows = []
    for i, name in enumerate(classes):
        of_class = labels == i
        n, good = int(of_class.sum()), int(right[of_class].sum())
        if n:
            low, high = confidence_interval(good, n)
            rows.append(
                (
                    f"{name}",
                    count(n),
                    count(n - good),
                    percent(good / n),
                    f"{percent(low)} to {percent(high)}",
                )
            )
    return Markup(
        "<figure><h3>Accuracy of each class</h3>"
        + table(
            ("class", "images", "errors", "accuracy", "95 % interval (Wilson)"),
            rows,
            "Accuracy of each class",
        )
        + "</figure>"
    )


def _wrong(labels: np.ndarray, given: np.ndarray, classes: list[str], test: Tested) -> Markup:
    found = given.argmax(1)
    index = np.flatnonzero(found != labels)
    index = index[np.argsort(-given[index, found[index]], kind="stable")]
    title = f"<h3>Every wrong answer ({len(index):,} of {len(labels):,})</h3>"
    if not len(index):
        return Markup("<figure><h3>Every wrong answer</h3><p>There is none.</p></figure>")
    shown = index[:MOST_WRONG]
    cards = []
    for i in shown.tolist():
        truth, taken = classes[labels[i]], classes[found[i]]
        sure, hoped = percent(given[i, found[i]], 1), percent(given[i, labels[i]], 1)
        image = (
            ""
            if test.images is None
            else picture(
                as_pixels(test.images.images[i]),
                f"test image {i}: {truth}, taken for {taken}",
                84,
                84,
            )
        )
        cards.append(
            f"<figure>{image}<strong>{esc(truth)}</strong> taken for <strong>{esc(taken)}</strong> at {sure}"
            f"<br><span>{esc(truth)} had {hoped} · no.\u00a0{i}</span></figure>"
        )
    caption = "The surest first: the truth, what it was taken for and with which probability; below, the truth’s own and the image’s number."
    if len(shown) < len(index):
        caption += f" Shown are the {len(shown):,} surest of the {len(index):,}."
    if test.images is None:
        caption += f" Without pictures: {test.why_not}."
    return Markup(
        f"<figure>{title}<figcaption>{esc(caption)}</figcaption><div class=wrong>{''.join(cards)}</div></figure>"
    )


def as_pixels(image: np.ndarray) -> np.ndarray:
    """uint8 [C, H, W] as a picture: [H, W, 3] where there are three channels, else the first as [H, W]."""
    return image.transpose(1, 2, 0) if len(image) == 3 else image[0]


def calibration(
    labels: np.ndarray, given: np.ndarray
) -> tuple[list[tuple[float, float, int, int, float]], float]:
    """Bins that hold an image, as (low, high, images, right ones, mean probability), and the expected calibration error.

    given: probabilities [n, classes]. The error is the mean distance of probability and accuracy over the bins, weighted by their
    images (Guo et al. 2017, "On Calibration of Modern Neural Networks").
    """
    sure, right = given.max(1), given.argmax(1) == labels
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    bins, error = [], 0.0
    for b in range(BINS):
        inside = place == b
        n = int(inside.sum())
        if n:
            good, mean = int(right[inside].sum()), float(sure[inside].mean())
            bins.append((b / BINS, (b + 1) / BINS, n, good, mean))
            error += n / len(labels) * abs(good / n - mean)
    return bins, error


def _calibration(labels: np.ndarray, given: np.ndarray) -> Figure:
    bins, error = calibration(labels, given)
    intervals = [confidence_interval(good, n) for _, _, n, good, _ in bins]
    accuracy = [good / n for _, _, n, good, _ in bins]
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.72, 0.28]
    )
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="as it should be", line={"dash": "dash", "width": 1, "color": "#8f9bb0"}, hoverinfo="skip",
        row=1, col=1,
    )  # fmt: skip
    figure.add_scatter(
        x=[b[4] for b in bins], y=accuracy, mode="markers", name="the model", marker={"size": 9, "color": "#2f6fd0"}, row=1, col=1,
        error_y={
            "type": "data", "symmetric": False, "thickness": 1.2,
            "array": [high - a for (_, high), a in zip(intervals, accuracy, strict=True)],
            "arrayminus": [a - low for (low, _), a in zip(intervals, accuracy, strict=True)],
        },
        text=[f"{n:,} images" for _, _, n, _, _ in bins], hovertemplate="probability %{x:.1%}, accuracy %{y:.1%}, %{text}<extra></extra>",
    )  # fmt: skip
    figure.add_bar(
        x=[(low + high) / 2 for low, high, *_ in bins], y=[b[2] for b in bins], width=0.9 / BINS, marker={"color": "#8f9bb0"},
        showlegend=False, hovertemplate="%{y:,} images<extra></extra>", row=2, col=1,
    )  # fmt: skip
    figure.update_xaxes(range=[-0.02, 1.02], tickformat=".0%")
    figure.update_xaxes(title_text="probability of the answer", row=2, col=1)
    figure.update_yaxes(title_text="accuracy", range=[-0.02, 1.04], tickformat=".0%", row=1, col=1)
    figure.update_yaxes(title_text="images", type="log", dtick=1, tickformat=",d", row=2, col=1)
    figure.update_layout(margin={"t": 40, "r": 15, "b": 50, "l": 60})
    rows = [
        (
            f"{low:.0%} to {high:.0%}",
            count(n),
            percent(mean),
            percent(good / n),
            f"{percent(a)} to {percent(b)}",
        )
        for (low, high, n, good, mean), (a, b) in zip(bins, intervals, strict=True)
    ]
    header = ("probability", "images", "mean probability", "accuracy", "95 % interval")
    return Figure(
        "calibration",
        "Calibration",
        figure,
        f"Expected calibration error {percent(error)} on {len(labels):,} images in {BINS} bins (Guo et al. 2017); bars are Wilson’s 95 % "
        "intervals. Above the line the model is more often right than it says.",
        numbers("Bins", table(header, rows, "Calibration")),
        height=520,
    )


# ---- the network


def layers(network: nn.Module, image: Tensor) -> list[tuple[str, nn.Module, Tensor]]:
    """Name, module and output of every module without parts, in the order of the forward pass of image float32 [1, C, H, W]."""
    seen: list[tuple[str, nn.Module, Tensor]] = []

    def note(name: str) -> Any:
        # A copy: the next activation may work in place.
        return lambda module, _, output: seen.append((name, module, output.detach().clone()))

    hooks = [
        m.register_forward_hook(note(name))
        for name, m in network.named_modules()
        if not list(m.children())
    ]
    try:
        with torch.inference_mode():
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _architecture(run: Run, test: data.Images | None) -> Markup:
    assert run.manifest is not None
    try:
        network, hp = rebuild(run.onnx, run.storage.join("model.onnx"))
    except SettingsError as error:
        return Markup(f"<p>The layers are not shown: {esc(error)}.</p>")
    blank = torch.zeros(1, hp["in_channels"], *hp["image_size"])
    sample = blank if test is None else torch.from_numpy(test.images[:1].astype(np.float32) / 255)
    passed = layers(network, sample)
    rows = []
    for _, module, output in passed:
        if isinstance(module, nn.Identity):
            continue
        own = sum(p.numel() for p in module.parameters())
        rows.append(
            (
                type(module).__name__,
                _settings(module),
                "\u00a0×\u00a0".join(map(str, output.shape[1:])),
                count(own),
            )
        )
    total = run.manifest["n_parameters"]
    shape = " × ".join(map(str, (hp["in_channels"], *hp["image_size"])))
    own_settings = [
        (k, f"{v:.6g}" if isinstance(v, float) else str(v))
        for k, v in hp.items()
        if k not in ("mean", "std", "in_channels", "image_size", "classes")
    ]
    return Markup(
        f"<figure><h3>Architecture</h3>{table(('layer', 'settings', 'output', 'parameters'), rows, 'Architecture', 'whole')}"
        f"<figcaption>For one image of {shape}; {total:,} parameters in all; {run.manifest['latency_ms']:.2f} ms an image in onnxruntime "
        "(one thread of the machine that fine-tuned).</figcaption>"
        f"{numbers('Hyperparameters', table(('name', 'value'), own_settings, 'Hyperparameters'))}</figure>"
        f"{_first_layer(passed, test)}"
    )


def _settings(module: nn.Module) -> str:
    """The module's own description, shortened, without what is the same in every network here."""
    text = re.sub(r"\d+\.\d{6,}", lambda number: f"{float(number[0]):.6g}", module.extra_repr())
    text = re.sub(r"kernel_size=\((\d+), (\d+)\)", r"\1×\2", text)
    text = re.sub(r"(in|out)_features=", "", text)
    return ", ".join(part for part in re.split(r", (?![^(]*\))", text) if part not in USUAL)


def _first_layer(passed: list[tuple[str, nn.Module, Tensor]], test: data.Images | None) -> Markup:
    """Filters of the first layer with weights, and the outputs of the first activation for one image."""
    at = next(
        i for i, (_, module, _) in enumerate(passed) if isinstance(module, nn.Conv2d | nn.Linear)
    )
    module = passed[at][1]
    assert isinstance(module, nn.Conv2d | nn.Linear)
    weights = module.weight.detach().numpy()
    if isinstance(module, nn.Linear):
        shape = passed[0][2].shape[1:]
        if weights.shape[1] != np.prod(shape):
            return Markup("")
        weights = weights.reshape(-1, *shape)
    strength = np.abs(weights).max() or 1.0
    if weights.shape[1] == 3:
        filters = [
            (127.5 + 127.5 * w.transpose(1, 2, 0) / strength).astype(np.uint8)
            for w in weights[:MOST_MAPS]
        ]
        colours = "grey is 0"
    else:
        filters = [_signed(w[0] / strength) for w in weights[:MOST_MAPS]]
        colours = "blue below 0, orange above, white 0" + (
            "" if weights.shape[1] == 1 else "; the first channel"
        )
    parts = [f"<div>{_mosaic(filters, f'{len(filters)} filters of the first layer')}"
             f"<figcaption>{_some(len(filters), len(weights))} filters, {colours}.</figcaption></div>"]  # fmt: skip
    after = next(
        (out for _, m, out in passed[at:] if type(m).__module__ == "torch.nn.modules.activation"),
        None,
    )
    if test is not None and after is not None and after.dim() == 4:
        maps = after[0].numpy()
        low, high = maps.min(), maps.max()
        grey = [(255 * (m - low) / ((high - low) or 1)).astype(np.uint8) for m in maps[:MOST_MAPS]]
        parts.insert(
            0,
            f"<div>{picture(as_pixels(test.images[0]), 'the image', 112, 112)}<figcaption>Test image 0.</figcaption></div>",
        )
        parts.append(
            f"<div>{_mosaic(grey, f'{len(grey)} activation maps')}"
            f"<figcaption>{_some(len(grey), len(maps))} maps after the first activation, black {low:.2g} to white {high:.2g}."
            "</figcaption></div>"
        )
    return Markup(f"<figure><h3>First layer</h3><div class=side>{''.join(parts)}</div></figure>")


def _some(shown: int, total: int) -> str:
    return f"All {total}" if shown == total else f"The first {shown} of {total}"


def _signed(values: np.ndarray) -> np.ndarray:
    """[-1, 1] as uint8 [H, W, 3]: blue, white at 0, orange."""
    white, blue, orange = (
        np.array(c, np.float64) for c in ((255, 255, 255), (33, 90, 190), (214, 96, 20))
    )
    share = np.abs(values)[..., None]
    return (white * (1 - share) + np.where(values[..., None] < 0, blue, orange) * share).astype(
        np.uint8
    )


def _mosaic(tiles: Iterable[np.ndarray], alt: str) -> Markup:
    """Pictures of one size side by side in rows of eight, enlarged to about 40 pixels each."""
    pictures = [t if t.ndim == 3 else np.repeat(t[..., None], 3, 2) for t in tiles]
    height, width = pictures[0].shape[:2]
    scale = max(1, round(40 / max(height, width)))
    columns = min(8, len(pictures))
    rows = -(-len(pictures) // columns)
    gap = max(1, round(3 / scale)) if scale < 4 else 1
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 128, np.uint8)
    for i, tile in enumerate(pictures):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = tile
    return picture(sheet, alt, sheet.shape[1] * scale, sheet.shape[0] * scale)
