"""The checks of settings that need no data, no storage and no Ray."""

import itertools
import math
import os
from collections.abc import Iterator

from mnist_ray import hyperparameters
from mnist_ray.errors import SettingsError, shortened
from mnist_ray.settings import constraints, objectives
from mnist_ray.settings.options import SearchSettings
from mnist_ray.settings.text import duration, is_stored, key_values

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for a submitted job: its settings as JSON
COPY = "/runtime_resources/working_dir_files/"  # in the path of a submitted job's directory
LEAST = {
    "trials": 1,
    "max_epochs": 1,
    "grace_period": 1,
    "reduction_factor": 2,
    "committee": 1,
    "max_concurrent": 1,
    "seed": 0,
    "train_images": 1,
    "val_images": 1,
    "image_size": 1,
    "folds": 2,
    "patience": 1,
    "confirm": 0,
    "confirm_epochs": 1,
    "finetune_epochs": 1,
}
MOST = 10_000_000  # of every whole number, so of trials and epochs: more in a run's table is damage
# Options of data sets that are files of one's own.
OF_STORED = ("image_size", "channels", "padding", "skip_broken", "verify_data")


def check_search(s: SearchSettings, *, merged: bool = False) -> None:
    """Checks the settings of a search.

    Args:
        s: The settings.
        merged: Whether those of --resume have the run's values by now.

    Raises:
        SettingsError: A value is not allowed, or two options exclude each other; names the flag.
    """
    for name, least in LEAST.items():
        _at_least(name, value := getattr(s, name), least)
        if isinstance(value, int) and value > MOST and name != "seed":
            yours = shortened(str(value), 40)
            raise SettingsError(
                f"--{name.replace('_', '-')}: {yours} is not allowed; expected at most {MOST:,}"
            )
    faults = (_numbers(s), _exclusions(s), _target(s, merged), _confirm(s, merged))
    problem = next(itertools.chain(*faults), None)
    if problem:
        raise SettingsError(problem)
    duration(s.time_budget, "--time-budget")
    duration(s.trial_timeout, "--trial-timeout")
    hyperparameters.augmentation(s.augment, "--augment")
    objectives.check(s)
    constraints.check(s)
    key_values(s.space_args, "--space-args")
    key_values(s.sampler_args, "--sampler-args")
    key_values(s.scheduler_args, "--scheduler-args")
    check_storage(s.storage)
    if s.study and s.study != "memory":
        check_lasting("--study", s.study)
    if s.mlflow:
        check_lasting("--mlflow", s.mlflow)
    if not merged:  # a run that has it goes on for as long as Ray keeps the copy
        _check_lasting_data(s.dataset)


def check_storage(storage: str) -> None:
    """Raises SettingsError if a folder is below an unknown home folder, or would not last."""
    check_lasting("--storage", storage)
    if storage.startswith("~"):
        raise SettingsError(
            f"--storage: {storage}: this user has no home folder; name a folder, or set HOME"
        )


def check_lasting(flag: str, place: str) -> None:
    """Raises SettingsError for a relative path in a job of `ray job submit`.

    Ray runs such a job in a temporary copy of the working directory, which it removes.
    """
    scheme, mark, rest = place.partition("://")
    path = rest.removeprefix("/") if scheme in ("sqlite", "file") else scheme
    is_path = not mark or scheme == "sqlite"
    if not is_path or path.startswith(("/", "~", "$")) or not path:
        return
    if JOB_CONFIG in os.environ and COPY in f"{os.getcwd()}/":
        raise SettingsError(
            f"{flag}: {place} is relative to Ray's temporary copy of the working directory, and "
            f"would be lost with it; give an absolute path that every node has, or s3://…"
        )


def _check_lasting_data(dataset: str) -> None:
    """Raises SettingsError for images in the copy: a later job has another, and no --resume."""
    if is_stored(dataset) and COPY in dataset and JOB_CONFIG in os.environ:
        raise SettingsError(
            f"--dataset: {dataset} is in Ray's temporary copy of the working directory, and would "
            "be lost with it; give an absolute path that this cluster's head will have again, "
            "or hf:NAME"
        )


def _at_least(name: str, value: float | None, least: float) -> None:
    if value is not None and not least <= value < float("inf"):  # also refuses NaN
        flag = "--" + name.replace("_", "-")
        raise SettingsError(
            f"{flag}: {value} is not allowed; expected a number of at least {least}"
        )


