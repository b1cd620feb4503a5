"""Whether the search pays on tasks that nobody here made: six searches on LCBench's surrogate.

    MNIST_RAY_DATA=DIR python benchmarks/replay_lcbench.py                  # 17 tasks, 10 seeds
    MNIST_RAY_DATA=DIR python benchmarks/replay_lcbench.py --tasks looked-at   # while developing

LCBench (Zimmer et al. 2021) trained 2,000 configurations of a multilayer perceptron on each of 34
tables of OpenML for 52 epochs. YAHPO Gym (Pfisterer et al. 2022) learnt a surrogate from them: an
ONNX file that gives accuracy and seconds of any configuration at any epoch. Its numbers lie in
DIR/yahpo/lcbench (Apache-2.0).

Nothing is trained and no Ray is started. The objects that Tune would ask are asked, in virtual
time, two trials at a time, until `budget` full trainings are spent. Every second task in the order
of their numbers is kept apart: nothing in the product was decided by these.

- `shipped`: the searcher and the scheduler of a search with default options. `shipped:6` has
  --grace-period 6; `shipped:6:independent` also --sampler-args multivariate=false group=false.
- `promote`: the same with --scheduler asha-promote.
- `stock`: Ray's OptunaSearch and ASHAScheduler as they come.
- `hyperband`, `median`: Optuna alone, TPE with HyperbandPruner and MedianPruner as they come.
- `random`: random configurations, each trained to its end.
- `top-k`: rounds of 20 random configurations for one epoch, of which the best 3 are trained to
  their end.

A search's value at a moment is the best validation accuracy that any of its trials has reached.
Regret is the distance to the best value known of the task, divided by the distance of a median
random configuration from it: 0 is the best, 1 as bad as one random training.
"""

import heapq
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import CORES, BenchmarkSettings, cached, section
from replay import SLOTS, Curve, Running, goes_on_after, shipped, stock

from mnist_ray.errors import SettingsError
from mnist_ray.settings import SearchSettings, main
from mnist_ray.tune.trial import NUMBER
from tests.support.tune_loop import FakeTrial, result

EPOCHS = 52
MOMENTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # shares of the budget
RUNGS = (1, 2, 4, 6, 13, 26)  # epochs whose rank correlation with the last is told
INPUTS = (
    "epoch",
    "batch_size",
    "learning_rate",
    "momentum",
    "weight_decay",
    "num_layers",
    "max_units",
    "max_dropout",
)
SECONDS, ACCURACY = 0, 1  # columns of the surrogate's output: seconds until then, percent


@dataclass(frozen=True)
class LcbenchSettings(BenchmarkSettings):
    """Replay searches on LCBench's surrogate."""

    repeats: int = 10
    """Seeds of every search on every task."""
    tasks: str = "kept-apart"
    """kept-apart, looked-at or all."""
    arms: tuple[str, ...] = ("shipped", "stock", "hyperband", "median", "random", "top-k")
    """The searches that are compared."""
    budget: float = 12.0
    """Full trainings of a random configuration, in seconds of its mean, that a search may spend."""
    cache: str | None = None
    """A file with a line for each search that is done; they are not run again."""
    workers: int = CORES
    """Processes at a time."""


# ---- the surrogate


@dataclass
class Task:
    """One of LCBench's tables: accuracy and seconds of every configuration.

    Attributes:
        best: The largest accuracy of 20,000 random configurations.
        median: The median of their last accuracies.
        full: The mean of their seconds for all epochs.
    """

    session: Any
    code: int
    best: float = field(init=False)
    median: float = field(init=False)
    full: float = field(init=False)

    def __post_init__(self) -> None:
        chance = np.random.default_rng(0)
        found = [random_configuration(chance) for _ in range(2_000)]
        last = self._ask([{**c, "epoch": EPOCHS} for c in found])
        self.median = float(np.median(last[:, ACCURACY])) / 100
        self.full = float(last[:, SECONDS].mean())
        many = [
            {**random_configuration(chance), "epoch": int(chance.integers(1, EPOCHS + 1))}
            for _ in range(20_000)
        ]
        best = max(last[:, ACCURACY].max(), self._ask(many)[:, ACCURACY].max())
        self.best = float(best) / 100

    def __call__(self, params: dict[str, Any]) -> Curve:
        """Accuracy in [0, 1] and seconds of each epoch, [EPOCHS] each."""
        rows = self._ask([{**params, "epoch": epoch} for epoch in range(1, EPOCHS + 1)])
        until = np.maximum.accumulate(rows[:, SECONDS])
        seconds = np.diff(until, prepend=0.0)
        return rows[:, ACCURACY] / 100, np.maximum(seconds, 1e-3 * until[-1] / EPOCHS)

    def _ask(self, rows: list[dict[str, Any]]) -> np.ndarray:
        numbers = np.array([[row[name] for name in INPUTS] for row in rows], np.float32)
        codes = np.full((len(rows), 1), self.code, np.int32)
        answer = self.session.run(None, {"x_cat": codes, "x_cont": numbers})[0]
        return answer.astype(float).clip(0)


