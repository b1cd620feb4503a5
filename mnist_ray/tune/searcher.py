"""Ray Tune's OptunaSearch, with a study that says how each trial really ended.

Ray's OptunaSearch reports a trial that the scheduler stopped as COMPLETE with its low-fidelity
value, leaves one whose value is NaN RUNNING for ever, cannot continue a study's trials, and pickles
the storage's URL, password included, into the experiment's directory. Here a stopped trial is
PRUNED with all its intermediate values, a failed one FAIL, and the study alone says what has been
done.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from mnist_ray.errors import MnistRayError, WorkError, described, is_of_own_code
from mnist_ray.run.records import EpochRow, Record, Records, epoch_row, rank
from mnist_ray.settings.constraints import Constraint
from mnist_ray.settings.objectives import column, direction
from mnist_ray.study.front import FrontHalving
from mnist_ray.study.objectives import curve
from mnist_ray.study.suggestions import Refusal, Space
from mnist_ray.tune.outcomes import Outcomes
from mnist_ray.tune.patches import NotPickled
from mnist_ray.tune.suggestions import Numbered, Suggestions
from mnist_ray.tune.trial import NUMBER

REFUSED_AT_ONCE = 20  # trials that the space may refuse before Tune has its turn again


class _OfStudy(NotPickled, OptunaSearch):
    """A searcher whose state is its study."""

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the study is the state, and Tune's snapshots are not resumed from."""

    restore = save

    def set_search_properties(self, *args: Any, **spec: Any) -> bool:
        """True: all was given to __init__."""
        return True


class _Failing(_OfStudy):
    """A searcher that notes what ends the search: Tune would log it and go on, or end in it."""

    storage_error: str | None = None  # how the study's or a trial's storage failed
    # "sampler" or "scheduler", and the error that a person's own one has raised.
    own_error: tuple[str, str] | None = None
    taken_over = False  # whether the run is another process's by now

    @property
    def silent(self) -> bool:
        """Whether nothing may be written any more."""
        return self.taken_over or self.storage_error is not None or self.own_error is not None

    @contextlib.contextmanager
    def _errors(self, part: str = "sampler") -> Iterator[None]:
        """Notes an error of the study's storage, or of a person's own sampler or scheduler.

        Args:
            part: The one of the two that the block calls. (The space's errors end its trial.)
        """
        try:
            yield
        except WorkError as error:
            self.storage_error = str(error)
        except MnistRayError:
            raise
        except (Exception, SystemExit) as error:
            if is_of_own_code(error):
                self.own_error = (part, described(error))
            elif isinstance(error, OSError):
                self.storage_error = str(error)
            else:
                raise


