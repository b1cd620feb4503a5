"""The second job: a run's best network -> fine-tune stages -> a verified ONNX model, published."""

import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from mnist_ray import cluster, data, output, report
from mnist_ray.errors import MnistRayError, SettingsError
from mnist_ray.finetune_job import own
from mnist_ray.finetune_job.own import OwnTask
from mnist_ray.finetune_job.recipe import ChainTask, check_augmentations, read_stages
from mnist_ray.finetune_job.start import read_start, start_of
from mnist_ray.hyperparameters import own_function
from mnist_ray.run import layout, lease
from mnist_ray.run.about import About, Finished, now
from mnist_ray.run.publication import Manifest
from mnist_ray.settings import (
    FinetuneSettings,
    SearchSettings,
    check_lasting,
    check_storage,
    command,
    constraints,
    default_data_dir,
    default_storage,
    resolved,
    trust,
)
from mnist_ray.settings.objectives import goal
from mnist_ray.signals import INTERRUPTED, interruptible
from mnist_ray.storage import RunStorage, check_writable, open_run

# The settings of a search that decide its split.
SPLIT = ("dataset", "train_images", "val_images", "seed", "val_by", "folds")
USED = ("stages", "data_dir", "precision", "train_images", "val_images")  # in every run
SHIPPING = ("calibrate", "gate", "quantize")  # as in the search if they are not given
# Settings of a search whose types and ranges count here.
TYPED = (*SPLIT, *vars(data.Reading()), *SHIPPING, "precision", "committee", "constraint")
# Options that the command to go on repeats if they were given.
REPEATED = (
    "dataset", "network", "augment", "stages", "committee", *SHIPPING, "data_dir", "cpus",
    "gpus", "finetune_with", "finetune_epochs", "train_data",
)  # fmt: skip


def finetune(settings: FinetuneSettings, *, handle_signals: bool = True) -> Finished:
    """Fine-tunes and publishes a run's best network, in a Ray task: this node needs no GPU.

    Args:
        settings: of the job.
        handle_signals: SIGTERM and Ctrl-C end the job with exit code 130, if this is the main
            thread. Otherwise the caller's handlers stay, and a KeyboardInterrupt is raised to it.

    Raises:
        SettingsError: the settings are wrong; nothing was started.
        WorkError: the fine-tuning failed.
    """
    output.print_the_log(unless_handled=True)
    cluster.quiet_ray()
    about = _run(settings)
    task: ChainTask | OwnTask
    inputs: list[Any]
    if about.settings.get("train"):
        _check_resources(settings)
        task, *inputs = own.prepare(settings, about, functools.partial(_images, settings, about))
    else:
        task, *inputs = _prepare(settings, about)
        if settings.run is None:
            about = _claimed(about, task.onnx)
    in_main = threading.current_thread() is threading.main_thread()
    signals = interruptible if handle_signals and in_main else contextlib.nullcontext
    storage = about.storage
    try:
        # Twice: joining the cluster puts Ray's own handler in the place of the first.
        with (
            signals(),
            _held(storage) as held,
            _outcome(dataclasses.replace(about, storage=held.owned)) as begins,
            cluster.connected(settings.verbose),
            signals(),
        ):
            from mnist_ray.finetune_job.task import run_in_task  # noqa: PLC0415 (Ray's environment)

            task = _with_resources(task, settings, about.settings.get("gpus_per_trial"))
            task = dataclasses.replace(task, owner=held.token)
            begins()
            made = run_in_task(task, *inputs)
    except KeyboardInterrupt:
        if not handle_signals:
            raise
        print(f"interrupted; to go on: {resume_command(settings, about)}", flush=True)
        return Finished(INTERRUPTED, storage.uri)
    if isinstance(task, OwnTask):
        print(report.write_or_warn(storage), flush=True)
        print(f"{made.summary()}\nstate: {storage.join(made.manifest['file'])}", flush=True)
    else:
        print(report.write_or_warn(storage, test=inputs[1]), flush=True)
        print(summary(made, storage.join(layout.MODEL), _data_flags(settings, about)), flush=True)
    return Finished(0, storage.uri)


