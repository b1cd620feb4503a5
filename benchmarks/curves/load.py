"""Loads the learning curves: from load import load; curves = load()."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

FILE = Path(__file__).with_name("curves.parquet")


class Curve(NamedTuple):
    """One configuration, trained once."""

    number: int
    params: dict[str, Any]  # as Optuna suggested them; those of branches not taken are missing
    n_parameters: int
    val_accuracy: list[float]  # a share of 1, one value an epoch
    val_loss: list[float]
    seconds: list[float]


def load(path: Path = FILE) -> list[Curve]:
    """All curves in the order of their draws. A shorter list: the loss became infinite."""
    return list(_curves(pq.read_table(path).to_pylist()))


def _curves(rows: list[dict[str, Any]]) -> Iterator[Curve]:
    for row in rows:
        named = {k.removeprefix("params_"): v for k, v in row.items() if k.startswith("params_")}
        params = {name: value for name, value in named.items() if value is not None}
        yield Curve(params=params, **{k: row[k] for k in Curve._fields if k != "params"})


def made_with(path: Path = FILE) -> dict[str, str]:
    """The recording's settings: data set, numbers of images, epochs, space and seed."""
    return {k.decode(): v.decode() for k, v in pq.read_schema(path).metadata.items()}
