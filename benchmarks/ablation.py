"""Does each part pay? Search, stages, weight averaging and jittered pooling, each left out, on the same training images and seeds.

MNIST_RAY_DATA=DIR python benchmarks/ablation.py --cache ablation.jsonl     # started again, it goes on

Every network is trained from random weights, with one thread, by the stages of jobs/recipes/ on the 10,000 MNIST images that its search
trained on, and judged on the training images that its search has not seen, by loss and accuracy; the test set is looked at after that
and decides nothing. The search is the kept run earlier-plain-1 (see accuracy.py).
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from accuracy import KEPT
from common import CORES, BenchmarkSettings, cached, convnet, difference, mean_sd, section

from mnist_ray.errors import SettingsError
from mnist_ray.settings import main
from mnist_ray.stages import RECIPES

# What one would type without a search: the network of the other benchmarks with one more block, and dropout where tutorials have it.
PLAIN: dict[str, Any] = {"blocks": 3, "dropout": 0.5, "dropout_place": "head"}
CHAINS: dict[str, tuple[str, dict[str, Any]]] = {  # the stages' recipe, and what is changed in each stage
    "plain": ("default", {}),
    "searched": ("default", {}),
    "searched, no average": ("default", {"ema": 0.0}),
    "searched, S3's stages": ("seed", {}),
    "record": (str(RECIPES / "stages-record.yaml"), {}),
    "record, no jitter": (str(RECIPES / "stages-record.yaml"), {"pool_jitter": 0}),
}
TABLES = {  # heading: its rows (words, chain, how many of its stages); the others are compared with the first
    "What search, stages and averaging give": {
        "search, three stages": ("searched", 3),
        "default hyperparameters, three stages": ("plain", 3),
        "search, the first two stages": ("searched", 2),
        "search, the first stage": ("searched", 1),
        "search, three stages, no weight average": ("searched, no average", 3),
        "search, the seed document's stages (S3, 23 epochs)": ("searched, S3's stages", 4),
    },
    "What jittered pooling gives": {
        "the record recipe's stages": ("record", 3),
        "the first two of them": ("record", 2),
        "the first of them": ("record", 1),
        "the same without jitter in the pooling": ("record, no jitter", 3),
    },
}


@dataclass(frozen=True)
class AblationSettings(BenchmarkSettings):
    """Measure what search, stages, weight averaging and jittered pooling give."""

    repeats: int = 5
    """Seeds of each."""
    cache: str | None = None
    """JSON-lines file that keeps finished chains; what is in it is not run again."""
    workers: int = CORES
    """Chains at a time, each with one thread."""
    chains: tuple[str, ...] = tuple(CHAINS)
    """Which of them; a table is written where the chain that it compares with is among them."""


def searched() -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the kept run, and the hyperparameters of its best trial."""
    import optuna
    import pyarrow.parquet as pq

    from mnist_ray import spaces
    from mnist_ray.settings import key_values

    kept = KEPT / "earlier-plain-1"
    run, model = (json.loads((kept / file).read_text()) for file in ("run.json", "model.json"))
    trials = pq.read_table(kept / "trials.parquet").to_pylist()
    best = next(trial for trial in trials if trial["number"] == model["lineage"][0]["trial"])
    values = {name.removeprefix("params_"): value for name, value in best.items() if name.startswith("params_") and value is not None}
    settings = run["settings"]
    space = spaces.find(settings["space"])
    options = spaces.options(space, settings["space"], key_values(settings["space_args"], "--space-args"))
    grey = spaces.DataShape(1, (28, 28), 10, (0.1307,), (0.3081,))
    return settings, space(optuna.trial.FixedTrial(values), data=grey, **options)


def run(task: tuple[AblationSettings, dict[str, Any]]) -> dict[str, Any]:
    """One chain's key with, after each stage, the loss and accuracy (in percent) on the unseen training images and on the test set."""
    import torch

    from mnist_ray import data
    from mnist_ray.stages import SEEDS_APART, read_stages
    from mnist_ray.training import Trainer, use_threads

    settings, key = task
    use_threads(1)
    split, hp = searched()
    part, test = (data.load("mnist", name, settings.data_dir) for name in ("train", "test"))
    train, seen = data.split(part.labels, val_images=split["val_images"], train_images=split["train_images"], seed=split["seed"])
    unseen = np.setdiff1d(np.arange(len(part.labels)), np.concatenate([train, seen]))
    recipe, change = CHAINS[key["chain"]]
    if key["chain"] == "plain":
        hp = convnet(**PLAIN)
    tensors = [torch.from_numpy(a.copy()) for a in (part.images, part.labels, test.images, test.labels)]
    weights, stages = None, []
    for stage in read_stages(recipe).stages:
        seed = stage.seed + SEEDS_APART * (key["seed"] - 1)
        trainer = Trainer({**stage.hyperparameters(hp), **change}, epochs=stage.epochs, seed=seed, weights=weights)
        for _ in range(stage.epochs):
            trainer.train_epoch(tensors[0], tensors[1], torch.from_numpy(train))
        weights = {name: tensor.clone() for name, tensor in trainer.weights().items()}
        loss, accuracy = trainer.evaluate(tensors[0], tensors[1], torch.from_numpy(unseen))
        test_loss, test_accuracy = trainer.evaluate(tensors[2], tensors[3], torch.arange(len(test.labels)))
        stages.append({"loss": loss, "accuracy": 100 * accuracy, "test_loss": test_loss, "test_accuracy": 100 * test_accuracy})
    return {"key": key, "stages": stages}


def measure(settings: AblationSettings) -> None:
    """What the cache lacks is run; then the tables."""
    if unknown := sorted({*settings.chains} - {*CHAINS}):
        raise SettingsError(f"--chains: {unknown[0]!r} is unknown; expected any of {', '.join(CHAINS)}")
    keys = [{"chain": chain, "seed": seed} for chain in settings.chains for seed in range(1, settings.repeats + 1)]
    done = cached(run, settings, keys)
    found = {(each["key"]["chain"], each["key"]["seed"]): each["stages"] for each in done}
    for heading, rows in TABLES.items():
        against, _ = next(iter(rows.values()))
        if against in settings.chains:
            write(settings, heading, {words: row for words, row in rows.items() if row[0] in settings.chains}, found)


def write(settings: AblationSettings, heading: str, rows: dict[str, tuple[str, int]], found: dict[tuple[str, int], Any]) -> None:
    """One table: each row compared with the first."""

    def values(row: str, what: str) -> list[float]:
        chain, stages = rows[row]
        return [found[chain, seed][stages - 1][what] for seed in range(1, settings.repeats + 1)]

    against = next(iter(rows))

    def compared(row: str, what: str, digits: int) -> tuple[str, str]:
        theirs = "" if row == against else difference(values(row, what), values(against, what), digits)
        return mean_sd(values(row, what), digits), theirs

    section(
        heading,
        ["", "loss on unseen training images", f"− “{against}” (95 %)", "accuracy there, %", "− the same (95 %)", "test accuracy, %"],
        [[row, *compared(row, "loss", 4), *compared(row, "accuracy", 2), mean_sd(values(row, "test_accuracy"), 2)] for row in rows],
        n=f"n = {settings.repeats} seeds each, mean ± sd, 10,000 training images",
        out=settings.out,
        notes=["The seed document's stages do without label smoothing, with which the loss has another scale: compare their accuracy."]
        if "searched, S3's stages" in [chain for chain, _ in rows.values()]
        else [],
    )


if __name__ == "__main__":
    main(AblationSettings, measure)