def random_configuration(chance: np.random.Generator) -> dict[str, Any]:
    """One of the space's configurations by chance."""
    return {
        "batch_size": round(float(np.exp(chance.uniform(np.log(16), np.log(512))))),
        "learning_rate": float(np.exp(chance.uniform(np.log(1e-4), np.log(1e-1)))),
        "momentum": float(chance.uniform(0.1, 0.99)),
        "weight_decay": float(chance.uniform(1e-5, 1e-1)),
        "num_layers": int(chance.integers(1, 6)),
        "max_units": round(float(np.exp(chance.uniform(np.log(64), np.log(1024))))),
        "max_dropout": float(chance.uniform(0, 1)),
    }


def space(trial: Any) -> dict[str, Any]:
    """The seven hyperparameters with the ranges of config_space.json."""
    return {
        "batch_size": trial.suggest_int("batch_size", 16, 512, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True),
        "momentum": trial.suggest_float("momentum", 0.1, 0.99),
        "weight_decay": trial.suggest_float("weight_decay", 1e-5, 1e-1),
        "num_layers": trial.suggest_int("num_layers", 1, 5),
        "max_units": trial.suggest_int("max_units", 64, 1024, log=True),
        "max_dropout": trial.suggest_float("max_dropout", 0.0, 1.0),
    }


def folder(settings: LcbenchSettings) -> Path:
    """Where the surrogate lies."""
    return Path(settings.data_dir) / "yahpo" / "lcbench"


def tasks_of(settings: LcbenchSettings) -> dict[str, int]:
    """The chosen tasks' names with the surrogate's codes.

    Raises:
        SettingsError: The surrogate is missing, or `tasks` is none of the allowed words.
    """
    file = folder(settings) / "config_space.json"
    if not file.exists():
        raise SettingsError(f"--data-dir: {file} does not exist; it comes with YAHPO Gym's data")
    codes = json.loads((folder(settings) / "encoding.json").read_text())["OpenML_task_id"]
    names = sorted(json.loads(file.read_text())["hyperparameters"][0]["choices"], key=int)
    chosen = {"looked-at": names[::2], "kept-apart": names[1::2], "all": names}
    if settings.tasks not in chosen:
        raise SettingsError(
            f"--tasks: {settings.tasks!r} is not allowed; expected {', '.join(chosen)}"
        )
    return {name: codes[name] for name in chosen[settings.tasks]}


# ---- the searches


class OptunaLoop:
    """Optuna's own loop: ask, report, should_prune."""

    def __init__(self, sampler: Any, pruner: Any) -> None:
        import optuna

        self.study = optuna.create_study(sampler=sampler, pruner=pruner, direction="maximize")
        self.trials: dict[int, Any] = {}

    def start(self) -> FakeTrial:
        """The next trial."""
        trial = self.study.ask()
        space(trial)
        self.trials[trial.number] = trial
        return FakeTrial(str(trial.number), {NUMBER: trial.number})

    def params(self, trial: FakeTrial) -> dict[str, Any]:
        """What was suggested."""
        return dict(self.trials[trial.number].params)

    def report(self, trial: FakeTrial, accuracy: float, last: bool) -> bool:
        """Takes a trial's epoch; whether the trial ends with it."""
        import optuna

        asked = self.trials[trial.number]
        asked.report(accuracy, trial.epoch)
        if last:
            self.study.tell(asked, accuracy)
        elif asked.should_prune():
            self.study.tell(asked, state=optuna.trial.TrialState.PRUNED)
        else:
            return False
        return True


