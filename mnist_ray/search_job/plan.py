"""First act of a search: `prepare` parses every setting once and refuses wrong ones.

Nothing is started and, but for a probe of the storage, nothing is written.
"""

import copy
import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from mnist_ray import cluster, data, hyperparameters, spaces, trackers
from mnist_ray.errors import SettingsError
from mnist_ray.finetune_job.recipe import check_augmentations
from mnist_ray.processes import clock
from mnist_ray.run import layout
from mnist_ray.run.about import About
from mnist_ray.search_job.resumed import RESUMED_TRUST, check_trust, resumed_settings
from mnist_ray.search_job.start import Start, read_start
from mnist_ray.search_job.work import (
    ImageWork,
    Work,
    data_shape,
    load_split,
    own_work,
    purpose,
)
from mnist_ray.settings import (
    SearchSettings,
    check_search,
    command,
    constraints,
    duration,
    key_values,
    objectives,
    resolved,
    trust,
)
from mnist_ray.settings.checks import OF_STORED
from mnist_ray.settings.functions import IMAGES, OF_CHAIN
from mnist_ray.storage import RunStorage, check_writable, open_run
from mnist_ray.study import storages, studies
from mnist_ray.study.objectives import check_parts
from mnist_ray.study.portfolio import starting_points
from mnist_ray.study.pruners import Scheduler, check_population, read_scheduler
from mnist_ray.study.samplers import Sampler, check_state, read_sampler
from mnist_ray.study.suggestions import Space, check_suggests
from mnist_ray.study.warm_start import older_trials

SUGGESTIONS = 10  # that are checked before anything starts
# Options that only images have.
OF_IMAGES = ("dataset", "data_dir", *OF_STORED, "train_images", "val_images", "val_by")


@dataclass(frozen=True)
class Placement:
    """The facts that only the cluster knows: GPUs of a trial, trials at a time, precision."""

    gpus: float
    slots: int
    precision: str
    maximum: Mapping[str, float]  # resources that an autoscaler may bring


@dataclass(frozen=True)
class Plan:
    """A search, every text parsed. `placement.complete` adds the cluster's facts."""

    settings: SearchSettings  # with --resume: the run's, with the changes that are allowed
    name: str
    storage: RunStorage
    resumed: About | None  # the run that goes on
    work: Work
    space: Space  # with its options and the data set bound to it
    objective_names: tuple[str, ...]  # () if the metric is the only objective
    sampling: Sampler
    scheduler: Scheduler
    time_budget: float | None  # seconds
    trial_timeout: float | None  # seconds
    finetune: bool
    purpose: Mapping[str, Any]  # equal for searches that may share a study
    points: tuple[dict[str, Any], ...] = ()
    older: tuple[FrozenTrial, ...] = ()
    placement: Placement | None = None
    owner: str = ""  # the token of the lease, once the run is held
    whole: RunStorage | None = None  # the run's directory, if `storage` is a folder of it
    folder: str = ""  # the name of that folder

    @property
    def split(self) -> data.Split:
        """The images of a search that trains on images."""
        assert isinstance(self.work, ImageWork)
        return self.work.split

    @property
    def start(self) -> Start | None:
        """The network that all trials begin with; None: random weights."""
        return self.work.start if isinstance(self.work, ImageWork) else None

    @property
    def placed(self) -> Placement:
        """The placement of a complete plan."""
        assert self.placement is not None
        return self.placement

    @property
    def study_name(self) -> str:
        """The study's name in its storage."""
        return self.settings.study_name or self.name

    @property
    def resume_command(self) -> str:
        """The command that continues this search."""
        s = self.settings
        if s.scheduler == "pbt":
            return f"{command('search')} … --overwrite (a PBT run cannot be resumed)"
        own = trust.flags(resolved(s), RESUMED_TRUST)
        return command("search", "--storage", s.storage, "--name", self.name, "--resume", *own)

    def sampler(self, seed: int) -> BaseSampler:
        """A new sampler with this seed."""
        return self.sampling.make(seed)

    def recorded_settings(self) -> dict[str, Any]:
        """The settings as run.json holds them: with the values found, so that a resume agrees."""
        s = self.settings
        found: dict[str, Any] = {
            "name": self.name,
            **({"val_by": split.val_by} if (split := self.work.split) else {}),
            "finetune": self.finetune,
            "sampler": self.sampling.name,
            "grace_period": self.scheduler.grace_period,
        }
        if self.placement and s.gpus_per_trial == "auto":
            found["gpus_per_trial"] = self.placement.gpus
        if self.placement and s.deterministic:
            found |= {"max_concurrent": self.placement.slots, "precision": self.placement.precision}
        return {**resolved(s), **found}


