"""asha-promote with --deterministic: trials are paused, promoted and begun by order alone.

A leg (the paper's "job") is the part of a trial up to its next rung, where the trial always stops.
Legs have places, in the order in which they are handed out. With c trials at a time, leg k is
chosen when exactly the legs up to k - c are known: the paused trial that they promote, else a new
trial. When no new ones are left, further legs become known one by one, in their order, until one
promotes a trial. A trial in the study says at which places its legs were handed out, so a resume
goes on with the same ones.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from ray.tune.search import Searcher

from mnist_ray.errors import CorruptFileError
from mnist_ray.run.records import EpochRow, Record, value_of
from mnist_ray.study.paused import SeesPaused
from mnist_ray.study.suggestions import Refusal
from mnist_ray.study.trials import LEGS, PAUSED
from mnist_ray.tune.deterministic import Held, check_number
from mnist_ray.tune.promotion import PromotingSearch
from mnist_ray.tune.searcher import REFUSED_AT_ONCE, StudySearch
from mnist_ray.tune.trial import NUMBER


@dataclass(kw_only=True)
class Leg(Held):
    """A part of a trial of which the study does not know the epochs yet."""

    until: int  # its last epoch


class OrderedPromotion(PromotingSearch):
    """PromotingSearch that decides by the order of legs.

    Nobody else may write to the study.

    Args:
        args: as PromotingSearch takes them.
        past: as PromotingSearch takes it.
        window: c of the module's docstring.
        sampler: gives the sampler for the leg of that place, seeded with it.
        kwargs: as PromotingSearch takes them.
    """

    def __init__(
        self,
        *args: Any,
        past: Mapping[int, Mapping[int, float]],
        window: int,
        sampler: Callable[[int], optuna.samplers.BaseSampler],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, past={}, **kwargs)
        self.window, self.sampler = window, sampler
        own = self.records.trials
        self.first = min(own, default=len(self.study.get_trials(deepcopy=False)))
        self.known = 0  # legs, from the first on
        self._held: dict[int, Leg] = {}  # by place
        self._place = 0  # of the leg that is handed out now
        self._again: list[int] = []  # places of legs that an earlier process did not make known
        self._restore(past)
        self.places = self.known + len(self._again)

    def _restore(self, past: Mapping[int, Mapping[int, float]]) -> None:
        """Takes up the legs of an earlier process."""
        paused = [trial for trial in self.paused.values() if isinstance(trial, FrozenTrial)]
        running = {trial.number: trial for trial in [*paused, *self.suggestions.continued]}
        again: list[tuple[int, FrozenTrial]] = []
        self.paused = {}
        self.records.paused = self.paused
        trials = {t.number: t for t in self.study.get_trials(deepcopy=False) if t.number in past}
        places = sorted(place for t in trials.values() for place in t.user_attrs.get(LEGS, []))
        new = len(places)
        for number, curve in past.items():
            legs = trials[number].user_attrs.get(LEGS, [])[: len(self.rungs.rungs) + 1]
            frozen = running.get(number)
            told = len(legs) if frozen is None else self._told(frozen, len(legs))
            self.known += told
            for rung in self.rungs.rungs[: told if frozen else None]:
                if rung in curve:
                    self.rungs.enter(number, rung, curve[rung])
            if frozen is None:
                continue
            if told < len(legs) or not legs:  # a trial that was just made has no place yet
                again.append((legs[-1] if legs else new, frozen))
                if told:
                    self.rungs.passed(number, self.rungs.rungs[told - 1])
            else:
                self.paused[number] = frozen
        again.sort(key=lambda each: each[0])
        self._again = [place for place, _ in again]
        known = [place for place in places if place not in self._again]
        if known + self._again != list(range(self.known + len(again))):
            name = self.study.study_name
            raise CorruptFileError(f"study {name!r} is damaged: {LEGS} of its trials contradict")
        self.suggestions.continued = [frozen for _, frozen in again]

    def _told(self, frozen: FrozenTrial, legs: int) -> int:
        """How many legs of a trial that has not ended the study knows."""
        paused_at: int = frozen.user_attrs.get(PAUSED, 0)
        if paused_at:
            return min(legs, sum(rung <= paused_at for rung in self.rungs.rungs))
        return max(0, legs - 1)

    # ---- suggestions

    def _next(self, trial_id: str) -> dict[str, Any] | str | None:
        for _ in range(REFUSED_AT_ONCE):
            if self._again:
                self._place = self._again.pop(0)
                found: dict[str, Any] | str | None = self._new(trial_id)
            else:
                self._place = self.places
                if not self._tell(self._place - self.window + 1):
                    return None  # Tune asks again
                found = self._chosen(trial_id)
                if found is None and self.places == self._place:
                    return None
            if found:
                return found
        return None

    def _chosen(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next leg; None if it was refused, or if legs that still run decide on it."""
        while self.rungs.candidate(self.paused) is None:
            found = self._new(trial_id)
            if found or self.places > self._place:
                return found
            if self.known == self.places:
                return str(Searcher.FINISHED)
            if not self._tell(self.known + 1):
                return None
        return self._promoted(trial_id)

    def _promoted(self, trial_id: str) -> dict[str, Any] | None:
        place = self.rungs.candidate(self.paused)
        assert place is not None
        number, rung = place
        self.rungs.passed(number, rung)
        trial = self._opened(number)
        # Before PAUSED says that it goes on: a kill between the two is told from this.
        trial.set_user_attr(LEGS, [*trial.user_attrs[LEGS], self._place])
        self.paused[number] = trial
        return self._go_on(trial_id, number)

    def _new(self, trial_id: str) -> dict[str, Any] | None:
        """A new trial, or one of an earlier process; None if none is left, or it was refused."""
        self.study.sampler = SeesPaused.over(self.sampler(self._place))
        found = self.suggestions.next()
        if found is None:
            return None
        if isinstance(found.hp, Refusal):
            self._refused(found.trial, found.hp)
            return None
        self._hyperparameters[found.trial.number] = dict(found.hp)
        if found.trial.user_attrs.get(PAUSED):  # killed just before that was noted
            found.trial.set_user_attr(PAUSED, 0)
        self._hand_out(trial_id, found.trial)
        return {**found.hp, NUMBER: found.trial.number}

    def _hand_out(self, trial_id: str, trial: optuna.Trial) -> None:
        super()._hand_out(trial_id, trial)
        self._hold(trial)

    def _hold(self, trial: optuna.Trial) -> Leg:
        legs = trial.user_attrs.get(LEGS, [])
        if self._place not in legs:
            check_number(self.study, trial.number, self.first + len(self.records.trials) - 1)
            legs = [*legs, self._place]
            trial.set_user_attr(LEGS, legs)
            self.suggestions.keep()
        ends = [*self.rungs.rungs, self.max_epochs]
        leg = self._held[self._place] = Leg(trial=trial, until=ends[legs.index(self._place)])
        self.places = max(self.places, self._place + 1)
        return leg

    def _refused(self, trial: optuna.Trial, refusal: Refusal) -> None:
        leg = self._hold(trial)
        leg.refusal, leg.over = refusal, True

    # ---- results

    def _leg(self, number: int) -> Leg:
        return next(leg for leg in self._held.values() if leg.trial.number == number)

    def _take(self, trial: optuna.Trial, rows: Iterable[EpochRow]) -> None:
        """Keeps epochs back."""
        leg = self._leg(trial.number)
        for row in rows:
            leg.rows.setdefault(row["epoch"], row)

    def _pauses(self, record: Record) -> bool:
        leg = self._leg(record.number)
        return leg.until < self.max_epochs and leg.until in leg.rows

    # ---- ends

    def _ended(self, trial: optuna.Trial, error: bool) -> None:
        leg = self._leg(trial.number)
        leg.over, leg.error = True, error

    def _tell(self, least: int) -> bool:
        """Makes legs known in their order until so many are; whether it got there."""
        while self.known < least and (leg := self._held.get(self.known)) and leg.over:
            trial = leg.trial
            StudySearch._take(self, trial, leg.rows.values())
            for rung in self.rungs.rungs:
                if rung in leg.rows:
                    value = value_of(leg.rows[rung], self.records.metric)
                    self.rungs.enter(trial.number, rung, value)
            if leg.refusal:
                self._hyperparameters.pop(trial.number, None)
                StudySearch._refused(self, trial, leg.refusal)
            else:
                super()._ended(trial, leg.error)
            del self._held[self.known]
            self.known += 1
        return self.known >= least
