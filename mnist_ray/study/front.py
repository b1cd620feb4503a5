"""Early stopping with several objectives: successive halving by non-dominated rank.

At each rung, after `grace_period`, `grace_period * reduction_factor`, … epochs, a trial is compared
with those that have come so far, in all objectives at that epoch. It continues if none of them
dominates it, or if it is among the best 1 in `reduction_factor` by non-dominated rank (Deb et al.
2002; Schmucker et al. 2021 halve so). The decision needs only the trials' epochs, which a resumed
run has.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mnist_ray.run.records import Record, pareto_front
from mnist_ray.study.rungs import rungs_of

COMPARED = 500  # trials at a rung, the latest: all of 10,000 would take seconds each time


@dataclass(frozen=True)
class FrontHalving:
    """The rule.

    Attributes:
        objectives: Their names.
        max_epochs: The most epochs of a trial.
        grace_period: The first rung.
        reduction_factor: Of the rungs, and of the trials at a rung.
    """

    objectives: Sequence[str]
    max_epochs: int
    grace_period: int
    reduction_factor: float

    @property
    def rungs(self) -> list[int]:
        """Epochs after which trials are compared."""
        return rungs_of(self.max_epochs, self.grace_period, self.reduction_factor)

    def stops(self, trial: Record, epoch: int, others: Iterable[Record]) -> bool:
        """Whether a trial ends after an epoch.

        Args:
            trial: It has that epoch.
            epoch: Its last one.
            others: The trials to compare it with.
        """
        if epoch not in self.rungs:
            return False
        values = {}
        for each in (*list(others), trial):
            if epoch in each.rows and (found := each.values_at(each.rows[epoch], self.objectives)):
                values[each.number] = found
        latest = dict(sorted(values.items())[-COMPARED:])
        return trial.number in values and not self.goes_on(
            trial.number, {**latest, trial.number: values[trial.number]}
        )

    def goes_on(self, number: int, values: Mapping[int, Sequence[float]]) -> bool:
        """Whether a trial is in the first fronts that hold 1 in `reduction_factor` of the trials.

        Args:
            number: The trial's.
            values: Number -> its values of the objectives; with the trial's own.
        """
        left, kept = dict(values), 0
        while left:
            front = pareto_front(self.objectives, left)
            kept += len(front)
            if number in front:
                return True
            if kept * self.reduction_factor >= len(values):
                return False
            for each in front:
                del left[each]
        return False
