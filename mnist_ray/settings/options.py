"""The options of a search, typed. The text below an option is its help.

They are grouped by purpose: a group is a base class and a title in `--help`.
"""

import dataclasses
import difflib
import os
import typing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, Self

from tyro.conf import Fixed

from mnist_ray.errors import SettingsError, printable
from mnist_ray.settings import objectives
from mnist_ray.settings.secrets import masked
from mnist_ray.settings.text import CACHE, as_meant, converted

# A text behind a type says how help writes its value.
Class = Annotated[str, "NAME|module:Class"]
Data = Annotated[str, "NAME|KIND:PATH|module:function"]
Function = Annotated[str, "NAME|module:function"]
Duration = Annotated[str, "TIME"]
File = Annotated[str, "FILE"]
Folder = Annotated[str, "FOLDER"]
KeyValues = Annotated[tuple[str, ...], "KEY=VALUE ..."]
Name = Annotated[str, "NAME"]
Recipe = Annotated[str, "NAME|FILE"]
Storage = Annotated[str, "FOLDER|URI"]
StudyPlace = Annotated[str, "URL|FILE"]


def default_storage() -> str:
    """The folder of all runs; it begins with ~ if this user has no home folder."""
    return os.path.expanduser("~/mnist_ray")


def default_data_dir() -> str:
    """The folder of torchvision's data sets."""
    return os.environ.get("MNIST_RAY_DATA") or os.path.expanduser(CACHE)


@dataclass(frozen=True)
class Options:
    """The base of all settings: values from Python become those of the command line."""

    # Whether a run records the values, which are UTF-8 then. (No annotation: it is no option.)
    recorded = False

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(type(self)).items():
            value = converted(getattr(self, name), kind, name)
            if value == "" or (isinstance(value, tuple) and "" in value):
                # That of a shell's variable that is not set, as --warm-start "$OLD".
                raise SettingsError(f"{self._shown(name)}: is empty; give a value, or leave it out")
            if value is not None:
                value = as_meant(name, value, self._shown)
            # A home folder may be named in any way.
            if self.recorded and value not in (default_storage(), default_data_dir()):
                self._check_utf8(name, value)
            object.__setattr__(self, name, value)

    def _check_utf8(self, name: str, value: Any) -> None:
        """SettingsError if a text cannot be written, as some names of files cannot."""
        for text in value if isinstance(value, tuple) else (value,):
            try:
                str(text).encode()
            except UnicodeEncodeError as error:
                raise SettingsError(
                    f"{self._shown(name)}: {printable(text)} is no UTF-8; "
                    "rename it, or name a link to it"
                ) from error

    @classmethod
    def _shown(cls, name: str) -> str:
        """An option as the command line has it: MODEL, or --warm-start."""
        hint = typing.get_type_hints(cls, include_extras=True)[name]
        marks = getattr(hint, "__metadata__", ())
        is_positional = any("Positional" in repr(mark) for mark in marks)
        return name.upper() if is_positional else "--" + name.replace("_", "-")

    @classmethod
    def of(cls, **options: Any) -> Self:
        """The settings with these options, named as the command's flags are.

        Raises:
            SettingsError: There is no such option, or the value is not of its type.

        Example:
            >>> SearchSettings.of(dataset="digits", space_args={"max_width": 16}).space_args
            ('max_width=16',)
        """
        known = [f.name for f in dataclasses.fields(cls) if f.name != "given"]
        for name in options.keys() - known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise SettingsError(f"{name}: there is no such option; {hint}")
        return cls(**options)


