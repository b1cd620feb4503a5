"""Whether the search pays: the shipped searcher and scheduler against stock OptunaSearch and ASHA,
replayed on recorded learning curves.

    # 3 minutes on two cores; needs curves.parquet (replay_curves.py)
    python benchmarks/replay.py
    # others: SAMPLER:REDUCTION_FACTOR
    python benchmarks/replay.py --variants stock shipped tpe:2 random:3
    # and :KEPT, how many trials TPE looks at (see samplers.TPE)
    python benchmarks/replay.py --budget 600 --variants tpe:3 tpe:3:100
    python benchmarks/replay.py --variants shipped tpe:3:1000:2    # and :GRACE, --grace-period
    # +portfolio: begun with the packaged portfolio that was made without the curves' family
    python benchmarks/replay.py --variants stock stock+portfolio shipped shipped+portfolio

Nothing is trained and no Ray is started: the very objects that Tune would ask (StudySearch and
ResumableASHA; OptunaSearch and ASHAScheduler as they come) are asked for configurations and told of
epochs in the order of a virtual clock, two trials at a time, until the given number of epochs is
spent. The calls are those of Tune's controller, in its order.

A suggestion that was not recorded is answered in two ways, each a table of its own, since neither
is beyond doubt:
- forest: a random forest learnt from all curves (logit of the accuracy at every epoch), as
Eggensperger et al. (2015) recommend for
replaying hyperparameter searches. It is smooth, and knows no noise.
- nearest: the recorded curve of the nearest configuration, with all its noise and chance;
neighbours in so many dimensions are far away.
The best is the best value that the answers hold: the nearest's best recorded accuracy; for the
forest the largest of 20,000 random configurations and of all that was suggested.
"""

import heapq
import math
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import CORES, ROOT, BenchmarkSettings, section, spread
from replay_curves import family, read

from mnist_ray.errors import SettingsError
from mnist_ray.settings import SearchSettings, main
from mnist_ray.study.portfolio import made
from tests.support.tune_loop import FakeTrial, TuneLoop, result

SLOTS = 2
SHIPPED = SearchSettings()
ANSWERS = ("forest", "nearest")
PORTFOLIO = "+portfolio"  # ends a variant's name

Curve = tuple[np.ndarray, np.ndarray]  # accuracy of each epoch, and its seconds
Points = Sequence[dict[str, Any]]  # configurations that are tried first


@dataclass(frozen=True)
class ReplaySettings(BenchmarkSettings):
    """Replay searches on recorded curves."""

    repeats: int = 50
    """Seeds of every variant."""
    curves: str = str(ROOT / "benchmarks" / "curves" / "curves.parquet")
    """What replay_curves.py has recorded."""
    budget: int = 200
    """Epochs that a search may spend."""
    trainings: float | None = None
    """In place of epochs, seconds: those of so many full trainings of a random configuration."""
    variants: tuple[str, ...] = ("stock", "shipped")
    """stock, shipped, promote (shipped with --scheduler asha-promote), or
    SAMPLER:REDUCTION_FACTOR[:KEPT[:GRACE]] of our searcher; each may have +portfolio."""
    workers: int = CORES
    """Processes at a time."""


# ---- answers


class Encoder:
    """Parameters as numbers: each numeric one scaled to [0, 1] over the recorded ones (logarithms,
    where the space has them), each other category as ones and zeros, and -1 for what a
    configuration does not have.
    """

    def __init__(self, configurations: list[dict[str, Any]]) -> None:
        self.numeric: dict[str, tuple[float, float]] = {}
        self.categories: dict[str, list[Any]] = {}
        for name in sorted({name for params in configurations for name in params}):
            values = [params[name] for params in configurations if name in params]
            if all(isinstance(v, int | float) for v in values) and len(set(values)) > 1:
                scaled = [_scale(name, v) for v in values]
                self.numeric[name] = (min(scaled), max(scaled))
            else:
                self.categories[name] = sorted(set(values), key=str)

    def __call__(self, params: dict[str, Any]) -> np.ndarray:
        row = []
        for name, (low, high) in self.numeric.items():
            row.append(
                (_scale(name, params[name]) - low) / (high - low) if name in params else -1.0
            )
        for name, values in self.categories.items():
            row += [float(params.get(name) == v) for v in values]
        return np.array(row)


def _scale(name: str, value: float) -> float:
    return math.log(value) if name.startswith(("lr", "weight_decay", "l1")) else float(value)


