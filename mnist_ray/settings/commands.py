"""The options of the commands beside the search, typed. The text below an option is its help."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import DisallowNone, Positional

from mnist_ray.settings.options import (
    Data,
    File,
    Folder,
    Function,
    Name,
    Options,
    Recipe,
    Storage,
    default_storage,
)

Model = Annotated[Positional[str], "MODEL"]
Pictures = Annotated[Positional[tuple[str, ...]], "PICTURE ..."]
Run = Annotated[Positional[str], "RUN"]
RunPlace = Annotated[str, "RUN"]
Runs = Annotated[Positional[tuple[str, ...]], "RUN ..."]


@dataclass(frozen=True)
class FinetuneSettings(Options):
    """Fine-tune a run's best checkpoint in stages, export it as ONNX, verify and publish it."""

    recorded = True

    run: RunPlace | None = None
    """The run's directory: a folder or s3://bucket/path/name (default: a new one, which begins with
    --onnx)."""
    onnx: File | None = None
    """Start from this ONNX file, which mnist_ray wrote, instead of the run's best checkpoint."""
    storage: Storage = field(default_factory=default_storage)
    """Place of a new run (default: ~/mnist_ray)."""
    name: Name | None = None
    """A new run's name (default: finetune and the time)."""
    dataset: Data | None = None
    """A new run's data set (default: the one that the ONNX file names); or the module:function of
    your own that the run was searched on: a file alone must not choose the code that runs."""
    network: Annotated[str, "module:function"] | None = None
    """module:function of your own network, if the run has one: a checkpoint alone must not
    choose the code that runs."""
    augment: Annotated[str, "module:function"] | None = None
    """module:function of your own augmentation, if the run's best trial has one."""
    stages: Recipe | None = None
    """The stages: the name of packaged stages or a YAML file (default: that of the search)."""
    committee: int | None = None
    """Networks to fine-tune for one ONNX file (default: that of the search)."""
    calibrate: Literal["auto", "twin", "none"] | None = None
    """How the probabilities are calibrated (default: as in the search)."""
    gate: Literal["auto", "none"] | None = None
    """Whether a second small network declines pictures of none of the classes (default: as in the
    search)."""
    quantize: Literal["none", "int8", "fp16"] | None = None
    """Publish a quantised model too, if its answers agree and it is faster on this machine
    (default: as in the search)."""
    test_steps: DisallowNone[bool | None] = None
    """Evaluate every stage on the test set, not the published file alone (default: as in the
    search)."""
    finetune_with: Function | None = None
    """For a run of --train: module:function that continues the best trial's state."""
    finetune_epochs: int | None = None
    """Its most epochs (default: as in the search)."""
    train_data: Function | None = None
    """Its data, as --train-data of the search."""
    data_dir: Folder | None = None
    """Folder of the built-in data sets (default: that of the search)."""
    cpus: float | None = None
    """CPUs of the job (default: those of the largest node)."""
    gpus: float | None = None
    """GPUs of the job (default: 1 if the cluster has one)."""
    verbose: bool = False
    """Ray's own messages too."""


@dataclass(frozen=True)
class EvaluateSettings(Options):
    """Accuracy of an ONNX model on a data set: errors, interval, classes and latency."""

    model: Model
    """An ONNX file or a run's directory, local or s3://…"""
    dataset: Data | None = None
    """As the search's --dataset (default: the model's)."""
    data_dir: Folder | None = None
    """Folder of the built-in data sets (default: MNIST_RAY_DATA, else ~/.cache/mnist_ray)."""
    part: Literal["test", "train"] = "test"
    """Which part of the data set."""


@dataclass(frozen=True)
class PredictSettings(Options):
    """Class and probability of each picture."""

    model: Model
    """An ONNX file or a run's directory, local or s3://…"""
    pictures: Pictures
    """Picture files such as PNG or JPEG, one subject each, or folders of them."""


@dataclass(frozen=True)
class ReportSettings(Options):
    """Make a run's report.html again, or one page that compares several runs."""

    runs: Runs
    """The runs' directories: folders or s3://bucket/path/name."""
    out: File | None = None
    """Write the page to this file (default: report.html, in the run's directory or, for several
    runs, here)."""
    png: Folder | None = None
    """Draw the main figures into this folder as PNG files too."""
    data_dir: Folder | None = None
    """Folder of the built-in data sets, for the test images (default: that of the search)."""


@dataclass(frozen=True)
class DrawSettings(Options):
    """A page on which the model runs in the browser: draw on it, or drop a picture."""

    model: Model
    """An ONNX file or a run's directory, local or s3://…"""
    port: int = 0
    """Port on 127.0.0.1 (0: any that is free)."""
    export: Folder | None = None
    """Write the page into this folder instead of serving it."""


@dataclass(frozen=True)
class ServeSettings(Options):
    """Answer pictures over HTTP. If MNIST_RAY_TOKEN is set, /predict and /metrics ask for it."""

    model: Model
    """An ONNX file or a run's directory, local or s3://…"""
    host: Annotated[str, "ADDRESS"] = "127.0.0.1"
    """Address to listen on; one that other machines reach needs MNIST_RAY_TOKEN."""
    port: int = 0
    """Port (0: any that is free)."""


@dataclass(frozen=True)
class ExportSettings(Options):
    """Write a published model as a folder that other programs take."""

    run: Run
    """The run's directory, local or s3://…; for Triton also an ONNX file."""
    to: Literal["huggingface", "triton"] = "huggingface"
    """huggingface: card, both ONNX files, weights and their description; triton: a model
    repository."""
    out: Folder = "exported"
    """A new or empty folder, or one that this command wrote."""


@dataclass(frozen=True)
class PushSettings(Options):
    """Upload a published model to the Hugging Face Hub, as export --to huggingface writes it."""

    run: Run
    """The run's directory, local or s3://…"""
    repo: Annotated[Positional[str], "REPO"]
    """The repository, as me/digits, which must exist."""