@dataclass(frozen=True)
class DataOptions(Options):
    """The images, and which of them to train on."""

    dataset: Data = "mnist"
    """Data set: mnist, fashion-mnist, kmnist, cifar10, digits, or your own: folder:PATH, npz:FILE,
    csv:FILE, parquet:PATH, hf:NAME or module:function."""
    data_dir: Folder = field(default_factory=default_data_dir)
    """Folder of the built-in data sets, as torchvision lays them out (default: MNIST_RAY_DATA, else
    ~/.cache/mnist_ray)."""
    image_size: int | None = None
    """Height and width of your own images (default: the median of the pictures, at most 64)."""
    channels: Literal["grey", "colour"] | None = None
    """Read your own images in grey or in colour (default: grey if all pictures are)."""
    padding: Literal["black", "white", "edge", "stretch"] = "black"
    """Fills the border of a picture of another shape than the images; stretch distorts it."""
    skip_broken: bool = False
    """Leave out pictures that cannot be read."""
    verify_data: bool = False
    """Read all pictures again, not only those of another size or time."""
    train_images: int | None = None
    """Number of images to train on in the search (default: all but the validation images)."""
    val_images: int | None = None
    """Number of images to validate on (default: 5,000; digits: 215; your own: a tenth)."""
    val_by: Literal["class", "group", "own"] | None = None
    """How validation images are drawn. class: in the classes' proportions; group: no writer is in
    both parts; own: those that the data set brings (default: own, group or class, the first that
    is possible)."""
    folds: int | None = None
    """For few images: cross-validate each trial on this number of folds; its value is the mean."""
    augment: Annotated[str, "NAME[:KEY=VALUE,...]|module:function"] = "none"
    """Change the training images at random: crop-flip (for cifar10), shift, affine, elastic or
    affine-elastic, with strengths as affine:degrees=15,shift=3, or your own module:function."""
    class_weights: Annotated[str, "balanced|FILE"] | None = None
    """How much each class counts in the loss: balanced, or a YAML file of CLASS: WEIGHT lines."""
    seed: int = 0
    """Fixes the split, the suggestions and the weights."""


@dataclass(frozen=True)
class SpaceOptions(Options):
    """The networks to search among."""

    space: Function = "convnet"
    """Search space: a name from mnist_ray/spaces, or module:function for your own."""
    space_args: KeyValues = ()
    """The space's own options, as KEY=VALUE."""
    onnx: File | None = None
    """Start every trial from this ONNX file or run's directory, for --space optimizer (a file of
    another program needs the extra foreign-onnx)."""
    portfolio: Annotated[str, "auto|none|FILE"] = "auto"
    """Good defaults, tried after --points and before all others: at most four that were good on
    other data sets (auto), or a YAML file as for --points."""
    points: File | None = None
    """YAML file with a list of known good configurations, which are tried first."""


@dataclass(frozen=True)
class TrainOptions(Options):
    """Your own training, in place of networks on images."""

    train: Function | None = None
    """module:function that trains: a generator of (hp, seed, device, state, data). Each yield is an
    epoch: a dict of metrics, or that and the state as bytes."""
    train_data: Function | None = None
    """module:function whose result every trial gets as data, or images: those of --dataset in their
    split."""
    finetune_with: Function | None = None
    """module:function that continues the best trial's state in a second job; it yields as --train
    does."""
    finetune_epochs: int | None = None
    """The most epochs of --finetune-with (default: --max-epochs)."""


@dataclass(frozen=True)
class GoalOptions(Options):
    """The goal of the search, and its limits."""

    metric: Function = "val_accuracy"
    """The value to maximise or minimise: val_accuracy, val_loss, balanced_accuracy, macro_f1, or
    module:function of labels and probabilities; with --train any that it yields. Equal values are
    ranked by the loss."""
    metric_mode: Literal["max", "min"] | None = None
    """Whether a metric of your own is to be maximised or minimised (default: max)."""
    objectives: Annotated[str, "NAME,NAME,..."] | None = None
    """Several objectives, two or more of accuracy, loss, parameters and latency (milliseconds of
    one image on one thread), as accuracy,parameters: the result is a Pareto front, and asha stops
    dominated trials. --metric chooses each trial's epoch and the network to fine-tune."""
    constraint: Annotated[tuple[str, ...], "LIMIT ..."] = ()
    """Limits that the winner keeps, as parameters<=50000, latency<=0.5, size<=200kB (of the ONNX
    file), accuracy>=0.97; may be repeated."""
    trials: int = 50
    """Number of trials of this run in all."""
    max_epochs: int = 10
    """The most epochs a trial trains."""
    time_budget: Duration | None = None
    """Stop the search after this time, as 90s, 30m or 2h; the fine-tuning follows."""
    target: float | None = None
    """End the search when a trial reaches this value of the metric, as 0.995."""
    patience: int | None = None
    """End the search after this number of trials in a row without a better value."""
    confirm: int = 0
    """Train this number of the best trials again, each with 2 fresh seeds, and choose by the mean:
    the best value of a search is partly luck. Within --time-budget."""
    confirm_epochs: int | None = None
    """The most epochs of each training of --confirm, if more than --max-epochs. --resume with more
    --max-epochs means this too, for the 3 best unless --confirm says otherwise."""
    trial_timeout: Duration | None = None
    """Give up a trial that reports no epoch for this time, as 10m (default: never)."""


