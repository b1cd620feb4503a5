"""Runs an ONNX file in onnxruntime on the CPU, and judges its answers. Does not need torch."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from mnist_ray.data import PADDINGS
from mnist_ray.errors import SettingsError, first_line
from mnist_ray.export.read import load_verified, metadata_of

onnxruntime.disable_telemetry_events()  # newer builds for Linux can send usage to Microsoft

CANNOT_RUN = (
    runtime_errors.Fail,
    runtime_errors.InvalidArgument,
    runtime_errors.InvalidGraph,
    runtime_errors.NotImplemented,
    runtime_errors.RuntimeException,
)

LONGEST = 4096  # pixels of an image's side: a file from elsewhere could ask for any memory
TEMPERATURE = "temperature"  # in the metadata
BINS = 15  # of equal width, as in Guo et al. 2017


@dataclass(frozen=True)
class Evaluation:
    """A model's answers to n labelled images.

    Args:
        right: How many of them are right.
        n: The number of images.
        per_class: float64 [classes], accuracy among the images of each class; NaN if there are
            none.
        predictions: int64 [n].
        logits: float32 [n, classes].
    """

    right: int
    n: int
    per_class: np.ndarray
    predictions: np.ndarray
    logits: np.ndarray

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy; see `confidence_interval`."""
        return confidence_interval(self.right, self.n)


def runtime_session(data: bytes, source: str, threads: int | None) -> onnxruntime.InferenceSession:
    """Onnxruntime on the CPU for a file's bytes; `threads` as for Session.

    Raises:
        SettingsError: onnxruntime cannot run the file; names the source.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # Errors are raised. Its own lines would bring names of the file to the terminal as they are.
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except CANNOT_RUN as error:
        raise SettingsError(f"{source} cannot be run: {first_line(error)}") from error


class Session:
    """An ONNX file in onnxruntime on the CPU.

    Args:
        data: The file's bytes.
        source: Its name in errors.
        threads: How many onnxruntime may use (None: as many as there are cores).

    Raises:
        CorruptFileError: The file is damaged.
        SettingsError: onnxruntime cannot run it, or its input is not one float32 tensor
            [batch, C, H, W] with fixed channels, height and width.
    """

    def __init__(self, data: bytes, source: str, threads: int | None = None) -> None:
        self.source = source
        self.metadata = metadata_of(load_verified(data, source))
        self._session = runtime_session(data, source, threads)
        inputs = self._session.get_inputs()
        if [each.type for each in inputs] != ["tensor(float)"] or len(inputs[0].shape) != 4:
            raise SettingsError(
                f"{source} takes other input than one float32 tensor [batch, C, H, W]"
            )
        self._input = inputs[0]
        self.image_shape: tuple[int, int, int] = tuple(self._input.shape[1:])
        if not all(isinstance(size, int) for size in self.image_shape):
            raise SettingsError(
                f"{source} leaves the images' shape open ({_text(self.image_shape)}); "
                "expected fixed channels, height and width"
            )

        if max(self.image_shape) > LONGEST:
            raise SettingsError(
                f"{source} takes images of {_text(self.image_shape)}; expected at most {LONGEST} "
                "pixels a side"
            )
        self._check_batches(inputs[0].shape[0])
        self.n_classes = self._classes()

    def _check_batches(self, batch: Any) -> None:
        if isinstance(batch, int):
            raise SettingsError(
                f"{self.source} takes {batch} image(s) at a time; expected any number (a batch "
                "dimension without a size)"
            )

    def _classes(self) -> int | None:
        """The length of the answer to an image; None where the file leaves it open."""
        output = self._session.get_outputs()[0]
        shape = list(output.shape or [])
        other = len(shape) != 2 or (isinstance(shape[1], int) and shape[1] < 2)
        if output.type != "tensor(float)" or other:
            raise SettingsError(
                f"{self.source} gives {output.type} {shape}; "
                "expected float32 logits [batch, classes] of at least two classes"
            )
        return shape[1] if isinstance(shape[1], int) else None

    @property
    def padding(self) -> str | None:
        """How a picture of any size becomes an image (see `data.Images.padding`)."""
        found = self.metadata.get("padding")
        if found is not None and found not in PADDINGS:
            raise SettingsError(
                f"{self.source} names the padding {found!r}; allowed are {', '.join(PADDINGS)}"
            )
        return found

    def logits(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """float32 [n, classes] for images uint8 [n, C, H, W], n > 0.

        Raises:
            SettingsError: They are no such images, or the model takes some of another shape.
        """
        kind = getattr(images, "dtype", type(images).__name__)
        if not isinstance(images, np.ndarray) or kind != np.uint8 or not len(images):
            raise SettingsError(f"images: {kind} {np.shape(images)}; expected uint8 [n, C, H, W]")
        if images.shape[1:] != self.image_shape:
            raise SettingsError(
                f"{self.source} takes images of {_text(self.image_shape)} "
                f"(channels, height, width), found {_text(images.shape[1:])}"
            )
        parts = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
        return np.concatenate([self.run(pixels(part)) for part in parts])

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [n, classes] for pixels float32 [n, C, H, W] in [0, 1], in one batch."""
        try:
            output: np.ndarray = self._session.run(None, {self._input.name: pixels})[0]
        except CANNOT_RUN as error:
            raise SettingsError(f"{self.source} cannot be run: {first_line(error)}") from error
        if output.ndim != 2 or len(output) != len(pixels):
            raise SettingsError(
                f"{self.source} gives {list(output.shape)} for {len(pixels)} images; "
                "expected logits [batch, classes]"
            )
        return output

    def evaluate(self, images: np.ndarray, labels: np.ndarray) -> Evaluation:
        """Judges images uint8 [n, C, H, W], n > 0, by their labels int64 [n]."""
        logits = self.logits(images)
        predictions = logits.argmax(1)
        right = predictions == labels
        of_class = [right[labels == c] for c in range(logits.shape[1])]
        per_class = np.array([found.mean() if len(found) else np.nan for found in of_class])
        return Evaluation(int(right.sum()), len(labels), per_class, predictions, logits)

    def latency_ms(self, image: np.ndarray, n: int = 100) -> float:
        """Median milliseconds for one image uint8 [C, H, W], over n runs after ten to warm up."""
        one = pixels(image[None])
        return median_ms(lambda: self.run(one), n, 10)


