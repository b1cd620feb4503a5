"""Tune's trainable: one step is one epoch. Light: the driver only names its classes.

A trial keeps its checkpoints itself, in its folder of the run: `latest…` to go on from, and the
files of its best epoch. A restart, by Tune after a worker's death or `--resume` after
the driver's, passes the same number and finds them there: one way back for all of them. (Tune's
own restore unpickles, and cannot continue a trial in a new experiment.)
"""

import dataclasses
import json
import os
import traceback
from collections.abc import Mapping
from typing import Any, ClassVar

from ray import tune

from mnist_ray.errors import CaptureError, WorkError, is_of_own_code, raise_if_ended, reason
from mnist_ray.run import layout, lease
from mnist_ray.run.records import EpochRow, checked_row
from mnist_ray.storage import RunStorage
from mnist_ray.trackers import tell
from mnist_ray.tune.trial import NUMBER, RETRAINS, Result, TrialContext, ended


class EpochTrial(tune.Trainable):
    """A trial whose step is an epoch. An error in it ends the trial, not the search.

    A class derived from it names its files, calls `take` and `begin_config` in `setup`, and has an
    `epoch` and a `description`.
    """

    # In the trial's folder: the file that it goes on from.
    LATEST: ClassVar[str]
    # In the trial's folder: the files of its best epoch, the last of them written last, and their
    # names in the run's best/.
    BEST: ClassVar[dict[str, str]]
    # The one of them that names its epoch.
    DESCRIBED: ClassVar[str]

    context: TrialContext
    storage: RunStorage
    number: int
    shown: int  # the number that its files name: of a trial that is trained again, the first one's
    hp: dict[str, Any]
    broken = False  # whether an error has left this process unfit for another trial

    def take(self, context: TrialContext | None) -> None:
        """Takes the values that all trials have in common; the run is written as its owner's."""
        assert context is not None
        self.context = context
        run = lease.owned(context.run, "search", context.owner)
        self.storage = run.below(context.folder) if context.folder else run

    def begin(self, number: int, hp: dict[str, Any]) -> None:
        """Takes up a trial."""
        self.number, self.hp = number, hp

    def epoch(self) -> Result:
        """Trains one epoch, or reports the last one of the trial's checkpoint."""
        raise NotImplementedError

    @staticmethod
    def description(data: bytes) -> Any:
        """What the content of the file DESCRIBED says; its `row` is the best epoch's.

        Raises:
            ValueError, KeyError, TypeError, RecursionError: It is damaged.
        """
        return json.loads(data)

    @classmethod
    def best_row(cls, storage: RunStorage, number: int) -> EpochRow | None:
        """The epoch of a trial's best files; None if it has none, or damaged ones."""
        name = f"{layout.trial_folder(number)}/{cls.DESCRIBED}"
        if not storage.exists(name):
            return None
        try:
            return checked_row(cls.description(storage.read_bytes(name))["row"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def begin_config(self, config: Mapping[str, Any]) -> None:
        """Takes up the trial of Tune's config."""
        hp = dict(config)
        number = self.shown = hp.pop(NUMBER)
        if RETRAINS in hp:
            self.shown, seed = hp.pop(RETRAINS)
            self.context = dataclasses.replace(self.context, seed=seed)
        self.begin(number, hp)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Serves the next trial in the same process, which has the data already."""
        self.cleanup()  # what happens there belongs to the trial before
        if self.broken:
            os._exit(1)  # Tune starts another worker for this trial
        self.begin_config(new_config)
        return True

    def step(self) -> Result:
        """One epoch's result. Its row is NaN if the trial cannot go on."""
        try:
            return self.epoch()
        except CaptureError as error:
            return self._failed(error)
        except (WorkError, OSError) as error:
            # Of a person's network it may be a download that failed: of no concern to other trials.
            if isinstance(error, OSError) and is_of_own_code(error):
                return self._failed(error)
            # The whole search must stop: no trial's checkpoint could be kept.
            return ended(storage_error=str(error) or repr(error))
        except (Exception, SystemExit) as error:  # any error of a person's code or values
            return self._failed(error)

    def _failed(self, error: BaseException) -> Result:
        """The result of a trial that its own code has ended. Keeps the traceback."""
        raise_if_ended(error)
        self.broken = breaks_process(error)
        try:
            text = "".join(traceback.format_exception(error))
            self.storage.write_bytes(layout.error_file(self.number), text.encode())
        except (WorkError, OSError) as failure:
            return ended(storage_error=str(failure) or repr(failure))
        return ended(reason=reason(error))


def breaks_process(error: BaseException | None) -> bool:
    """Whether all further work on the GPU fails in this process, as after a failed assertion there.

    Too little memory is no such error.
    """
    while error is not None:
        if isinstance(error, CaptureError) or type(error).__name__ == "AcceleratorError":
            return True
        if "CUDA error" in str(error) or "cuDNN error" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


class SummaryWarnings(tune.Callback):
    """Says once why trials could not be written for TensorBoard."""

    warned = False

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Looks for a warning in the result."""
        if "tracker_warning" in result and not self.warned:
            self.warned = True
            tell(f"warning: --tensorboard: {result['tracker_warning']}; the search goes on")
