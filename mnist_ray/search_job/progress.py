"""The output of a running search: a line a trial, and the epochs of running trials.

In a terminal that is a bar, refreshed each second. In a log it is a line a minute, unless a trial
has ended meanwhile.
"""

import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from ray import tune
from ray.tune.experiment import Trial
from tqdm import tqdm

from mnist_ray import output
from mnist_ray.run.records import Record, Records, value_of
from mnist_ray.tune.patches import NotPickled

BAR_SECONDS = 1.0
LOG_SECONDS = 55.0  # a little less than a minute: a step of Tune's may take seconds
SHOWN = 4  # running trials that are named


class Progress(NotPickled, tune.Callback):
    """Prints how far a search is.

    Args:
        records: The run's trials; the search adds to them.
        max_epochs: The most epochs of a trial.
        line: The log line of a trial that has ended, by its number.
        name: A trial's name, by its number.
    """

    def __init__(
        self,
        records: Records,
        max_epochs: int,
        line: Callable[[int], str] | None = None,
        name: Callable[[int], str] = "trial {}".format,
    ) -> None:
        self.records, self.max_epochs = records, max_epochs
        self.line, self.name = line or records.line, name
        self.bar: tqdm[NoReturn] = tqdm(
            total=records.total,
            initial=records.settled(),
            unit="trial",
            disable=None,  # shown in a terminal only
            bar_format="{n_fmt}/{total_fmt} trials [{elapsed}<{remaining}]{postfix}",
            dynamic_ncols=True,
            leave=False,
        )
        self.seconds = LOG_SECONDS if self.bar.disable else BAR_SECONDS
        self.last = time.monotonic()

    def settled(self, number: int) -> None:
        """Prints the line of a trial that has ended."""
        with output.interrupt_if_lost():
            self.bar.write(self.line(number))
            sys.stdout.flush()
        self.last = time.monotonic()
        self.bar.update()

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Shows the running trials if nothing was shown for long enough."""
        now = time.monotonic()
        if now - self.last < self.seconds:
            return
        self.last = now
        if self.bar.disable:
            with output.interrupt_if_lost():
                print(self.text(), flush=True)
        else:
            self.bar.set_postfix_str(self._running())

    def text(self) -> str:
        """How far the search is, as a line of a log."""
        done = f"{self.records.settled()} of {self.records.total} trials done"
        return f"{done}; {self._running()}"

    def _running(self) -> str:
        running = self.records.running()
        shown = ", ".join(self._epochs(record) for record in running[:SHOWN])
        more = f" and {len(running) - SHOWN} more" if len(running) > SHOWN else ""
        paused = f", {len(self.records.paused)} paused" if self.records.paused else ""
        best = self.records.best
        value = f"; best {value_of(best[1], self.records.metric):.4f}" if best else ""
        return (f"running: {shown}{more}" if running else "no trial runs yet") + paused + value

    def _epochs(self, record: Record) -> str:
        return f"{self.name(record.number)} epoch {len(record.rows)}/{self.max_epochs}"
