"""A run of three trials, for the tests of records and tables."""

import pytest

from mnist_ray.run.records import EpochRow, Record, Records


def row(epoch: int, accuracy: float, loss: float) -> EpochRow:
    return {
        "epoch": epoch,
        "train_loss": 1.0,
        "train_accuracy": 0.5,
        "val_loss": loss,
        "val_accuracy": accuracy,
        "lr": 0.1,
        "images_per_second": 100.0,
        "seconds": 2.0,
    }


@pytest.fixture
def three() -> Records:
    """A trial that was best in its middle epoch, one that was pruned, one that failed."""
    result = Records("val_accuracy", total=4)
    result.add(Record(0, {"lr": 0.1, "kind": "a"}))
    for epoch, (accuracy, loss) in enumerate([(0.8, 0.5), (0.95, 0.2), (0.94, 0.1)], start=1):
        result.report(0, row(epoch, accuracy, loss))
    result.end(0, "COMPLETE")
    second = result.add(Record(1, {"lr": 0.2, "depth": 3}))
    result.report(1, row(1, 0.7, 0.6))
    result.end(1, "PRUNED")
    second.reason = "stopped by the scheduler after epoch 1"
    third = result.add(Record(2, {"lr": 0.3}))
    result.end(2, "FAIL")
    third.reason = "the loss is not finite at epoch 1"
    return result
