"""The published model's answers on the test images, kept beside it for the report."""

import numpy as np
import pyarrow as pa

from mnist_ray.errors import CorruptFileError, first_line
from mnist_ray.run import layout
from mnist_ray.run.tables import parquet, read_bounded
from mnist_ray.storage import RunStorage

_MODEL = b"model_sha256"


def pack(labels: np.ndarray, logits: np.ndarray, model_sha256: str) -> bytes:
    """The bytes of `predictions.parquet`.

    Args:
        labels: int64 [n], in the test set's order.
        logits: float32 [n, classes].
        model_sha256: Of the file that gave them.
    """
    flat = pa.array(np.ascontiguousarray(logits, np.float32).reshape(-1))
    columns = {
        "label": pa.array(labels, pa.int64()),
        "prediction": pa.array(logits.argmax(1), pa.int64()),
        "logits": pa.FixedSizeListArray.from_arrays(flat, logits.shape[1]),
    }
    return parquet(pa.table(columns).replace_schema_metadata({_MODEL: model_sha256}))


def read(storage: RunStorage, model_sha256: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Labels and logits as `pack` was given them; None if there are none of this model.

    Raises:
        CorruptFileError: The file is damaged.
    """
    name = layout.PREDICTIONS
    if not storage.exists(name):
        return None
    try:
        table = read_bounded(storage.read_bytes(name))
        if (table.schema.metadata or {}).get(_MODEL) != model_sha256.encode():
            return None
        labels = table["label"].cast(pa.int64()).to_numpy()
        logits = np.array(table["logits"].to_pylist(), np.float32)
        if logits.ndim != 2 or not all(0 <= label < logits.shape[1] for label in labels):
            raise ValueError("labels and logits do not fit each other")
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise CorruptFileError(f"{storage.join(name)} is damaged: {first_line(error)}") from error
    return labels, logits
