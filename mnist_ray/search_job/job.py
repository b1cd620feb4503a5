"""The search as a plain function: settings in, a run's directory out. `jobs/search.py` calls it."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mnist_ray import cluster, data, report, spaces, trackers
from mnist_ray.errors import MnistRayError, SettingsError, WorkError, first_line
from mnist_ray.processes import temporary_folder
from mnist_ray.run import lease, records
from mnist_ray.run.records import Records
from mnist_ray.search_job.start import FILE, Start, read_start
from mnist_ray.settings import (
    INTERRUPTED,
    SearchSettings,
    check_search,
    duration,
    key_values,
    objectives,
    resolved,
    without_password,
)
from mnist_ray.storage import RunStorage, check_writable, open_run

ONE_TIME = {
    "config",
    "resume",
    "overwrite",
    "dry_run",
    "verbose",
    "storage",
    "name",
}  # of one command, not of the run
# What may be given anew when a run goes on: how much and on what it runs, not what it is.
CHANGEABLE = ONE_TIME | {
    "trials",
    "cpus_per_trial",
    "gpus_per_trial",
    "max_concurrent",
    "time_budget",
    "finetune",
    "stages",
    "data_dir",
}
CHANGEABLE |= {"trial_timeout", "committee", "tensorboard", "activations", "mlflow", "wandb"}
FIXED = {
    "cpus_per_trial",
    "gpus_per_trial",
    "max_concurrent",
}  # decide on the result too, so --deterministic lets none of them change

SAVE_EVERY = 5.0  # seconds between writings of the tables while trials finish; the study itself is always up to date


def search(settings: SearchSettings) -> int:
    """Runs the search, then the fine-tuning as a second job. Returns the exit code; raises MnistRayError for what a person caused."""
    check_search(settings)
    cluster.quiet_ray()
    name = settings.name or f"{settings.space.replace(':', '-')}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    storage = open_run(settings.storage, name)
    previous = _previous(storage) if settings.resume else None
    if previous:
        settings = resumed_settings(settings, previous["settings"])
        check_search(settings)
    trackers.check(settings)
    split = data.load_split(settings)
    settings = dataclasses.replace(settings, val_by=split.val_by)
    if previous and previous["data"]["sha256"] != split.images.sha256:
        raise SettingsError(
            f"--data-dir: the images are not those that the run at {storage.uri} began with (SHA-256 differs)"
        )
    start = read_start(settings, storage, previous)
    space = _space(settings, start)
    settings = _trainable_checked(settings)
    if settings.scheduler == "pbt":
        from mnist_ray.tune import population as pbt

        pbt.check(settings, spaces.of_networks(spaces.find(settings.space)))
        settings = dataclasses.replace(settings, sampler="random")
    _sampler(settings)
    on_data = functools.partial(space, data=data_shape(split.images))
    points, older = _check_study(settings, name, previous, on_data, split, start)
    if settings.dry_run:
        return _dry_run(settings, on_data, points)
    check_writable(settings.storage)
    if not (settings.resume or settings.overwrite) and storage.exists("run.json"):
        raise SettingsError(
            f"--name: a run is there already at {storage.uri}; give another name, --resume or --overwrite"
        )
    if settings.finetune:
        from mnist_ray.finetune_job.stages import read_stages

        read_stages(settings.stages)  # a misspelt file is found now, not after the search
    if not cluster.running():
        gpus = 0 if isinstance(settings.gpus_per_trial, str) else settings.gpus_per_trial
        cluster.check_fits(settings.cpus_per_trial, gpus, [cluster.machine_resources(gpus > 0)], {})
    watchers = trackers.opened(settings)
    try:
        # Twice: joining the cluster puts Ray's own handler in the place of the first.
        with (
            cluster.interruptible(),
            lease.held(storage, "search"),
            cluster.connected(settings.verbose) as ray_cluster,
            cluster.interruptible(),
        ):
            cluster.check_shared_storage(RunStorage(settings.storage))
            return _Run(
                settings, name, storage, previous, space, split, points, older, start, watchers
            ).run(ray_cluster)
    except KeyboardInterrupt:
        print(f"interrupted; to go on: {_resume_command(settings, name)}", flush=True)
        return INTERRUPTED


def _resume_command(settings: SearchSettings, name: str) -> str:
    if settings.scheduler == "pbt":
        return "python jobs/search.py … --overwrite (a run of --scheduler pbt begins anew)"
    return f"python jobs/search.py --storage {settings.storage} --name {name} --resume"


# ---- before anything starts


def _space(settings: SearchSettings, start: Start | None = None) -> Callable[..., dict[str, Any]]:
    found = spaces.find(settings.space)
    options = spaces.options(found, settings.space, key_values(settings.space_args, "--space-args"))
    return functools.partial(
        found, **options, **({"start": start.hyperparameters} if start else {})
    )


def _trainable_checked(settings: SearchSettings) -> SearchSettings:
    """The settings, without fine-tuning where the space's trials give no network. SettingsError where that contradicts another flag."""
    if spaces.of_networks(spaces.find(settings.space)):
        return settings
    for flag, wanted in (
        ("--objectives latency", "latency" in objectives.names(settings.objectives)),
        ("--augment", settings.augment != "none"),
        ("--scheduler pbt", settings.scheduler == "pbt"),
        ("--tensorboard", settings.tensorboard),
        ("--gpus-per-trial auto", settings.gpus_per_trial == "auto"),
    ):
        if wanted:
            raise SettingsError(
                f"{flag}: is for networks, and space {settings.space!r} trains none"
            )
    if settings.finetune and not settings.dry_run:
        print(
            f"--no-finetune is implied: space {settings.space!r} gives no network that could be exported as ONNX",
            flush=True,
        )
    return dataclasses.replace(settings, finetune=False)


