"""--confirm: the best trials are trained again with fresh seeds before one is called best.

The retrainings are a small search of their own in a folder of the run, with a study that says which
of them are done. So workers, faults, memory, storage, interrupts and a resume are as in any search.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna

from mnist_ray.run import best, layout
from mnist_ray.run.best import Confirmed
from mnist_ray.run.records import Record, Records, keeps_limits, value_of
from mnist_ray.run.tables import table_text
from mnist_ray.search_job.keeper import Keeper
from mnist_ray.search_job.plan import Plan
from mnist_ray.search_job.summary import short
from mnist_ray.settings import SearchSettings
from mnist_ray.settings.checks import MOST
from mnist_ray.settings.objectives import function_of
from mnist_ray.study.optuna_private import FIXED
from mnist_ray.study.pruners import Scheduler
from mnist_ray.study.samplers import read_sampler
from mnist_ray.study.trials import POINT, read_trials
from mnist_ray.tune.trial import RETRAINS

SEEDS = 2  # retrainings of each trial
TRIAL, SEED = "trial", "seed"  # parameters of a retraining in its study
LARGEST_SHARE = 0.5  # of --time-budget, that is kept for the retrainings
STARTING = 10.0  # seconds until new workers train


def wanted(plan: Plan, records: Records) -> list[Record]:
    """The best trials, as many as --confirm says, no two with the same values."""
    found: dict[str, Record] = {}
    for record, _ in records.top(len(records.trials)):
        found.setdefault(json.dumps(record.params, sort_keys=True, default=str), record)
    return list(found.values())[: plan.settings.confirm]


class Reserve:
    """The seconds of --time-budget that the search leaves for the retrainings: an estimate."""

    def __init__(self, plan: Plan, records: Records) -> None:
        self.plan, self.records = plan, records
        self.settled, self.seconds = -1, 0.0

    def __call__(self) -> float:
        """By the slowest of the best trials; looked at anew when a trial ends or pauses."""
        if not self.plan.settings.confirm or self.plan.time_budget is None:
            return 0.0
        if self.settled != self.records.judged():
            self.settled = self.records.judged()
            again = wanted(self.plan, self.records)
            epoch = max((record.seconds / len(record.rows) for record in again), default=0.0)
            rounds = math.ceil(len(again) * SEEDS / self.plan.placed.slots)
            seconds = STARTING + rounds * epochs(self.plan.settings) * epoch
            self.seconds = min(seconds, LARGEST_SHARE * self.plan.time_budget) if again else 0.0
        return self.seconds


def epochs(settings: SearchSettings) -> int:
    """The most epochs of a retraining."""
    return settings.confirm_epochs or settings.max_epochs


def folder(settings: SearchSettings) -> str:
    """Of the run's directory: the retrainings with these epochs."""
    n = epochs(settings)
    return layout.CONFIRM + (f"/epochs-{n}" if n != settings.max_epochs else "")


def begins(plan: Plan) -> str:
    """The log's line before the first retraining."""
    n = plan.settings.confirm
    which = "best trial is" if n == 1 else f"{n} best trials are"
    longer = plan.settings.confirm_epochs
    text = f"the {which} trained again, with {SEEDS} fresh seeds each"
    return text if longer is None else f"{text}, for {longer} epochs"


# ---- the search of the retrainings


def plan_of(plan: Plan, records: Records, time_budget: float | None) -> Plan:
    """The plan of the retrainings, without their list. time_budget: the seconds that are left."""

    def space(trial: optuna.Trial) -> dict[str, Any]:
        number = trial.suggest_int(TRIAL, 0, MOST)
        seed = trial.suggest_int(SEED, 1, SEEDS)
        hp = plan.space(optuna.trial.FixedTrial(records.trials[number].params, number))
        return {**hp, RETRAINS: (number, further_seed(plan.settings.seed, seed))}

    settings = dataclasses.replace(
        plan.settings, trials=0, confirm=0, study=None, study_name=None, target=None,
        patience=None, tensorboard=False, activations=False, time_budget=None,
        max_epochs=epochs(plan.settings), confirm_epochs=None,
    )  # fmt: skip
    return dataclasses.replace(
        plan,
        settings=settings,
        storage=plan.storage.below(folder(plan.settings)),
        whole=plan.storage,
        folder=folder(plan.settings),
        resumed=None,
        space=space,
        sampling=read_sampler("random", {}),
        scheduler=Scheduler("none", settings.max_epochs),
        time_budget=time_budget,
        points=(),
        older=(),
    )


def further_seed(seed: int, k: int) -> int:
    """The k-th further seed of a run."""
    return int(np.random.SeedSequence([seed, k]).generate_state(1)[0])


def listed(again: Plan, study: optuna.Study, trials: Sequence[Record]) -> Plan:
    """The plan with its retrainings: those that its study has already, then those that it lacks.

    One that --time-budget cut off is begun anew: to the study it has ended.
    """
    placed: dict[int, dict[str, Any]] = {}
    last: dict[tuple[int, int], Record] = {}  # by trial and seed
    for frozen, record in read_trials(study, again.name, again.settings.goal):
        values = {**frozen.system_attrs.get(FIXED, {}), **record.params}
        last[values[TRIAL], values[SEED]] = record
        if POINT in frozen.user_attrs:
            placed[frozen.user_attrs[POINT][1]] = values
    points = [placed[place] for place in sorted(placed)]
    for trial in trials:
        for seed in range(1, SEEDS + 1):
            before = last.get((trial.number, seed))
            if before is None or "--time-budget" in before.reason:
                points.append({TRIAL: trial.number, SEED: seed})
    settings = dataclasses.replace(again.settings, trials=len(points))
    return dataclasses.replace(again, settings=settings, points=tuple(points))