class StudySearch(_Failing):
    """Suggests from a study and reports to it how each trial ended; keeps `records` for the reader.

    If the study's storage fails (`storage_error` says how), a person's own sampler or scheduler
    does (`own_error`) or another process has taken over the run (`taken_over`), nothing more is
    suggested or written. Trials stay RUNNING in the study, to be continued by --resume: the search
    must end.

    Args:
        study, space, records, run, continued, retried, points, keep: as Suggestions takes them.
        max_epochs, on_settled, keep_error, limits, best_row: as Outcomes takes them.
        slots: how many trials may run at this moment; no more are handed out.
        front: stops trials with several objectives, in place of the study's pruner.
    """

    def __init__(  # noqa: PLR0913 (made once, by keywords)
        self,
        study: optuna.Study,
        space: Space,
        records: Records,
        *,
        run: str,
        max_epochs: int,
        on_settled: Callable[[int], None],
        keep_error: Callable[[int, str], None] = lambda number, text: None,
        best_row: Callable[[int], EpochRow | None] = lambda number: None,
        slots: Callable[[], float] = lambda: math.inf,
        continued: Sequence[FrozenTrial] = (),
        retried: Sequence[Numbered] = (),
        points: Sequence[Numbered] = (),
        keep: Callable[[], None] = lambda: None,
        limits: Sequence[Constraint] = (),
        front: FrontHalving | None = None,
    ) -> None:
        super().__init__(metric=column(records.metric), mode=direction(records.metric)[:3])
        self.study, self.records, self.max_epochs, self.slots = study, records, max_epochs, slots
        self.suggestions = Suggestions(study, space, records, run, continued, retried, points, keep)
        self.front = front
        self.trials: dict[str, optuna.Trial] = {}  # Tune's id -> a trial that has not ended
        known = {trial.number: set(curve(trial)) for trial in continued}
        self.continuing = known.keys()
        self.outcomes = Outcomes(
            study, records, max_epochs, on_settled, keep_error, known, limits, best_row
        )
        self._starting: set[str] = set()  # handed out, but not begun yet
        self.ending: str | None = None  # why the search as a whole is being ended
        # Trial number -> how its last worker was lost, and its traceback if it could not begin.
        self.lost: dict[int, tuple[str, str]] = {}

    # ---- suggestions

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Tune's config of the next trial: its hyperparameters and its number.

        None while there is no free slot: Tune asks again. FINISHED after the last one.
        """
        if self.silent or self.ending:
            return None
        with self._errors():
            if len(self.trials) < self.slots():
                return self._next(trial_id)
            if not self._starting:  # earlier suggestions come first
                self.suggestions.ask_ahead(self.slots(), self.outcomes.mean_seconds())
        return None

    def _next(self, trial_id: str) -> dict[str, Any] | str | None:
        for _ in range(REFUSED_AT_ONCE):
            if not self._may_ask():
                return None
            found = self.suggestions.next()
            if found is None:
                return str(Searcher.FINISHED)
            if isinstance(found.hp, Refusal):
                self._refused(found.trial, found.hp)
                continue
            self._hand_out(trial_id, found.trial)
            return {**found.hp, NUMBER: found.trial.number}
        return None

    def _may_ask(self) -> bool:
        """Whether the next trial may be suggested now."""
        return True

    def _hand_out(self, trial_id: str, trial: optuna.Trial) -> None:
        self.trials[trial_id] = trial
        self._starting.add(trial_id)

    def begun(self, trial_id: str) -> None:
        """Notes that a trial trains now."""
        self._starting.discard(trial_id)

    def _refused(self, trial: optuna.Trial, refusal: Refusal) -> None:
        """Takes note of a trial for which the space gave no hyperparameters."""
        self.outcomes.refuse(trial, refusal)

    # ---- results

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Takes a result; one that was reported already, before a restart, changes nothing."""
        with self._errors():
            self._take(self.trials[trial_id], self._rows(trial_id, result))

    def _rows(self, trial_id: str, result: dict[str, Any]) -> list[EpochRow]:
        """The epochs of a result (see trial.Result); none if trial or storage failed."""
        record = self._record(trial_id)
        self.storage_error = result.get("storage_error", self.storage_error)
        record.reason = result.get("reason", record.reason)
        record.complete = result.get("complete", record.complete)
        if record.reason or self.silent:
            return []
        _note(record, result, self.records.metric)
        rows = [*result.get("rows", []), result] if result["epoch"] else []
        return [epoch_row(row) for row in rows]

    def _record(self, trial_id: str) -> Record:
        return self.records.trials[self.trials[trial_id].number]

    def _take(self, trial: optuna.Trial, rows: Iterable[EpochRow]) -> None:
        """Makes epochs known."""
        self.outcomes.take(trial, rows)

    def exploited(self, trial_id: str, exploit: dict[str, Any]) -> None:
        """Notes after which epoch a trial continues with whose weights (see population.py)."""
        with self._errors():
            self.outcomes.exploited(self.trials[trial_id], exploit)

    def should_stop(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether pruner or front's rule stops the trial; the study gets the result first."""
        self.on_trial_result(trial_id, result)
        record = self._record(trial_id)
        if self.silent or record.reason or "unfit" in result:
            return False
        if self.front:
            return self.front.stops(record, result["epoch"], self.outcomes.fit())
        with self._errors("scheduler"):
            return self.trials[trial_id].should_prune()
        return False

    def give_up(self, trial_id: str, reason: str) -> None:
        """Notes why a trial is about to be ended from outside."""
        self._record(trial_id).reason = reason

    def worker_lost(self, trial_id: str, how: str, text: str) -> None:
        """Notes how a trial's worker was lost: the trial starts again, or ends for this reason."""
        if trial_id in self.trials:
            self.lost[self.trials[trial_id].number] = (how, text)

    # ---- ends

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Reports to the study how the trial ended; error: Tune has given it up."""
        if trial_id not in self.trials:
            return
        if result:
            self.on_trial_result(trial_id, result)
        trial = self.trials.pop(trial_id)
        self._starting.discard(trial_id)
        if not self.silent:  # else it stays RUNNING in the study, to be continued by --resume
            with self._errors():
                if not result:
                    self._take(trial, self.outcomes.unreported(trial.number))
                self._ended(trial, error)

    def _ended(self, trial: optuna.Trial, error: bool) -> None:
        """Makes the trial's end known."""
        if error:
            self.outcomes.worker_died(trial.number, *self.lost.get(trial.number, ("", "")))
        self.outcomes.end(trial, self.ending)

    def close(self) -> None:
        """Ends the trials that were suggested ahead, and those that a Stopper has ended.

        Tune says nothing of these. One that has not reported again since --resume keeps its epochs.
        """
        unread = {r.number for r in self.records.running() if not r.rows} & self.continuing
        for trial_id, trial in list(self.trials.items()) if self.ending else ():
            if trial.number not in unread:
                self.on_trial_complete(trial_id)
        while self.suggestions.ahead and not self.silent:
            found = self.suggestions.ahead.pop(0)
            with self._errors():
                if isinstance(found.hp, Refusal):
                    self._refused(found.trial, found.hp)
                elif found.trial.number not in unread:
                    self._ended(found.trial, error=False)


def _note(record: Record, result: dict[str, Any], metric: str) -> None:
    """Takes a result's facts about the network into its trial's record."""
    record.node, best = result["node"], record.best(metric)
    if best is None or rank(result, metric) > rank(best, metric):
        # Of the network of its best epoch: with pbt a trial may have several.
        record.n_parameters = result["n_parameters"]
    for name in ("latency_ms", "size"):
        if getattr(record, name) is None:  # a worker that was started again has measured anew
            setattr(record, name, result.get(name))