class TopAfterOne:
    """Rounds of random configurations for one epoch; the best of each are trained to their end."""

    SIZE, KEPT = 20, 3

    def __init__(self, seed: int) -> None:
        self.chance = np.random.default_rng(seed)
        self.asked: list[dict[str, Any]] = []
        self.round: list[tuple[float, FakeTrial]] = []
        self.chosen: list[FakeTrial] = []

    def start(self) -> FakeTrial:
        """A chosen trial that goes on, or a new one."""
        if self.chosen:
            return self.chosen.pop(0)
        self.asked.append(random_configuration(self.chance))
        return FakeTrial(str(len(self.asked)), {NUMBER: len(self.asked) - 1})

    def params(self, trial: FakeTrial) -> dict[str, Any]:
        """What was suggested."""
        return self.asked[trial.number]

    def report(self, trial: FakeTrial, accuracy: float, last: bool) -> bool:
        """Takes a trial's epoch; whether the slot is free then."""
        if trial.epoch > 1:
            return last
        self.round.append((accuracy, trial))
        if len(self.round) == self.SIZE:
            self.round.sort(key=lambda each: -each[0])
            self.chosen += [trial for _, trial in self.round[: self.KEPT]]
            self.round = []
        return True


class Tuned:
    """Tune's loop with a searcher and a scheduler."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop

    def start(self) -> FakeTrial:
        """The next trial."""
        trial = self.loop.start()
        assert trial is not None
        assert isinstance(trial, FakeTrial)
        goes_on_after(self.loop.searcher, trial)
        return trial

    def params(self, trial: FakeTrial) -> dict[str, Any]:
        """What was suggested."""
        searcher = self.loop.searcher
        trials = getattr(searcher, "trials", None) or searcher._ot_trials
        return dict(trials[trial.trial_id].params)

    def report(self, trial: FakeTrial, accuracy: float, last: bool) -> bool:
        """Takes a trial's epoch; whether the trial ends with it."""
        return self.loop.report(trial, result(trial.epoch, accuracy, done=last))


def make_arm(name: str, seed: int) -> Any:
    """A search by name.

    Raises:
        SettingsError: The name is unknown.
    """
    import optuna

    default = SearchSettings()
    arms: dict[str, Callable[[], Any]] = {
        "shipped": lambda: Tuned(
            shipped(space, EPOCHS, seed, default.sampler, default.reduction_factor, None)
        ),
        "promote": lambda: Tuned(
            shipped(
                space,
                EPOCHS,
                seed,
                default.sampler,
                default.reduction_factor,
                None,
                scheduler="asha-promote",
            )
        ),
        "stock": lambda: Tuned(stock(space, EPOCHS, seed)),
        "hyperband": lambda: OptunaLoop(
            optuna.samplers.TPESampler(seed=seed),
            optuna.pruners.HyperbandPruner(max_resource=EPOCHS),
        ),
        "median": lambda: OptunaLoop(
            optuna.samplers.TPESampler(seed=seed), optuna.pruners.MedianPruner()
        ),
        "random": lambda: OptunaLoop(
            optuna.samplers.RandomSampler(seed=seed), optuna.pruners.NopPruner()
        ),
        "top-k": lambda: TopAfterOne(seed),
    }
    if name in arms:
        return arms[name]()
    ours, _, options = name.partition(":")
    grace, _, independent = options.partition(":")
    if ours != "shipped" or not grace.isdecimal() or independent not in ("", "independent"):
        allowed = f"{', '.join(arms)} or shipped:GRACE[:independent]"
        raise SettingsError(f"--arms: {name!r} is not allowed; expected {allowed}")
    return Tuned(
        shipped(
            space, EPOCHS, seed, default.sampler, default.reduction_factor, None, int(grace),
            {"multivariate": "false", "group": "false"} if independent else None,
        )
    )  # fmt: skip


def search(arm: Any, task: Task, budget: float) -> list[float]:
    """The best accuracy at each of MOMENTS.

    budget: seconds of virtual time; all slots end then.
    """
    best, numbers, now = 0.0, 0, 0.0
    course: list[float] = []
    under_way: list[tuple[float, int, Running]] = []  # when its next epoch ends, a number for ties

    def go_on(running: Running) -> None:
        nonlocal numbers
        numbers += 1
        end = now + float(running.seconds[running.epoch])
        heapq.heappush(under_way, (end, numbers, running))

    while True:
        while len(under_way) < SLOTS:
            trial = arm.start()
            go_on(Running(trial, *task(arm.params(trial))))
        now, _, running = heapq.heappop(under_way)
        while now > MOMENTS[len(course)] * budget:
            course.append(best)
            if len(course) == len(MOMENTS):
                return course
        accuracy = float(running.accuracies[running.epoch])
        running.trial.epoch += 1
        best = max(best, accuracy)
        if not arm.report(running.trial, accuracy, running.epoch == EPOCHS):
            go_on(running)


_tasks: dict[int, Task] = {}


def _task(settings: LcbenchSettings, code: int) -> Task:
    if code not in _tasks:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # it would keep the memory of 20,000 rows
        file = folder(settings) / "model.onnx"
        _tasks[code] = Task(onnxruntime.InferenceSession(file, options), code)
    return _tasks[code]


