"""Every option of the jobs, typed: the attribute docstrings are the help text. YAML lies underneath, flags on top.

Imports nothing heavy, so that `--help` and a wrong flag answer at once.
"""

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import tyro
import yaml

from mnist_ray.errors import MnistRayError, SettingsError
from mnist_ray.hyperparameters import Augmentation
from mnist_ray.settings import objectives

T = TypeVar("T")

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
INTERRUPTED = 130  # exit code after Ctrl-C or SIGTERM, as shells have it


def default_storage() -> str:
    return str(Path.home() / "mnist_ray")


def default_data_dir() -> str:
    return os.environ.get("MNIST_RAY_DATA") or str(Path.home() / ".cache" / "mnist_ray")


@dataclass(frozen=True)
class SearchSettings:
    """Search for the best network, then fine-tune it in three stages and publish it as ONNX."""

    config: str | None = None
    """YAML file with any of these options (as `max_epochs: 4`); a flag wins over the file."""
    space: str = "convnet"
    """Search space: a name from mnist_ray/spaces, or module:function for your own."""
    space_args: tuple[str, ...] = ()
    """The space's own options, as KEY=VALUE."""
    dataset: str = "mnist"
    """Data set: mnist, fashion-mnist, kmnist, cifar10, digits, or module:function for your own."""
    data_dir: str = field(default_factory=default_data_dir)
    """torchvision's root (default: from MNIST_RAY_DATA)."""
    train_images: int | None = None
    """How many images to train on (default: all but the validation images)."""
    val_images: int | None = None
    """How many images to validate on (default: 5,000; digits: 215)."""
    val_by: Literal["class", "group"] | None = None
    """Draw validation images by class alone, or by group: no writer is in both parts (default: group where the data set knows its
    groups, as mnist does with QMNIST's labels in the data folder)."""
    augment: Augmentation = "none"
    """Change the training images at random: crop-flip (for cifar10), shift, affine (rotation, scale, shift), elastic or both of these."""
    onnx: str | None = None
    """Start every trial from this ONNX file or run's directory, for --space optimizer (files not of ours: the extra foreign-onnx)."""
    trials: int = 50
    """How many trials this run has in all."""
    max_epochs: int = 10
    """The most epochs a trial trains."""
    metric: Literal["val_accuracy", "val_loss"] = "val_accuracy"
    """What is maximised or minimised; equal accuracies are told apart by the loss."""
    objectives: str | None = None
    """Several objectives at once, two or more of accuracy, loss, parameters and latency (milliseconds of one image in onnxruntime, on one
    thread of the trial's machine), as accuracy,parameters: the result is a Pareto front. --metric still stops trials, chooses each
    trial's epoch, and decides what is fine-tuned."""
    scheduler: str = "asha"
    """What stops the hopeless early: asha, hyperband, median, percentile, successive-halving, threshold, patient, none, or
    module:Class for an optuna.pruners.BasePruner of your own; pbt: the worst go on with the weights of the best instead."""
    scheduler_args: tuple[str, ...] = ()
    """The scheduler's own options, as KEY=VALUE."""
    grace_period: int = 1
    """Epochs before a trial can be stopped."""
    reduction_factor: float = 3
    """One in so many goes on at each rung of asha, hyperband and successive-halving."""
    sampler: str = "tpe"
    """Optuna's sampler: tpe, cmaes, gp, qmc, random, grid, nsga2, or module:Class for your own."""
    sampler_args: tuple[str, ...] = ()
    """The sampler's own options, as KEY=VALUE."""
    seed: int = 0
    """Fixes the split, the suggestions and the weights."""
    deterministic: bool = False
    """The same seed gives the same search, also with several trials at a time; a trial that is done early may wait for others."""
    cpus_per_trial: float = 1
    """CPUs, and with them threads, of one trial."""
    gpus_per_trial: float | Literal["auto"] = 0
    """GPU or fraction of one for each trial; auto: by the memory of the space's largest networks and by what is measured on the GPU
    with 1, 2, 4, 8 and 16 trials at a time (0 where the cluster has none)."""
    max_concurrent: int | None = None
    """Most trials at a time (default: what the cluster's resources hold, also when nodes join)."""
    storage: str = field(default_factory=default_storage)
    """Where runs are kept: a folder or s3://bucket/path that every node sees."""
    name: str | None = None
    """The run's name (default: space and time)."""
    resume: bool = False
    """Go on with the run of this name where it stopped."""
    overwrite: bool = False
    """Delete a run of this name first."""
    study: str | None = None
    """Where the study is kept instead of the run's directory: sqlite:///FILE, postgresql://…, mysql://…, redis://…, FILE.journal or
    memory; ${VAR} stands for an environment variable, as postgresql://me:${PGPASSWORD}@host/db. Several searches may share it."""
    study_name: str | None = None
    """The study's name (default: the run's)."""
    points: str | None = None
    """YAML file with a list of known good configurations, which are tried first."""
    warm_start: str | None = None
    """An older run's directory, or an older study's place as in --study with #STUDY_NAME behind it: the sampler learns from its trials."""
    time_budget: str | None = None
    """Stop the search after so long, as 90s, 30m or 2h."""
    trial_timeout: str | None = None
    """Give a trial up that reports no epoch for so long, as 10m (default: never)."""
    finetune: bool = True
    """Fine-tune the best and publish it when the search ends."""
    stages: str = "default"
    """The fine-tune stages: default, seed, or a YAML file."""
    committee: int = 1
    """Networks to fine-tune, each with seeds of its own, whose mean probabilities one ONNX file gives."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the training; auto is bf16 where the machine has instructions for it."""
    tensorboard: bool = False
    """Write curves, histograms of the weights and the graph of every trial into the run's folder tensorboard/."""
    activations: bool = False
    """With --tensorboard: histograms of what every layer returns for some validation images, too."""
    mlflow: str | None = None
    """Track trials and search in MLflow: sqlite:///FILE, postgresql://…, mysql://… or http(s)://…; ${VAR} as in --study."""
    wandb: str | None = None
    """Track trials in this project of Weights & Biases; WANDB_MODE=offline writes to a folder only."""
    dry_run: bool = False
    """Print the resolved settings and the first suggestions, and do nothing."""
    verbose: bool = False
    """Ray's own messages too."""
    given: tyro.conf.Suppress[frozenset[str]] = frozenset()
    """Which of these were given by flag or file, set by parse: --resume compares them with the run's."""


