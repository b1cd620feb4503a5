"""Third act of a search: its results as text; before it, its plan."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import optuna
import yaml
from optuna.trial import TrialState

from mnist_ray.errors import own_code, shortened
from mnist_ray.hyperparameters import plain
from mnist_ray.run import tables
from mnist_ray.run.records import Records, value_of
from mnist_ray.search_job.plan import Plan
from mnist_ray.settings import constraints, objectives
from mnist_ray.study import importance
from mnist_ray.study.objectives import single
from mnist_ray.study.suggestions import Refusal, suggested

HEADER = ("trial", "state", "epoch", "val_accuracy", "val_loss", "parameters", "settings")


def text(run: Records, study: optuna.Study) -> str:
    """How the trials ended, the five best, each parameter's importance, and the Pareto front."""
    trials = run.trials.values()
    states = Counter(r.state for r in trials)
    failed = Counter(r.reason for r in trials if r.state == "FAIL")
    parts = [
        f"{len(trials)} trials: {states['COMPLETE']} complete, {states['PRUNED']} pruned, "
        f"{states['FAIL']} failed" + "".join(f"\n  {n} × {reason}" for reason, n in failed.items())
    ]
    parts.append(_best(run))
    exploits = sum(len(r.exploits) for r in trials)
    if exploits:
        parts.append(
            f"{exploits} times a trial continued with another's weights; "
            "the settings above are those that each trial began with"
        )
    else:  # the values are those of the settings
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        of_metric = [single(trial, run.objectives, run.metric) for trial in complete]
        parts.append(importance.text(of_metric, objectives.direction(run.metric)))
    if any("violation" in row for r in trials for row in r.rows.values()):
        parts.append(f"{len(run.top(len(trials)))} of {len(trials)} trials keep --constraint")
    if run.objectives:
        parts.append(front(run))
    return "\n".join(parts)


def _best(run: Records) -> str:
    """The five best trials. A training function of one's own has its metric alone."""
    metric, top = run.metric, run.top(5)
    if not objectives.is_yielded(metric):
        rows = [
            [
                r.number, r.state, row["epoch"], f"{row['val_accuracy']:.4f}",
                f"{row['val_loss']:.4f}", r.n_parameters, short(r.params),
            ]
            for r, row in top
        ]  # fmt: skip
        return tables.table_text(HEADER, rows)
    header = ("trial", "state", "epoch", objectives.function_of(metric), "settings")
    own = [
        [r.number, r.state, row["epoch"], f"{value_of(row, metric):.4g}", short(r.params)]
        for r, row in top
    ]
    return tables.table_text(header, own)


def front(run: Records) -> str:
    """The Pareto front as a table, best by the first objective first."""
    found = run.front()
    if not found:
        return "Pareto front: no trial is complete"
    sign = -1 if objectives.DIRECTIONS[run.objectives[0]] == "maximize" else 1
    lines = [
        [
            number,
            *tables.objective_cells(run.objectives, found[number]),
            short(run.trials[number].params),
        ]
        for number in sorted(found, key=lambda n: sign * found[n][0])
    ]
    units = ["latency (ms)" if name == "latency" else name for name in run.objectives]
    return "Pareto front of the complete trials:\n" + tables.table_text(
        ["trial", *units, "settings"], lines
    )


def no_winner(plan: Plan, records: Records) -> str:
    """Why no trial can win: which limit the nearest one is beyond, or how they failed."""
    if limits := constraints.read(plan.settings.constraint):
        measured = [r.measured(records.metric) for r in records.trials.values()]
        known = [each for each in measured if constraints.violation(limits, each)]
        if known:
            nearest = min(known, key=lambda each: constraints.violation(limits, each))
            return (
                f"keeps --constraint {' '.join(map(str, limits))}; "
                f"the nearest has {constraints.broken(limits, nearest)}"
            )
    reasons = sorted({r.reason or "it has not ended" for r in records.trials.values()})
    return f"succeeded: {shortened('; '.join(reasons) or 'none was begun', 400)}"


def short(params: Mapping[str, Any]) -> str:
    """Parameters on one line."""

    def text(value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        rounded = f"{value:.3g}"
        return f"{value:.6g}" if rounded == "1" else rounded  # 0.9996 and 0.9999 differ as beta2

    return " ".join(f"{name}={text(value)}" for name, value in params.items())


def describe(plan: Plan) -> str:
    """The output of --dry-run: the settings as YAML and the first suggestions, points first."""
    study = optuna.create_study(sampler=plan.sampler(plan.settings.seed))
    for point in plan.points:
        study.enqueue_trial(point)
    with own_code(f"--sampler: {plan.settings.sampler} failed"):
        suggestions = [
            f"suggestion {i}: {_shown(suggested(plan.space, study.ask()))}"
            for i in range(min(3, plan.settings.trials))
        ]
    return yaml.safe_dump(plan.recorded_settings(), sort_keys=False) + "\n".join(suggestions)


def _shown(found: dict[str, Any] | Refusal) -> str:
    return found.reason if isinstance(found, Refusal) else json.dumps(plain(found, "--space"))
