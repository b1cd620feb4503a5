"""The rungs of successive halving: epochs after which trials are compared."""

import bisect
import math
from collections.abc import Container, Mapping, Sequence


def rungs_of(max_epochs: int, grace_period: int, reduction_factor: float) -> list[int]:
    """Epochs after which trials are compared, in ascending order, as [1, 3, 9] of 10.

    Args:
        max_epochs: The most epochs of a trial.
        grace_period: The first rung.
        reduction_factor: Each rung has so many times the epochs of the one before it.
    """
    rungs, epoch = [], float(grace_period)
    while (rung := math.ceil(round(epoch, 6))) < max_epochs:
        rungs.append(rung)
        epoch *= reduction_factor
    return sorted(set(rungs))


class Rungs:
    """Who may pass which rung, where trials wait for their promotion (Li et al. 2020).

    A trial may pass a rung while it is among the best 1 in `reduction_factor` of those that have
    reached it. The decision can come later than the trial: each new one makes room.

    Args:
        rungs: Epochs; see `rungs_of`.
        reduction_factor: One in so many passes.
        maximize: Whether larger values are better.
    """

    def __init__(self, rungs: Sequence[int], reduction_factor: float, *, maximize: bool) -> None:
        self.rungs, self.factor = tuple(rungs), reduction_factor
        self._sign = -1 if maximize else 1
        # Of each rung the cost and the number of its trials, the best first; and who has passed it.
        self._order: dict[int, list[tuple[float, int]]] = {rung: [] for rung in rungs}
        self._reached: dict[int, set[int]] = {rung: set() for rung in rungs}
        self._passed: dict[int, set[int]] = {rung: set() for rung in rungs}

    def enter(self, number: int, rung: int, value: float) -> bool:
        """A trial reaches an epoch. False if that is no rung, or the trial was there before."""
        if number in self._reached.get(rung, {number}):
            return False
        self._reached[rung].add(number)
        for lower in self._order:
            if lower < rung:
                self._passed[lower].add(number)
        cost = math.inf if math.isnan(value) else self._sign * value
        bisect.insort(self._order[rung], (cost, number))
        return True

    def restore(self, number: int, curve: Mapping[int, float], *, waits: bool, runs: bool) -> None:
        """Enters a trial of an earlier process.

        Args:
            number: The trial's.
            curve: Epoch -> value of the metric.
            waits: Whether it waits at the last rung that it has reached.
            runs: Whether it goes on: a rung that is its last epoch is decided when it reports that
                epoch again.
        """
        reached = [rung for rung in self.rungs if rung in curve]
        if runs and reached and reached[-1] == max(curve):
            reached.pop()
        for rung in reached:
            self.enter(number, rung, curve[rung])
        if reached and not waits:
            self.passed(number, reached[-1])

    def passed(self, number: int, rung: int) -> None:
        """Notes that a trial passes a rung."""
        self._passed[rung].add(number)

    def candidate(
        self, waiting: Container[int], *, out_of_turn: bool = False
    ) -> tuple[int, int] | None:
        """The trial that goes on next and its rung: the best of the highest rung with one.

        Args:
            waiting: Numbers of the trials that can go on.
            out_of_turn: Also those that are not among the best 1 in `reduction_factor`.
        """
        for rung in reversed(self._order):
            order, passed = self._order[rung], self._passed[rung]
            best = order if out_of_turn else order[: int(len(order) / self.factor)]
            for _, number in best:
                if number not in passed and number in waiting:
                    return number, rung
        return None