@dataclass(frozen=True)
class FinetuneSettings:
    """Fine-tune a run's best checkpoint in stages, export it as ONNX, verify it and publish it in the run's directory."""

    run: str | None = None
    """The run's directory: a folder or s3://bucket/path/name (default: a new one, which begins with --onnx)."""
    onnx: str | None = None
    """Start from this ONNX file of ours instead of the run's best checkpoint."""
    storage: str = field(default_factory=default_storage)
    """Where a new run is kept."""
    name: str | None = None
    """A new run's name (default: finetune and the time)."""
    dataset: str | None = None
    """A new run's data set (default: the one that the ONNX file names)."""
    network: str | None = None
    """module:function of your own network, where the run's is one: a checkpoint alone must not choose what code runs."""
    stages: str | None = None
    """default, seed, or a YAML file (default: what the search was told)."""
    committee: int | None = None
    """Networks to fine-tune, each with seeds of its own, for one ONNX file (default: what the search was told)."""
    data_dir: str | None = None
    """torchvision's root (default: what the search was told)."""
    cpus: float | None = None
    """CPUs of the job (default: those of the largest node)."""
    gpus: float | None = None
    """GPUs of the job (default: 1 where the cluster has one)."""
    verbose: bool = False
    """Ray's own messages too."""


@dataclass(frozen=True)
class EvaluateSettings:
    """Accuracy of an ONNX model on a data set, with its errors, confidence interval, classes and latency."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """An ONNX file or a run's directory, local or s3://…"""
    dataset: str | None = None
    """mnist, fashion-mnist, kmnist, cifar10, digits, or module:function for your own (default: the model's)."""
    data_dir: str | None = None
    """torchvision's root (default: from MNIST_RAY_DATA)."""
    part: Literal["test", "train"] = "test"
    """Which part of the data set."""


@dataclass(frozen=True)
class PredictSettings:
    """Class and probability of each picture."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """An ONNX file or a run's directory, local or s3://…"""
    pictures: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PICTURE ...")]
    """PNG, JPEG or other picture files, one digit each."""


@dataclass(frozen=True)
class ReportSettings:
    """Make a run's report.html again, or one page that compares several runs."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """The runs' directories: folders or s3://bucket/path/name."""
    out: str | None = None
    """Write the page to this file (default: report.html, in the run's directory or, for several runs, here)."""
    png: str | None = None
    """Draw the main figures into this folder as PNG files too."""
    data_dir: str | None = None
    """torchvision's root, for the test images (default: what the search was told)."""