class Answers:
    """kind: one of ANSWERS. A configuration that diverged when it was recorded keeps its last
    value, or 0.1.
    """

    def __init__(self, kind: str, path: str) -> None:
        from sklearn.ensemble import RandomForestRegressor

        rows = read(Path(path))
        epochs = max(len(row["val_accuracy"]) for row in rows)
        self.accuracies = np.array([_filled(row["val_accuracy"], epochs, 0.1) for row in rows])
        self.seconds = np.array([_filled(row["seconds"], epochs, 1.0) for row in rows])
        self.encode = Encoder([row["params"] for row in rows])
        self.points = np.array([self.encode(row["params"]) for row in rows])
        self.forest = None
        self.oob = math.nan
        if kind == "forest":
            clipped = np.clip(self.accuracies, 0.01, 0.9999)
            self.forest = RandomForestRegressor(
                n_estimators=100,
                min_samples_leaf=2,
                max_features=0.5,
                oob_score=True,
                random_state=0,
            )
            self.forest.fit(
                self.points, np.hstack([np.log(clipped / (1 - clipped)), np.log(self.seconds)])
            )
            self.oob = _rank_correlation(
                self.forest.oob_prediction_[:, epochs - 1], self.accuracies[:, -1]
            )

    def many(self, encoded: np.ndarray) -> Curve:
        """Accuracies and seconds, [n, epochs] each, of encoded configurations [n, features]."""
        if self.forest is None:
            nearest = np.array([np.abs(self.points - point).sum(1).argmin() for point in encoded])
            return self.accuracies[nearest], self.seconds[nearest]
        logits, seconds = np.hsplit(self.forest.predict(encoded), 2)
        return 1 / (1 + np.exp(-logits)), np.exp(seconds)

    def __call__(self, params: dict[str, Any]) -> Curve:
        accuracies, seconds = self.many(self.encode(params)[None])
        return accuracies[0], seconds[0]


def _filled(curve: list[float], epochs: int, empty: float) -> list[float]:
    return curve + [curve[-1] if curve else empty] * (epochs - len(curve))


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


# ---- the two sides


def stock(
    space: Callable[..., dict[str, Any]], epochs: int, seed: int, points: Points = ()
) -> TuneLoop:
    """OptunaSearch and ASHAScheduler as they come: TPE with its defaults, reduction factor 4."""
    import optuna
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    sampler = optuna.samplers.TPESampler(seed=seed)
    searcher = OptunaSearch(
        space=space,
        metric="val_accuracy",
        mode="max",
        sampler=sampler,
        points_to_evaluate=list(points) or None,
    )
    return TuneLoop(searcher, ASHAScheduler(time_attr="training_iteration", max_t=epochs), SLOTS)


def shipped(  # noqa: PLR0913 (a benchmark)
    space: Callable[..., Any],
    epochs: int,
    seed: int,
    name: str,
    reduction_factor: float,
    kept: int | None,
    grace_period: int | None = None,
    sampler_args: Mapping[str, str] | None = None,
    scheduler: str = "asha",
    points: Points = (),
) -> TuneLoop:
    """StudySearch and the scheduler that a search makes."""
    import optuna

    from mnist_ray.run.records import Records
    from mnist_ray.study.pruners import read_scheduler
    from mnist_ray.study.samplers import make_sampler
    from mnist_ray.study.studies import open_study
    from mnist_ray.tune import schedulers
    from mnist_ray.tune.promotion import PromotingSearch
    from mnist_ray.tune.searcher import StudySearch

    settings = SearchSettings(
        max_epochs=epochs,
        sampler=name,
        reduction_factor=reduction_factor,
        grace_period=grace_period,
        scheduler=scheduler,
    )
    chosen = read_scheduler(settings)
    sampler: Any = make_sampler(name, seed, sampler_args)
    if kept is not None:
        sampler.KEPT = kept
    storage = optuna.storages.InMemoryStorage()
    study = open_study(storage, "replay", settings.metric, sampler, chosen.pruner())
    kind: Any = StudySearch
    if scheduler == "asha-promote":
        kind = partial(PromotingSearch, rungs=chosen.rungs(maximize=True), past={})
    searcher = kind(
        study,
        space,
        Records(settings.metric, total=10**9),
        run="replay",
        max_epochs=epochs,
        on_settled=lambda number: None,
        points=tuple(enumerate(points)),
    )
    return TuneLoop(searcher, schedulers.make_scheduler(chosen, {}, searcher), SLOTS)


