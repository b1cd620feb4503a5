"""--folds: one network for each fold, trained in turn an epoch each; an epoch's row is their mean.

The folds share hyperparameters and seed. Everything that a trial reports, ranks and keeps is the
mean; the weights that it ships are the first fold's, which the fine-tuning then trains on all
images.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mnist_ray.run import checkpoint
from mnist_ray.run.records import EpochRow
from mnist_ray.training.trainer import Trainer


class FoldTrainer(Trainer):
    """The first fold's network, which holds those of the other folds.

    Args:
        hp: As Trainer takes it.
        folds: How many.
        options: As Trainer takes them.
    """

    def __init__(self, hp: Mapping[str, Any], *, folds: int, **options: Any) -> None:
        super().__init__(hp, **options)
        self.others = [Trainer(hp, **options) for _ in range(folds - 1)]

    def run_epoch(
        self,
        images: Tensor,
        labels: Tensor,
        train: Tensor | None,
        val: Tensor | None,
        *parts: Tensor,
    ) -> EpochRow:
        """An epoch of each fold; the mean of their rows is kept and returned.

        Args:
            images: As Trainer takes them.
            labels: As Trainer takes them.
            train: Of the first fold.
            val: Of the first fold.
            parts: Training and validation images of each other fold, one after the other.
        """
        rows = [super().run_epoch(images, labels, train, val)]
        for other, own, held in zip(self.others, parts[::2], parts[1::2], strict=True):
            other.score, other.image_weights = self.score, self.image_weights
            rows.append(other.run_epoch(images, labels, own, held))
        self.rows[-1] = mean_row(rows)
        return self.rows[-1]

    def state_bytes(self, metadata: Mapping[str, Any]) -> bytes:
        """As Trainer's, with the other folds' states within."""
        states = [super().state_bytes(metadata), *(each.state_bytes({}) for each in self.others)]
        tensors = {
            f"fold-{i}": torch.frombuffer(bytearray(state), dtype=torch.uint8)
            for i, state in enumerate(states, start=1)
        }
        return checkpoint.pack(tensors, metadata)

    def load_state(self, data: bytes, source: str) -> dict[str, Any]:
        """Takes up the state of an equal FoldTrainer; returns the file's metadata."""
        tensors, _ = checkpoint.unpack(data, source)
        with checkpoint.fitting(source):
            states = [tensors[f"fold-{i + 1}"].numpy().tobytes() for i in range(len(tensors))]
            for other, state in zip(self.others, states[1:], strict=True):
                other.load_state(state, source)
        return super().load_state(states[0], source)


def mean_row(rows: list[EpochRow]) -> EpochRow:
    """The mean of each value; the seconds are their sum."""
    row: dict[str, Any] = {
        key: sum(each[key] for each in rows) / len(rows)  # type: ignore[literal-required]
        for key in rows[0]
    }
    row["seconds"] *= len(rows)
    return EpochRow(**{**row, "epoch": rows[0]["epoch"]})  # type: ignore[typeddict-item]