@dataclass(frozen=True)
class MethodOptions(Options):
    """The sampler that suggests networks, and the scheduler that stops them early."""

    sampler: Class = "tpe"
    """Optuna's sampler: tpe, cmaes, gp, qmc, random, grid, nsga2, or module:Class for your own."""
    sampler_args: KeyValues = ()
    """The sampler's own options, as KEY=VALUE."""
    scheduler: Class = "asha"
    """Stops weak trials early: asha, hyperband, median, percentile, successive-halving,
    threshold, patient, none, or module:Class for an optuna.pruners.BasePruner of your own.
    asha-promote: pauses them, and they go on when they are among the best. pbt: the worst trials
    continue with the weights of the best."""
    scheduler_args: KeyValues = ()
    """The scheduler's own options, as KEY=VALUE."""
    grace_period: int | None = None
    """Epochs before a trial can be stopped (default: 1; with asha, asha-promote or
    successive-halving a tenth of --max-epochs, at least 2 of 6 or more)."""
    reduction_factor: float = 3
    """Trials at a rung of which one continues, for asha, asha-promote, hyperband and
    successive-halving."""
    warm_start: Annotated[str, "RUN|STUDY"] | None = None
    """An older run's directory, or an older study's place as in --study with #STUDY_NAME behind it:
    the sampler learns from its trials."""
    deterministic: bool = False
    """The same seed gives the same search, also in parallel: trials may wait for each other. asha
    becomes successive-halving (not with --objectives). Excludes --time-budget, --target,
    --patience, --gpus-per-trial auto, --sampler qmc, and samplers of your own."""


@dataclass(frozen=True)
class ResourceOptions(Options):
    """The share of the machine or the cluster that a trial takes."""

    cpus_per_trial: float = 1
    """CPUs, and with them threads, of one trial."""
    gpus_per_trial: float | Literal["auto"] = 0
    """GPU or fraction of one for each trial, at most 1; auto: by the largest networks' memory and a
    measurement with 1, 2, 4, 8 and 16 trials at a time (0 if the cluster has none)."""
    max_concurrent: int | None = None
    """Most trials at a time (default: as many as the cluster holds, also when nodes join)."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the training; auto is bf16 if the machine has instructions for it, and fp32
    with --deterministic."""


@dataclass(frozen=True)
class RunOptions(Options):
    """The place of the run and its study."""

    storage: Storage = field(default_factory=default_storage)
    """Place of all runs, which every node sees: a folder, s3://bucket/path, gs://… or az://…
    (default: ~/mnist_ray)."""
    name: Name | None = None
    """The run's name (default: space and time)."""
    resume: bool = False
    """Continue the run of this name."""
    overwrite: bool = False
    """Delete a run of this name first."""
    study: StudyPlace | None = None
    """Place of the study instead of the run's directory: sqlite:///FILE, postgresql://…,
    mysql://…, redis://…, FILE.journal or memory; ${VAR} stands for an environment variable, as
    postgresql://me:${PGPASSWORD}@host/db. Several searches may share it."""
    study_name: Name | None = None
    """The study's name (default: the run's)."""