def make_side(variant: str, epochs: int, seed: int, portfolio: Points = ()) -> TuneLoop:
    """SettingsError where the variant is unknown."""
    from mnist_ray.spaces import DataShape
    from mnist_ray.spaces.convnet import convnet

    shape = DataShape(1, (28, 28), 10, (0.1307,), (0.3081,))

    def space(trial: Any) -> dict[str, Any]:
        return convnet(trial, shape, layer_dropout=True)

    name = variant.removesuffix(PORTFOLIO)
    points = portfolio if name != variant else ()
    if name == "stock":
        return stock(space, epochs, seed, points)
    ours = partial(shipped, space, epochs, seed, points=points)
    if name == "promote":
        return ours(SHIPPED.sampler, SHIPPED.reduction_factor, None, scheduler="asha-promote")
    sampler, *numbers = (
        f"{SHIPPED.sampler}:{SHIPPED.reduction_factor}" if name == "shipped" else name
    ).split(":")
    try:
        return ours(
            sampler,
            float(numbers[0]),
            int(numbers[1]) if numbers[1:] else None,
            int(numbers[2]) if numbers[2:] else None,
        )
    except (ValueError, IndexError) as error:
        raise SettingsError(
            f"--variants: {variant!r} is not allowed; expected stock, shipped, promote or "
            f"SAMPLER:REDUCTION_FACTOR[:KEPT[:GRACE]], with or without {PORTFOLIO}"
        ) from error


# ---- the replay


@dataclass
class Running:
    """A trial under way."""

    trial: FakeTrial
    accuracies: np.ndarray  # of all its epochs
    seconds: np.ndarray
    work: float = 0.0  # seconds that the searcher and the scheduler took for the last call

    @property
    def epoch(self) -> int:
        """Epochs that have ended."""
        return self.trial.epoch


def begin(side: TuneLoop, answers: Callable[[dict[str, Any]], Curve]) -> Running:
    """Asks for a trial."""
    start = time.perf_counter()
    trial = side.start()
    work = time.perf_counter() - start
    assert trial is not None
    goes_on_after(side.searcher, trial)
    # What Optuna suggested, of which the config has what the space makes of it.
    trials = getattr(side.searcher, "trials", None) or side.searcher._ot_trials
    return Running(trial, *answers(dict(trials[trial.trial_id].params)), work=work)


def goes_on_after(searcher: Any, trial: FakeTrial) -> None:
    """Sets the last epoch of a trial that was paused: it is not trained again."""
    records = getattr(searcher, "records", None)
    trial.epoch = len(records.trials[trial.number].rows) if records else 0


def end_epoch(side: TuneLoop, running: Running) -> tuple[float, bool]:
    """Tells of the trial's next epoch: its accuracy, and whether the trial ends with it."""
    start = time.perf_counter()
    accuracy, seconds = (
        float(running.accuracies[running.epoch]),
        float(running.seconds[running.epoch]),
    )
    running.trial.epoch += 1
    last = running.epoch == len(running.accuracies)
    done = side.report(running.trial, result(running.epoch, accuracy, seconds=seconds, done=last))
    running.work = time.perf_counter() - start
    return accuracy, done


def replay(
    side: TuneLoop,
    answers: Callable[[dict[str, Any]], Curve],
    budget: int,
    seconds: float | None = None,
) -> list[float]:
    """The best accuracy seen so far after each of `budget` epochs that the search has spent.

    seconds: of virtual time, in which all slots end; the moments are `budget` equal parts of it.
    """
    best, trials = 0.0, 0
    course: list[float] = []
    under_way: list[tuple[float, int, Running]] = []  # when its next epoch ends, its number
    now = 0.0
    while len(course) < budget:
        while len(under_way) < SLOTS:
            running = begin(side, answers)
            heapq.heappush(under_way, (now + running.seconds[running.epoch], trials, running))
            trials += 1
        now, number, running = heapq.heappop(under_way)
        while seconds and len(course) < budget and now > (len(course) + 1) * seconds / budget:
            course.append(best)
        accuracy, done = end_epoch(side, running)
        best = max(best, accuracy)
        if not seconds:
            course.append(best)
        if not done:
            heapq.heappush(under_way, (now + running.seconds[running.epoch], number, running))
    return course


_answers: dict[tuple[str, str], Answers] = {}


def one(task: tuple[ReplaySettings, str, str, int]) -> tuple[str, str, list[float]]:
    """The course of one search, in a worker process."""
    import optuna

    settings, kind, variant, seed = task
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    answers = _of(kind, settings.curves)
    np.random.seed(seed)  # Ray's ASHA draws its bracket (there is one) from the global generator
    portfolio = made("convnet", family(Path(settings.curves)))
    side = make_side(variant, answers.accuracies.shape[1], seed, portfolio)
    trainings = settings.trainings or 0.0
    seconds = trainings * float(answers.seconds.sum(1).mean()) / SLOTS
    return kind, variant, replay(side, answers, settings.budget, seconds)


