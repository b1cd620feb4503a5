"""A run's best checkpoint -> fine-tune stages -> verified ONNX, published. A plain function; `jobs/finetune.py` calls it."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np

from mnist_ray import cluster, data, report
from mnist_ray.errors import SettingsError, WorkError, first_line
from mnist_ray.finetune_job.stages import Recipe, read_stages, stage_folder, train_stages
from mnist_ray.run import lease
from mnist_ray.run.publication import publish
from mnist_ray.settings import (
    INTERRUPTED,
    FinetuneSettings,
    SearchSettings,
    default_data_dir,
    resolved,
)
from mnist_ray.storage import RunStorage, check_writable, open_run

VERIFIED_ON = 1000  # real images on which the file is compared with torch
SPLIT = (
    "dataset",
    "train_images",
    "val_images",
    "seed",
    "val_by",
)  # the settings of a search that decide its split
RESTARTS = 3  # of the work when its worker or node dies; it goes on from its last epoch
SILENT = 30.0  # seconds without a line of the task, after which it is said what it may be waiting for; each time twice as long


@dataclasses.dataclass(frozen=True)
class Work:
    """What the task is told besides the data."""

    run: str
    name: str
    dataset: str
    recipe: Recipe
    committee: int
    onnx: bytes | None
    network: str | None
    cpus: float
    gpus: float
    precision: str


def finetune(settings: FinetuneSettings) -> int:
    """Runs the stages in a Ray task, so that the node this runs on needs no GPU. Returns the exit code."""
    cluster.quiet_ray()
    storage, run = _new_run(settings) if settings.run is None else _existing_run(settings.run)
    searched = run["settings"]
    onnx = None
    if settings.onnx is not None:
        from mnist_ray.export import onnx_model

        onnx = onnx_model.read(settings.onnx, "--onnx")
    elif storage.exists("start.onnx") and not searched.get(
        "onnx"
    ):  # else it is where the search began, not where it ended
        onnx = storage.read_bytes("start.onnx")
    elif storage.exists("best/model.txt"):
        raise SettingsError(
            f"--run: the best of {storage.uri} is a LightGBM model; expected a run of networks"
        )
    elif not storage.exists("best/model.safetensors"):
        raise SettingsError(
            f"--run: {storage.uri} has no best checkpoint yet; expected a run whose search has finished a trial"
        )
    recipe = read_stages(settings.stages or searched["stages"])
    committee = (
        settings.committee if settings.committee is not None else searched.get("committee", 1)
    )
    if committee < 1:
        raise SettingsError(f"--committee: {committee} is not allowed; expected at least 1")
    data_dir = settings.data_dir or searched["data_dir"]
    # A run that records no val_by was split by class.
    known = {"val_by": "class"} | {k: v for k, v in searched.items() if k in SPLIT}
    train_part, train, val, _ = data.load_split(SearchSettings(**known | {"data_dir": data_dir}))
    if train_part.sha256 != run["data"]["sha256"]:
        raise SettingsError(
            f"--data-dir: the images in {data_dir} are not those that the run was searched on (SHA-256 differs)"
        )
    test_part = data.load(searched["dataset"], "test", data_dir)
    try:
        with (
            cluster.interruptible(),
            lease.held(storage, "fine-tuning", "--run"),
            cluster.connected(settings.verbose),
            cluster.interruptible(),
        ):
            each = cluster.nodes()
            gpus = (
                settings.gpus
                if settings.gpus is not None
                else float(any(node.get("GPU") for node in each))
            )
            cpus = settings.cpus or max(
                node.get("CPU", 0) for node in each if not gpus or node.get("GPU")
            )
            cluster.check_fits(cpus, gpus, each, cluster.autoscaler_maximum())
            work = Work(
                storage.uri,
                run["name"],
                searched["dataset"],
                recipe,
                committee,
                onnx,
                settings.network,
                cpus,
                gpus,
                searched["precision"],
            )
            manifest = _in_task(work, train_part, test_part, train, val)
    except KeyboardInterrupt:
        print(f"interrupted; to go on: python jobs/finetune.py --run {storage.uri}", flush=True)
        return INTERRUPTED
    storage.write_json(
        "run.json", {**run, "state": "done", "end": datetime.now(UTC).isoformat(timespec="seconds")}
    )
    print(report.write_or_warn(storage, test=test_part), flush=True)
    n, right = manifest["test_images"], round(manifest["test_accuracy"] * manifest["test_images"])
    low, high = manifest["test_accuracy_interval"]
    model = storage.join("model.onnx")
    print(
        f"test accuracy {right}/{n} = {right / n:.2%} ({n - right} errors; 95 % interval {low:.2%} to {high:.2%}), "
        f"{manifest['n_parameters']:,} parameters\nmodel: {model}\n"
        f"next: python jobs/predict.py '{model}' your-digit.png · python jobs/evaluate.py '{model}'",
        flush=True,
    )
    return 0


def _existing_run(uri: str) -> tuple[RunStorage, dict[str, Any]]:
    """A run's directory and its run.json."""
    storage = RunStorage(uri)
    if not storage.exists("run.json"):
        raise SettingsError(f"--run: there is no run at {uri}")
    try:
        run = storage.read_json("run.json")
        run["settings"], run["name"], run["data"]["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"--run: {storage.join('run.json')} is damaged: {error!r}") from error
    return storage, run


def _new_run(settings: FinetuneSettings) -> tuple[RunStorage, dict[str, Any]]:
    """A run that begins with an ONNX file instead of a search; the file is kept in it, so that `--run` alone goes on with it."""
    from mnist_ray.export import onnx_model

    if settings.onnx is None:
        raise SettingsError("--run: expected a run's directory, or --onnx with a model of ours")
    model = onnx_model.read(settings.onnx, "--onnx")
    dataset = settings.dataset or onnx_model.metadata(
        onnx_model.load_verified(model, settings.onnx)
    ).get("dataset")
    if dataset is None:
        raise SettingsError(
            f"--dataset: {settings.onnx} does not say which data set it was made for; name one"
        )
    searched = SearchSettings(
        dataset=dataset, data_dir=settings.data_dir or default_data_dir(), storage=settings.storage
    )
    images, train, val, val_by = data.load_split(searched)
    searched = dataclasses.replace(searched, val_by=val_by)
    storage = open_run(
        settings.storage, settings.name or f"finetune-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    )
    check_writable(settings.storage)
    run = {
        "name": storage.uri.partition("?")[0].rpartition("/")[2],
        "state": "finetuning",
        "settings": resolved(searched),
        "data": {
            "name": images.name,
            "sha256": images.sha256,
            "train": len(train),
            "val": len(val),
            "classes": list(images.classes),
        },
        "start": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if not storage.create_exclusive("run.json", json.dumps(run, indent=1).encode()):
        raise SettingsError(
            f"--name: a run is there already at {storage.uri}; give another name, or --run to go on with it"
        )
    storage.write_bytes("start.onnx", model)
    return storage, run


def _in_task(
    work: Work, train_part: data.Images, test_part: data.Images, train: np.ndarray, val: np.ndarray
) -> dict[str, Any]:
    """Runs the chain on a node that has the resources, printing its lines; returns the manifest."""
    import ray
    from ray.exceptions import RayTaskError, WorkerCrashedError

    arrays = [
        ray.put(a)
        for a in (
            train_part.images,
            train_part.labels,
            train,
            val,
            test_part.images,
            test_part.labels,
        )
    ]
    task = ray.remote(num_cpus=work.cpus, num_gpus=work.gpus, max_retries=0)(run_chain)
    for restart in range(RESTARTS + 1):
        try:
            result: str | dict[str, Any] = ""
            lines = task.remote(work, test_part.classes, *arrays)
            _wait_for_first(lines, work)
            for reference in lines:
                result = ray.get(reference)
                if isinstance(result, str):
                    print(result, flush=True)
            if isinstance(result, str):
                raise WorkError("the fine-tuning ended without a model")
            return result
        except RayTaskError as error:
            cause = error.as_instanceof_cause()
            if isinstance(error.cause, SettingsError | WorkError | OSError):
                raise WorkError(str(error.cause)) from error
            raise cause from error
        except (
            WorkerCrashedError,
            ray.exceptions.NodeDiedError,
            ray.exceptions.ObjectLostError,
        ) as error:
            if restart == RESTARTS:
                raise WorkError(
                    f"the fine-tuning's worker died {restart + 1} times: {first_line(error)}"
                ) from error
            print(
                f"the worker died; going on from its last epoch (restart {restart + 1} of {RESTARTS})",
                flush=True,
            )
    raise AssertionError("unreachable")


def _wait_for_first(lines: Any, work: Work) -> None:
    """Until the task has begun, says what it wants and what the cluster has free: other work may hold it for hours."""
    import ray

    patience = SILENT
    while not ray.wait([lines], timeout=patience, fetch_local=False)[0]:
        patience *= 2
        free, total = ray.available_resources(), ray.cluster_resources()
        wanted = {"CPU": work.cpus, "GPU": work.gpus}
        print(
            "the fine-tuning has not begun; it waits for a worker on one node with "
            + " and ".join(
                f"{n:g} {key}s (free in the cluster: {free.get(key, 0):g} of {total.get(key, 0):g})"
                for key, n in wanted.items()
                if n
            ),
            flush=True,
        )


def run_chain(
    work: Work,
    classes: tuple[str, ...],
    images: np.ndarray,
    labels: np.ndarray,
    train: np.ndarray,
    val: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
) -> Iterator[str | dict[str, Any]]:
    """Yields log lines and, last, the manifest of the published model.

    images uint8 [n, C, H, W] and labels int64 [n] of the training part, train and val indices into it; test_images and test_labels are
    touched only after the last stage has ended, through ONNX files.
    """
    import warnings

    import torch

    from mnist_ray import models
    from mnist_ray.export import onnx_model
    from mnist_ray.models.committee import Committee
    from mnist_ray.run import checkpoint, predictions
    from mnist_ray.training.machine import use_threads
    from mnist_ray.training.trainer import load_network

    use_threads(work.cpus)
    device = torch.device("cuda" if work.gpus else "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # read-only views of shared memory, never written to
        tensors = [torch.from_numpy(a).to(device) for a in (images, labels, train, val)]
    storage = RunStorage(work.run)

    if work.onnx is not None:
        start, hp = onnx_model.rebuild(work.onnx, "--onnx")
        begins: dict[str, Any] = {
            "step": "onnx",
            "sha256": hashlib.sha256(work.onnx).hexdigest(),
            "val_accuracy": None,
        }
    else:
        start, story = load_network(
            storage.read_bytes("best/model.safetensors"),
            storage.join("best/model.safetensors"),
            work.network,
        )
        hp = story["hyperparameters"]
        begins = {
            "step": "search",
            "trial": story["number"],
            **{k: story["row"][k] for k in ("epoch", "val_loss", "val_accuracy")},
        }
    work = dataclasses.replace(work, recipe=work.recipe.told(hp))
    weights = start.state_dict() if work.recipe.start == "best" else None
    yield f"fine-tuning {work.run}: {len(work.recipe.stages)} stages of recipe {work.recipe.name} on {device.type}"
    members = range(1, work.committee + 1)
    for member in members:
        if work.committee > 1:
            yield f"network {member} of {work.committee}"
        yield from train_stages(work.recipe, hp, weights, storage, tensors, work.precision, member)

    # The chain has ended: what it ships is exported and verified, and only then the test set is looked at, once, step by step.
    def trained(number: int, member: int) -> tuple[torch.nn.Module, dict[str, Any]]:
        name = f"{stage_folder(number, member)}/model.safetensors"
        return load_network(storage.read_bytes(name), storage.join(name), work.network)

    lineage, steps = [begins], [start]
    numbers = range(work.recipe.first_number, work.recipe.first_number + len(work.recipe.stages))
    for number, stage in zip(numbers, work.recipe.stages, strict=True):
        model, story = trained(number, 1)
        steps.append(model)
        as_run = {
            **dataclasses.asdict(stage),
            "lr": story["hyperparameters"]["lr"],
        }  # lower, where the stage had diverged
        curve = _curve(storage, number)
        as_run["seconds"] = round(sum(curve["seconds"]), 1)
        if work.recipe.train_on == "train":
            as_run["val_accuracy"] = curve["val_accuracy"][-1]
        lineage.append(
            {
                "step": f"stage-{number}",
                **as_run,
                "weights_sha256": checkpoint.digest(model.state_dict()),
            }
        )
    # Where the stages saw all training images, the search's checkpoint is the last whose validation accuracy means anything.
    val_accuracy = lineage[-1 if work.recipe.train_on == "train" else 0].get("val_accuracy")
    metadata = {
        "dataset": work.dataset,
        "run": work.name,
        "val_accuracy": json.dumps(val_accuracy),
        "classes": json.dumps(list(classes)),
    }
    sample = images[val[:VERIFIED_ON]] if len(val) >= VERIFIED_ON else images[:VERIFIED_ON]
    networks = [steps[-1]]
    for member in members[1:]:
        networks.append(trained(numbers[-1], member)[0])
        seconds = round(
            sum(sum(_curve(storage, number, member)["seconds"]) for number in numbers), 1
        )
        digest = checkpoint.digest(networks[-1].state_dict())
        lineage.append({"step": f"member-{member}", "seconds": seconds, "weights_sha256": digest})
    steps += networks[1:]
    if work.committee > 1:
        steps.append(Committee(networks).eval())
        lineage.append({"step": "committee", "networks": work.committee})
    files = []
    for model, entry in zip(steps, lineage, strict=True):
        each: Any = hp if entry["step"] != "committee" else [hp] * work.committee
        files.append(onnx_model.export(model, each, metadata))
        difference = onnx_model.verify(files[-1], model, sample)
        evaluation = onnx_model.Session(files[-1], entry["step"]).evaluate(test_images, test_labels)
        entry["test_accuracy"] = evaluation.accuracy
        yield f"{entry['step']}: test accuracy {evaluation.accuracy:.4f} ({evaluation.n - evaluation.right} errors in {evaluation.n})"
    final = files[-1]
    manifest = {
        "file": "model.onnx",
        "sha256": hashlib.sha256(final).hexdigest(),
        "n_parameters": models.n_parameters(steps[-1]),
        "val_accuracy": val_accuracy,
        "test_accuracy": evaluation.accuracy,
        "test_images": evaluation.n,
        "test_errors": evaluation.n - evaluation.right,
        "test_accuracy_interval": onnx_model.confidence_interval(evaluation.right, evaluation.n),
        "max_difference_from_torch": difference,
        "verified_on_images": len(sample),
        "latency_ms": onnx_model.Session(final, "model.onnx", threads=1).latency_ms(test_images[0]),
        "dataset": work.dataset,
        "classes": list(classes),
        "run": work.name,
        "recipe": work.recipe.name,
        "train_on": work.recipe.train_on,
        "lineage": lineage,
    }
    files_beside = {
        "model.onnx": final,
        "README.md": model_card(manifest, hp).encode(),
        # For the report: what this one look at the test set gave, so that nobody looks again.
        predictions.FILE: predictions.pack(test_labels, evaluation.logits, str(manifest["sha256"])),
    }
    publish(storage, files_beside, manifest)
    yield manifest


def _curve(storage: RunStorage, number: int, member: int = 1) -> dict[str, list[Any]]:
    """A stage's columns, one value an epoch (see records.HISTORY)."""
    import io

    import pyarrow.parquet as pq

    return pq.read_table(
        io.BytesIO(storage.read_bytes(f"{stage_folder(number, member)}/curve.parquet"))
    ).to_pydict()


def model_card(manifest: dict[str, Any], hp: dict[str, Any]) -> str:
    """The model's README after Hugging Face's conventions: YAML header, use, training, evaluation, limits."""
    low, high = manifest["test_accuracy_interval"]
    dataset, n = manifest["dataset"], manifest["test_images"]
    header = "\n".join(
        [
            "---", "library_name: onnx", "pipeline_tag: image-classification", f"datasets: [{dataset}]", "metrics: [accuracy]",
            "model-index:", f"  - name: {manifest['run']}", "    results:", "      - task: {type: image-classification}",
            f"        dataset: {{name: {dataset}, type: {dataset}, split: test}}",
            f"        metrics: [{{type: accuracy, value: {manifest['test_accuracy']}}}]", "---",
        ]
    )  # fmt: skip
    columns = ("step", "epochs", "lr", "val_accuracy", "test_accuracy")
    steps = "\n".join(
        f"| {' | '.join(_or_dash(entry.get(c)) for c in columns)} |"
        for entry in manifest["lineage"]
    )
    kinds = sorted(
        {str(each.get("augment", "none")) for each in (hp, *manifest["lineage"])} - {"none"}
    )
    augmentation = f"augmentation: {', '.join(kinds)}" if kinds else "no augmentation"
    shape = f"[batch, {hp['in_channels']}, {hp['image_size'][0]}, {hp['image_size'][1]}]"
    return f"""{header}

# {manifest["run"]}

A classifier of {dataset} images with {manifest["n_parameters"]:,} parameters, found, trained and verified by mnist_ray.

## Use

`model.onnx` takes `input`, float32 {shape}, pixels in [0, 1] (bright on black; normalisation is inside), and gives `output`, float32
logits [batch, {len(manifest["classes"])}] of the classes {", ".join(manifest["classes"])}.

## Evaluation

Accuracy on the {n:,} test images: **{manifest["test_accuracy"]:.2%}** ({manifest["test_errors"]} errors; 95 % Wilson interval
{low:.2%} to {high:.2%}), measured once, after training had ended, through this file. Largest difference of the logits from torch on
{manifest["verified_on_images"]} images: {manifest["max_difference_from_torch"]:.1e}, all predictions the same.

## Training

| step | epochs | learning rate | validation accuracy | test accuracy |
|---|---|---|---|---|
{steps}

The search and every choice saw training images only. The stages of recipe `{manifest["recipe"]}` trained on
{"all training images" if manifest["train_on"] == "all" else "the training part"}; {augmentation}.

## Limits

Trained on {dataset} alone: pictures of another kind, or prepared in another way, are answered with a class all the same. The test set is
small: differences of less than {(high - low) / 2:.2%} between models mean little.
"""


def _or_dash(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else f"{value:g}"
