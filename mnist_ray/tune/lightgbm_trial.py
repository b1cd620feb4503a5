"""Boosted trees in place of a network, in the same search: an epoch is ROUNDS rounds of boosting.

An epoch's row has the same keys, and the files lie in the same folder, so that a trial is started
again in the same way. A model is LightGBM's own text; nothing in it can be executed. Every epoch
begins with the text of the one before, so an interrupted trial goes on as if it had not been.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import lightgbm
import numpy as np

from mnist_ray.errors import CorruptFileError
from mnist_ray.run import layout
from mnist_ray.run.records import EpochRow, rank
from mnist_ray.settings import constraints
from mnist_ray.storage import RunStorage
from mnist_ray.training.metrics import score_of
from mnist_ray.tune.trainable import EpochTrial
from mnist_ray.tune.trial import Result, TrialContext, reported

ROUNDS = 10  # of boosting in one epoch; each adds one tree a class
# The keys of a trial's dict that are not LightGBM's own.
DESCRIPTION = ("model", "in_channels", "image_size", "classes", "mean", "std")


class LightGBMTrial(EpochTrial):
    """Boosts trees on the pixels."""

    LATEST = "latest.txt"
    BEST: ClassVar[dict[str, str]] = {"best.json": "model.json", "best.txt": "model.txt"}

    def setup(
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
        assert context is not None
        assert images is not None
        assert labels is not None
        self.context, self.storage = context, RunStorage.existing(context.run)
        self.parts = [
            (images[part].reshape(len(part), -1), labels[part])
            for part in (train, val)
            if part is not None
        ]
        self.weights = None if context.weights is None else context.weights[train]
        self.score = score_of(context.metric)
        self.begin_config(config)

    def begin(self, number: int, hp: dict[str, Any]) -> None:
        """Takes up a trial."""
        super().begin(number, hp)
        self.text: str | None = None  # of the model; None: its checkpoint was not looked for
        self.rows: list[EpochRow] = []

    def epoch(self) -> Result:
        """Boosts one epoch, or reports the last one of the trial's checkpoint."""
        rows = None
        if self.text is None and self._load():
            rows, row = self.rows, self.rows[-1]
        else:
            row = self._boost()
            self._save(row)
        return reported(self.context, row, n_leaves(self.text or ""), rows)

    def _boost(self) -> EpochRow:
        """ROUNDS more rounds of boosting, and the model so far on both parts."""
        start, epoch = time.perf_counter(), len(self.rows) + 1
        (pixels, labels), _ = self.parts
        seed = int(np.random.SeedSequence([self.context.seed, epoch]).generate_state(1)[0] >> 1)
        params = {
            **{key: value for key, value in self.hp.items() if key not in DESCRIPTION},
            "objective": "multiclass",
            "num_class": self.hp["classes"],
            "bagging_freq": 1,
            "max_bin": 63,
            "verbosity": -1,
            "num_threads": max(1, int(self.context.cpus)),
            "deterministic": True,
            "force_row_wise": True,
            "seed": seed,
        }
        booster = lightgbm.train(
            params,
            lightgbm.Dataset(pixels, labels, weight=self.weights),
            num_boost_round=ROUNDS,
            init_model=lightgbm.Booster(model_str=self.text) if self.text else None,
        )
        self.text = booster.model_to_string()
        seconds = time.perf_counter() - start
        answers = [(np.asarray(booster.predict(x)), y) for x, y in self.parts]
        train, val = (loss_and_accuracy(given, y) for given, y in answers)
        row: EpochRow = {
            "epoch": epoch,
            "train_loss": train[0],
            "train_accuracy": train[1],
            "val_loss": val[0],
            "val_accuracy": val[1],
            "lr": self.hp["learning_rate"],
            "images_per_second": ROUNDS * len(labels) / seconds,
            "seconds": time.perf_counter() - start,
        }
        if self.score is not None:
            row["val_metric"] = self.score(answers[1][1], answers[1][0])
        if limits := self.context.constraints:
            measured = {"parameters": n_leaves(self.text), "accuracy": row["val_accuracy"]}
            row["violation"] = constraints.violation(limits, measured)
        self.rows.append(row)
        return row

    def _load(self) -> bool:
        """Takes up the checkpoint; whether there is one."""
        self.text = ""
        name = f"{layout.trial_folder(self.number)}/{self.LATEST}"
        if not self.storage.exists(name):
            return False
        self.rows, self.text = unpack(self.storage.read_bytes(name), self.storage.join(name))
        return True

    def _save(self, row: EpochRow) -> None:
        folder, text = layout.trial_folder(self.number), self.text or ""
        if max(self.rows, key=lambda r: rank(r, self.context.metric)) is row:
            metadata = {
                "number": self.number,
                "row": dict(row),
                "hyperparameters": self.hp,
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
            }
            self.storage.write_json(f"{folder}/best.json", metadata)
            self.storage.write_bytes(f"{folder}/best.txt", text.encode())
        self.storage.write_bytes(f"{folder}/{self.LATEST}", pack(self.rows, text))


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


def pack(rows: list[EpochRow], text: str) -> bytes:
    """A line of JSON, with the rows and the SHA-256 of rows and model; then the model's text."""
    digest = hashlib.sha256((json.dumps(rows) + text).encode()).hexdigest()
    return f"{json.dumps({'rows': rows, 'sha256': digest})}\n{text}".encode()


def unpack(data: bytes, source: str) -> tuple[list[EpochRow], str]:
    """The arguments of `pack`. Raises CorruptFileError naming `source` if a byte differs."""
    try:
        head, _, text = data.decode().partition("\n")
        header = json.loads(head)
        rows, expected = header["rows"], header["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(
            f"{source} is not a checkpoint of this project or is damaged: {error!r}"
        ) from error
    if hashlib.sha256((json.dumps(rows) + text).encode()).hexdigest() != expected:
        raise CorruptFileError(
            f"{source} is damaged: its content does not match the SHA-256 that it carries"
        )
    return rows, text