@dataclass(frozen=True)
class DrawSettings:
    """A page on which the model runs in the browser: draw with mouse, finger or keys, or drop a picture."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """An ONNX file or a run's directory, local or s3://…"""
    port: int = 0
    """Port on 127.0.0.1 (0: any that is free)."""
    export: str | None = None
    """Write the page into this folder instead of serving it."""


# ---- parsing


def parse(cls: type[T], argv: Sequence[str] | None = None, program: str | None = None) -> T:
    """The settings that the command line and the YAML file named by --config give.

    Raises SettingsError, one line, where a flag or key is unknown or a value is not of its type; SystemExit(0) after --help.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    settings = _tyro(cls, argv, prog=program)
    config = getattr(settings, "config", None)
    flags: list[str] = []
    if config is not None:
        flags = yaml_as_flags(cls, config)
        from_file = _tyro(cls, flags, where=f"{config}: ")
        settings = _tyro(cls, argv, default=from_file)
    if isinstance(settings, SearchSettings):
        words = {
            word.split("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
            for word in flags + argv
        }
        return dataclasses.replace(settings, given=frozenset(words & set(resolved(settings))))  # type: ignore[return-value]
    return settings


def yaml_as_flags(cls: type, path: str) -> list[str]:
    """A YAML file of options as the flags that mean the same, so that file and command line are checked by the same rules."""
    values = read_yaml(packaged(path))
    known = {
        f.name
        for f in dataclasses.fields(cls)
        if f.name not in ("config", "resume", "overwrite", "dry_run", "given")
    }
    flags: list[str] = []
    for key, value in values.items():
        if key not in known:
            raise SettingsError(
                f"{path}: unknown key {key!r}; allowed are {', '.join(sorted(known))}"
            )
        flag = "--" + key.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, Mapping):
            flags += [flag, *(f"{k}={v}" for k, v in value.items())]
        elif isinstance(value, list):
            flags += [flag, *map(str, value)]
        else:
            flags.append(f"{flag}={value}")
    return flags


def packaged(path: str, prefix: str = "") -> str:
    """The YAML file that a person means: a file of that path, or a recipe of this package by its name ("default", or its old path
    "jobs/recipes/default.yaml"; `prefix` may be left out of the name). Any other path is returned as it is."""
    if Path(path).is_file():
        return path
    name = Path(path).name.removesuffix(".yaml") if re.search(r"(^|/)jobs/recipes/", path) else path
    if re.fullmatch(r"[\w-]+", name):
        for found in (
            RECIPES / f"{prefix}{name}.yaml",
            RECIPES / f"{name}.yaml",
            RECIPES / "points" / f"{name}.yaml",
        ):
            if found.is_file():
                return str(found)
    return path


def load_yaml(path: str, where: str) -> Any:
    """What a YAML file without Python tags holds. SettingsError that begins with `where` otherwise."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"{where}: is not plain YAML: {_one_line(str(error))}") from error


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML file that holds a mapping. SettingsError naming the file otherwise."""
    values = load_yaml(path, path)
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise SettingsError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    return values


def _tyro(cls: Any, argv: Sequence[str], where: str = "", **kwargs: Any) -> Any:
    """tyro.cli, with its framed error as one line."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(cls, args=argv, **kwargs)
    except SystemExit as exit_:
        if exit_.code == 0:
            raise
        raise SettingsError(where + _first_message(output.getvalue())) from exit_


