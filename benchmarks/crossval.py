"""Errors on the training images by networks that have not seen their writers: five folds.

    python benchmarks/crossval.py --recipe default --seed 1     # started again, it goes on
    python benchmarks/crossval.py --recipe no-jitter --change pool_jitter=0 --folds 1 2
    python benchmarks/crossval.py --folds                       # the table alone, from kept files
    python benchmarks/crossval.py --folds --committee default+fast    # and by mean probabilities

A recipe is the network of a kept run (accuracy/RUN: run.json, model.json, trials.parquet), a stages
file, and changes to both. Each fold is trained from random weights on the images of the other
folds' writers, by one thread. The folds are the same for all recipes and seeds. The out-of-fold
probabilities are kept under accuracy/crossval/, a file a recipe and seed; a fold that is
interrupted goes on after its last epoch. The test set is not touched.
"""

import dataclasses
import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from ablation import searched
from accuracy import KEPT
from common import ROOT, BenchmarkSettings, command, machine, section, table

from mnist_ray import data, hyperparameters
from mnist_ray.data import writers
from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.processes import end_with_parent
from mnist_ray.settings import key_values, main

log = logging.getLogger("crossval")

FOLDS = 5
STEP = 16  # quantisation of a kept logit: steps a unit
RESAMPLES = 10_000  # of the bootstrap over writers
HANDED_OVER = (0.002, 0.005, 0.01)  # shares of the images, the least sure first


@dataclass(frozen=True)
class CrossvalSettings(BenchmarkSettings):
    """Train a recipe on writer-disjoint folds; compare recipes by errors on unseen writers."""

    recipe: str = "default"
    """A name for this network, stages and changes together: the kept file's."""
    network: str = "earlier-default-1"
    """The kept run whose search found the network (a folder of benchmarks/accuracy)."""
    stages: str = "mnist"
    """The stages: a recipe's name or a YAML file."""
    change: tuple[str, ...] = ()
    """Values that replace those of the network or of every stage, as KEY=VALUE."""
    epochs: int | None = None
    """Shrink the stages in proportion to so many epochs in all, for a screening."""
    folds: tuple[int, ...] = tuple(range(1, FOLDS + 1))
    """Folds to train, from 1 to 5."""
    seed: int = 1
    """Of the weights and of the order of images; the folds do not depend on it."""
    workers: int = 1
    """Folds at a time, each with one thread."""
    device: str = "cpu"
    """cpu or cuda, which the workers share."""
    against: str = "default"
    """The recipe with which the table compares the others."""
    committee: tuple[str, ...] = ()
    """Kept recipes whose mean probabilities are judged too, as RECIPE+RECIPE."""
    dataset: str = "mnist"
    """A data set that knows its groups."""
    images: int | None = None
    """Only the first images, for a test of this script."""
    kept: str = str(KEPT / "crossval")
    """Folder of the kept probabilities."""
    work: str = str(ROOT / "runs" / "crossval")
    """Folder of the checkpoints, and of the log."""

    @property
    def name(self) -> str:
        """The kept file's name."""
        return f"{self.recipe}-seed-{self.seed}"


class Part(NamedTuple):
    """The images with, for each, its writer, series and fold (from 1)."""

    images: data.Images
    writer: np.ndarray
    series: np.ndarray
    fold: np.ndarray


class Kept(NamedTuple):
    """A recipe's result for one seed."""

    about: dict[str, Any]
    probabilities: np.ndarray
    """float64 `[n, classes]`, NaN where the fold is not done."""


def part_of(settings: CrossvalSettings) -> Part:
    """The training part in folds of writers: alike in classes and, for MNIST, in series."""
    from sklearn.model_selection import StratifiedGroupKFold

    images = data.load(settings.dataset, "train", settings.data_dir)
    if images.groups is None:
        raise SettingsError(f"--dataset: the groups (writers) of {settings.dataset} are not known")
    n = len(images.labels) if settings.images is None else settings.images
    found = None
    if settings.dataset == "mnist":
        found = writers.read(Path(settings.data_dir), images.labels)
    series = np.zeros(n, np.int64) if found is None else found.series[:n]
    images = dataclasses.replace(
        images, images=images.images[:n], labels=images.labels[:n], groups=images.groups[:n]
    )
    assert images.groups is not None
    fold = np.zeros(n, np.int64)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    alike = images.labels + len(images.classes) * series
    for number, (_, held_out) in enumerate(folds.split(alike, alike, images.groups), start=1):
        fold[held_out] = number
    return Part(images, images.groups, series, fold)


