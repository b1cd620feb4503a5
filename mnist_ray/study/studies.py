"""A search's study: opened, made if there is none, and refused if it is another's.

Several searches may share a study. The run of each trial is kept in Optuna's own
attributes, so that every tool of Optuna's reads the study as it is.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from mnist_ray.errors import CorruptFileError, SettingsError
from mnist_ray.run import layout, tables
from mnist_ray.storage import RunStorage
from mnist_ray.study import journal
from mnist_ray.study.objectives import directions
from mnist_ray.study.suggestions import Space, check_space
from mnist_ray.study.trials import RUN, SOURCE, read_trials

# User attribute of the study: the facts that make its trials' values comparable.
PURPOSE = "mnist_ray:purpose"
# Of a purpose: studies of older versions lack some of them, those of --train all.
LATER = ("val_by", "images_sha256", "dataset", "train_images", "val_images")


def open_study(  # noqa: PLR0913
    storage: BaseStorage,
    name: str,
    metric: str,
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner | None = None,
    purpose: Mapping[str, Any] | None = None,
    objectives: Sequence[str] = (),
    space: Space | None = None,
) -> optuna.Study:
    """The study of that name, made if there is none.

    Args:
        storage: see storages.opened.
        name: the study's name.
        metric: the goal, see `objectives.goal`.
        sampler: asked for each trial's values.
        pruner: asked after each epoch; None stops nothing.
        purpose: the facts that make values comparable (data set, space, metric, …): noted in a new
            study and compared with an old one's.
        objectives: their names if the study has several; () for the metric alone.
        space: compared with the trials that are there.

    Raises:
        SettingsError: the study is another's (see check_study).
    """
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        sampler=sampler,
        pruner=pruner or optuna.pruners.NopPruner(),
        load_if_exists=True,
        directions=directions(objectives, metric),
    )
    check_study(study, metric, purpose, space, objectives)
    if objectives and not study.metric_names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(objectives))
    if purpose and PURPOSE not in study.user_attrs:
        study.set_user_attr(PURPOSE, dict(purpose))
    if isinstance(study.pruner, optuna.pruners.HyperbandPruner):
        # It lays out its brackets when it is first asked. Until then the sampler would be shown
        # other trials than after a resume.
        study.pruner.prune(study, optuna.trial.create_trial(state=TrialState.RUNNING))
    return study


def existing(storage: BaseStorage, name: str) -> optuna.Study | None:
    """The study of that name, or None."""
    try:
        return optuna.load_study(
            study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler()
        )
    except KeyError:
        return None


def of_run(storage: RunStorage, name: str, run: str, metric: str) -> optuna.Study | None:
    """The study in a run's study.journal, to be read only; None of a run without any trial.

    It alone says which trials there are: without it all would be trained again.

    Raises:
        SettingsError: it is damaged, or lacks what the run has done.
    """
    try:
        study = existing(journal.read(storage, layout.JOURNAL), name)
        known = bool(study and read_trials(study, run, metric))
        done = 0
        if not known and storage.exists(layout.TRIALS):
            done = tables.read(storage, layout.TRIALS).num_rows
    except CorruptFileError as error:
        raise SettingsError(f"--resume: {error}") from error
    if done:
        found = "has no trial of this run" if storage.exists(layout.JOURNAL) else "is missing"
        raise SettingsError(
            f"--resume: {storage.join(layout.JOURNAL)} {found}, though {layout.TRIALS} has {done}: "
            "put back a copy of it, or begin anew with another --name or --overwrite"
        )
    return study


def check_study(
    study: optuna.Study,
    metric: str,
    purpose: Mapping[str, Any] | None = None,
    space: Space | None = None,
    objectives: Sequence[str] = (),
) -> None:
    """Whether the study is one for this search; arguments as in open_study.

    Raises:
        SettingsError: it optimises the other way, was made for another purpose, or its trials
            contradict the space.
    """
    name = study.study_name
    found = [direction.name.lower() for direction in study.directions]
    wanted = directions(objectives, metric)
    if found != wanted:
        several = bool(objectives) or len(found) > 1
        flag = "--objectives" if several else "--metric"
        hint = "; give another --study-name" if several else ""
        raise SettingsError(
            f"{flag}: {','.join(objectives) or metric} is to {', '.join(wanted)}, "
            f"but study {name!r} is to {', '.join(found)} already{hint}"
        )
    noted = study.user_attrs.get(PURPOSE, {})
    if purpose and noted and (keys := differing(noted, purpose)):
        theirs = ", ".join(f"{key}={noted.get(key)!r}" for key in keys)
        raise SettingsError(
            f"--study-name: study {name!r} is there already for {theirs}, "
            "unlike this search; give another name"
        )
    if space:
        check_space(name, study.get_trials(deepcopy=False), space)


def differing(noted: Mapping[str, Any], purpose: Mapping[str, Any]) -> list[str]:
    """The keys in which a study's purpose is not a search's; an older study lacks some of them."""
    return [
        key
        for key in {**noted, **purpose}
        if noted.get(key) != purpose.get(key) and not (key in LATER and key not in noted)
    ]


def check_run(study: optuna.Study, run: str) -> None:
    """SettingsError if a run of that name, not the one that begins now, has trials in it."""
    if any(trial.user_attrs.get(RUN) == run for trial in study.get_trials(deepcopy=False)):
        raise SettingsError(
            f"--name: a run {run!r} has trials in study {study.study_name!r} already; "
            "give another --name or --study-name"
        )


def check_alone(study: optuna.Study, run: str) -> None:
    """SettingsError if other searches have trials in the study."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if SOURCE not in trial.user_attrs]
    others = sorted({trial.user_attrs.get(RUN, "unknown") for trial in trials} - {run})
    if others:
        raise SettingsError(
            f"--deterministic: study {study.study_name!r} has trials of {others[0]!r}; "
            "give a --study-name of its own"
        )