class AllKept(Keeper):
    """Keeps all checkpoints: only at the end it is known whose is needed."""

    def save(self) -> None:
        """Brings the study's journal to the storage."""
        self.keep_journal(at_once=True)


def line(records: Records, again: Records, number: int) -> str:
    """The log line of a retraining that has ended."""
    record = again.trials[number]
    row = record.best(again.metric)
    before = records.trials[record.params[TRIAL]].best(again.metric)
    value = "nan" if row is None else f"{value_of(row, again.metric):.4f}"
    first = "nan" if before is None else f"{value_of(before, again.metric):.4f}"
    text = (
        f"{named(again, number)} {record.state} {function_of(again.metric)}={value} "
        f"(in the search {first}) epochs={len(record.rows)} "
        f"left={max(0, again.total - again.settled())}"
    )
    return text + (f" reason: {record.reason}" if record.state != "COMPLETE" else "")


def named(again: Records, number: int) -> str:
    """A retraining's name in the log."""
    params = again.trials[number].params
    return f"trial {params[TRIAL]} again, seed {params[SEED]} of {SEEDS},"


# ---- its result


def keep(
    plan: Plan, files: Mapping[str, str], records: Records, again: Records
) -> tuple[Confirmed, ...]:
    """Writes confirmed.parquet, and brings the chosen trial's best retraining to best/.

    (Its own checkpoint would be the lucky one by which the search found it, and is gone if another
    trial was the search's best.)

    Args:
        plan: The search's.
        files: See Keeper.
        records: Its trials.
        again: The retrainings.

    Returns:
        The trials that were trained again with every seed, the chosen one first.
    """
    ended = [r for r in again.trials.values() if r.state != "RUNNING" and r.params]
    rows = [_row(records, record) for record in sorted(ended, key=lambda r: [*r.params.values()])]
    complete = {
        number: [row for row in rows if row["number"] == number and row["confirmed"]]
        for number in dict.fromkeys(row["number"] for row in rows)
    }
    whole = {number: own for number, own in complete.items() if len(own) == SEEDS}
    chosen = best.best_of([best.of_rows(own) for own in whole.values()], records.metric)
    for row in rows:
        row["confirmed"] = row["confirmed"] and row["number"] in whole
        row["chosen"] = row["confirmed"] and chosen is not None and row["number"] == chosen.number
    if chosen is not None:
        _keep_best(plan, files, again, chosen.number)
    best.write(plan.storage, rows)
    if chosen is not None:  # others may be chosen yet, if their last seed is trained by a resume
        _sweep(plan, again, [n for n in whole if n != chosen.number])
    return best.read(plan.storage)


def _row(records: Records, record: Record) -> dict[str, Any]:
    row, metric = record.best(records.metric), records.metric
    found = records.trials[record.params[TRIAL]].best(metric)
    return {
        "number": record.params[TRIAL],
        "seed": record.params[SEED],
        "state": record.state,
        "value": value_of(row, metric) if row else None,
        "found": value_of(found, metric) if found else None,
        "best_epoch": row["epoch"] if row else None,
        "epochs": len(record.rows),
        "seconds": record.seconds,
        "reason": record.reason,
        "confirmed": record.state == "COMPLETE" and row is not None and keeps_limits(row),
    }


def _keep_best(plan: Plan, files: Mapping[str, str], again: Records, number: int) -> None:
    """Copies the files of a trial's best retraining to best/."""
    kept = plan.storage.below(folder(plan.settings))
    holder = next(
        record.number
        for record, _ in again.top(len(again.trials))
        if record.params[TRIAL] == number and record.state == "COMPLETE"
    )
    if kept.exists(f"{layout.trial_folder(holder)}/{list(files)[-1]}"):
        for file, name in files.items():
            content = kept.read_bytes(f"{layout.trial_folder(holder)}/{file}")
            plan.storage.write_bytes(f"{layout.BEST}/{name}", content)


def _sweep(plan: Plan, again: Records, losers: Sequence[int]) -> None:
    """Removes the checkpoints of trials that cannot be chosen any more."""
    kept = plan.storage.below(folder(plan.settings))
    for record in again.trials.values():
        if record.params.get(TRIAL) in losers:
            kept.delete(layout.trial_folder(record.number))


def text(records: Records, confirmed: Sequence[Confirmed]) -> str:
    """The confirmed trials as a table, the chosen one first."""
    if not confirmed:
        return (
            "--confirm: no trial was trained again to its end with every seed; "
            "the best stays the search's"
        )
    header = ("trial", "in the search", "again, mean", "spread", "difference", "settings")
    rows = [
        [
            each.number, f"{each.found:.4f}", f"{each.mean:.4f}", f"{each.spread:.4f}",
            f"{each.difference:+.4f}", short(records.trials[each.number].params),
        ]
        for each in confirmed
    ]  # fmt: skip
    again = f"trained again with {SEEDS} fresh seeds, {function_of(records.metric)}:\n"
    return f"{again}{table_text(header, rows)}\nbest: trial {confirmed[0].number}"