# ---- training


def recipe_of(settings: CrossvalSettings) -> tuple[Any, dict[str, Any]]:
    """The stages and the network's hyperparameters, with the changes in both."""
    from mnist_ray.finetune_job.recipe import Stage, read_stages

    stages = read_stages(settings.stages)
    _, hp = searched(settings.network)
    change = {k: yaml.safe_load(v) for k, v in key_values(settings.change, "--change").items()}
    of_stage = {f.name for f in dataclasses.fields(Stage)} - {"epochs", "seed"}
    unknown = sorted(set(change) - of_stage - set(hyperparameters.network(hp)))
    if unknown:
        raise SettingsError(f"--change: neither the stages nor the network have {unknown[0]!r}")
    hp = hp | {k: v for k, v in change.items() if k not in of_stage}
    epochs = [stage.epochs for stage in stages.stages]
    if settings.epochs is not None:
        epochs = [max(1, round(each * settings.epochs / sum(epochs))) for each in epochs]
        epochs[0] = settings.epochs - sum(epochs[1:])
        if epochs[0] < 1:
            raise SettingsError(f"--epochs: {settings.epochs} are too few for {len(epochs)} stages")
    of_stage_changes = {k: v for k, v in change.items() if k in of_stage}
    changed = tuple(
        dataclasses.replace(stage, epochs=n, **of_stage_changes)
        for stage, n in zip(stages.stages, epochs, strict=True)
    )
    return dataclasses.replace(stages, train_on="all", stages=changed), hp


