"""A run that goes on: which of its settings stay, and which the command may change."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mnist_ray.errors import SettingsError
from mnist_ray.run import layout
from mnist_ray.run.about import About
from mnist_ray.settings import SearchSettings, resolved, trust
from mnist_ray.settings.options import TRACKERS, TrackerOptions

# Options of one command, not of the run.
ONE_TIME = {"config", "resume", "overwrite", "dry_run", "verbose", "storage", "name", "verify_data"}
# --resume may change how much is trained and on which machines, not the task.
CHANGEABLE = {
    *ONE_TIME, "trials", "cpus_per_trial", "gpus_per_trial", "max_concurrent", "time_budget",
    "finetune", "stages", "data_dir", "trial_timeout", "committee", "calibrate", "gate",
    "quantize", "confirm", "target", "patience", "test_steps", "finetune_with", "finetune_epochs",
    "confirm_epochs", *(field.name for field in dataclasses.fields(TrackerOptions)),
}  # fmt: skip
# As it was in runs that do not record it.
UNRECORDED = {
    "val_by": "class", "calibrate": "none", "gate": "none", "quantize": "none", "grace_period": 1,
    "portfolio": "none",
}  # fmt: skip
# These decide on the result too: --deterministic lets none of them change.
FIXED = {"cpus_per_trial", "gpus_per_trial", "max_concurrent"}

# A resume uses these of run.json, and a file may not choose them. (Points and ONNX file of a run
# lie in its directory; an older study has been taken over.)
RESUMED_TRUST = (*trust.CODE, "study", *TRACKERS, "stages", "class_weights")
DEFAULT_CONFIRM = 3  # trials that --resume with more --max-epochs trains again


def check_trust(now: SearchSettings, resumed: About) -> None:
    """SettingsError if run.json chooses code, a host or a path that is about to be used."""
    before = resumed.settings
    used = {*RESUMED_TRUST}
    if not (now.finetune if "finetune" in now.given else before.get("finetune")):
        used -= {"stages", "finetune_with"}
    if not resumed.warm_started:
        used.add("warm_start")
    if not resumed.storage.exists(layout.START):
        used.add("onnx")
    if "confirm" in now.given and not now.confirm and resumed.storage.exists(layout.CONFIRMED):
        raise SettingsError(
            "--confirm: 0 was given, but the run's best was chosen by its retrainings, whose "
            "weights best/ holds; leave it out, or give 1 or more"
        )
    trust.check(before, now.given, resumed.storage.join(layout.RUN), used)


def resumed_settings(now: SearchSettings, before: Mapping[str, Any]) -> SearchSettings:
    """The settings of run.json, with those options of the command that may change.

    Raises:
        SettingsError: another value was given for an option that may not change.
    """
    before = {**UNRECORDED, **before}
    now = _prolonged(now, before)
    values = resolved(now)
    changeable = CHANGEABLE - FIXED if before.get("deterministic") else CHANGEABLE
    for key in sorted(now.given - changeable):
        same = values[key] == before.get(key) or (
            key == "study" and trust.same_place(values[key], before.get(key))
        )
        if not same:
            flag = f"--{key.replace('_', '-')}"
            raise SettingsError(
                f"{flag}: {values[key]!r} was given, but the run has {before.get(key)!r}, "
                "which stays"
            )
    kept: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in before.items()
        if key in values and key not in now.given | ONE_TIME and value != ""  # of an older version
    }
    if "finetune_with" in now.given:  # a run without one was recorded as not to be fine-tuned
        kept.pop("finetune", None)
    return dataclasses.replace(now, **kept)


def _prolonged(now: SearchSettings, before: Mapping[str, Any]) -> SearchSettings:
    """More --max-epochs than the run's as what they mean: longer trainings of its best."""
    most = before.get("max_epochs")
    if "max_epochs" not in now.given or not isinstance(most, int) or now.max_epochs <= most:
        return now
    if "confirm_epochs" in now.given and now.confirm_epochs != now.max_epochs:
        raise SettingsError(
            f"--max-epochs: {now.max_epochs} and --confirm-epochs {now.confirm_epochs} were given; "
            "on a run that exists both mean the longer trainings of its best; leave one out"
        )
    longer: dict[str, Any] = {"max_epochs": most, "confirm_epochs": now.max_epochs}
    if "confirm" not in now.given and not before.get("confirm"):
        longer["confirm"] = DEFAULT_CONFIRM
    return dataclasses.replace(now, given=now.given - {"max_epochs"}, **longer)