def rank_correlations(task: Task, n: int = 300) -> list[float]:
    """Spearman's, of the accuracy after each of RUNGS epochs with the last, over n random ones."""
    from scipy.stats import spearmanr

    chance = np.random.default_rng(1)
    curves = np.array([task(random_configuration(chance))[0] for _ in range(n)])
    return [float(spearmanr(curves[:, rung - 1], curves[:, -1]).statistic) for rung in RUNGS]


def one(job: tuple[LcbenchSettings, dict[str, Any]]) -> dict[str, Any]:
    """One search, in a worker process."""
    import optuna

    settings, key = job
    code, seed = key["code"], key["seed"]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    task = _task(settings, code)
    np.random.seed(seed)  # Ray's ASHA draws its bracket (there is one) from the global generator
    course = search(make_arm(key["arm"], seed), task, settings.budget * task.full / SLOTS)
    best = max(task.best, *course)
    return {"key": key, "course": course, "best_known": best, "median": task.median}


# ---- the tables


def measure(settings: LcbenchSettings) -> None:
    """Runs what is missing, then writes the section."""
    tasks = tasks_of(settings)
    for arm in settings.arms:
        make_arm(arm, 0)
    keys = [
        {"task": name, "code": code, "arm": arm, "seed": seed, "budget": settings.budget}
        for name, code in tasks.items()
        for seed in range(settings.repeats)
        for arm in settings.arms
    ]
    os.environ["OMP_NUM_THREADS"] = "1"  # of each process
    rows = cached(one, settings, keys)
    found = [rank_correlations(_task(settings, code)) for code in tasks.values()]
    _report(settings, list(tasks), rows, np.array(found))


def regrets(
    tasks: list[str], arms: tuple[str, ...], repeats: int, rows: list[dict[str, Any]]
) -> np.ndarray:
    """Normalised regret, [task, seed, arm, moment]."""
    found = {(row["key"]["task"], row["key"]["seed"], row["key"]["arm"]): row for row in rows}
    best = {
        task: max(row["best_known"] for row in rows if row["key"]["task"] == task) for task in tasks
    }
    return np.array(
        [
            [
                [
                    (best[task] - np.array(row["course"])) / (best[task] - row["median"])
                    for arm in arms
                    if (row := found[task, seed, arm])
                ]
                for seed in range(repeats)
            ]
            for task in tasks
        ]
    )


def over_tasks(values: np.ndarray, digits: int) -> str:
    """The mean of one number a task, with the 95 % interval of a bootstrap over tasks."""
    from scipy.stats import bootstrap

    found = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0))
    low, high = found.confidence_interval
    return f"{values.mean():.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _report(
    settings: LcbenchSettings,
    tasks: list[str],
    rows: list[dict[str, Any]],
    correlations: np.ndarray,
) -> None:
    from scipy.stats import rankdata

    found = regrets(tasks, settings.arms, settings.repeats, rows)
    ranks = rankdata(found, axis=2).mean(axis=1)  # [task, arm, moment]
    regret = np.median(found, axis=1)
    body = []
    for place, arm in enumerate(settings.arms):
        row = [arm, over_tasks(ranks[:, place].mean(axis=1), 2)]
        row += [over_tasks(ranks[:, place, moment], 2) for moment in (2, 4)]
        row += [over_tasks(regret[:, place, moment], 3) for moment in (2, 4)]
        body.append(row)
    section(
        f"Searches replayed on LCBench, tasks {settings.tasks.replace('-', ' ')}",
        [
            "search",
            "mean rank over time",
            "rank at ¼",
            "rank at the end",
            "regret at ¼",
            "regret at the end",
        ],
        body,
        n=f"{len(tasks)} tasks, n = {settings.repeats} seeds of each search",
        out=settings.out,
        notes=[
            f"Means over tasks with the 95 % interval of a bootstrap over tasks; ranks among "
            f"{len(settings.arms)} searches, paired by seed; of regret the median of the seeds. "
            f"{settings.budget:g} full trainings a search, {SLOTS} trials at a time; moments "
            f"{', '.join(f'{share:g}' for share in MOMENTS)} of the budget.",
            "Rank correlation of the accuracy after an epoch with that after the last, 300 random "
            "configurations, median of the tasks: "
            + ", ".join(
                f"epoch {rung}: {value:.2f}"
                for rung, value in zip(RUNGS, np.median(correlations, axis=0), strict=True)
            )
            + ".",
        ],
    )


if __name__ == "__main__":
    main(LcbenchSettings, measure)