def prepare(settings: SearchSettings) -> Plan:
    """The search that these settings mean.

    Raises:
        SettingsError: names the flag; nothing has been started.
    """
    check_search(settings)
    given = settings.given
    name = settings.name or f"{settings.space.replace(':', '-')}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    storage = open_run(settings.storage, name)
    resumed = About.read(storage, "--resume") if settings.resume else None
    if resumed:
        _check_same_name(resumed, name)
        check_trust(settings, resumed)
        settings = resumed_settings(settings, resumed.settings)
        check_search(settings, merged=True)
    trackers.check(settings)
    found = spaces.find(settings.space, of_images=settings.train is None)
    _check_trainable(settings, settings.train is None and spaces.of_networks(found))
    options = spaces.options(found, settings.space, key_values(settings.space_args, "--space-args"))
    work: Work
    if settings.train is not None:
        work = own_work(settings, resumed, given)
    else:
        start = read_start(settings, found, storage, resumed)
        work = ImageWork(load_split(settings, resumed, given), start, found)
        options["data"] = data_shape(work.split.images)
        if work.start:
            options["start"] = work.start.hyperparameters
    names = objectives.names(settings.objectives)
    plan = Plan(
        settings=settings,
        name=name,
        storage=storage,
        resumed=resumed,
        work=work,
        space=lambda trial: found(trial, **copy.deepcopy(options)),  # it may change a list in them
        objective_names=names,
        sampling=_sampling(settings),
        scheduler=read_scheduler(settings),
        time_budget=duration(settings.time_budget, "--time-budget"),
        trial_timeout=duration(settings.trial_timeout, "--trial-timeout"),
        finetune=settings.finetune and (work.networks or settings.finetune_with is not None),
        purpose=purpose(settings, work, names),
    )
    _check_parts(plan)
    plan = _with_older_knowledge(plan)
    if plan.finetune and work.networks:
        _check_second_job(plan)
    if not settings.dry_run:
        _check_study(plan)
        _check_place(plan)
    return plan


def _check_same_name(resumed: About, name: str) -> None:
    """SettingsError if the run's folder was renamed or copied: its study knows the old name."""
    if resumed.name != name:
        raise SettingsError(
            f"--name: the run at {resumed.storage.uri} is {resumed.name!r} by its run.json and its "
            "study; to go on, call its folder that again"
        )


def _sampling(settings: SearchSettings) -> Sampler:
    # A population's configurations change while they train: no sampler could learn from them.
    name = "random" if settings.scheduler == "pbt" else settings.sampler
    return read_sampler(name, key_values(settings.sampler_args, "--sampler-args"))


def _check_trainable(settings: SearchSettings, networks: bool) -> None:
    """SettingsError if an option needs networks, and the space's trials are none."""
    if networks:
        if settings.scheduler == "pbt":
            check_population(settings)
        return
    for flag, wanted in (
        ("--objectives or --constraint latency", constraints.wanted(vars(settings), "latency")),
        ("--constraint size", constraints.wanted(vars(settings), "size")),
        ("--folds", settings.folds is not None),
        ("--augment", settings.augment != "none"),
        ("--scheduler pbt", settings.scheduler == "pbt"),
        ("--tensorboard", settings.tensorboard),
        ("--gpus-per-trial auto", settings.gpus_per_trial == "auto"),
        ("--objectives", settings.train is not None and settings.objectives is not None),
        ("--constraint", settings.train is not None and bool(settings.constraint)),
        ("--onnx", settings.train is not None and settings.onnx is not None),
        ("--class-weights", settings.train is not None and settings.class_weights is not None),
        *(
            (f"--{name.replace('_', '-')}", settings.train is not None and name in settings.given)
            for name in (*OF_CHAIN, "test_steps")
        ),
    ):
        if wanted:
            raise SettingsError(f"{flag}: is for networks, and {_trains_none(settings)}")
    # A run of an older version may have recorded some of these, and goes on.
    if settings.train is not None and settings.train_data != IMAGES and not settings.resume:
        for name in OF_IMAGES:
            if name in settings.given:
                flag = f"--{name.replace('_', '-')}"
                raise SettingsError(f"{flag}: is for images; add --train-data images")
    if settings.finetune and settings.train is None and not settings.dry_run:
        print(
            f"--no-finetune is implied: space {settings.space!r} gives no network to export",
            flush=True,
        )