def _numbers(s: SearchSettings) -> Iterator[str]:
    """The faults of numbers, beyond LEAST."""
    if not isinstance(s.gpus_per_trial, str):
        _at_least("gpus_per_trial", s.gpus_per_trial, 0)
        if s.gpus_per_trial > 1:
            yield (
                f"--gpus-per-trial: {s.gpus_per_trial:g} is not allowed; "
                "a trial trains on one GPU or on a fraction of one"
            )
    if not 0 < s.cpus_per_trial < float("inf"):
        yield f"--cpus-per-trial: {s.cpus_per_trial} is not allowed; expected more than 0"
    if s.grace_period is not None and s.grace_period > s.max_epochs:
        yield f"--grace-period: {s.grace_period} is more than --max-epochs {s.max_epochs}"
    if s.seed >= 2**32:
        yield f"--seed: {s.seed} is too large; expected less than 2^32"


def _target(s: SearchSettings, merged: bool) -> Iterator[str]:
    """Whether the metric can reach the target; with --resume the metric is the run's."""
    if s.target is None:
        return
    if not math.isfinite(s.target):
        yield f"--target: {s.target} is not allowed; expected a finite number"
    if s.resume and not (merged and "target" in s.given):
        return
    if s.metric not in objectives.METRICS or s.train:
        return
    share = s.metric != "val_loss"
    if not 0 < s.target <= (1 if share else math.inf):
        most = " and at most 1, as 0.995" if share else ""
        yield (
            f"--target: {s.target:g} is not allowed with --metric {s.metric}; "
            f"expected more than 0{most}"
        )


def _confirm(s: SearchSettings, merged: bool) -> Iterator[str]:
    """Whether the best can be trained again, so long; with --resume the run's values decide."""
    if s.confirm and s.objectives is not None:
        yield "--confirm: --objectives has a front as its result, and no best trial; leave one out"
    if s.confirm and s.scheduler == "pbt":
        yield "--confirm: with --scheduler pbt a trial has no settings of its own; give asha"
    if s.confirm_epochs is None or "confirm_epochs" not in s.given or (s.resume and not merged):
        return
    if not s.confirm:
        yield "--confirm-epochs: is for --confirm; give that too, as --confirm 3"
    if s.confirm_epochs < s.max_epochs:
        yield f"--confirm-epochs: {s.confirm_epochs} is less than --max-epochs {s.max_epochs}"


def _exclusions(s: SearchSettings) -> Iterator[str]:
    """Which options exclude or need each other."""
    if s.resume and s.overwrite:
        yield (
            "--resume and --overwrite exclude each other: "
            "one goes on with a run, the other deletes it"
        )
    if s.resume and s.name is None:
        yield "--resume needs --name: the run to go on with"
    yield from _repeatable(s)
    known = "dataset" in s.given or not s.resume  # else the run's data set comes later
    others = [option for option in OF_STORED if option in s.given]
    if others and known and not is_stored(s.dataset):
        yield (
            f"--{others[0].replace('_', '-')}: is for your own folders, files and tables, "
            f"not for --dataset {s.dataset}"
        )
    if s.folds and (s.train_images or s.val_images or s.val_by == "own"):
        yield "--folds: uses all training images; leave out --train-images, --val-images and own"
    if s.folds and s.scheduler == "pbt":
        yield "--folds: a trial has several networks, and --scheduler pbt copies one; give asha"
    yield from _of_metric(s)
    if s.activations and not s.tensorboard:
        yield "--activations needs --tensorboard, which shows them"


def _of_metric(s: SearchSettings) -> Iterator[str]:
    """Which metrics there are, and whose they are."""
    for name in ("train_data", "finetune_with"):
        if getattr(s, name) and not s.train:
            flag = f"--{name.replace('_', '-')}"
            yield f"{flag}: is for --train, which names your training function"
    if s.finetune_epochs and not (s.finetune_with or s.resume):
        yield "--finetune-epochs: is for --finetune-with, which names your second function"
    if s.metric not in objectives.METRICS and ":" not in s.metric and not s.train:
        yield (
            f"--metric: {s.metric!r} is unknown; expected one of {', '.join(objectives.METRICS)} "
            "or module:function"
        )
    if s.metric_mode and ":" not in s.metric and not s.train:
        yield f"--metric-mode: is for a metric of your own, not for {s.metric}"


def _repeatable(s: SearchSettings) -> Iterator[str]:
    """Which options --deterministic excludes."""
    if not s.deterministic:
        return
    if s.gpus_per_trial == "auto":
        yield (
            "--gpus-per-trial: auto measures, which may come out otherwise the next time; "
            "with --deterministic give a number"
        )
    if s.sampler == "qmc" or ":" in s.sampler:
        yield (
            f"--sampler: {s.sampler!r} keeps a state that a resume loses; "
            "with --deterministic give tpe, cmaes, gp, random, grid or nsga2"
        )
    if s.time_budget is not None:
        yield (
            "--deterministic and --time-budget exclude each other: "
            "how far a search comes in a given time is chance"
        )
    if s.target is not None or s.patience is not None:
        flag = "--target" if s.target is not None else "--patience"
        yield (
            f"--deterministic and {flag} exclude each other: which trials still run when the "
            "search ends is chance"
        )