def median_ms(call: Callable[[], object], n: int, first: int) -> float:
    """The median milliseconds of n calls, after the first ones, which warm up."""
    times = []
    for _ in range(first + n):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[first:])


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def pixels(images: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(255)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis.

    A committee's output is the log of a probability: softmax gives that probability back.
    """
    exp: np.ndarray = np.exp(logits - logits.max(-1, keepdims=True))
    exp /= exp.sum(-1, keepdims=True)
    return exp


def confidence_interval(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy of `right` among n, by Wilson (1927).

    It stays in [0, 1] close to 100 % too.
    """
    z, share = statistics.NormalDist().inv_cdf(0.975), right / n
    middle = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = ((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


@dataclass(frozen=True)
class Bin:
    """The answers with a probability from `low` to `high`."""

    low: float
    high: float
    n: int
    right: int
    mean: float  # probability

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.right / self.n


def reliability(labels: np.ndarray, given: np.ndarray) -> tuple[list[Bin], float]:
    """The bins that hold an answer, and the expected calibration error.

    The error is the mean distance of probability and accuracy over the bins, weighted by their
    images (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    Args:
        labels: int64 [n].
        given: Probabilities, float64 [n, classes].
    """
    sure, right = given.max(1), given.argmax(1) == labels
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    bins = []
    for b in np.unique(place).tolist():
        inside = place == b
        counts = int(inside.sum()), int(right[inside].sum())
        bins.append(Bin(b / BINS, (b + 1) / BINS, *counts, float(sure[inside].mean())))
    return bins, sum(bin.n / len(labels) * abs(bin.accuracy - bin.mean) for bin in bins)


def temperature_of(facts: Mapping[str, str], source: str) -> float:
    """The temperature in a file's metadata, 1 where there is none.

    Raises:
        SettingsError: It is no number above 0.
    """
    text = facts.get(TEMPERATURE, "1")
    try:
        temperature = float(text)
    except ValueError:
        temperature = math.nan
    if not 0 < temperature < math.inf:
        raise SettingsError(f"{source} has the temperature {text!r}; expected a number above 0")
    return temperature