def train(settings: CrossvalSettings, number: int) -> int:
    """One fold's logits for its held-out images, as a file in the work folder; its number."""
    import torch

    from mnist_ray.finetune_job.stages import TrainingData, train_stages
    from mnist_ray.run import layout
    from mnist_ray.storage import RunStorage
    from mnist_ray.training.machine import use_threads
    from mnist_ray.training.trainer import load_network

    folder = Path(settings.work, settings.name, f"fold-{number}")
    folder.mkdir(parents=True, exist_ok=True)
    _log_to(folder.parent / "log.txt")
    os.nice(19)
    use_threads(1)
    part = part_of(settings)
    recipe, hp = recipe_of(settings)
    held_out, seen = np.flatnonzero(part.fold == number), np.flatnonzero(part.fold != number)
    hp = hp | _of_data(part.images)
    images, labels = (
        torch.from_numpy(np.ascontiguousarray(a[seen])).to(settings.device)
        for a in (part.images.images, part.images.labels)
    )
    storage = RunStorage(str(folder))
    start = time.perf_counter()
    index = torch.arange(0, device=settings.device)
    # The search's checkpoint has seen images by all writers: the stages begin with random weights.
    parts = TrainingData(images, labels, index, index)
    lines = train_stages(recipe, hp, None, storage, parts, "auto", settings.seed)
    for line in lines:
        log.info("fold %d: %s", number, line)
    last_stage = recipe.numbered()[-1][0]
    last = f"{layout.stage_folder(last_stage, settings.seed)}/{layout.STAGE_NETWORK}"
    model, _ = load_network(storage.read_bytes(last), str(folder))
    with torch.inference_mode():
        logits = torch.cat(
            [
                model(torch.from_numpy(part.images.images[chosen]).float() / 255)
                for chosen in np.array_split(held_out, max(1, len(held_out) // 250))
            ]
        )
    minutes = (time.perf_counter() - start) / 60
    np.save(folder / "logits.tmp.npy", logits.numpy())
    os.replace(folder / "logits.tmp.npy", folder / "logits.npy")
    wrong = (logits.argmax(1).numpy() != part.images.labels[held_out]).sum()
    log.info("fold %d: %d of %d wrong, %.1f min", number, wrong, len(held_out), minutes)
    return number


def _of_data(images: data.Images) -> dict[str, Any]:
    """What a data set decides of a network."""
    channels, *size = images.shape
    return {
        "in_channels": channels,
        "image_size": size,
        "classes": len(images.classes),
        "mean": list(images.mean),
        "std": list(images.std),
    }


def _log_to(path: Path) -> None:
    if not log.handlers:
        handlers: list[logging.Handler] = [logging.FileHandler(path), logging.StreamHandler()]
        for handler in handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%m-%d %H:%M:%S"))
            log.addHandler(handler)
        log.setLevel(logging.INFO)


def run(settings: CrossvalSettings) -> None:
    """The folds that are missing; after each the kept file is written anew."""
    if not set(settings.folds) <= set(range(1, FOLDS + 1)):
        raise SettingsError(f"--folds: {settings.folds} are not allowed; expected 1 to {FOLDS}")
    folder = Path(settings.work, settings.name)
    folder.mkdir(parents=True, exist_ok=True)
    recipe, hp = recipe_of(settings)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WorkError(f"another process works in {folder}") from error
        about = {
            "recipe": settings.recipe,
            "seed": settings.seed,
            "network": settings.network,
            "change": list(settings.change),
            "dataset": settings.dataset,
            "images": settings.images,
            "stages": [dataclasses.asdict(stage) for stage in recipe.stages],
            "hyperparameters": hp,
        }
        _same(folder / "about.json", about)
        missing = [k for k in settings.folds if not (folder / f"fold-{k}" / "logits.npy").exists()]
        for _ in _trained(settings, missing):
            keep(settings, about)


def _same(path: Path, about: dict[str, Any]) -> None:
    """SettingsError where the folder holds checkpoints of other settings."""
    text = json.dumps(about, indent=1)
    if not path.exists():
        path.write_text(text)
    elif path.read_text() != text:
        raise SettingsError(f"--recipe: {path} was made with other settings; choose another name")


def _trained(settings: CrossvalSettings, folds: Sequence[int]) -> Iterator[int]:
    if settings.workers == 1 or len(folds) < 2:
        yield from (train(settings, number) for number in folds)
        return
    spawn = get_context("spawn")
    with ProcessPoolExecutor(settings.workers, spawn, initializer=end_with_parent) as pool:
        jobs = [pool.submit(train, settings, number) for number in folds]
        yield from (job.result() for job in as_completed(jobs))


# ---- the kept files


def keep(settings: CrossvalSettings, about: dict[str, Any]) -> None:
    """Write the folds that are done as NAME.npz, and what they are as NAME.json."""
    part = part_of(settings)
    n, classes = len(part.fold), len(part.images.classes)
    logits = np.full((n, classes), np.nan, np.float32)
    done = []
    for number in range(1, FOLDS + 1):
        file = Path(settings.work, settings.name, f"fold-{number}", "logits.npy")
        if file.exists():
            logits[part.fold == number] = np.load(file)
            done.append(number)
    kept = Path(settings.kept)
    kept.mkdir(parents=True, exist_ok=True)
    known = np.isin(part.fold, done)
    np.savez_compressed(
        kept / f"{settings.name}.npz",
        gaps=quantised(logits[known]),
        fold=part.fold.astype(np.uint8),
    )
    log_p = np.log(softmax(logits[known].astype(np.float64)))
    labels = part.images.labels[known]
    about = about | {
        "folds": done,
        "images_judged": int(known.sum()),
        "errors": int((log_p.argmax(1) != labels).sum()),
        "log_loss": float(-log_p[np.arange(len(labels)), labels].mean()),
        "machine": machine(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": command(),
    }
    (kept / f"{settings.name}.json").write_text(json.dumps(about, indent=1) + "\n")


def quantised(logits: np.ndarray) -> np.ndarray:
    """How far each logit lies below the largest, uint8 in steps of 1/16.

    A probability of 0.9 is kept to about ±0.002. The largest logit alone has 0: the predicted class
    is kept.
    """
    gaps = np.rint((logits.max(1, keepdims=True) - logits) * STEP)
    gaps = np.clip(gaps, 1, 255).astype(np.uint8)
    gaps[np.arange(len(logits)), logits.argmax(1)] = 0
    return np.asarray(gaps)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def read(path: Path) -> Kept:
    """A kept file and its description."""
    with np.load(path.with_suffix(".npz")) as file:
        gaps, fold = file["gaps"], file["fold"]
    about = json.loads(path.with_suffix(".json").read_text())
    probabilities = np.full((len(fold), gaps.shape[1]), np.nan)
    probabilities[np.isin(fold, about["folds"])] = softmax(-gaps.astype(np.float64) / STEP)
    return Kept(about, probabilities)


# ---- comparison


def mcnemar(wrong: np.ndarray, other: np.ndarray) -> tuple[int, int, float]:
    """Images that only the first has wrong, only the second, and the exact two-sided p."""
    from scipy.stats import binomtest

    first, second = int((wrong & ~other).sum()), int((~wrong & other).sum())
    return first, second, float(binomtest(first, first + second).pvalue) if first + second else 1.0


def by_writers(difference: np.ndarray, writer: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean difference an image, from resampled writers.

    Args:
        difference: float `[n]`, of two recipes on the same images.
        writer: int `[n]`.
    """
    which = np.unique(writer, return_inverse=True)[1]
    sums, sizes = np.bincount(which, difference), np.bincount(which)
    drawn = np.random.default_rng(0).multinomial(
        len(sizes), np.full(len(sizes), 1 / len(sizes)), size=RESAMPLES
    )
    low, high = np.percentile((drawn @ sums) / (drawn @ sizes), [2.5, 97.5])
    return float(low), float(high)


def report(settings: CrossvalSettings) -> None:
    """The table of all kept files of the data set, and each recipe against one of them."""
    part = part_of(settings)
    found = [read(path) for path in sorted(Path(settings.kept).glob("*.json"))]
    found = [each for each in found if len(each.probabilities) == len(part.fold)]
    found.sort(key=lambda each: (each.about["recipe"] != settings.against, each.about["recipe"]))
    groups = {"all": part.series >= 0}
    if settings.dataset == "mnist":
        groups |= {
            "census staff": part.series == writers.STAFF,
            "students": part.series == writers.STUDENTS,
        }
    labels = part.images.labels

    def figures(kept: Kept) -> Iterator[str]:
        done = np.isfinite(kept.probabilities[:, 0])
        wrong = kept.probabilities.argmax(1) != labels
        with np.errstate(invalid="ignore"):
            loss = -np.log(kept.probabilities[np.arange(len(labels)), labels])
        for chosen in groups.values():
            judged = chosen & done
            yield (
                f"{wrong[judged].sum():,} of {judged.sum():,} "
                f"({100 * wrong[judged].mean():.3f} %), {loss[judged].mean():.4f}"
            )

    rows = [
        [
            f"`{kept.about['recipe']}`",
            kept.about["seed"],
            ", ".join(map(str, kept.about["folds"])),
            sum(stage["epochs"] for stage in kept.about["stages"]),
            *figures(kept),
        ]
        for kept in found
    ]
    section(
        "Errors on unseen writers",
        ["recipe", "seed", "folds", "epochs", *(f"{name}: errors, log loss" for name in groups)],
        rows,
        n="one network a fold, recipe and seed",
        out=settings.out,
        by_cpu=False,
        notes=[
            "Each image is judged by a network whose training images are by other writers "
            "(QMNIST's labels); the test set is not touched. Log losses of recipes with another "
            "label smoothing cannot be compared. `default` is fifteen epochs of SGD (`--stages "
            "mnist`), `fast` the recipe `default` of today, `fast-pool-first` the recipe `fast`.",
            _trained_on(found),
            *_compared(settings, part, found),
            *_committees(settings, part, found),
            *_left(settings, part, found),
        ],
    )


def _trained_on(found: Sequence[Kept]) -> str:
    """The processors behind the table, which is made on another machine perhaps."""
    recipes: dict[str, list[str]] = {}
    for kept in found:
        recipes.setdefault(kept.about["machine"].split(",")[0], []).append(kept.about["recipe"])
    most = max(recipes, key=lambda processor: len(recipes[processor]))
    others = [
        f"{', '.join(f'`{name}`' for name in dict.fromkeys(names))} on {processor}"
        for processor, names in recipes.items()
        if processor != most
    ]
    return f"Trained on {'; '.join([most, *others])}."


def _compared(settings: CrossvalSettings, part: Part, found: Sequence[Kept]) -> Iterator[str]:
    """The table of the recipes against one, seed by seed, on the images that both have judged."""
    base = {kept.about["seed"]: kept for kept in found if kept.about["recipe"] == settings.against}
    rows = []
    for kept in found:
        seed, recipe = kept.about["seed"], kept.about["recipe"]
        if recipe == settings.against or seed not in base:
            continue
        both = np.isfinite(kept.probabilities[:, 0] + base[seed].probabilities[:, 0])
        if not both.any():
            continue
        for name, chosen in {
            "all": both,
            **({"students": both & (part.series == writers.STUDENTS)} if part.series.any() else {}),
        }.items():
            labels = part.images.labels[chosen]
            wrong, other = (
                each.probabilities[chosen].argmax(1) != labels for each in (kept, base[seed])
            )
            ours, theirs, p = mcnemar(wrong, other)
            difference = wrong.astype(float) - other
            low, high = by_writers(difference, part.writer[chosen])
            rows.append(
                [
                    f"`{recipe}`",
                    seed,
                    f"{name}, {len(labels):,}",
                    f"{wrong.sum()} − {other.sum()}",
                    f"{100 * difference.mean():+.3f} ({100 * low:+.3f} to {100 * high:+.3f})",
                    f"{ours} and {theirs}, p = {p:.2g}",
                ]
            )
    if rows:
        header = [
            f"against `{settings.against}`",
            "seed",
            "images",
            "errors",
            "difference, points (95 %, writers resampled)",
            "wrong in one alone (McNemar)",
        ]
        yield table(header, rows)


def _members(
    names: Sequence[str], found: Sequence[Kept]
) -> Iterator[tuple[int, np.ndarray, list[np.ndarray]]]:
    """Each seed that all the recipes have, the images that all have judged (bool `[n]`), and the
    probabilities of each there.
    """
    kept = {(each.about["recipe"], each.about["seed"]): each.probabilities for each in found}
    for seed in sorted({seed for _, seed in kept}):
        members = [kept[name, seed] for name in names if (name, seed) in kept]
        if len(members) == len(names):
            judged = np.isfinite(sum(each[:, 0] for each in members))
            if judged.any():
                yield seed, judged, [each[judged] for each in members]


def _committees(settings: CrossvalSettings, part: Part, found: Sequence[Kept]) -> Iterator[str]:
    """The table of mean probabilities, seed by seed, on the images that all members have judged."""
    known = {each.about["recipe"] for each in found}
    rows = []
    for names in (text.split("+") for text in settings.committee):
        if unknown := [name for name in names if name not in known]:
            raise SettingsError(
                f"--committee: {unknown[0]} is not kept; expected of {', '.join(sorted(known))}"
            )
        for seed, judged, members in _members(names, found):
            labels = part.images.labels[judged]
            wrong = np.stack([each.argmax(1) != labels for each in members])
            mean = np.mean(members, axis=0)
            rows.append(
                [
                    ", ".join(f"`{name}`" for name in names),
                    seed,
                    f"{len(labels):,}",
                    ", ".join(map(str, wrong.sum(1))),
                    (mean.argmax(1) != labels).sum(),
                    wrong.all(0).sum(),
                    wrong.any(0).sum(),
                ]
            )
    if rows:
        header = ["mean probabilities of", "seed", "images", "errors of each", "of the mean"]
        yield table([*header, "wrong in all", "wrong in one at least"], rows)


def _left(settings: CrossvalSettings, part: Part, found: Sequence[Kept]) -> Iterator[str]:
    """The table of errors that are left when the least sure images go to a person."""
    recipes = dict.fromkeys(each.about["recipe"] for each in found)
    rows = []
    for names in [*([name] for name in recipes), *(text.split("+") for text in settings.committee)]:
        for seed, judged, members in _members(names, found):
            left = errors_left(np.mean(members, axis=0), part.images.labels[judged])
            shown = ", ".join(f"`{name}`" for name in names)
            errors = [f"{10_000 * each:.1f}" for each in left]
            rows.append([shown, seed, f"{judged.sum():,}", *errors])
    if rows:
        header = ["errors of 10,000 (mean probabilities of several)", "seed", "images", "all"]
        yield table([*header, *(f"{share:.1%} handed over" for share in HANDED_OVER)], rows)


def errors_left(probabilities: np.ndarray, labels: np.ndarray) -> list[float]:
    """Errors an image: of all, and after each share of HANDED_OVER, the least sure first."""
    order = np.argsort(probabilities.max(1), kind="stable")
    wrong = (probabilities.argmax(1) != labels)[order]
    return [wrong[round(share * len(wrong)) :].sum() / len(wrong) for share in (0, *HANDED_OVER)]


def measure(settings: CrossvalSettings) -> None:
    """Train what is missing; then the table."""
    if settings.folds:
        run(settings)
    report(settings)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    main(CrossvalSettings, measure)
