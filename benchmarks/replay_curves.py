"""Train random configurations of the default space once and keep their learning curves for
replay.py.

    # 200 configurations: 25 minutes on two cores
    MNIST_RAY_DATA=DIR python benchmarks/replay_curves.py
    # goes on: only those that the file lacks are trained
    MNIST_RAY_DATA=DIR python benchmarks/replay_curves.py --configurations 400
    # other families of data, from more_data.py
    python benchmarks/replay_curves.py --dataset npz:clothes.npz --out clothes.parquet

Each is trained for 8 epochs on 1,000 MNIST images by one thread and judged after every epoch on the
same 5,000 validation images (the training is so short that the judging costs as much).
Configuration i is the i-th draw, whatever has been trained before. The file is rewritten after
every configuration, so the script may be stopped at any moment and started again.
"""

import dataclasses
import math
import multiprocessing
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mnist_ray import data, settings
from mnist_ray.errors import SettingsError
from mnist_ray.study.portfolio import FAMILIES

CURVES = ("val_accuracy", "val_loss", "seconds")  # list columns, one value an epoch

# in a worker process: the settings, the images, their tensors with the split's indices, and the
# precision
worker: Any


@dataclass(frozen=True)
class CurveSettings:
    """Train random configurations and record their learning curves."""

    out: str = str(Path(__file__).parent / "curves" / "curves.parquet")
    """The Parquet file; where it exists it is gone on with."""
    configurations: int = 200
    """How many the file shall hold."""
    epochs: int = 8
    """Epochs of each."""
    train_images: int = 1000
    """Images that each is trained on."""
    val_images: int = 5000
    """Images that it is judged on."""
    space: str = "convnet"
    """The search space."""
    space_args: tuple[str, ...] = ("layer_dropout=true",)
    """Its options: as wide as replay.py's searches."""
    dataset: str = "mnist"
    """The data set."""
    data_dir: str = field(default_factory=settings.default_data_dir)
    """torchvision's root."""
    seed: int = 0
    """Of the split, the draws and the weights."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes at a time, each with one thread."""


def record(s: CurveSettings) -> int:
    """Trains what the file lacks. Raises SettingsError where the file was made with other settings."""  # noqa: E501
    path = Path(s.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"epochs", "train_images", "val_images", "space", "space_args", "dataset", "seed"}
    made_with = {key: str(value) for key, value in dataclasses.asdict(s).items() if key in kept}
    rows = read(path, made_with) if path.exists() else []
    missing = sorted(set(range(s.configurations)) - {row["number"] for row in rows})
    print(f"{path}: {len(rows)} configurations are there, {len(missing)} to train", flush=True)
    if not missing:
        return 0
    if (
        rows
        and _drawn(s, rows[0]["number"], data.load(s.dataset, "train", s.data_dir))[0]
        != (rows[0]["params"])
    ):
        raise SettingsError(
            f"--out: {path} was recorded before the space {s.space!r} changed: its draws are "
            "others; choose another file"
        )
    # Fresh interpreters: torch's threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(
        min(s.workers, len(missing)), _start, (s,)
    ) as pool:
        for row in pool.imap_unordered(_train, missing):
            rows.append(row)
            write(path, rows, made_with)
            best = max(row["val_accuracy"], default=math.nan)
            print(
                (
                    f"{len(rows)}/{s.configurations}  number {row['number']}  best {best:.4f}  "
                    f"{sum(row['seconds']):.1f} s"
                ),
                flush=True,
            )
    return 0


def read(path: Path, made_with: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """One dict a configuration: number, params (a dict), n_parameters, and the lists CURVES
    (shorter where the loss became infinite).
    """
    table = pq.read_table(path)
    found = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    for key, value in (made_with or {}).items():
        if found.get(key) != value:
            raise SettingsError(
                f"--{key.replace('_', '-')}: {path} was made with {found.get(key)}, {value} was "
                f"given; choose another --out"
            )
    rows = []
    for row in table.to_pylist():
        params = {
            key.removeprefix("params_"): row[key]
            for key in row
            if key.startswith("params_") and row[key] is not None
        }
        rows.append(
            {key: row[key] for key in ("number", "n_parameters", *CURVES)} | {"params": params}
        )
    return rows


def family(path: Path) -> str:
    """The family of the data set that a file's curves were recorded on (see study/portfolio.py)."""
    dataset = pq.read_schema(path).metadata[b"dataset"].decode()
    name = Path(dataset.partition(":")[2]).stem if dataset.startswith("npz:") else dataset
    return {**FAMILIES, "letters": "characters"}.get(name, name)


def write(path: Path, rows: list[dict[str, Any]], made_with: dict[str, str]) -> None:
    """All rows, sorted by number, in place of what was there."""
    rows = sorted(rows, key=lambda row: row["number"])
    names = sorted({name for row in rows for name in row["params"]})
    columns = {"number": pa.array([row["number"] for row in rows])}
    columns |= {
        f"params_{name}": pa.array([row["params"].get(name) for row in rows]) for name in names
    }
    columns["n_parameters"] = pa.array([row["n_parameters"] for row in rows])
    columns |= {
        name: pa.array([row[name] for row in rows], pa.list_(pa.float64())) for name in CURVES
    }
    part = path.with_name(path.name + ".part")
    pq.write_table(pa.table(columns).replace_schema_metadata(made_with), part, compression="zstd")
    part.replace(path)


# ---- in the worker processes


def _start(s: CurveSettings) -> None:
    """Loads the data once a process."""
    import torch

    from mnist_ray.training.machine import best_precision, use_threads

    global worker
    use_threads(1)
    images, train, val, *_ = data.load_split(
        s.dataset,
        s.data_dir,
        seed=s.seed,
        train_images=s.train_images,
        val_images=s.val_images,
        val_by="class",
    )
    tensors = [torch.from_numpy(a.copy()) for a in (images.images, images.labels, train, val)]
    worker = (s, images, tensors, best_precision(torch.device("cpu")))


def _drawn(
    s: CurveSettings, number: int, images: data.Images
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What Optuna suggests as the number-th configuration, and what the space makes of it."""
    import optuna

    from mnist_ray import spaces
    from mnist_ray.search_job.work import data_shape

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.RandomSampler(seed=s.seed * 1_000_000 + number)
    trial = optuna.create_study(sampler=sampler).ask()
    space = spaces.find(s.space)
    options = spaces.options(space, s.space, settings.key_values(s.space_args, "--space-args"))
    hp = space(trial, data=data_shape(images), **options)
    return dict(trial.params), hp


def _train(number: int) -> dict[str, Any]:
    """The number-th configuration's row."""
    from mnist_ray import models
    from mnist_ray.training.trainer import Trainer

    s, images, tensors, precision = worker
    params, hp = _drawn(s, number, images)
    trainer = Trainer(hp, epochs=s.epochs, seed=s.seed, precision=precision)
    curve: dict[str, list[float]] = {name: [] for name in CURVES}
    for _ in range(s.epochs):
        row = trainer.run_epoch(*tensors)
        if not (math.isfinite(row["train_loss"]) and math.isfinite(row["val_loss"])):
            break
        for name, value in row.items():
            if name in CURVES:
                curve[name].append(cast(float, value))
    return {
        "number": number,
        "params": params,
        "n_parameters": models.n_parameters(trainer.model),
        **curve,
    }


if __name__ == "__main__":
    settings.main(CurveSettings, record)