def _sampler(settings: SearchSettings, asked: int = 0) -> Any:
    """The sampler; asked: how many trials the study has already (the same seed would suggest the first ones again)."""
    from mnist_ray.study.samplers import make_sampler

    return make_sampler(
        settings.sampler,
        (settings.seed + asked) % 2**32,
        key_values(settings.sampler_args, "--sampler-args"),
    )


def _purpose(settings: SearchSettings, split: data.Split, start: Start | None) -> dict[str, Any]:
    """What searches that share a study must have in common, or the values of its trials could not be compared."""
    return {
        "dataset": settings.dataset,
        "train_images": len(split.train),
        "val_images": len(split.val),
        "space": settings.space,
        "space_args": sorted(settings.space_args),
        "metric": settings.metric,
        "max_epochs": settings.max_epochs,
        **(
            {"objectives": list(objectives.names(settings.objectives))}
            if settings.objectives
            else {}
        ),
        **({"augment": settings.augment} if settings.augment != "none" else {}),
        **({"onnx_sha256": start.sha256} if start else {}),
    }


def _check_study(
    settings: SearchSettings,
    name: str,
    previous: dict[str, Any] | None,
    space: Callable[[Any], dict[str, Any]],
    split: data.Split,
    start: Start | None,
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Everything about scheduler, points and study that can be refused before Ray starts. Returns points and older trials."""
    import optuna

    from mnist_ray.study import studies
    from mnist_ray.study.pruners import make_pruner

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    s = settings
    several = objectives.names(s.objectives)
    objectives.check_parts(s, functools.partial(_sampler, s), make_pruner(s))
    try:
        studies.ranges(space, samples=1)  # a value in --space-args that the space itself refuses
    except ValueError as error:  # Optuna's, of a range that is none
        raise SettingsError(
            f"--space-args: space {s.space!r} has no suggestion with them: {first_line(error)}"
        ) from error
    points = (
        previous.get("points", [])
        if previous
        else studies.read_points(s.points, space)
        if s.points
        else []
    )
    older = []
    if s.warm_start and not (previous and previous.get("warm_started")):
        older = studies.older_trials(
            s.warm_start, s.metric, _purpose(s, split, start), space, several
        )
    if s.study and not s.dry_run:
        if previous and s.study == "memory":
            raise SettingsError("--resume: the run's study was in memory and has ended with it")
        study_name = s.study_name or name
        with studies.opened(s.study) as storage:
            study = studies.existing(storage, study_name)
            if study:
                studies.check_study(study, s.metric, _purpose(s, split, start), space, several)
                if not previous:
                    studies.check_run(study, name)
                if s.deterministic:
                    studies.check_alone(study, name)
            elif previous:
                raise SettingsError(
                    f"--study: there is no study {study_name!r}, with which the run began"
                )
    return points, older


def _previous(storage: RunStorage) -> dict[str, Any]:
    """run.json of the run that is to be gone on with."""
    if not storage.exists("run.json"):
        raise SettingsError(f"--resume: there is no run at {storage.uri}")
    try:
        run = storage.read_json("run.json")
        run["settings"], run["data"]["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"--resume: {storage.join('run.json')} is damaged: {error!r}"
        ) from error
    return run


def resumed_settings(now: SearchSettings, before: dict[str, Any]) -> SearchSettings:
    """The settings of a run that goes on: those of run.json, with what may change (CHANGEABLE) taken from the command line.

    Raises SettingsError where another value was given for what may not change.
    """
    values = resolved(now)
    before = {"val_by": "class", **before}  # the rule of runs that do not record one
    changeable = CHANGEABLE - FIXED if before.get("deterministic") else CHANGEABLE
    for key in sorted(now.given - changeable):
        if values[key] != before.get(key) and not (
            key == "study" and _same_place(values[key], before.get(key))
        ):
            raise SettingsError(
                f"--{key.replace('_', '-')}: {values[key]!r} was given, but the run has {before.get(key)!r}, which stays"
            )
    kept: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in before.items()
        if key in values and key not in now.given | ONE_TIME
    }
    return dataclasses.replace(now, **kept)


def _same_place(one: str | None, other: str | None) -> bool:
    """Whether two URLs without passwords differ at most in how the password is given: literally or as ${VAR}."""

    def place(url: str) -> str:
        return re.sub(r":\$\{\w+\}@", ":***@", url)

    return one is not None and other is not None and place(one) == place(other)


def _dry_run(
    settings: SearchSettings, space: Callable[[Any], dict[str, Any]], points: list[dict[str, Any]]
) -> int:
    """Prints the settings and the first suggestions, the points before all others, without Ray or storage."""
    import optuna
    import yaml

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(yaml.safe_dump(resolved(settings), sort_keys=False), end="")
    study = optuna.create_study(sampler=_sampler(settings))
    for point in points:
        study.enqueue_trial(point)
    for number in range(min(3, settings.trials)):
        print(f"suggestion {number}: {json.dumps(space(study.ask()))}")
    return 0


def data_shape(images: data.Images) -> spaces.DataShape:
    """What a space is told of a data set."""
    channels, height, width = images.shape
    return spaces.DataShape(channels, (height, width), len(images.classes), images.mean, images.std)


# ---- the run


class _Run:
    """One run on a cluster: the objects that its parts share."""

    def __init__(
        self,
        settings: SearchSettings,
        name: str,
        storage: RunStorage,
        previous: dict[str, Any] | None,
        space: Callable[..., dict[str, Any]],
        split: data.Split,
        points: list[dict[str, Any]],
        older: list[Any],
        start: Start | None,
        watchers: list[trackers.Tracker],
    ) -> None:
        self.settings, self.name, self.storage, self.previous, self.space = (
            settings,
            name,
            storage,
            previous,
            space,
        )
        self.points, self.older, self.start, self.watchers = points, older, start, watchers
        self.trainable = spaces.trainable(spaces.find(settings.space))
        self.split = split
        self.several = objectives.names(settings.objectives)
        self.records = Records(settings.metric, settings.trials, self.several)
        self.unswept: set[int] = set()  # settled trials whose checkpoints are still there
        self.saved_at = -SAVE_EVERY
        self.best_kept: tuple[int, int] | None = None  # number and epoch of what lies in best/

    def run(self, ray_cluster: cluster.Cluster) -> int:
        s = self.settings
        self.dashboard = ray_cluster.dashboard
        each, maximum = cluster.nodes(), cluster.autoscaler_maximum()
        if (
            s.gpus_per_trial == "auto"
        ):  # noted in run.json: a run that goes on does not measure again
            s = self.settings = dataclasses.replace(
                s, gpus_per_trial=self._share_of_gpu([*each, maximum])
            )
        self.gpus = float(s.gpus_per_trial)
        cluster.check_fits(s.cpus_per_trial, self.gpus, each, maximum)
        self.slots = cluster.Slots(s.cpus_per_trial, self.gpus, maximum)
        slots = s.max_concurrent or self.slots()
        if (
            s.deterministic
        ):  # noted in run.json: what depends on the machine must not depend on the next one
            s = self.settings = dataclasses.replace(
                s, max_concurrent=slots, precision="fp32" if s.precision == "auto" else s.precision
            )
        self._claim()
        if self.start and not self.storage.exists(FILE):
            self.storage.write_bytes(FILE, self.start.data)
        try:
            with (
                temporary_folder("mray-tune-") as self.tune_folder,
                self._study() as (study, journal),
            ):
                self._search(study, journal, min(slots, s.trials))
                self._summary(study)
            if s.finetune:
                print(report.write_or_warn(self.storage), flush=True)
                cluster.submit_and_follow(ray_cluster, "finetune.py", self._finetune_arguments())
        except KeyboardInterrupt:
            self._state("interrupted")
            raise
        except MnistRayError:
            with contextlib.suppress(
                WorkError
            ):  # of the storage: the first error is the one to tell
                self._state("failed")
            raise
        if not s.finetune:
            self._state("searched")
            print(report.write_or_warn(self.storage), flush=True)
            print(f"best checkpoint: {self.storage.join('best')}", flush=True)
            if spaces.of_networks(spaces.find(s.space)):
                print(f"next: python jobs/finetune.py --run {self.storage.uri}", flush=True)
        return 0

    def _share_of_gpu(self, each: list[dict[str, float]]) -> float:
        """What part of a GPU a trial gets: measured by a task on one of them (see gpu_share.py); 0 where no node has any."""
        import optuna
        import ray

        from mnist_ray.study.samplers import UpperEnd, make_sampler
        from mnist_ray.training import gpu_share

        with_gpu = [node for node in each if node.get("GPU")]
        if not with_gpu:
            return 0
        s, images = self.settings, self.split.images
        cpus = min(node.get("CPU", 1) / node["GPU"] for node in with_gpu)  # beside one GPU
        optuna.logging.set_verbosity(optuna.logging.ERROR)

        def suggestions(sampler: Any) -> list[dict[str, Any]]:
            study = optuna.create_study(sampler=sampler)
            return [self.space(study.ask(), data=data_shape(images)) for _ in range(9)]

        drawn = suggestions(make_sampler("random", s.seed, {}))
        largest = [*suggestions(UpperEnd(s.seed)), *drawn]
        data_bytes = images.images.nbytes + images.labels.nbytes
        slots = min(cpus / s.cpus_per_trial, s.max_concurrent or math.inf)
        print("--gpus-per-trial auto: measuring on a GPU, as soon as one is free", flush=True)
        measure = ray.remote(num_gpus=1, num_cpus=min(s.cpus_per_trial, cpus))(gpu_share.measure)
        try:
            found = ray.get(
                measure.remote(largest, drawn, data_bytes, slots, s.cpus_per_trial, s.precision)
            )
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        print(f"--gpus-per-trial auto: {1 / found.trials:g}; {found}", flush=True)
        return 1 / found.trials

    def _finetune_arguments(self) -> list[str]:
        import optuna

        assert self.records.best is not None
        best = self.records.trials[self.records.best[0]]
        network = str(
            self.space(optuna.trial.FixedTrial(best.params), data=data_shape(self.split.images))[
                "model"
            ]
        )
        own = ["--network", network] if ":" in network else []
        return ["--run", self.storage.uri, *own, *(["--verbose"] if self.settings.verbose else [])]

    def _claim(self) -> None:
        """Writes run.json; of two searches that start with one name at the same moment, one gets it."""
        s = self.settings
        images, train, val, _ = self.split
        if self.previous:
            self.description = {
                **self.previous,
                "settings": {**resolved(s), "name": self.name},
                "state": "searching",
            }
            self.storage.write_json("run.json", self.description)
            return
        if s.overwrite:
            for part in {file.partition("/")[0] for file in self.storage.list()} - {
                lease.file("search")
            }:
                self.storage.delete(part)
        self.description = {
            "name": self.name,
            "state": "searching",
            "settings": {**resolved(s), "name": self.name},
            "seed": s.seed,
            "points": self.points,
            **({"onnx_sha256": self.start.sha256} if self.start else {}),
            "command": without_password(shlex.join(sys.argv)),
            "versions": {
                p: version(p)
                for p in (
                    "mnist_ray",
                    "ray",
                    "optuna",
                    "torch",
                    "onnx",
                    "onnxruntime",
                    "pyarrow",
                    "numpy",
                )
            },
            "python": platform.python_version(),
            "git_commit": _git_commit(),
            "data": {
                "name": images.name,
                "sha256": images.sha256,
                "train": len(train),
                "val": len(val),
                "classes": list(images.classes),
            },
            "machine": {
                "node": platform.node(),
                "system": platform.platform(),
                "cpus": os.cpu_count(),
            },
            "start": _now(),
            "end": None,
        }
        if not self.storage.create_exclusive(
            "run.json", json.dumps(self.description, indent=1).encode()
        ):
            raise SettingsError(
                f"--name: another search has just taken the name at {self.storage.uri}; give another"
            )

    def _state(self, state: str) -> None:
        self.description |= {"state": state, "end": _now()}
        self.storage.write_json("run.json", self.description)

    @contextlib.contextmanager
    def _study(self) -> Iterator[tuple[Any, Path | None]]:
        """The run's study, and the local journal file that must be uploaded, if there is one."""
        import optuna

        from mnist_ray.study.pruners import make_pruner
        from mnist_ray.study.studies import journal_file, open_study, opened

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        s = self.settings
        # Searches that share a study need suggestions of their own, though their seed, which fixes the split, may be the same.
        self.offset = zlib.crc32(self.name.encode()) if s.study else 0
        sampler = _sampler(s, asked=self.offset)
        common = (
            s.study_name or self.name,
            s.metric,
            sampler,
            make_pruner(s),
            _purpose(s, self.split, self.start),
            self.several,
        )
        if s.study:
            with opened(s.study) as shared:
                yield open_study(shared, *common), None
            return
        with temporary_folder("mray-study-") as folder:
            local = self.storage.local_path
            path = (local or folder) / "study.journal"
            if local is None and self.storage.exists("study.journal"):
                path.write_bytes(self.storage.read_bytes("study.journal"))
            path.with_name(f"{path.name}.lock").unlink(
                missing_ok=True
            )  # a killed search's: this one holds the run
            yield open_study(journal_file(path), *common), path if local is None else None

    def _search(self, study: Any, journal: Path | None, slots: int) -> None:
        from ray import tune

        from mnist_ray.study.studies import (
            close_interrupted,
            read_trials,
            remaining_points,
            take_over,
            to_try_again,
        )
        from mnist_ray.tune import schedulers, watch
        from mnist_ray.tune.deterministic import DeterministicTrial, OrderedSearch
        from mnist_ray.tune.searcher import StudySearch
        from mnist_ray.tune.trainable import (
            SummaryWarnings,
            TrainTrial,
            TrialContext,
            checkpoint_folder,
        )

        s = self.settings
        images, train, val, _ = self.split
        self.journal = journal
        if self.previous:
            study.sampler = _sampler(s, asked=self.offset + len(study.get_trials(deepcopy=False)))
        continued, past = [], {}
        for frozen, record in read_trials(study, self.name, s.metric):
            past[record.number] = objectives.curve(frozen)
            latest = f"{checkpoint_folder(record.number)}/{self.trainable.LATEST}"
            if record.state == "RUNNING" and (s.deterministic or self.storage.exists(latest)):
                continued.append(frozen)
                record.rows = {}  # the checkpoint has them all
            elif record.state == "RUNNING":
                close_interrupted(study, frozen, record)
            self.records.add(record)
            if record.state != "RUNNING":
                self.unswept.add(record.number)
        self.records.resumed()
        # An object store may have checkpoints of trials that the last upload of the journal did not know: their numbers are given anew.
        for name in self.storage.list("tune/checkpoints"):
            if name.rpartition("/")[0] not in map(checkpoint_folder, self.records.trials):
                self.storage.delete(name)
        if self.previous:
            print(
                f"resuming {self.storage.uri}: {self.records.settled()} of {s.trials} trials are done, {len(continued)} go on",
                flush=True,
            )
        else:
            print(f"run {self.storage.uri}: {s.trials} trials, {slots} at a time", flush=True)
        if self.older:
            print(
                f"learning from {take_over(study, self.older)} trials of {without_password(s.warm_start or '')}",
                flush=True,
            )
            self.description["warm_started"] = True
            self.storage.write_json("run.json", self.description)
        if self.previous:
            trackers.forget_unknown(self.storage, self.records.trials)
        if self.watchers:
            earlier = self.description.get("trackers", {})
            known = trackers.begin(
                self.watchers, self.name, self.description["settings"], self.storage, earlier
            )
            self.description["trackers"] = {**earlier, **known}
            self.storage.write_json("run.json", self.description)
        study_file = str(journal or self.storage.join("study.journal"))
        print(
            "\n".join(
                trackers.commands(s, self.storage, study_file, self.dashboard, self.watchers)
            ),
            flush=True,
        )

        parts = (study, functools.partial(self.space, data=data_shape(images)), self.records)
        options: dict[str, Any] = {
            "run": self.name,
            "max_epochs": s.max_epochs,
            "on_settled": self._settled,
            "continued": continued,
            "retried": to_try_again(study, self.name),
            "points": remaining_points(study, self.name, self.points),
        }
        population = (
            s.scheduler == "pbt"
        )  # whose trials take turns: all of them are begun, and Tune keeps their states
        if s.deterministic:
            search_alg: StudySearch = OrderedSearch(
                *parts, **options, window=s.max_concurrent or slots, sampler=self._sampler_of
            )
        elif population:
            search_alg = StudySearch(*parts, **options)
        else:
            search_alg = StudySearch(
                *parts, **options, slots=self.slots if s.max_concurrent is None else lambda: slots
            )
        context = TrialContext(
            self.storage.uri, s.metric, s.max_epochs, s.seed, s.precision, s.cpus_per_trial, self.gpus, "latency" in self.several,
            s.augment, s.tensorboard, s.activations,
        )  # fmt: skip
        trainable = tune.with_parameters(
            DeterministicTrial
            if s.deterministic and self.trainable is TrainTrial
            else self.trainable,
            context=context,
            images=images.images,
            labels=images.labels,
            train=train,
            val=val,
            start=self.start.weights if self.start else None,
        )
        remaining = s.trials - self.records.settled()
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(
            s.trials
        )  # the searcher alone decides how many are handed out
        if remaining > 0:
            tuner = tune.Tuner(
                tune.with_resources(trainable, {"cpu": s.cpus_per_trial, "gpu": self.gpus}),
                tune_config=tune.TuneConfig(
                    metric=s.metric,
                    mode=search_alg.mode,
                    search_alg=search_alg,
                    scheduler=schedulers.make(s, past, search_alg),
                    num_samples=remaining,
                    reuse_actors=True,
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    # Of what Tune keeps only the states of a population are read again, by any node.
                    storage_path=self.storage.uri if population else str(self.tune_folder),
                    stop=schedulers.Ending(search_alg, duration(s.time_budget, "--time-budget")),
                    failure_config=tune.FailureConfig(max_failures=watch.DEATHS),
                    callbacks=[
                        watch.Watch(
                            search_alg,
                            duration(s.trial_timeout, "--trial-timeout"),
                            s.trial_timeout,
                        ),
                        SummaryWarnings(),
                    ],
                    # Trials keep their own (see trial.py). A state that is to be copied must outlive the next one of its trial.
                    checkpoint_config=tune.CheckpointConfig(
                        checkpoint_at_end=False, num_to_keep=4 if population else None
                    ),
                    verbose=1 if s.verbose else 0,
                ),
            )
            # A bar in a terminal, nothing in a job's log.
            self.bar = tqdm(
                total=s.trials,
                initial=self.records.settled(),
                unit="trial",
                disable=None,
                dynamic_ncols=True,
                leave=False,
            )
            with (
                self.bar,
                watch.patched_tune(search_alg.worker_lost),
                trackers.following(self.watchers, self.records),
            ):
                tuner.fit()
                search_alg.close()
                if search_alg.storage_error:
                    raise WorkError(
                        f"storage failed: {search_alg.storage_error}; when it works again: {_resume_command(s, self.name)}"
                    )
        else:
            with trackers.following(self.watchers, self.records):
                pass  # a search that has ended is still made known to a tracker that it did not have
        self._save()
        for folder in (
            {
                name.rpartition("/")[0]
                for name in self.storage.list("tune")
                if "/checkpoint_" in name
            }
            if population
            else ()
        ):
            self.storage.delete(folder)
        if self.records.best is None:
            reasons = sorted({r.reason for r in self.records.trials.values()})
            raise WorkError(
                f"no trial of {len(self.records.trials)} succeeded: {'; '.join(reasons)[:400]}"
            )

    def _sampler_of(self, place: int) -> Any:
        """The sampler for the run's trial of that place, with a seed of its own."""
        seed = int(np.random.SeedSequence([self.settings.seed, place]).generate_state(1)[0])
        return _sampler(dataclasses.replace(self.settings, seed=seed))

    # ---- while it runs

    def _settled(self, number: int) -> None:
        """After the study knows of a trial's end: a log line, the best kept, losers' checkpoints removed, the tables written."""
        self.bar.write(self.records.line(number))
        sys.stdout.flush()
        self.bar.set_postfix_str(
            f"best {self.records.best[1][self.settings.metric]:.4f}" if self.records.best else ""
        )
        self.bar.update()
        self.unswept.add(number)
        if time.monotonic() - self.saved_at >= SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        """Brings the run's directory up to date."""
        from mnist_ray.tune.trainable import checkpoint_folder

        self._keep_best()
        holder = self.records.best[0] if self.records.best else None
        for number in list(self.unswept):
            if number != holder or (self.best_kept and self.best_kept[0] == number):
                self.storage.delete(checkpoint_folder(number))
                self.unswept.discard(number)
        self.storage.write_bytes("trials.parquet", records.parquet(self.records.trials_table()))
        self.storage.write_bytes("history.parquet", records.parquet(self.records.history_table()))
        if self.journal is not None:
            self.storage.write_bytes("study.journal", self.journal.read_bytes())
        self.saved_at = time.monotonic()

    def _keep_best(self) -> None:
        """Copies the best epoch's files from its trial's folder to best/."""
        from mnist_ray.tune.trainable import checkpoint_folder

        if self.records.best is None:
            return
        number, row = self.records.best
        if self.best_kept == (number, row["epoch"]):
            return
        folder = checkpoint_folder(number)
        files = self.trainable.BEST
        if self.previous and not self.storage.exists(f"{folder}/{list(files)[-1]}"):
            return  # kept before the interruption
        for file, kept in files.items():
            self.storage.write_bytes(f"best/{kept}", self.storage.read_bytes(f"{folder}/{file}"))
        self.best_kept = (number, row["epoch"])

    def _summary(self, study: Any) -> None:
        from optuna.trial import TrialState

        from mnist_ray.study import importance

        states = [r.state for r in self.records.trials.values()]
        failed: dict[str, int] = {}
        for r in self.records.trials.values():
            if r.state == "FAIL":
                failed[r.reason] = failed.get(r.reason, 0) + 1
        print(
            f"{len(states)} trials: {states.count('COMPLETE')} complete, {states.count('PRUNED')} pruned, {states.count('FAIL')} failed"
            + "".join(f"\n  {n} × {reason}" for reason, n in failed.items())
        )
        header = ["trial", "state", "epoch", "val_accuracy", "val_loss", "parameters", "settings"]
        lines = [
            [
                r.number,
                r.state,
                row["epoch"],
                f"{row['val_accuracy']:.4f}",
                f"{row['val_loss']:.4f}",
                r.n_parameters,
                _short(r.params),
            ]
            for r, row in self.records.top(5)
        ]
        print(records.table_text(header, lines), flush=True)
        metric = self.settings.metric
        exploits = sum(len(r.exploits) for r in self.records.trials.values())
        if exploits:
            print(
                f"{exploits} times a trial went on with another's weights; the settings above are those that each began with",
                flush=True,
            )
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        of_metric = [objectives.single(trial, self.several, metric) for trial in complete]
        if not exploits:  # else the values are not those of the settings
            print(
                importance.text(of_metric, objectives.DIRECTIONS[objectives.OF_METRIC[metric]]),
                flush=True,
            )
        if self.several:
            print(self._front(), flush=True)

    def _front(self) -> str:
        """The Pareto front as a table, best by the first objective first."""
        found = self.records.front()
        if not found:
            return "Pareto front: no trial is complete"
        sign = -1 if objectives.DIRECTIONS[self.several[0]] == "maximize" else 1
        lines = [
            [
                number,
                *objectives.cells(self.several, found[number]),
                _short(self.records.trials[number].params),
            ]
            for number in sorted(found, key=lambda n: sign * found[n][0])
        ]
        units = ["latency (ms)" if name == "latency" else name for name in self.several]
        return "Pareto front of the complete trials:\n" + records.table_text(
            ["trial", *units, "settings"], lines
        )


def _trial_name(trial: Any) -> str:
    """The number that a trial has everywhere else, in place of all its settings."""
    return f"trial-{trial.config['number']:05d}"


def _short(params: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        short = f"{value:.3g}"
        return f"{value:.6g}" if short == "1" else short  # 0.9996 and 0.9999 are not the same beta2

    return " ".join(f"{name}={text(value)}" for name, value in params.items())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_commit() -> str | None:
    """The commit of this checkout, with "+" where files differ from it; None where there is no checkout."""
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            cwd=cluster.ROOT, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()