def _of(kind: str, path: str) -> Answers:
    if (kind, path) not in _answers:
        _answers[kind, path] = Answers(kind, path)
    return _answers[kind, path]


def best_of(answers: Answers) -> float:
    """The best accuracy of the answers; of the forest's that of 20,000 random configurations."""
    import optuna

    if answers.forest is None:
        return float(answers.accuracies.max())
    from mnist_ray.spaces import DataShape
    from mnist_ray.spaces.convnet import convnet

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    encoded = []
    for _ in range(20_000):
        trial = study.ask()
        convnet(trial, DataShape(1, (28, 28), 10, (0.1307,), (0.3081,)), layer_dropout=True)
        encoded.append(answers.encode(dict(trial.params)))
    return float(answers.many(np.array(encoded))[0].max())


def measure(settings: ReplaySettings) -> None:
    """All variants on both answers, the seeds in turn; a section for each answer."""
    if not Path(settings.curves).exists():
        raise SettingsError(
            f"--curves: {settings.curves} does not exist; python benchmarks/replay_curves.py "
            f"makes it"
        )
    for variant in settings.variants:
        make_side(variant, 100, 0)
    tasks = [
        (settings, kind, v, seed)
        for kind in ANSWERS
        for seed in range(settings.repeats)
        for v in settings.variants
    ]
    courses: dict[tuple[str, str], list[list[float]]] = {}
    with multiprocessing.get_context("spawn").Pool(settings.workers) as pool:
        for i, (kind, variant, course) in enumerate(pool.imap(one, tasks), start=1):
            courses.setdefault((kind, variant), []).append(course)
            if i % 20 == 0:
                print(f"{i} of {len(tasks)} searches", flush=True)
    for kind in ANSWERS:
        answers = _of(kind, settings.curves)
        found = np.array(
            [course for (k, _), many in courses.items() if k == kind for course in many]
        )
        best = max(best_of(answers), float(found.max()))
        _report(
            settings,
            kind,
            answers,
            best,
            {v: np.array(courses[kind, v]) for v in settings.variants},
        )


def _report(
    settings: ReplaySettings,
    kind: str,
    answers: Answers,
    best: float,
    courses: dict[str, np.ndarray],
) -> None:
    quarter = settings.budget // 4
    unit = "moments of equal seconds" if settings.trainings else "epochs"
    length = f", the seconds of {settings.trainings:g} trainings" if settings.trainings else ""
    rows = []
    for variant, course in courses.items():
        reached = course >= best - 0.001
        # A search that does not get there counts as the budget and one: medians stay right while at
        # least half get there.
        epochs = np.where(reached.any(1), reached.argmax(1) + 1, settings.budget + 1)
        rows.append(
            [
                variant,
                _epochs(epochs, settings.budget),
                f"{reached.any(1).mean():.0%}",
                spread(list(100 * (best - course[:, quarter - 1])), 3),
                spread(list(100 * (best - course[:, -1])), 3),
            ]
        )
    notes = [
        f"{len(answers.points)} recorded configurations of {answers.accuracies.shape[1]} epochs; "
        f"the best value is {best:.4f}, "
        f"recorded accuracies: median {np.median(answers.accuracies[:, -1]):.4f}, largest "
        f"{answers.accuracies.max():.4f}; "
        f"{SLOTS} trials at a time, {settings.budget} {unit} a search{length}."
    ]
    if answers.forest is not None:
        notes.append(
            f"Rank correlation of the forest's out-of-bag predictions with the recorded last "
            f"accuracies: {answers.oob:.2f}."
        )
    name = Path(settings.curves).stem
    section(
        f"Searches replayed on recorded curves{f' of {name}' if name != 'curves' else ''}, "
        f"answers by {kind}",
        [
            "search",
            f"{unit} until the best − 0.1 points, median (quartiles)",
            "got there",
            f"regret after {quarter} {unit}, points",
            f"regret after {settings.budget} {unit}, points",
        ],
        rows,
        n=f"n = {settings.repeats} seeds of each",
        out=settings.out,
        notes=notes,
    )


def _epochs(values: np.ndarray, budget: int) -> str:
    low, middle, high = (
        f"> {budget}" if v > budget else f"{v:.0f}"
        for v in np.percentile(values, [25, 50, 75], method="higher")
    )
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main(ReplaySettings, measure)
