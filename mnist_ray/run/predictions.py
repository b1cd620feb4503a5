"""What the published model answered on the test images, kept beside it: the report then shows that one measurement and makes no second."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mnist_ray.errors import CorruptFileError, first_line
from mnist_ray.storage import RunStorage

FILE = "predictions.parquet"
_MODEL = b"model_sha256"


def pack(labels: np.ndarray, logits: np.ndarray, model_sha256: str) -> bytes:
    """A Parquet file of labels int64 [n] and logits float32 [n, classes] of the model with that SHA-256, in the test set's order."""
    classes = logits.shape[1]
    values = pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(logits, np.float32).reshape(-1)), classes
    )
    table = pa.table(
        {
            "label": pa.array(labels, pa.int64()),
            "prediction": pa.array(logits.argmax(1), pa.int64()),
            "logits": values,
        }
    )
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_MODEL: model_sha256}), sink, compression="zstd")
    return sink.getvalue()


def read(storage: RunStorage, model_sha256: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Labels and logits as pack was given them; None where there are none of this model."""
    if not storage.exists(FILE):
        return None
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(FILE)))
        if (table.schema.metadata or {}).get(_MODEL) != model_sha256.encode():
            return None
        logits = np.array(table["logits"].to_pylist(), np.float32)
        return table["label"].to_numpy().astype(np.int64), logits.reshape(table.num_rows, -1)
    except (pa.ArrowException, KeyError) as error:
        raise CorruptFileError(f"{storage.join(FILE)} is damaged: {first_line(error)}") from error
