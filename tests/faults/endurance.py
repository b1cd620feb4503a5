"""Many short trials while a monkey kills their workers: is each accounted for, is memory flat?

python tests/faults/endurance.py --trials 300

Starts a search on `digits` in a Ray of its own. Its exit code is 1 where a trial is missing, open
or failed, an epoch is counted twice, or the search's memory grew by more than a tenth between the
second quarter of the trials and the last.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mnist_ray.storage import RunStorage
from tests.faults.tools import TINY
from tests.support.processes import Monkey, own_ray
from tests.support.runs import flags, load_study, search, tables


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument(
        "--pause", type=float, default=6.0, help="seconds between two kills, on average"
    )
    parser.add_argument("--max-epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="endurance-") as folder:
        arguments = [
            *TINY,
            *flags(trials=options.trials, max_epochs=options.max_epochs, seed=options.seed),
        ]
        started = time.monotonic()
        process = search(own_ray(), *arguments, "--storage", folder, "--name", "e")
        assert process.stdout is not None
        memory: list[tuple[int, float]] = []  # trials that have ended, MB
        with Monkey(process.pid, options.pause, seed=options.seed) as monkey:
            for line in process.stdout:
                if line.startswith("trial ") and "epochs=" in line:
                    with contextlib.suppress(psutil.Error):
                        memory.append(
                            (len(memory) + 1, psutil.Process(process.pid).memory_info().rss / 1e6)
                        )
                    if len(memory) % max(1, options.trials // 20) == 0:
                        taken = time.monotonic() - started
                        print(
                            f"{len(memory)} trials, {monkey.kills} kills, "
                            f"driver {memory[-1][1]:.0f} MB, {taken:.0f} s",
                            flush=True,
                        )
                elif line.startswith(
                    (f"{options.trials} trials:", "  ", "search.py:", "Traceback")
                ):
                    print(line.rstrip())
        code = process.wait()
        return verdict(
            code,
            Path(folder, "e"),
            options.trials,
            monkey.kills,
            [megabytes for _, megabytes in memory],
        )


def verdict(code: int, run: Path, trials: int, kills: int, memory: list[float]) -> int:
    rows, history = tables(RunStorage(str(run)))
    epochs = [(row["number"], row["epoch"]) for row in history]
    states = [trial.state.name for trial in load_study(run).trials]
    quarter = len(memory) // 4
    second, last = (
        statistics.median(memory[quarter : 2 * quarter]),
        statistics.median(memory[-quarter:]),
    )
    print(
        f"exit code {code}; {len(rows)} of {trials} trials in the table, "
        f"{len(states)} in the study: {states.count('COMPLETE')} complete, "
        f"{states.count('PRUNED')} pruned, {states.count('FAIL')} failed, "
        f"{states.count('RUNNING')} open; {len(epochs)} epochs, "
        f"{len(epochs) - len(set(epochs))} twice; {kills} workers killed; "
        f"driver's memory {second:.0f} MB in the second quarter, {last:.0f} MB in the last; "
        f"load {os.getloadavg()[0]:.1f}"
    )
    lost = len(rows) != trials or len(states) != trials or not set(states) <= {"COMPLETE", "PRUNED"}
    return int(code != 0 or lost or len(set(epochs)) != len(epochs) or last > 1.1 * second)


if __name__ == "__main__":
    sys.exit(main())