def _run(settings: FinetuneSettings) -> About:
    """The run to fine-tune: a new one is not written yet. SettingsError if it cannot be used."""
    if settings.run is None:
        _refuse(settings, own.OPTIONS, "needs --run, the directory of a run of --train")
        check_storage(settings.storage)
        return _new_run(settings)
    of_new = ("name",) if settings.storage == default_storage() else ("name", "storage")
    why = (
        "is for a new run, which begins with --onnx; "
        "--run names the run that is fine-tuned, and its model is replaced"
    )
    _refuse(settings, of_new, why)
    check_lasting("--run", settings.run)
    return About.read(RunStorage(settings.run), "--run")


def _refuse(settings: FinetuneSettings, options: Sequence[str], why: str) -> None:
    """SettingsError if one of these options was given."""
    for key in options:
        if getattr(settings, key) is not None:
            raise SettingsError(f"--{key.replace('_', '-')}: {why}")


@contextlib.contextmanager
def _held(storage: RunStorage) -> Iterator[lease.Lease]:
    """Holds the run, unless a search does that waits for no second job."""
    with lease.held(storage, "fine-tuning", "--run") as held:
        lease.refuse_while_held(storage, "search", "--run", own="fine-tuning")
        yield held


def resume_command(settings: FinetuneSettings, about: About) -> str:
    """The command that continues this fine-tuning, with all that its person gave."""
    given = {key: getattr(settings, key) for key in REPEATED}
    words = [
        word
        for key, value in given.items()
        if value is not None
        for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    if settings.test_steps is not None:
        words.append("--test-steps" if settings.test_steps else "--no-test-steps")
    if settings.run is not None and settings.onnx is not None:  # a new run keeps a copy of it
        words += ["--onnx", settings.onnx]
    named = ("dataset", "stages", "finetune_with", "train_data")
    flags = trust.flags(about.settings, [key for key in named if not given[key]])
    return command("finetune", "--run", about.storage.uri, *words, *flags)


@contextlib.contextmanager
def _outcome(about: About) -> Iterator[Callable[[], None]]:
    """Notes in run.json that the run is at work, once it is called, and then how that ends.

    Where it is never called, the run stays what it was. A new one is at work from its first line.
    """
    begun = [about] if about.state == "finetuning" else []
    state = "failed"
    try:
        yield lambda: begun.append(about.patch(state="finetuning"))
        state = "done"
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    finally:
        # The storage may be what failed: the first error is the one to tell.
        with contextlib.suppress(*(() if state == "done" else (MnistRayError,))):
            if begun:
                about.ended(state)


def _data_flags(settings: FinetuneSettings, about: About) -> list[str]:
    """The flags that name one's own data set, or another folder than `evaluate` would look in."""
    own = trust.flags(about.settings, ("dataset",))
    folder = str(settings.data_dir or about.settings["data_dir"])
    return [*own, "--data-dir", folder] if own or folder != default_data_dir() else []


def summary(manifest: Manifest, model: str, data_flags: Sequence[str] = ()) -> str:
    """The result and the next commands. model: its URI. data_flags: for the evaluation."""
    n, errors = manifest.test_images, manifest.test_errors
    low, high = manifest.test_accuracy_interval
    of_pictures = (("predict", model, "PICTURE.png"), ("draw", model)) if manifest.picture else ()
    each = (*of_pictures, ("evaluate", model, *data_flags))
    commands = "\n      ".join(command(*words) for words in each)
    return (
        f"test accuracy {n - errors}/{n} = {(n - errors) / n:.2%} ({errors} errors; "
        f"95 % interval {low:.2%} to {high:.2%}), {manifest.n_parameters:,} parameters\n"
        f"model: {model}\n"
        f"next: {commands}"
    )


def _prepare(settings: FinetuneSettings, about: About) -> tuple[ChainTask, data.Split, data.Images]:
    """The chain's task, the training part as the search had split it, and the test part.

    Raises:
        SettingsError: the run, a recipe or the images cannot be used.
    """
    searched = about.settings
    why = f"is for runs of --train, and that at {about.storage.uri} has networks"
    _refuse(settings, own.OPTIONS, why)
    typed = _typed(settings, about)
    place = _place(settings, about, typed)
    start = start_of(settings, about)
    recipe = read_stages(stages := settings.stages or searched["stages"])
    committee = _committee(settings, typed)
    split = _images(settings, about)
    if start is not None:
        start.check_fits(split.images)
    if settings.augment and not own_function(settings.augment):
        raise SettingsError(
            f"--augment: {settings.augment!r} is not allowed; expected the run's module:function "
            "(the stages say how they augment)"
        )
    check_augmentations(settings.augment or "none", stages, split.images)
    shipping: dict[str, Any] = {
        key: getattr(settings, key) or (getattr(typed, key) if key in searched else "none")
        for key in SHIPPING
    }
    task = ChainTask(
        uri=about.storage.uri,
        run=about.name,
        dataset=searched["dataset"],
        recipe=recipe,
        committee=committee,
        onnx=None if start is None else start.model,
        began_with_file=bool(searched.get("onnx")),
        network=settings.network,
        augment=settings.augment,
        precision=typed.precision,
        reading=place["reading"],
        **shipping,
        test_steps=bool(searched.get("test_steps"))
        if settings.test_steps is None
        else settings.test_steps,
        metric=goal(searched),
    )
    test = data.load(searched["dataset"], "test", **place)
    data.check_test_part(split.images, test)
    return task, split, test


def _typed(settings: FinetuneSettings, about: About) -> SearchSettings:
    """The search's settings, those of TYPED alone.

    Raises:
        SettingsError: a file alone chooses code, or run.json is damaged.
    """
    searched, place = about.settings, about.storage.join(layout.RUN)
    lacking = [key for key in USED if key not in searched]
    if lacking:
        raise SettingsError(f"--run: {place} is damaged: its settings lack {lacking[0]}")
    given = {key for key in ("dataset", "stages") if getattr(settings, key) is not None}
    trust.check(searched, given, place, ("dataset", "stages", "class_weights"))
    return about.typed(TYPED, "--run")


def _place(settings: FinetuneSettings, about: About, typed: SearchSettings) -> dict[str, Any]:
    """Where the run's images are read, and how. SettingsError if its data set is another."""
    wanted, has = settings.dataset, about.settings["dataset"]
    if wanted not in (None, has):
        raise SettingsError(f"--dataset: {wanted!r} was given, but the run has {has!r}")
    data_dir = settings.data_dir or about.settings["data_dir"]
    given = () if settings.data_dir is None else ("data_dir",)
    return {
        "data_dir": data_dir,
        "reading": data.Reading.of(vars(typed)),
        "download": trust.may_download(data_dir, given),
    }


def _images(settings: FinetuneSettings, about: About) -> data.Split:
    """The training part as the search had split it.

    Raises:
        SettingsError: it cannot be used, or is not what the run was searched on.
    """
    typed = _typed(settings, about)
    place = _place(settings, about, typed)
    splitting = {key: getattr(typed, key) for key in SPLIT}
    if "val_by" not in about.settings:  # then it was split by class
        splitting["val_by"] = "class"
    each_class = about.data.split_sha256 is not None
    split = data.load_split(**place, **splitting, each_class=each_class)
    about.data.check_same(split.facts(), about.storage.uri, place["data_dir"])
    return split


def _check_resources(settings: FinetuneSettings) -> None:
    """SettingsError if a resource is not allowed."""
    if settings.gpus is not None and not 0 <= settings.gpus <= 1:  # NaN too
        raise SettingsError(f"--gpus: {settings.gpus:g} is not allowed; expected 0 to 1")
    if settings.cpus is not None and not 0 < settings.cpus < math.inf:
        raise SettingsError(f"--cpus: {settings.cpus:g} is not allowed; expected more than 0")


def _committee(settings: FinetuneSettings, typed: SearchSettings) -> int:
    """How many networks are trained. SettingsError if that, or a resource, is not allowed."""
    _check_resources(settings)
    committee = typed.committee if settings.committee is None else settings.committee
    if committee < 1:
        raise SettingsError(f"--committee: {committee} is not allowed; expected at least 1")
    constraints.check_committee(typed.constraint, committee)
    return committee


def _with_resources(
    task: ChainTask | OwnTask, settings: FinetuneSettings, searched_on: Any = 0
) -> ChainTask | OwnTask:
    """With the CPUs that are free on one node, and a GPU if there is one; else as the settings say.

    Args:
        task: without them.
        settings: of the job.
        searched_on: the GPUs of a trial: an autoscaler brings one again.

    Raises:
        SettingsError: no node has as many.
    """
    nodes, maximum = cluster.nodes(), cluster.autoscaler_maximum()
    scales = not maximum and cluster.scales()
    gpus = settings.gpus
    if gpus is None:
        comes = searched_on and (scales or maximum.get("GPU"))
        gpus = float(bool(comes) or any(node.get("GPU") for node in nodes))
    cpus = settings.cpus
    if not cpus:  # a node that an autoscaler brings is not known yet, and its head has no CPUs
        cpus, most = cluster.most_cpus(gpus, cluster.with_free)
        cpus = cpus or 1.0
        if cpus < most:
            taken = f"takes {cpus:g} CPUs, as others of the {most:g} are taken"
            print(f"finetune: {taken}; --cpus N waits for N", flush=True)
    if scales:
        maximum = {"CPU": cpus, "GPU": gpus}
    cluster.check_fits(cpus, gpus, nodes, maximum, ("--cpus", "--gpus"))
    return dataclasses.replace(task, cpus=cpus, gpus=gpus)


def _new_run(settings: FinetuneSettings) -> About:
    """A run that begins with an ONNX file. It is not written yet: see _claimed."""
    if settings.onnx is None:
        raise SettingsError("--run: expected a run's directory, or --onnx with a model of ours")
    start = read_start(settings.onnx)
    metadata = start.metadata
    dataset = trust.dataset(settings.dataset, metadata.get("dataset"), settings.onnx)
    searched = SearchSettings(
        dataset=dataset, data_dir=settings.data_dir or default_data_dir(), storage=settings.storage
    )
    reading = start.reading(settings.onnx, dataset, named=settings.dataset is not None)
    searched = dataclasses.replace(searched, **vars(reading))
    split = data.load_split(dataset, searched.data_dir, reading=reading)
    if settings.dataset is None and trust.is_data(dataset):
        sha256 = split.images.sha256
        trust.same_data(sha256, metadata.get("data_sha256"), settings.onnx, dataset)
    searched = dataclasses.replace(searched, val_by=split.val_by)
    name = settings.name or f"finetune-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    storage = open_run(settings.storage, name)
    check_writable(settings.storage)
    About.check_new(storage, "another name")
    described = {
        "name": name,
        "state": "finetuning",
        "settings": resolved(searched),
        "data": split.facts(),
        "start": now(),
    }
    return About.of(storage, described)


def _claimed(about: About, model: bytes | None) -> About:
    """Writes a new run, and the ONNX file that it begins with: later `--run` alone resumes it."""
    storage = about.storage
    message = (
        f"--name: a run is there already at {storage.uri}; "
        "give another name, or --run to go on with it"
    )
    about = About.claim(storage, about.raw, message)
    assert model is not None
    storage.write_bytes(layout.START, model)
    return about