def _trains_none(settings: SearchSettings) -> str:
    if settings.train is not None:
        return f"--train {settings.train} is a function of your own"
    return f"space {settings.space!r} trains none"


def _check_parts(plan: Plan) -> None:
    """SettingsError if sampler, scheduler, space or stages cannot do as requested."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    s = plan.settings
    check_parts(
        plan.objective_names,
        functools.partial(plan.sampler, s.seed),
        plan.scheduler.pruner(),
        sampler_name=s.sampler,
        scheduler_name=s.scheduler,
        constrained=bool(s.constraint),
    )

    def validated(trial: optuna.Trial) -> dict[str, Any]:
        hp = plan.space(trial)
        try:
            if s.train is not None:  # whose hyperparameters are its own
                return {k: _storable(v, f"hyperparameter {k}") for k, v in hp.items()}
            return hyperparameters.validate(hp)
        except SettingsError as error:
            why = f"returns a dict that cannot work: {error}"
            raise SettingsError(f"--space: {s.space!r} {why}") from error

    check_suggests(validated, s.space, SUGGESTIONS)
    if isinstance(plan.work, ImageWork):
        check_augmentations(s.augment, s.stages if plan.finetune else None, plan.split.images)


def _storable(value: Any, where: str) -> Any:
    """The value as JSON holds it. SettingsError if it cannot, as an infinite number."""
    found = hyperparameters.plain(value, where)
    try:
        json.dumps(found, allow_nan=False)
    except ValueError as error:
        raise SettingsError(
            f"{where} is {found!r}; JSON cannot hold it: give a large number or None"
        ) from error
    return found


def _check_second_job(plan: Plan) -> None:
    """SettingsError if the best network could not be fine-tuned, exported or judged."""
    s = plan.settings
    reading = data.Reading.of(resolved(s))
    test = data.load(s.dataset, "test", s.data_dir, reading=reading, download=not plan.resumed)
    data.check_test_part(plan.split.images, test)
    if trust.is_code(s.dataset) or trust.is_code(s.space):
        from mnist_ray.search_job.rehearsal import rehearse  # noqa: PLC0415 (seconds at start)

        with clock("trying one network"):
            rehearse(plan.space, plan.split.images, s.augment)


def _with_older_knowledge(plan: Plan) -> Plan:
    """The plan with --points, --portfolio and the trials that --warm-start names."""
    s, resumed = plan.settings, plan.resumed
    points = resumed.points if resumed else starting_points(s, plan.space)
    older: list[FrozenTrial] = []
    if s.warm_start and not (resumed and resumed.warm_started):
        this = (s.goal, plan.purpose, plan.space, plan.objective_names)
        older = older_trials(s.warm_start, *this, constraints.read(s.constraint))
    return dataclasses.replace(plan, points=tuple(points), older=tuple(older))


def _check_study(plan: Plan) -> None:
    """SettingsError if the study is another search's, or is gone or damaged."""
    s = plan.settings
    this = (s.goal, plan.purpose, plan.space, plan.objective_names)
    if not s.study:
        if plan.resumed and (
            own := studies.of_run(plan.storage, plan.study_name, plan.name, s.goal)
        ):
            studies.check_study(own, *this)
            check_state(plan.sampler(s.seed), own)
        return
    if plan.resumed and s.study == "memory":
        raise SettingsError("--resume: the run's study was in memory and has ended with it")
    with storages.opened(s.study) as storage:
        study = studies.existing(storage, plan.study_name)
        if study is None and plan.resumed:
            raise SettingsError(
                f"--study: there is no study {plan.study_name!r}, with which the run began"
            )
        if study:
            studies.check_study(study, *this)
            check_state(plan.sampler(s.seed), study)
            if not plan.resumed:
                studies.check_run(study, plan.name)
            if s.deterministic:
                studies.check_alone(study, plan.name)


def _check_place(plan: Plan) -> None:
    """SettingsError if the storage, the name or this machine cannot take the run."""
    s = plan.settings
    check_writable(s.storage)
    if s.overwrite:
        About.check_replaceable(plan.storage, "--overwrite")
    if not (s.resume or s.overwrite) and plan.storage.exists(layout.RUN):
        raise SettingsError(
            f"--name: a run is there already at {plan.storage.uri}; "
            "give another name, --resume or --overwrite"
        )
    if not (s.resume or s.overwrite):
        About.check_new(plan.storage, "--overwrite or another name")
    if not cluster.running():
        gpus = 0 if isinstance(s.gpus_per_trial, str) else s.gpus_per_trial
        cluster.check_fits(s.cpus_per_trial, gpus, [cluster.machine_resources(gpus > 0)], {})
