"""Two hundred workers and five thousand trials in virtual time: how busy do the shipped searcher
and scheduler keep them?

    python benchmarks/simulate.py --speed 0.5     # 5 minutes on one core; needs curves.parquet
(replay_curves.py)

Nothing is trained and no Ray is started. As in replay.py the objects that Tune would ask are asked,
and trials get recorded learning curves (the forest's) with the seconds that each epoch took on one
core for 1,000 images. The clock is virtual, but the controller's work is real: it does one thing at
a time, each call costs the time that it takes here, plus --overhead for what Ray and Tune do around
it (overhead.py measures that), and a worker waits until its result has been dealt with. Utilisation
is the time spent in epochs by the time that workers were there.
"""

import heapq
from dataclasses import dataclass, field

import numpy as np
from common import ROOT, BenchmarkSettings, section, spread
from replay import Answers, Running, begin, end_epoch, make_side

from mnist_ray.settings import main


@dataclass(frozen=True)
class SimulateSettings(BenchmarkSettings):
    """Simulate a search on many workers."""

    repeats: int = 1
    """Seeds."""
    curves: str = str(ROOT / "benchmarks" / "curves" / "curves.parquet")
    """What replay_curves.py has recorded."""
    workers: int = 200
    """Trials at a time."""
    trials: int = 5000
    """Trials of the search."""
    overhead: float = 0.01
    """Seconds of Ray's and Tune's own work for each result and each start of a trial."""
    speed: float = 1.0
    """How many times faster than recorded the workers are."""


@dataclass
class Outcome:
    """Times in virtual seconds."""

    last_start: float = 0.0
    controller: float = 0.0  # its work, the overhead included
    best: float = 0.0
    epochs: list[tuple[float, float]] = field(
        default_factory=list
    )  # begin and end of each, of all trials

    def end(self) -> float:
        return max(end for _, end in self.epochs)

    def busy(self, until: float) -> float:
        """Seconds that all workers together spent in epochs until then."""
        return sum(min(end, until) - begin for begin, end in self.epochs if begin < until)


def simulate(settings: SimulateSettings, answers: Answers, seed: int) -> Outcome:
    np.random.seed(seed)  # Ray's ASHA draws its bracket (there is one) from the global generator
    side = make_side("shipped", answers.accuracies.shape[1], seed)
    out = Outcome()
    free = 0.0  # when the controller has nothing left to do
    waiting: list[tuple[float, int, Running | None]] = [
        (0.0, worker, None) for worker in range(settings.workers)
    ]
    number = 0
    while waiting:
        ready, worker, running = heapq.heappop(waiting)
        work = 0.0
        if running is not None:
            accuracy, done = end_epoch(side, running)
            out.best = max(out.best, accuracy)
            work += running.work + settings.overhead
            running = None if done else running
        if running is None and number < settings.trials:
            running = begin(side, answers)
            work += running.work + settings.overhead
            number += 1
            out.last_start = max(free, ready) + work
            if number % 500 == 0:
                print(f"{number} trials at {out.last_start:.0f} s, best {out.best:.4f}", flush=True)
        free = max(free, ready) + work
        out.controller += work
        if running is None:
            continue
        seconds = float(running.seconds[running.epoch]) / settings.speed
        out.epochs.append((free, free + seconds))
        heapq.heappush(waiting, (free + seconds, worker, running))
    return out


def utilisation(settings: SimulateSettings, out: Outcome, until: float) -> float:
    """Percent of the workers' time until then that went into epochs."""
    return 100 * out.busy(until) / (settings.workers * until)


def measure(settings: SimulateSettings) -> None:
    answers = Answers("forest", settings.curves)
    found = [simulate(settings, answers, seed) for seed in range(settings.repeats)]
    section(
        f"{settings.trials:,} trials on {settings.workers} workers, simulated",
        ["what", "median (quartiles)"],
        [
            [
                "utilisation until the last trial began, %",
                spread([utilisation(settings, o, o.last_start) for o in found], 1),
            ],
            [
                "utilisation to the end, when the last trials run alone, %",
                spread([utilisation(settings, o, o.end()) for o in found], 1),
            ],
            [
                "share of its time that the controller worked, %",
                spread([100 * o.controller / o.end() for o in found], 1),
            ],
            [
                "the controller's work for an epoch, ms",
                spread([1000 * o.controller / len(o.epochs) for o in found], 1),
            ],
            ["an epoch, s", spread([o.busy(o.end()) / len(o.epochs) for o in found], 2)],
            ["epochs of all trials", spread([len(o.epochs) for o in found])],
            ["virtual time, min", spread([o.end() / 60 for o in found], 1)],
        ],
        n=f"n = {settings.repeats} seeds",
        out=settings.out,
        notes=[
            f"{settings.overhead * 1000:g} ms of Ray and Tune for each result and start; epochs "
            f"{settings.speed:g} × as fast as recorded."
        ],
    )


if __name__ == "__main__":
    main(SimulateSettings, measure)
