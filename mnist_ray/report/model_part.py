"""The published model's answers: its errors, and the calibration of its probabilities."""

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.subplots import make_subplots

from mnist_ray import data
from mnist_ray.errors import CorruptFileError, SettingsError
from mnist_ray.export.session import (
    BINS,
    Bin,
    Session,
    confidence_interval,
    probabilities,
    reliability,
)
from mnist_ray.report.network_part import as_pixels, network_part
from mnist_ray.report.page import (
    BLUE,
    GREY,
    Figure,
    Picture,
    Table,
    count,
    interval,
    percent,
    picture,
    render,
)  # fmt: skip
from mnist_ray.report.read import RunData
from mnist_ray.run import layout, predictions
from mnist_ray.run.publication import Manifest
from mnist_ray.settings import trust
from mnist_ray.training.metrics import confusion

EXAMPLES = 8  # test images that are shown whatever the answer
MOST_WRONG = 2000  # pictures of wrong answers; more would make the page heavy and tell no more
SHOWN, TAKEN = "truth {}, answered {}", "{}, taken for {}"  # what a picture's description says

# Labels int64 [n], and the model's probabilities float64 [n, classes].
Answers = tuple[np.ndarray, np.ndarray]


@dataclass
class Tested:
    """The test images of a run, or why they are not at hand, and the model's answers."""

    images: data.Images | None
    why_not: str
    answers: Answers | None


def load_tested(run: RunData, data_dir: str | None, images: data.Images | None) -> Tested:
    """The test images of a run with a model, and the answers that it gave or gives now.

    Args:
        run: It has a model.
        data_dir: The folder of the test images; None: the run's own.
        images: The test images, if the caller has them already.
    """
    assert run.manifest is not None
    why_not = ""
    if images is None:
        images, why_not = _load(run, data_dir)
    kept = predictions.read(run.storage, run.manifest.sha256)
    if kept is not None:
        _check(run, *kept)
    elif images is not None:
        session = Session(run.onnx, run.storage.join(layout.MODEL))
        kept = images.labels, session.logits(images.images)
    else:
        return Tested(None, why_not, None)
    labels, logits = kept
    temperature = (run.manifest.calibration or {}).get("temperature", 1.0)
    if images is not None and not np.array_equal(labels, images.labels):
        images = None
        why_not = "the test images at hand are not those that the model was measured on"
    return Tested(images, why_not, (labels, probabilities(logits.astype(np.float64) / temperature)))


def _check(run: RunData, labels: np.ndarray, logits: np.ndarray) -> None:
    """Raises CorruptFileError where `model.json` tells other results than the kept answers."""
    assert run.manifest is not None
    m, errors = run.manifest, int((logits.argmax(1) != labels).sum())
    if (m.test_errors, m.test_images, len(m.classes)) != (errors, *logits.shape):
        raise CorruptFileError(
            f"{run.storage.join(layout.MANIFEST)} says {m.test_errors} errors in {m.test_images} "
            f"images of {len(m.classes)} classes, but {layout.PREDICTIONS} beside it has {errors} "
            f"in {logits.shape[0]} of {logits.shape[1]}: one of them was changed"
        )


def _load(run: RunData, data_dir: str | None) -> tuple[data.Images | None, str]:
    name = run.about.data.name
    stored = trust.is_data(name)
    if name not in data.DATASETS and not stored:
        # run.json may come from elsewhere: it must not choose the code that runs here.
        return None, f"the data set {name} is not one of this package’s"
    folder, reading = data_dir or run.settings["data_dir"], data.Reading.of(run.settings)
    try:
        if stored:
            trained = data.load(name, "train", reading=reading)
            trust.same_data(trained.sha256, run.about.data.sha256, "the run", name)
        return data.load(name, "test", folder, download=False, reading=reading), ""
    except SettingsError as error:
        return None, f"the test images are not here ({error})"


def model_part(run: RunData, test: Tested, prefix: str) -> Markup:
    """The part of a run with a model."""
    assert run.manifest is not None
    network = network_part(run, test.images)
    if test.answers is None:
        return render("model.html", network=network, unanswered=test.why_not)
    labels, given = test.answers
    classes = list(run.manifest.classes)
    matrix = confusion(labels, given.argmax(1), len(classes))
    wrong = wrong_answers(labels, given)
    return render(
        "model.html",
        prefix=prefix,
        network=network,
        unanswered="",
        classes=classes,
        matrix=matrix.tolist(),
        most=int((matrix - np.diag(matrix.diagonal())).max()),
        n_images=len(labels),
        examples=[_answer(i, test, classes, SHOWN) for i in examples(labels)],
        per_class=_per_class(matrix, classes),
        wrong=[_answer(i, test, classes, TAKEN) for i in wrong[:MOST_WRONG]],
        n_wrong=len(wrong),
        why_not=test.why_not if test.images is None else "",
        calibration=_calibration(labels, given),
        declined=_declined(run.manifest),
    )