def _first_message(framed: str) -> str:
    """tyro's framed error without its frame and the help that it repeats."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", framed)
    lines = [line.strip("│╭╮╰╯─ \t") for line in text.splitlines()]
    message: list[str] = []
    for line in lines[1:]:
        if (not line and message) or line.startswith(("For full helptext", "Argument helptext")):
            break
        message.append(line)
    hints = [line.split()[0] for line in lines if line.startswith("--")]
    text = _one_line(" ".join(message)) or _one_line(" ".join(lines))
    return text + (f" (did you mean {hints[0]}?)" if hints and "nrecognized" in text else "")


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def main(
    cls: type[T],
    run: Callable[[T], int | None],
    *,
    argv: Sequence[str] | None = None,
    program: str | None = None,
) -> NoReturn:
    """Parses, calls `run` and exits: with its return value (None is 0), an error's exit code, or 130 when interrupted.

    program: what the command is called in its help and its errors (default: the script's name).
    """
    try:
        code = run(parse(cls, argv, program)) or 0
    except MnistRayError as error:
        print(f"{program or Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.stdout.flush()
    sys.exit(code)


# ---- values


def key_values(pairs: Sequence[str], flag: str) -> dict[str, str]:
    """("a=1", "b=2") -> {"a": "1", "b": "2"}; SettingsError naming the flag otherwise."""
    result = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise SettingsError(f"{flag}: {pair!r} is not of the form KEY=VALUE")
        result[key] = value
    return result


def duration(text: str | None, flag: str) -> float | None:
    """ "90s", "30m", "2h" or a number of seconds -> seconds; None stays None."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text)
    if not match or float(match[1]) <= 0:
        raise SettingsError(
            f"{flag}: {text!r} is not a duration; expected a number with s, m, h or d, as 30m"
        )
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def check_search(s: SearchSettings) -> None:
    """The checks that need nothing but the settings. Raises SettingsError naming the flag."""

    def at_least(flag: str, value: float | None, least: float) -> None:
        if value is not None and not least <= value < float("inf"):  # also refuses NaN
            raise SettingsError(
                f"{flag}: {value} is not allowed; expected a number of at least {least}"
            )

    at_least("--trials", s.trials, 1)
    at_least("--max-epochs", s.max_epochs, 1)
    at_least("--grace-period", s.grace_period, 1)
    at_least("--reduction-factor", s.reduction_factor, 2)
    at_least("--committee", s.committee, 1)
    at_least("--max-concurrent", s.max_concurrent, 1)
    at_least("--seed", s.seed, 0)
    at_least("--train-images", s.train_images, 1)
    at_least("--val-images", s.val_images, 1)
    if not isinstance(s.gpus_per_trial, str):
        at_least("--gpus-per-trial", s.gpus_per_trial, 0)
        if s.gpus_per_trial > 1 and not float(s.gpus_per_trial).is_integer():
            raise SettingsError(
                f"--gpus-per-trial: {s.gpus_per_trial} is not allowed; above 1 only whole GPUs can be assigned"
            )
    elif s.deterministic:
        raise SettingsError(
            "--gpus-per-trial: auto measures, which may come out otherwise the next time; with --deterministic give a number"
        )
    if not 0 < s.cpus_per_trial < float("inf"):
        raise SettingsError(
            f"--cpus-per-trial: {s.cpus_per_trial} is not allowed; expected more than 0"
        )
    if s.grace_period > s.max_epochs:
        raise SettingsError(
            f"--grace-period: {s.grace_period} is more than --max-epochs {s.max_epochs}"
        )
    if s.seed >= 2**32:
        raise SettingsError(f"--seed: {s.seed} is too large; expected less than 2^32")
    if s.resume and s.overwrite:
        raise SettingsError(
            "--resume and --overwrite exclude each other: one goes on with a run, the other deletes it"
        )
    if s.resume and s.name is None:
        raise SettingsError("--resume needs --name: the run to go on with")
    if s.deterministic and (s.sampler == "qmc" or ":" in s.sampler):
        raise SettingsError(
            f"--sampler: {s.sampler!r} keeps a state that a resume loses; with --deterministic give tpe, cmaes, gp, random, grid or nsga2"
        )
    if s.deterministic and s.time_budget is not None:
        raise SettingsError(
            "--deterministic and --time-budget exclude each other: how far a search comes in a given time is chance"
        )
    if s.activations and not s.tensorboard:
        raise SettingsError("--activations needs --tensorboard, which shows them")
    duration(s.time_budget, "--time-budget")
    duration(s.trial_timeout, "--trial-timeout")
    objectives.check(s)
    key_values(s.space_args, "--space-args")
    key_values(s.sampler_args, "--sampler-args")
    key_values(s.scheduler_args, "--scheduler-args")


def without_password(text: str) -> str:
    """A URL, or a command that holds one, with *** in place of the password; ${VAR}, which names a variable, stays."""

    def hidden(match: re.Match) -> str:
        return match[0] if re.fullmatch(r"\$\{\w+\}", match[2]) else f"{match[1]}***{match[3]}"

    text = re.sub(r"(://[^:/\s]*:)(\S*)(@)", hidden, text)  # to the last @: a password may hold one
    return re.sub(r"([?&](?:\w*password|passwd|pwd)=)([^&#\s]*)()", hidden, text)


def resolved(settings: Any) -> dict[str, Any]:
    """Settings as a dict that JSON and YAML can hold, without passwords."""
    values = {
        k: list(v) if isinstance(v, tuple) else v
        for k, v in dataclasses.asdict(settings).items()
        if k != "given"
    }
    return values | {
        k: without_password(str(values[k]))
        for k in ("study", "warm_start", "mlflow")
        if values.get(k)
    }
