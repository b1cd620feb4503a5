"""Boosted trees in place of a network, in the same search: one step is one epoch of ROUNDS rounds of boosting.

The contract is TrainTrial's: an epoch's row has the same keys, the files lie in the same folder, and whoever starts a trial again finds
them there. A model is LightGBM's own text; nothing in it can be executed. Every epoch begins with the text of the one before, so an
interrupted trial goes on as if it had not been.
"""

import hashlib
import json
import platform
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import lightgbm
import numpy as np

from mnist_ray.errors import CorruptFileError
from mnist_ray.run.records import rank
from mnist_ray.storage import RunStorage
from mnist_ray.tune.trainable import TrainTrial, TrialContext, checkpoint_folder

ROUNDS = 10  # of boosting in one epoch; each adds one tree a class
# The keys of a trial's dict that are not LightGBM's own.
DESCRIPTION = ("model", "in_channels", "image_size", "classes", "mean", "std")


class LightGBMTrial(TrainTrial):
    """Boosts trees on the pixels, reporting every epoch."""

    LATEST = "latest.txt"
    BEST: ClassVar = {"best.json": "model.json", "best.txt": "model.txt"}

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
        """images uint8 [n, C, H, W] and labels int64 [n]; train and val are indices into them."""
        assert context is not None
        assert images is not None
        assert labels is not None
        self.context, self.storage = context, RunStorage(context.run)
        self.parts = [(images[part].reshape(len(part), -1), labels[part]) for part in (train, val)]  # type: ignore[arg-type]
        self._begin(config)

    def _begin(self, config: Mapping[str, Any]) -> None:
        super()._begin(config)
        self.text: str | None = (
            None  # of the model so far; None: its checkpoint has not been looked for
        )
        self.rows: list[dict[str, Any]] = []

    def _epoch(self) -> dict[str, Any]:
        if self.text is None:
            self._load()
        result: dict[str, Any] = {}
        if self.unreported:
            result["rows"], row = self.rows, self.rows[-1]
            self.unreported = False
        else:
            row = self._boost()
            self._save(row)
        return {
            **row,
            **result,
            "n_parameters": n_leaves(self.text or ""),
            "node": platform.node(),
            "done": row["epoch"] >= self.context.max_epochs,
        }

    def _boost(self) -> dict[str, Any]:
        """ROUNDS more rounds of boosting, and the model so far on both parts."""
        start, epoch = time.perf_counter(), len(self.rows) + 1
        (pixels, labels), _ = self.parts
        params = {
            **{key: value for key, value in self.hp.items() if key not in DESCRIPTION},
            "objective": "multiclass", "num_class": self.hp["classes"], "bagging_freq": 1, "max_bin": 63, "verbosity": -1,
            "num_threads": max(1, int(self.context.cpus)), "deterministic": True, "force_row_wise": True,
            "seed": int(np.random.SeedSequence([self.context.seed, epoch]).generate_state(1)[0] >> 1),
        }  # fmt: skip
        before = lightgbm.Booster(model_str=self.text) if self.text else None
        booster = lightgbm.train(
            params, lightgbm.Dataset(pixels, labels), num_boost_round=ROUNDS, init_model=before
        )
        self.text = booster.model_to_string()
        seconds = time.perf_counter() - start
        losses = [loss_and_accuracy(booster.predict(x), y) for x, y in self.parts]
        row = {
            "epoch": epoch, "train_loss": losses[0][0], "train_accuracy": losses[0][1], "val_loss": losses[1][0],
            "val_accuracy": losses[1][1], "lr": self.hp["learning_rate"], "images_per_second": ROUNDS * len(labels) / seconds,
            "seconds": time.perf_counter() - start,
        }  # fmt: skip
        self.rows.append(row)
        return row

    def _load(self) -> None:
        self.text = ""
        name = f"{checkpoint_folder(self.number)}/{self.LATEST}"
        if self.storage.exists(name):
            self.rows, self.text = unpack(self.storage.read_bytes(name), self.storage.join(name))
            self.unreported = True

    def _save(self, row: Mapping[str, Any]) -> None:
        folder, text = checkpoint_folder(self.number), self.text or ""
        if max(self.rows, key=lambda r: rank(r, self.context.metric)) is row:
            story = {
                "number": self.number,
                "row": dict(row),
                "hyperparameters": self.hp,
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
            }
            self.storage.write_json(f"{folder}/best.json", story)
            self.storage.write_bytes(f"{folder}/best.txt", text.encode())
        self.storage.write_bytes(f"{folder}/{self.LATEST}", pack(self.rows, text))


def loss_and_accuracy(probabilities: Any, labels: np.ndarray) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of float64 probabilities [n, classes] for int64 labels [n]."""
    of_truth = probabilities[np.arange(len(labels)), labels]
    loss = -float(np.log(np.maximum(of_truth, np.finfo(float).tiny)).mean())
    return loss, float((probabilities.argmax(1) == labels).mean())


def n_leaves(text: str) -> int:
    """The leaves of all trees: what the model has learnt in place of weights."""
    return sum(
        int(line.partition("=")[2]) for line in text.splitlines() if line.startswith("num_leaves=")
    )


def pack(rows: list[dict[str, Any]], text: str) -> bytes:
    """A line of JSON, with the rows so far and the SHA-256 of them and the model, and then the model's text."""
    plain = json.dumps(rows)
    return (
        json.dumps(
            {"rows": rows, "sha256": hashlib.sha256((plain + text).encode()).hexdigest()}
        ).encode()
        + b"\n"
        + text.encode()
    )


def unpack(data: bytes, source: str) -> tuple[list[dict[str, Any]], str]:
    """What `pack` was given. Raises CorruptFileError naming `source` where a byte differs."""
    try:
        head, _, text = data.decode().partition("\n")
        story = json.loads(head)
        rows, expected = story["rows"], story["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(
            f"{source} is not a checkpoint of this project or is damaged: {error!r}"
        ) from error
    if hashlib.sha256((json.dumps(rows) + text).encode()).hexdigest() != expected:
        raise CorruptFileError(
            f"{source} is damaged: its content does not match the SHA-256 that it carries"
        )
    return rows, text
