"""Second act of a search: its study is opened and restored, and Tune trains the trials."""

import contextlib
import functools
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from ray import tune

from mnist_ray import cluster, data, trackers
from mnist_ray.errors import WorkError
from mnist_ray.processes import temporary_folder
from mnist_ray.run import layout
from mnist_ray.run.best import Confirmed
from mnist_ray.run.records import Records
from mnist_ray.search_job import confirm, summary
from mnist_ray.search_job.keeper import Keeper
from mnist_ray.search_job.plan import Plan
from mnist_ray.search_job.progress import Progress
from mnist_ray.search_job.work import ImageWork
from mnist_ray.settings import constraints, resolved
from mnist_ray.settings.objectives import direction
from mnist_ray.study import storages, studies, trials
from mnist_ray.study.journal import journal_file
from mnist_ray.study.objectives import curve
from mnist_ray.tune import patches, schedulers, watch
from mnist_ray.tune.deterministic import OrderedSearch
from mnist_ray.tune.ordered_promotion import OrderedPromotion
from mnist_ray.tune.promotion import PromotingSearch
from mnist_ray.tune.searcher import StudySearch
from mnist_ray.tune.trainable import SummaryWarnings
from mnist_ray.tune.trial import NUMBER, TrialContext


@dataclass(frozen=True)
class Restored:
    """A run's trials as its study has them; of a new run there are none."""

    records: Records
    past: dict[int, dict[int, float]]  # trial -> epoch -> value of the metric
    continued: list[FrozenTrial]  # trials that were cut off and have a checkpoint


# ---- the study


@contextlib.contextmanager
def opened_study(plan: Plan) -> Iterator[tuple[optuna.Study, Path | None]]:
    """The run's study, and its journal's local file if that must be uploaded."""
    s, storage = plan.settings, plan.storage
    sampler = plan.sampler(s.seed + _seed_offset(plan))
    pruner = plan.scheduler.pruner()
    space = plan.space if plan.resumed else None  # which may have been edited meanwhile
    common = (
        plan.study_name, s.goal, sampler, pruner, plan.purpose, plan.objective_names, space,
    )  # fmt: skip
    if s.study:
        with storages.opened(s.study) as shared:
            yield studies.open_study(shared, *common), None
        return
    with temporary_folder("mray-study-") as folder:
        local = storage.local_path
        path = (local or folder) / layout.JOURNAL
        # Looked for on a disk too: a link that leads out of the run is refused.
        if storage.exists(layout.JOURNAL) and local is None:
            path.write_bytes(storage.read_bytes(layout.JOURNAL))
        if local is not None:
            storage.delete(f"{layout.JOURNAL}.lock")  # a killed search's
        yield (
            studies.open_study(journal_file(path, storage.check if local else None), *common),
            path if local is None else None,
        )


def _seed_offset(plan: Plan) -> int:
    """Searches that share a study and a seed, which fixes the split, need other suggestions."""
    return zlib.crc32(plan.name.encode()) if plan.settings.study else 0


def restore(plan: Plan, study: optuna.Study) -> Restored:
    """The run's trials from its study; those without a checkpoint are closed, to be tried again."""
    s, storage = plan.settings, plan.storage
    if plan.resumed:
        # With the old seed it would suggest the first values again.
        asked = len(study.get_trials(deepcopy=False))
        study.sampler = plan.sampler(s.seed + _seed_offset(plan) + asked)
    restored = Restored(Records(s.goal, s.trials, plan.objective_names), {}, [])
    latest = _trainable(plan).LATEST
    for frozen, record in trials.read_trials(study, plan.name, s.goal):
        restored.past[record.number] = curve(frozen)
        checkpoint = f"{layout.trial_folder(record.number)}/{latest}"
        if record.state == "RUNNING" and (s.deterministic or storage.exists(checkpoint)):
            restored.continued.append(frozen)
            if not frozen.user_attrs.get(trials.PAUSED):
                record.rows = {}  # the checkpoint has them all
        elif record.state == "RUNNING":
            trials.close_interrupted(study, frozen, record)
        restored.records.add(record)
    restored.records.resumed()
    # An object store may have checkpoints of trials that the last upload of the journal did not
    # know: their numbers are given anew.
    for name in storage.list(layout.CHECKPOINTS):
        if layout.trial_of(name) not in restored.records.trials:
            storage.delete(name)
    if plan.resumed:
        trackers.forget_unknown(storage, restored.records.trials)
    return restored


# ---- training


