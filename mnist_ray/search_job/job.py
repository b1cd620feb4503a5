"""The first job: a search from its settings to the best checkpoint, then the second job."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import optuna

from mnist_ray import cluster, hyperparameters, output, report, trackers
from mnist_ray.errors import MnistRayError
from mnist_ray.finetune_job.recipe import read_stages
from mnist_ray.processes import temporary_folder
from mnist_ray.run import layout, lease
from mnist_ray.run.about import About, Finished
from mnist_ray.run.records import Record, Records
from mnist_ray.search_job import confirm, summary
from mnist_ray.search_job.keeper import Keeper, claim
from mnist_ray.search_job.plan import Plan, prepare
from mnist_ray.search_job.work import ImageWork
from mnist_ray.settings import SearchSettings, command, masked, trust
from mnist_ray.settings.functions import IMAGES
from mnist_ray.signals import INTERRUPTED, interruptible
from mnist_ray.storage import RunStorage
from mnist_ray.study.trials import PAUSED, remaining_points, take_over

if TYPE_CHECKING:
    from mnist_ray.search_job.engine import Restored


def search(settings: SearchSettings, *, handle_signals: bool = True) -> Finished:
    """Searches, then fine-tunes the best as a second job.

    Args:
        settings: All options.
        handle_signals: Whether SIGTERM interrupts as Ctrl-C does, and either ends in exit code 130.
            Without it the caller's handlers stay, and KeyboardInterrupt is raised.

    Raises:
        MnistRayError: A person or the surroundings caused it: one line names the cause.
    """
    output.print_the_log(unless_handled=True)
    cluster.quiet_ray()
    others = cluster.OtherWork()
    plan = prepare(settings)
    if settings.dry_run:
        print(summary.describe(plan), flush=True)
        return Finished(0, plan.storage.uri)
    if not cluster.running() and (warning := others.warning()):
        print(warning, flush=True)
        # Of the Ray that is started here: threads that wait sleep instead of spinning, 1.4 times
        # as fast beside other work and 6 % slower without it (docs/speed.md).
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    watchers = trackers.opened(plan.settings)
    signals = interruptible if handle_signals else contextlib.nullcontext
    try:
        # Twice: joining the cluster puts Ray's own handler in the place of the first.
        with (
            signals(),
            lease.held(plan.storage, "search", handle_signals=handle_signals) as held,
            cluster.connected(plan.settings.verbose) as joined,
            signals(),
        ):
            lease.refuse_while_held(plan.storage, "fine-tuning", "--name")
            _on_cluster(plan, joined, watchers, held)
    except KeyboardInterrupt:
        if not handle_signals:
            raise
        print(f"interrupted{_to_go_on(plan)}", flush=True)
        return Finished(INTERRUPTED, plan.storage.uri)
    return Finished(0, plan.storage.uri)


def _to_go_on(plan: Plan) -> str:
    """How to resume the run; nothing where there is none yet, or its study has ended with it."""
    with contextlib.suppress(OSError, MnistRayError):  # a storage that failed may come back
        if plan.settings.study == "memory" or not plan.storage.exists(layout.RUN):
            return ""
    return f"; to go on: {plan.resume_command}"


def _on_cluster(
    plan: Plan,
    joined: cluster.Cluster,
    watchers: Sequence[trackers.Tracker],
    held: lease.Lease,
) -> None:
    # Imported here: Ray reads its environment, which `quiet_ray` and `connected` set, when it is.
    from mnist_ray.search_job import engine, placement  # noqa: PLC0415 (Ray's environment)

    if plan.finetune:  # else its lack would be found when all trials are done
        cluster.check_job_server(joined, "finetune", "; or give --no-finetune")
    cluster.check_shared_storage(joined, RunStorage(plan.settings.storage))
    plan = _held(placement.complete(plan), held)
    print(placement.found(plan, cluster.nodes()), flush=True)
    with _outcome(plan.storage, held):
        about = claim(plan)
        with (
            temporary_folder("mray-tune-") as folder,
            engine.opened_study(plan) as (study, journal),
        ):
            restored = engine.restore(plan, study)
            records = restored.records
            print(_begins(plan, restored), flush=True)
            _learn(plan, study, about)
            _watch(plan, about, watchers, journal, joined.dashboard)
            keeper = Keeper(
                plan.storage,
                records,
                engine.best_files(plan),
                journal,
                resumed=bool(plan.resumed),
            )
            ends = None if plan.time_budget is None else time.monotonic() + plan.time_budget
            engine.train(plan, study, restored, keeper, watchers, folder, held.lost.is_set)
            print(summary.text(records, study), flush=True)
        best = _best(plan, records, ends, held, watchers)
        if plan.finetune:
            print(report.write_or_warn(plan.storage), flush=True)
            kind = "network" if plan.work.networks else "trial"
            print(f"fine-tuning the best {kind} in a second job", flush=True)
            about.patch(state="finetuning")
            held.allow("fine-tuning")
            cluster.submit_and_follow(joined, "finetune", _finetune_arguments(plan, best))
            return
    about.ended("searched")
    print(report.write_or_warn(plan.storage), flush=True)
    print(f"best checkpoint: {plan.storage.join(layout.BEST)}", flush=True)
    if plan.work.networks or plan.settings.finetune_with:
        print(f"next: {command('finetune', *_finetune_arguments(plan, best))}", flush=True)


def _best(
    plan: Plan,
    records: Records,
    ends: float | None,
    held: lease.Lease,
    watchers: Sequence[trackers.Tracker],
) -> Record:
    """The best trial: the search's, or with --confirm that of the retrainings."""
    from mnist_ray.search_job import engine  # noqa: PLC0415 (Ray's environment)

    assert records.best is not None
    number = records.best[0]
    if plan.settings.confirm:
        print(confirm.begins(plan), flush=True)
        confirmed = engine.train_again(plan, records, ends, held.lost.is_set)
        print(confirm.text(records, confirmed), flush=True)
        trackers.confirmed(watchers, confirmed)
        number = confirmed[0].number if confirmed else number
    return records.trials[number]


