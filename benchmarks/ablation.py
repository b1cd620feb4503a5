"""Does each part pay? Search, stages, weight averaging and jittered pooling, each left out.

    MNIST_RAY_DATA=DIR python benchmarks/ablation.py --cache ablation.jsonl   # resumable

Every network is trained from random weights, with one thread, by the stages of the recipes, on
10,000 of the first 20,000 MNIST training images. It is judged by loss and accuracy on the images
from 30,000 on that did not decide in the search. Of those, about half are by census staff who wrote
no training image. The other half are by students, all of whom also wrote training images: that half
says nothing about unseen writers (see docs/experiments.md; crossval.py holds whole writers out).
The test set is not read. The search is the kept run earlier-default-1.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from accuracy import KEPT
from common import CORES, BenchmarkSettings, cached, convnet, difference, mean_sd, section

from mnist_ray.settings import RECIPES, main

TRAINED, OF, JUDGED_FROM = 10_000, 20_000, 30_000
# Without a search one would type the network of the other benchmarks with one more block, and
# dropout at the place that tutorials give it.
PLAIN: dict[str, Any] = {"blocks": 3, "dropout": 0.5, "dropout_place": "head"}
DEFAULT = str(RECIPES / "stages-mnist.yaml")
CHAINS: dict[
    str, tuple[str, dict[str, Any]]
] = {  # the stages' recipe, and what is changed in each stage
    "plain": (DEFAULT, {}),
    "searched": (DEFAULT, {}),
    "no average": (DEFAULT, {"ema": 0.0}),
    "no jitter": (DEFAULT, {"pool_jitter": 0}),
    "S3's stages": ("seed", {}),
}
ROWS = {  # words: chain, how many of its stages; the others are compared with the first
    "search, three stages": ("searched", 3),
    "default hyperparameters, three stages": ("plain", 3),
    "search, the first two stages": ("searched", 2),
    "search, the first stage": ("searched", 1),
    "search, three stages, no weight average": ("no average", 3),
    "search, three stages, no jitter in the pooling": ("no jitter", 3),
    "search, the original experiments's stages (S3, 23 epochs)": ("S3's stages", 4),
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


def searched(name: str = "earlier-default-1") -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a kept run, and the hyperparameters of its best trial."""
    import optuna
    import pyarrow.parquet as pq

    from mnist_ray import spaces
    from mnist_ray.settings import key_values

    kept = KEPT / name
    run, model = (json.loads((kept / file).read_text()) for file in ("run.json", "model.json"))
    trials = pq.read_table(kept / "trials.parquet").to_pylist()
    best = next(trial for trial in trials if trial["number"] == model["lineage"][0]["trial"])
    values = {
        name.removeprefix("params_"): value
        for name, value in best.items()
        if name.startswith("params_") and value is not None
    }
    settings = run["settings"]
    space = spaces.find(settings["space"])
    options = spaces.options(
        space, settings["space"], key_values(settings["space_args"], "--space-args")
    )
    grey = spaces.DataShape(1, (28, 28), 10, (0.1307,), (0.3081,))
    return settings, space(optuna.trial.FixedTrial(values), data=grey, **options)


def run(task: tuple[AblationSettings, dict[str, Any]]) -> dict[str, Any]:
    """One chain's key with loss and accuracy (in percent) after each stage."""
    import torch

    from mnist_ray import data
    from mnist_ray.finetune_job.recipe import read_stages
    from mnist_ray.training.machine import use_threads
    from mnist_ray.training.trainer import Trainer

    settings, key = task
    use_threads(1)
    part = data.load("mnist", "train", settings.data_dir)
    train, _ = data.split(part.labels[:OF], val_images=OF - TRAINED, seed=1)
    split, hp = searched()
    _, seen = data.split(
        part.labels,
        val_images=split["val_images"],
        train_images=split["train_images"],
        seed=split["seed"],
    )
    judged = np.setdiff1d(np.arange(JUDGED_FROM, len(part.labels)), seen)
    recipe, change = CHAINS[key["chain"]]
    if key["chain"] == "plain":
        hp = convnet(**PLAIN)
    images, labels = (torch.from_numpy(a.copy()) for a in (part.images, part.labels))
    weights, stages = None, []
    for _, stage in read_stages(recipe).numbered(member=key["seed"]):
        trainer = Trainer(
            {**stage.hyperparameters(hp), **change},
            epochs=stage.epochs,
            seed=stage.seed,
            weights=weights,
        )
        for _ in range(stage.epochs):
            trainer.train_epoch(images, labels, torch.from_numpy(train))
        weights = {name: tensor.clone() for name, tensor in trainer.weights().items()}
        loss, accuracy = trainer.evaluate(images, labels, torch.from_numpy(judged))
        stages.append({"loss": loss, "accuracy": 100 * accuracy})
    return {"key": key, "stages": stages}


def measure(settings: AblationSettings) -> None:
    """What the cache lacks is run; then the table."""
    keys = [
        {"chain": chain, "seed": seed}
        for chain in CHAINS
        for seed in range(1, settings.repeats + 1)
    ]
    found = {
        (each["key"]["chain"], each["key"]["seed"]): each["stages"]
        for each in cached(run, settings, keys)
    }
    against = next(iter(ROWS))

    def values(row: str, what: str) -> list[float]:
        chain, stages = ROWS[row]
        return [found[chain, seed][stages - 1][what] for seed in range(1, settings.repeats + 1)]

    def compared(row: str, what: str, digits: int) -> tuple[str, str]:
        theirs = (
            "" if row == against else difference(values(row, what), values(against, what), digits)
        )
        return mean_sd(values(row, what), digits), theirs

    section(
        "What each part gives",
        [
            "",
            "loss, images from 30,000 on",
            f"− “{against}” (95 %)",
            "accuracy there, %",
            "− the same (95 %)",
        ],
        [[row, *compared(row, "loss", 4), *compared(row, "accuracy", 2)] for row in ROWS],
        n=f"n = {settings.repeats} seeds each, mean ± sd, {TRAINED:,} training images",
        out=settings.out,
        notes=[
            "Half of the judged images are by students who also wrote training images: the "
            "measure sees little of unseen writers (docs/experiments.md, 2026-11-25).",
            "The original experiment's stages do without label smoothing, with which the loss has "
            "another scale: compare their accuracy.",
        ],
    )


if __name__ == "__main__":
    main(AblationSettings, measure)