def train(
    plan: Plan,
    study: optuna.Study,
    restored: Restored,
    keeper: Keeper,
    watchers: Sequence[trackers.Tracker],
    folder: Path,
    lost: Callable[[], bool] = lambda: False,
) -> None:
    """Trains the run's remaining trials.

    Args:
        plan: A complete plan.
        study: The run's study.
        restored: See `restore`.
        keeper: Told of every trial that ends.
        watchers: Trackers to keep up to date.
        folder: A local folder for Tune's own files.
        lost: Whether another process has taken over the run: the search ends.

    Raises:
        WorkError: The storage failed, or no trial succeeded.
    """
    records = restored.records
    progress = Progress(records, plan.settings.max_epochs)
    # A search that has ended is still made known to a tracker that is new to it.
    with trackers.following(watchers, records):
        _fit(plan, study, restored, keeper, progress, folder, lost)
    keeper.save()
    if _is_population(plan):
        for name in plan.storage.list(layout.TUNE):
            trial, found, rest = name.partition("/checkpoint_")
            if found:  # the folder, which would stay on a disk
                plan.storage.delete(f"{trial}{found}{rest.partition('/')[0]}")
    if records.best is None:
        raise WorkError(f"no trial of {len(records.trials)} {summary.no_winner(plan, records)}")


def _fit(
    plan: Plan,
    study: optuna.Study,
    restored: Restored,
    keeper: Keeper,
    progress: Progress,
    folder: Path,
    lost: Callable[[], bool],
) -> None:
    """Trains the trials that remain, if any; arguments as in `train`."""
    # A trial that has begun goes on, however few --trials says now.
    remaining = max(plan.settings.trials - restored.records.settled(), len(restored.continued))

    def settled(number: int) -> None:
        progress.settled(number)
        keeper.settled(number)

    with progress.bar, _kept_at_interrupt(keeper):
        if remaining > 0:
            searcher = _searcher(plan, study, restored, settled, keeper)
            ending = _ending(plan, searcher, lost)
            if not ending.stop_all():  # else a resume would begin trials and throw them away
                with patches.patched_tune(searcher.worker_lost):
                    _tuner(plan, searcher, restored, remaining, folder, ending, progress).fit()
            searcher.close()
            _check_end(plan, searcher, lost)


def train_again(
    plan: Plan, records: Records, ends: float | None, lost: Callable[[], bool]
) -> tuple[Confirmed, ...]:
    """Trains the best again, as --confirm says, and keeps the best of them in best/.

    Args:
        plan: The search's.
        records: Its trials.
        ends: When --time-budget is used up, by the monotonic clock; None: never.
        lost: As in `train`.

    Returns:
        The trials that were trained again with every seed, the chosen one first.
    """
    again = confirm.plan_of(plan, records, ends and max(0.0, ends - time.monotonic()))
    for name in (layout.CONFIRM, again.folder):  # not `parents`: a run that is gone stays so
        if (path := plan.storage.below(name).local_path) is not None:
            path.mkdir(exist_ok=True)
    with opened_study(again) as (study, journal), temporary_folder("mray-confirm-") as folder:
        again = confirm.listed(again, study, confirm.wanted(plan, records))
        restored = restore(again, study)
        mine = restored.records
        keeper = confirm.AllKept(again.storage, mine, {}, journal)
        progress = Progress(
            mine,
            again.settings.max_epochs,
            functools.partial(confirm.line, records, mine),
            functools.partial(confirm.named, mine),
        )
        _fit(again, study, restored, keeper, progress, folder, lost)
        keeper.save()
    return confirm.keep(plan, best_files(plan), records, mine)


@contextlib.contextmanager
def _kept_at_interrupt(keeper: Keeper) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        # The storage may be away, or the run another's.
        with contextlib.suppress(WorkError, OSError):
            keeper.keep_journal(at_once=True)
        raise


def _check_end(plan: Plan, searcher: StudySearch, lost: Callable[[], bool]) -> None:
    """WorkError if the search had to end: the run is another's, or storage or own code failed."""
    uri, why = plan.storage.uri, ""
    if searcher.taken_over or lost():
        raise WorkError(f"the search at {uri} ends: another process has taken over its run")
    if searcher.own_error:
        part, error = searcher.own_error
        why = f"--{part}: {getattr(plan.settings, part)} failed: {error}; to go on"
    elif searcher.storage_error:
        why = f"storage failed: {searcher.storage_error}; when it works again"
    if why:
        raise WorkError(f"{why}: {plan.resume_command}")


def _is_population(plan: Plan) -> bool:
    """Whether trials take turns: all of them are begun, and Tune keeps their states."""
    return plan.settings.scheduler == "pbt"


def best_files(plan: Plan) -> dict[str, str]:
    """Names of a best epoch's files in its trial's folder, and their names in best/."""
    return dict(_trainable(plan).BEST)


def _trainable(plan: Plan) -> Any:
    return plan.work.trainable(plan.settings.deterministic)