def _held(plan: Plan, held: lease.Lease) -> Plan:
    """The plan of a search that holds its run: it writes as the owner does."""
    resumed = plan.resumed and dataclasses.replace(plan.resumed, storage=held.owned)
    return dataclasses.replace(plan, storage=held.owned, resumed=resumed, owner=held.token)


@contextlib.contextmanager
def _outcome(storage: RunStorage, held: lease.Lease) -> Iterator[None]:
    """Notes in run.json when the block is interrupted or fails; not if the run is another's."""

    def note(state: str) -> None:
        # The storage itself may have failed: the first error is the one to tell.
        with contextlib.suppress(MnistRayError):
            held.check()
            about = About.read(storage, "--name") if storage.exists(layout.RUN) else None
            if about and about.state != "done":  # the second job may have ended meanwhile
                about.ended(state)

    try:
        yield
        held.check()
    except KeyboardInterrupt:
        note("interrupted")
        raise
    except Exception:
        note("failed")
        raise


def _begins(plan: Plan, restored: "Restored") -> str:
    trials = plan.settings.trials
    if plan.resumed:
        paused = sum(bool(frozen.user_attrs.get(PAUSED)) for frozen in restored.continued)
        done = f"{restored.records.settled()} of {trials} trials are done"
        done += f", {len(restored.continued) - paused} go on"
        done += f", {paused} are paused" if paused else ""
        return f"resuming {plan.storage.uri}: {done}"
    begins = f"run {plan.storage.uri}: {trials} trials, {min(plan.placed.slots, trials)} at a time"
    if not isinstance(plan.work, ImageWork):
        second = f"; then the best by {plan.settings.finetune_with}" if plan.finetune else ""
        return f"{begins}, each by {plan.work.function}{second}"
    train, val = len(plan.split.train), len(plan.split.val)
    images = f"each on {train:,} training and {val:,} validation images"
    if plan.settings.folds:
        images = f"each on {plan.settings.folds} folds of {train + val:,} images"
    if not plan.finetune:
        return f"{begins}, {images}"
    all_of_them = read_stages(plan.settings.stages).train_on == "all"
    tuned = len(plan.split.images.labels) if all_of_them else train
    return f"{begins}, {images}; then the best is fine-tuned on {tuned:,} images"


def _learn(plan: Plan, study: optuna.Study, about: About) -> None:
    """Gives the study the trials of --warm-start, once; says what else the search begins with."""
    if plan.older:
        taken = take_over(study, plan.older)
        place = masked(plan.settings.warm_start or "")
        print(f"learning from {taken} trials of {place}", flush=True)
        about.patch(warm_started=True)
    if points := remaining_points(study, plan.name, plan.points):
        print(f"{len(points)} starting configurations are tried first", flush=True)


def _watch(
    plan: Plan,
    about: About,
    watchers: Sequence[trackers.Tracker],
    journal: Path | None,
    dashboard: str | None,
) -> None:
    """Makes the search known to the trackers, and prints the commands that show it."""
    if watchers:
        known = trackers.begin(watchers, plan.name, about.settings, plan.storage, about.trackers)
        about.patch(trackers={**about.trackers, **known})
    file = str(journal or plan.storage.join(layout.JOURNAL))
    lines = trackers.commands(plan.settings, plan.storage, file, dashboard, watchers)
    print("\n".join(lines), flush=True)


def _finetune_arguments(plan: Plan, best: Record) -> list[str]:
    common = ["--verbose"] if plan.settings.verbose else []
    if not plan.resumed and "data_dir" in plan.settings.given:
        common += ["--data-dir", str(plan.settings.data_dir)]
    recorded = plan.recorded_settings()
    if not isinstance(plan.work, ImageWork):
        images = ["dataset"] if recorded["train_data"] == IMAGES else []
        code = trust.flags(recorded, [*images, "finetune_with", "train_data"])
        return ["--run", plan.storage.uri, *code, *common]
    hp = plan.space(optuna.trial.FixedTrial(best.params, best.number))
    network, augment = str(hp["model"]), plan.settings.augment
    own = ["--network", network] if trust.is_code(network) else []
    augment = hp.get("augment", "none") if augment == "none" else augment
    if function := hyperparameters.own_function(augment):
        own += ["--augment", function]
    own += trust.flags(recorded, ("dataset", "stages"))
    return ["--run", plan.storage.uri, *own, *common]
