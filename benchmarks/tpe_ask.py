"""What a suggestion of TPE costs in a long study: ours, which looks at a part of it, and Optuna's.

    python benchmarks/tpe_ask.py     # 40 seconds, one core

The default space; a study in memory whose trials were drawn at random, two thirds of them pruned
after some epochs, and four of which run. Each repetition asks both sides in turn for a trial with
all its parameters, and forgets it.
"""

import time
from dataclasses import dataclass

import numpy as np
import optuna
from common import BenchmarkSettings, ratios, section, spread
from optuna.trial import TrialState, create_trial

from mnist_ray.settings import main
from mnist_ray.spaces import DataShape
from mnist_ray.spaces.convnet import convnet
from mnist_ray.study.samplers import TPE, TPE_OPTIONS

SHAPE = DataShape(1, (28, 28), 10, (0.1307,), (0.3081,))


@dataclass(frozen=True)
class AskSettings(BenchmarkSettings):
    """Measure the cost of TPE's suggestions."""

    repeats: int = 30
    """Suggestions of each side."""
    trials: tuple[int, ...] = (1000, 3000, 10000)
    """Finished trials in the study."""


def drawn(n: int) -> list[optuna.trial.FrozenTrial]:
    """n finished trials and four that run."""
    generator = np.random.default_rng(0)
    source = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = []
    for i in range(n + 4):
        trial = source.ask()
        convnet(trial, SHAPE)
        values = {epoch: float(v) for epoch, v in enumerate(np.sort(generator.random(8)), start=1)}
        state = (
            TrialState.RUNNING
            if i >= n
            else TrialState.COMPLETE
            if i % 3 == 0
            else TrialState.PRUNED
        )
        if state != TrialState.COMPLETE:
            values = dict(list(values.items())[: int(generator.integers(1, 8))])
        value = max(values.values()) if state == TrialState.COMPLETE else None
        params, distributions = trial.params, trial.distributions
        trials.append(
            create_trial(
                state=state,
                value=value,
                params=params,
                distributions=distributions,
                intermediate_values=values,
            )
        )
    return trials


def measure(settings: AskSettings) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rows, medians = [], {}
    for n in settings.trials:
        trials = drawn(n)
        sides = {
            "ours": TPE(**TPE_OPTIONS, seed=0),
            "stock": optuna.samplers.TPESampler(**TPE_OPTIONS, seed=0),
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        studies = {}
        for name, sampler in sides.items():
            studies[name] = optuna.create_study(direction="maximize", sampler=sampler)
            studies[name].add_trials(trials)
        for repeat in range(settings.repeats + 1):
            for name, study in studies.items():
                start = time.perf_counter()
                trial = study.ask()
                convnet(trial, SHAPE)
                if repeat:  # not the first, which reads the whole study
                    times[name].append(1000 * (time.perf_counter() - start))
                study.tell(trial, state=TrialState.FAIL)
        medians[n] = {name: float(np.median(values)) for name, values in times.items()}
        rows.append(
            [
                f"{n:,}",
                spread(times["ours"], 1),
                spread(times["stock"], 1),
                ratios(times["stock"], times["ours"]),
            ]
        )
    first, last = settings.trials[0], settings.trials[-1]
    grown = {name: medians[last][name] / medians[first][name] for name in medians[first]}
    section(
        "A suggestion of TPE in a long study",
        ["finished trials", "ours, ms, median (quartiles)", "Optuna's TPE, ms", "Optuna's / ours"],
        rows,
        n=f"n = {settings.repeats} suggestions of each side in turn",
        out=settings.out,
        notes=[
            f"From {first:,} to {last:,} trials the cost grows {grown['ours']:.1f} × (ours) and "
            f"{grown['stock']:.1f} × (Optuna's)."
        ],
    )


if __name__ == "__main__":
    main(AskSettings, measure)