def _searcher(
    plan: Plan,
    study: optuna.Study,
    restored: Restored,
    settled: Callable[[int], None],
    keeper: Keeper,
) -> StudySearch:
    """The searcher, which suggests from the study and tells it how trials end."""
    s, placed = plan.settings, plan.placed
    options: dict[str, Any] = {
        "run": plan.name,
        "max_epochs": s.max_epochs,
        "on_settled": settled,
        "keep": keeper.keep_journal,
        "keep_error": lambda number, text: plan.storage.write_bytes(
            layout.error_file(number), text.encode()
        ),
        "best_row": functools.partial(_trainable(plan).best_row, plan.storage),
        "continued": restored.continued,
        "retried": trials.to_try_again(study, plan.name),
        "points": trials.remaining_points(study, plan.name, plan.points),
        "limits": constraints.read(s.constraint),
        "front": plan.scheduler.front(plan.objective_names),
    }
    parts = (study, plan.space, restored.records)
    promotes = plan.scheduler.name == "asha-promote"
    if promotes:
        rungs = plan.scheduler.rungs(maximize=direction(s.goal) == "maximize")
        options |= {"rungs": rungs, "past": restored.past, "on_paused": keeper.save_if_due}
    if s.deterministic:
        # Of a trial's suggestion, by its place.
        seeds = functools.partial(confirm.further_seed, s.seed)
        ordered = OrderedPromotion if promotes else OrderedSearch
        return ordered(
            *parts, **options, window=placed.slots, sampler=lambda place: plan.sampler(seeds(place))
        )
    if _is_population(plan):
        return StudySearch(*parts, **options)
    kind: Any = PromotingSearch if promotes else StudySearch
    # Not more than the cluster holds, also if --max-concurrent allows more: a waiting trial would
    # have been suggested knowing less.
    held = cluster.Slots(s.cpus_per_trial, placed.gpus, placed.maximum)
    most = math.inf if s.max_concurrent is None else s.max_concurrent
    made: StudySearch = kind(*parts, **options, slots=lambda: min(most, held()))
    return made


def _facts(plan: Plan) -> dict[str, str]:
    """Metadata as long as a published file's."""
    images = plan.split.images
    return {
        "dataset": plan.settings.dataset,
        "run": plan.name,
        "classes": json.dumps(list(images.classes)),
        "reading": data.Reading.of(resolved(plan.settings)).to_json(),
        "data_sha256": images.sha256,
    }


def _context(plan: Plan) -> TrialContext:
    s = plan.settings
    return TrialContext(
        run=(plan.whole or plan.storage).uri,
        folder=plan.folder,
        metric=s.goal,
        max_epochs=s.max_epochs,
        seed=s.seed,
        precision=plan.placed.precision,
        cpus=s.cpus_per_trial,
        gpus=plan.placed.gpus,
        latency=constraints.wanted(vars(s), "latency"),
        constraints=constraints.read(s.constraint),
        facts=_facts(plan) if constraints.wanted(vars(s), "size") else None,
        # Others learn from complete trials alone.
        train_unfit=not isinstance(plan.sampler(0), optuna.samplers.TPESampler),
        augment=s.augment,
        tensorboard=s.tensorboard,
        activations=s.activations,
        weights=plan.split.images.weights if isinstance(plan.work, ImageWork) else None,
        owner=plan.owner,
    )


def _ending(plan: Plan, searcher: StudySearch, lost: Callable[[], bool]) -> schedulers.Ending:
    s, reserve = plan.settings, confirm.Reserve(plan, searcher.records)
    options: dict[str, Any] = {"target": s.target, "patience": s.patience, "reserve": reserve}
    return schedulers.Ending(searcher, plan.time_budget, lost, **options)


def _tuner(
    plan: Plan,
    searcher: StudySearch,
    restored: Restored,
    remaining: int,
    folder: Path,
    ending: schedulers.Ending,
    progress: Progress,
) -> tune.Tuner:
    s, placed = plan.settings, plan.placed
    population = _is_population(plan)
    with_data = tune.with_parameters(
        _trainable(plan), context=_context(plan), **plan.work.parameters()
    )
    # The searcher alone decides how many trials are handed out.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(s.trials)
    watcher = watch.Watch(searcher, plan.trial_timeout, s.trial_timeout)
    callbacks = [watcher, SummaryWarnings(), progress]
    return tune.Tuner(
        tune.with_resources(with_data, {"cpu": s.cpus_per_trial, "gpu": placed.gpus}),
        tune_config=tune.TuneConfig(
            metric=searcher.metric,
            mode=searcher.mode,
            search_alg=searcher,
            scheduler=schedulers.make_scheduler(plan.scheduler, restored.past, searcher, s.seed),
            # A paused trial that goes on is another one to Tune: the searcher says when to end.
            num_samples=-1 if isinstance(searcher, PromotingSearch) else remaining,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=layout.TUNE,
            # Of Tune's files only a population's states are read again, by any node.
            storage_path=plan.storage.uri if population else str(folder),
            stop=ending,
            failure_config=tune.FailureConfig(max_failures=watch.DEATHS),
            callbacks=callbacks,
            # Trials keep their own checkpoints (see tune/trainable.py). A population's state that
            # is to be copied must outlive the next one of its trial.
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_at_end=False, num_to_keep=4 if population else None
            ),
            verbose=1 if s.verbose else 0,
        ),
    )


def _trial_name(trial: Any) -> str:
    """The number that a trial has everywhere else, in place of all its settings."""
    return f"trial-{trial.config[NUMBER]:05d}"
