"""Boosted trees in place of a network, as a training function: an epoch is ROUNDS rounds.

A state is LightGBM's own text; nothing in it can be executed. Every epoch begins with the text of
the one before, so an interrupted trial goes on as if it had not been.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import lightgbm
import numpy as np

from mnist_ray.training.metrics import score_of
from mnist_ray.trials.function import FunctionTrial
from mnist_ray.tune.trial import TrialContext

ROUNDS = 10  # of boosting in one epoch; each adds one tree a class
# The keys of a trial's dict that are not LightGBM's own.
DESCRIPTION = ("model", "in_channels", "image_size", "classes", "mean", "std")


class LightGBMTrial(FunctionTrial):
    """Boosts trees on the pixels."""

    LATEST = "latest.txt"
    BEST: ClassVar[dict[str, str]] = {"best.json": "model.json", "best.txt": "model.txt"}

    def setup(  # type: ignore[override]
        self,
        config: dict[str, Any],
        context: TrialContext | None = None,
        images: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        train: np.ndarray | None = None,
        val: np.ndarray | None = None,
        start: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Takes the data and begins the first trial; arguments as in TrainTrial.setup."""
        self.take(context)
        assert context is not None
        assert images is not None
        assert labels is not None
        parts = [
            (images[part].reshape(len(part), -1), labels[part])
            for part in (train, val)
            if part is not None
        ]
        weights = None if context.weights is None else context.weights[train]
        threads = max(1, int(context.cpus))
        self.function, self.data = boost, (parts, weights, score_of(context.metric), threads)
        self.begin_config(config)


def boost(
    hp: Mapping[str, Any], seed: int, state: bytes | None, data: Any
) -> Iterator[tuple[dict[str, float], bytes]]:
    """Boosts ROUNDS more rounds, and yields the metrics of both parts and the model's text.

    Args:
        hp: LightGBM's parameters, beside the description of the images.
        seed: Of the run.
        state: The text of the model so far.
        data: Both parts as (pixels uint8 [n, p], labels int64 [n]); the weights of the training
            images or None; the metric beside loss and accuracy or None; threads.
    """
    (((pixels, labels), val), weights, score, threads), text = data, (state or b"").decode()
    common = {
        **{key: value for key, value in hp.items() if key not in DESCRIPTION},
        "objective": "multiclass",
        "num_class": hp["classes"],
        "bagging_freq": 1,
        "max_bin": 63,
        "verbosity": -1,
        "num_threads": threads,
        "deterministic": True,
        "force_row_wise": True,
    }
    while True:
        start = time.perf_counter()
        before = lightgbm.Booster(model_str=text) if text else None
        epoch = 1 + (before.current_iteration() // ROUNDS if before else 0)
        own = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0] >> 1)
        booster = lightgbm.train(
            {**common, "seed": own},
            lightgbm.Dataset(pixels, labels, weight=weights),
            num_boost_round=ROUNDS,
            init_model=before,
        )
        text = booster.model_to_string()
        seconds = time.perf_counter() - start
        answers = [(np.asarray(booster.predict(x)), y) for x, y in ((pixels, labels), val)]
        (train_loss, train_accuracy), (val_loss, val_accuracy) = (
            loss_and_accuracy(given, y) for given, y in answers
        )
        metrics = {
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "lr": hp["learning_rate"],
            "images_per_second": ROUNDS * len(labels) / seconds,
            "n_parameters": n_leaves(text),
        }
        if score is not None:
            metrics["val_metric"] = score(answers[1][1], answers[1][0])
        yield metrics, text.encode()


def loss_and_accuracy(probabilities: Any, labels: np.ndarray) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of float64 probabilities [n, classes], int64 labels [n]."""
    of_truth = probabilities[np.arange(len(labels)), labels]
    loss = -float(np.log(np.maximum(of_truth, np.finfo(float).tiny)).mean())
    return loss, float((probabilities.argmax(1) == labels).mean())


def n_leaves(text: str) -> int:
    """The leaves of all trees: the model has these in place of weights."""
    return sum(
        int(line.partition("=")[2]) for line in text.splitlines() if line.startswith("num_leaves=")
    )