@dataclass(frozen=True)
class ModelOptions(Options):
    """The model that is made of the best network."""

    finetune: bool = True
    """Fine-tune the best and publish it when the search ends."""
    stages: Recipe = "default"
    """The fine-tuning stages: the name of packaged stages, as default or small, or a YAML file."""
    committee: int = 1
    """Networks to fine-tune, each with seeds of its own: an ensemble, whose mean probabilities one
    ONNX file gives."""
    calibrate: Literal["auto", "twin", "none"] = "auto"
    """How the probabilities are calibrated: on the validation images if the stages leave them out,
    else by a twin: a second network that is trained without them, which doubles the time. auto: a
    twin for at most 10,000 training images."""
    test_steps: bool = False
    """Evaluate every stage on the test set, not the published file alone."""
    gate: Literal["auto", "none"] = "none"
    """auto: a second small network, the gate, lets picture.onnx decline a picture of none of the
    classes, unless --calibrate none."""
    quantize: Literal["none", "int8", "fp16"] = "none"
    """Publish a quantised model too, if its answers agree and it is faster on this machine."""


class TrackerPart(NamedTuple):
    """The class that an option of TrackerOptions makes, and the package that it needs, if any."""

    made: str
    package: str | None


# option -> what follows the search; the class gets the option's value
TRACKERS = {
    "mlflow": TrackerPart("mnist_ray.trackers.mlflow:MLflow", "mlflow"),
    "wandb": TrackerPart("mnist_ray.trackers.wandb:WandB", "wandb"),
}


@dataclass(frozen=True)
class TrackerOptions(Options):
    """Other programs that show the trials."""

    tensorboard: bool = False
    """Write curves, histograms of the weights and the graph of every trial into the run's folder
    tensorboard/."""
    activations: bool = False
    """With --tensorboard: histograms of every layer's output for some validation images."""
    mlflow: Annotated[str, "URL"] | None = None
    """Track trials and search in MLflow: sqlite:///FILE, postgresql://…, mysql://… or http(s)://…;
    ${VAR} as in --study."""
    wandb: Annotated[str, "PROJECT"] | None = None
    """Track trials in this project of Weights & Biases; WANDB_MODE=offline writes to a folder
    only."""


@dataclass(frozen=True)
class CallOptions(Options):
    """This command alone, not the run."""

    config: Recipe | None = None
    """Name of a packaged recipe, as default (for MNIST), or a YAML file with any of these options
    (as `max_epochs: 4`); a flag wins over it."""
    dry_run: bool = False
    """Read the data, print the settings and the first suggestions; run no trial, write no run."""
    verbose: bool = False
    """Ray's own messages too."""


@dataclass(frozen=True)
class SearchSettings(  # the fields of the last base come first
    CallOptions,
    TrackerOptions,
    ModelOptions,
    RunOptions,
    ResourceOptions,
    MethodOptions,
    GoalOptions,
    TrainOptions,
    SpaceOptions,
    DataOptions,
):
    """Search for the best network, then fine-tune it in stages and publish it as ONNX."""

    recorded = True

    given: Fixed[frozenset[str]] = frozenset()
    """Names of the options that a person gave, in a flag, a file or a call. A resumed run refuses
    those that may not change, and takes the others over."""

    @classmethod
    def of(cls, **options: Any) -> Self:
        """As Options.of; every option that is given counts as given, also with its default."""
        return dataclasses.replace(super().of(**options), given=frozenset(options))

    @property
    def goal(self) -> str:
        """The metric with its direction (see `objectives.goal`)."""
        return objectives.goal(vars(self))

    def __post_init__(self) -> None:
        super().__post_init__()
        default = {
            f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            for f in dataclasses.fields(self)
        }
        changed = {name for name in default if getattr(self, name) != default[name]}
        object.__setattr__(self, "given", self.given | changed - {"given"})


def resolved(settings: Options) -> dict[str, Any]:
    """Settings as a dict that JSON and YAML can hold, without passwords."""
    values: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(settings).items()
        if name != "given"
    }
    for name in ("study", "warm_start", *TRACKERS):
        if values.get(name):
            values[name] = masked(values[name])
    return values
