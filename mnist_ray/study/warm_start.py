"""--warm-start: the trials of an older run or study, for the sampler to learn from."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from mnist_ray.errors import CorruptFileError, SettingsError, WorkError
from mnist_ray.run import layout
from mnist_ray.run.about import About
from mnist_ray.settings import masked
from mnist_ray.settings.constraints import Constraint, excesses
from mnist_ray.settings.secrets import check_unambiguous
from mnist_ray.storage import RunStorage
from mnist_ray.study import journal
from mnist_ray.study.paused import pruned_if_paused
from mnist_ray.study.storages import ALLOWED, SCHEMES, expanded, file_of, opened
from mnist_ray.study.studies import PURPOSE, check_study, differing, existing
from mnist_ray.study.suggestions import Space
from mnist_ray.study.trials import SOURCE, record_of

FLAG = "--warm-start"


def older_trials(
    text: str,
    metric: str,
    purpose: Mapping[str, Any],
    space: Space,
    objectives: Sequence[str] = (),
    limits: Sequence[Constraint] = (),
) -> list[FrozenTrial]:
    """The finished trials of an older run or study, each with SOURCE as its only attribute.

    If the older search differs in its images or epochs, its curves must not be compared with
    this one's: then only complete trials are returned, without intermediate values.

    Args:
        text: the value of --warm-start.
        metric: this search's.
        purpose: this search's, as in studies.open_study.
        space: this search's.
        objectives: this search's.
        limits: of --constraint; trials of which a limited value is not known are left out.

    Raises:
        SettingsError: data set, space or metric are others.
    """
    check_unambiguous(text, FLAG)  # before it is parted at a # that a password may hold
    place, _, name = text.rpartition("#") if "#" in text else (text, "", "")
    with _older_study(place, name) as study:
        name = study.study_name
        noted = study.user_attrs.get(PURPOSE, {})
        check_study(study, metric, None, space, objectives)
        for key in ("dataset", "space", "metric", "objectives"):
            if key in purpose and noted.get(key, purpose[key]) != purpose[key]:
                raise SettingsError(
                    f"{FLAG}: study {name!r} is for {key}={noted[key]!r}, "
                    f"unlike this search with {purpose[key]!r}"
                )
        comparable = not noted or not differing(noted, purpose)
        pruned = (TrialState.PRUNED,) if comparable else ()
        label = f"{masked(place)}#{name}"
        return [
            optuna.trial.create_trial(
                state=trial.state,
                values=trial.values,
                params=trial.params,
                distributions=trial.distributions,
                intermediate_values=trial.intermediate_values if comparable else {},
                user_attrs={SOURCE: [label, trial.number]},
                constraints=beyond,
            )
            for trial in map(pruned_if_paused, study.get_trials())
            if trial.state in (TrialState.COMPLETE, *pruned)
            and trial.params
            and (beyond := _beyond(trial, metric, limits)) is not None
        ]


def _beyond(
    trial: FrozenTrial, metric: str, limits: Sequence[Constraint]
) -> dict[str, float] | None:
    """How far an older trial is beyond each limit; None if a value is not known."""
    try:
        found = excesses(limits, record_of(trial, metric).measured(metric)) if limits else {}
    except ValueError:
        return None
    return found if len(found) == len(limits) else None


@contextlib.contextmanager
def _older_study(place: str, name: str) -> Iterator[optuna.Study]:
    scheme = place.partition("://")[0].partition("+")[0]
    if scheme in SCHEMES or place.endswith(".journal") or place.startswith("${"):
        url = expanded(place, FLAG)
        file = file_of(url)
        if file is not None and "://" not in url and file.is_file():
            file = file.resolve()  # read only: it may be another person's
            with _named_flag(CorruptFileError, WorkError):
                kept = journal.read(RunStorage(str(file.parent)), file.name)
            yield _named(kept, name, masked(place))
            return
        with opened(place, FLAG, new=False) as storage:
            yield _named(storage, name, masked(place))
        return
    run = RunStorage(place)
    if not run.exists(layout.RUN):
        raise SettingsError(
            f"{FLAG}: {masked(place)!r} is neither a run's directory nor a study's place "
            f"({ALLOWED})"
        )
    about = About.read(run, FLAG)
    settings = about.settings
    if settings.get("study"):
        raise SettingsError(
            f"{FLAG}: the run's study is at {masked(str(settings['study']))}: "
            "give that, with #STUDY_NAME behind it"
        )
    with _named_flag(CorruptFileError):
        kept = journal.read(run, layout.JOURNAL)
    yield _named(kept, name or settings.get("study_name") or about.name, place)


@contextlib.contextmanager
def _named_flag(*errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise SettingsError(f"{FLAG}: {error}") from error


def _named(storage: BaseStorage, name: str, shown: str) -> optuna.Study:
    names = optuna.get_all_study_names(storage)
    study = existing(storage, name or names[0]) if name or len(names) == 1 else None
    if study is None:
        raise SettingsError(
            f"{FLAG}: give one of the studies at {shown} as #STUDY_NAME; "
            f"it has {', '.join(sorted(names)) or 'none'}"
        )
    return study