def _per_class(matrix: np.ndarray, classes: list[str]) -> Table:
    rows = []
    for name, line, right in zip(classes, matrix, matrix.diagonal().tolist(), strict=True):
        n = int(line.sum())
        if n:
            measured = percent(right / n), interval(right, n)
            rows.append((name, count(n), count(n - right), *measured))
    header = ("class", "images", "errors", "accuracy", "95 % interval (Wilson)")
    return Table("Accuracy of each class", header, rows)


@dataclass
class Answer:
    """An answer to a test image: probabilities of the class that it names and of the true one."""

    number: int
    truth: str
    taken: str
    sure: float
    hoped: float
    picture: Picture | None


def examples(labels: np.ndarray) -> list[int]:
    """The places of a few test images: the first of each class, then the second of each."""
    some = (np.flatnonzero(labels == label)[:EXAMPLES] for label in np.unique(labels)[:EXAMPLES])
    by_rank = sorted((rank, n, int(i)) for n, own in enumerate(some) for rank, i in enumerate(own))
    return [i for _, _, i in by_rank[:EXAMPLES]]


def wrong_answers(labels: np.ndarray, given: np.ndarray) -> list[int]:
    """The places of the wrong answers, the surest first."""
    found = given.argmax(1)
    wrong = np.flatnonzero(found != labels)
    order = np.argsort(-given[wrong, found[wrong]], kind="stable")
    return [int(i) for i in wrong[order]]


def _answer(i: int, test: Tested, classes: list[str], words: str) -> Answer:
    """The answer to test image `i`; `words` tell it where its picture is not seen."""
    assert test.answers is not None
    labels, given = test.answers
    found, label = int(given[i].argmax()), int(labels[i])
    truth, taken = classes[label], classes[found]
    image = None
    if test.images is not None:
        alt = f"test image {i}: {words.format(truth, taken)}"
        image = picture(as_pixels(test.images.images[i]), alt, 84, 84)
    return Answer(i, truth, taken, float(given[i, found]), float(given[i, label]), image)


# ---- none of these


def _declined(manifest: Manifest) -> Table | None:
    """The share of pictures that picture.onnx declines; None without a gate."""
    known = manifest.known
    if known is None:
        return None
    rows = [
        ("test images", percent(known.own_declined)),
        *((f"{kind}, made of training images", percent(n)) for kind, n in known.kinds.items()),
    ]
    left = [
        (f"errors left of {manifest.test_errors}, the least sure {float(share):.1%} handed over", n)
        for share, n in known.errors_left.items()
    ]
    return Table("None of these", ("pictures", "declined"), [*rows, *left])


# ---- calibration


def _calibration(labels: np.ndarray, given: np.ndarray) -> Figure:
    bins, error = reliability(labels, given)
    rows = [
        (
            f"{bin.low:.0%} to {bin.high:.0%}", count(bin.n), percent(bin.mean),
            percent(bin.accuracy), interval(bin.right, bin.n),
        )
        for bin in bins
    ]  # fmt: skip
    header = ("probability", "images", "mean probability", "accuracy", "95 % interval")
    return Figure(
        "calibration",
        "Calibration",
        _calibration_figure(bins),
        f"Expected calibration error {percent(error)} on {len(labels):,} images in {BINS} bins "
        "(Guo et al. 2017); bars are Wilson’s 95 % intervals. Above the line the model is more "
        "often right than it says.",
        Table("Calibration", header, rows),
        "Bins",
        height=520,
    )


def _calibration_figure(bins: list[Bin]) -> go.Figure:
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.72, 0.28]
    )
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="as it should be", hoverinfo="skip",
        line={"dash": "dash", "width": 1, "color": GREY}, row=1, col=1,
    )  # fmt: skip
    below, above = reach(bins)
    bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    figure.add_scatter(
        x=[bin.mean for bin in bins], y=[bin.accuracy for bin in bins], mode="markers",
        name="the model", marker={"size": 9, "color": BLUE}, error_y={**bars, "thickness": 1.2},
        text=[f"{bin.n:,} images" for bin in bins], row=1, col=1,
        hovertemplate="probability %{x:.1%}, accuracy %{y:.1%}, %{text}<extra></extra>",
    )  # fmt: skip
    figure.add_bar(
        x=[(bin.low + bin.high) / 2 for bin in bins], y=[bin.n for bin in bins], width=0.9 / BINS,
        marker={"color": GREY}, showlegend=False, row=2, col=1,
        hovertemplate="%{y:,} images<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(range=[-0.02, 1.02], tickformat=".0%")
    figure.update_xaxes(title_text="probability of the answer", row=2, col=1)
    figure.update_yaxes(title_text="accuracy", range=[-0.02, 1.04], tickformat=".0%", row=1, col=1)
    figure.update_yaxes(title_text="images", type="log", dtick=1, tickformat=",d", row=2, col=1)
    figure.update_layout(margin={"t": 40, "r": 15, "b": 50, "l": 60})
    return figure


def reach(bins: list[Bin]) -> tuple[list[float], list[float]]:
    """How far the 95 % interval of each bin's accuracy reaches below and above it."""
    intervals = [confidence_interval(bin.right, bin.n) for bin in bins]
    below = [bin.accuracy - low for bin, (low, _) in zip(bins, intervals, strict=True)]
    return below, [high - bin.accuracy for bin, (_, high) in zip(bins, intervals, strict=True)]
