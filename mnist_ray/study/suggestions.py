"""Asking a search space: its suggestions, its refusals and its ranges.

A space is a person's function. It may raise optuna.TrialPruned for an impossible combination, and
it may have a slip in one branch: both end one trial and not the search.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    check_distribution_compatibility,
)
from optuna.samplers import BaseSampler
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial

from mnist_ray import errors
from mnist_ray.errors import MnistRayError, SettingsError, shortened
from mnist_ray.study.optuna_private import is_contradiction

KEPT = (type(None), bool, int, float, str)  # choices that come out of a study as they went in
RESERVED = "mnist_ray:"  # keys that begin so are this package's: a space may not return them
Space = Callable[[Any], dict[str, Any]]  # of an optuna.Trial or a FixedTrial


@dataclass(frozen=True)
class Refusal:
    """Why a space gave no hyperparameters for a trial: it pruned it, or it failed by an error."""

    reason: str
    pruned: bool = False
    error: BaseException | None = None


def suggested(space: Space, trial: BaseTrial) -> dict[str, Any] | Refusal:
    """The hyperparameters of a trial, or why the space gives none.

    Raises:
        SettingsError: the study has other distributions of a parameter.
        MnistRayError: the space, the sampler or the study's storage raises it.
        Exception: a sampler of one's own raises it.
    """
    try:
        found = space(trial)
    except optuna.TrialPruned as pruned:
        return Refusal(f"pruned by the space{f': {pruned}' if str(pruned) else ''}", pruned=True)
    except MnistRayError:  # of the study's storage too: an OSError is the space's own
        raise
    except (Exception, SystemExit) as error:
        if is_contradiction(error):
            raise SettingsError(f"--space: the study contradicts the space: {error}") from error
        if errors.is_of_own_code(error, below=optuna.Trial.__module__):
            raise  # of a sampler of one's own, which the trial calls
        return Refusal(errors.reason(error), error=error)
    if not isinstance(found, Mapping):
        return Refusal(f"the space returned a {type(found).__name__}; expected a dict")
    return dict(found)


def check_suggests(space: Space, name: str, samples: int = 10) -> dict[str, Any]:
    """Tries so many random suggestions, and more if none of them succeeds; returns the last good.

    Raises:
        SettingsError: naming the last reason, if none succeeds; a choice cannot be kept in a
            study; a key is reserved; the same suggestions give another dict the second time; or
            the space raises it.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    good, reason = None, ""
    for i in range(max(samples, 50)):
        if i >= samples and good is not None:
            break
        trial = study.ask()
        found = suggested(space, trial)
        _check_choices(name, trial.distributions)
        if isinstance(found, Refusal):
            reason = found.reason
        else:
            _check_keys(name, found)
            _check_repeatable(space, name, trial, found)
            good = found
    if good is None:
        raise SettingsError(f"--space: {name!r} gives no suggestion with its options: {reason}")
    return good


def _check_choices(name: str, distributions: Mapping[str, BaseDistribution]) -> None:
    """SettingsError if a choice is none of those that a study gives back as it was."""
    for parameter, distribution in distributions.items():
        if not isinstance(distribution, CategoricalDistribution):
            continue
        for choice in distribution.choices:
            if type(choice) not in KEPT:
                raise SettingsError(
                    f"--space: {name!r} suggests {parameter!r} among {choice!r:.60}, a "
                    f"{type(choice).__name__}; a choice may be None, bool, int, float or str"
                )


def _check_keys(name: str, hp: Mapping[str, Any]) -> None:
    for key in hp:
        if str(key).startswith(RESERVED):
            raise SettingsError(
                f"--space: {name!r} returns the key {key!r}; keys that begin with {RESERVED} are "
                "not allowed"
            )


def _check_repeatable(space: Space, name: str, trial: optuna.Trial, hp: Mapping[str, Any]) -> None:
    """SettingsError if the space gives something else for the same suggestions and number.

    A study keeps nothing else of a trial: --confirm, a resume and the fine-tuning ask the space
    again.
    """
    first = {key: _comparable(value) for key, value in hp.items()}
    again = suggested(space, FixedTrial(trial.params, trial.number))
    if isinstance(again, Refusal):
        why = again.reason
    else:
        second = {key: _comparable(value) for key, value in again.items()}
        if first == second:
            return
        key = next(k for k in {**first, **second} if first.get(k) != second.get(k))
        one, two = (shortened(found.get(key, "missing"), 40) for found in (first, second))
        why = f"{key!r} is {one} the first time and {two} the second"
    raise SettingsError(f"--space: {name!r} depends on more than its suggestions: {why}")


def _comparable(value: Any) -> str:
    """A text that is equal for equal values, also NaN; of objects their type alone is compared."""

    def plain(other: Any) -> Any:  # of NumPy and torch
        return other.tolist() if hasattr(other, "tolist") else type(other).__name__

    try:
        return json.dumps(value, default=plain, sort_keys=True)
    except Exception:  # a person's object fails in any way
        return type(value).__name__


def drawn(space: Space, sampler: BaseSampler, n: int) -> list[dict[str, Any]]:
    """So many suggestions, without those that the space refuses; fewer if it refuses most."""
    study = optuna.create_study(sampler=sampler)
    found = (suggested(space, study.ask()) for _ in range(max(n, 50)))
    return list(itertools.islice((hp for hp in found if not isinstance(hp, Refusal)), n))


def ranges(space: Space, samples: int = 50) -> dict[str, set[BaseDistribution]]:
    """Each parameter that random suggestions meet, with its distributions."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    result: dict[str, set[BaseDistribution]] = {}
    for _ in range(samples):
        trial = study.ask()
        suggested(space, trial)
        for parameter, distribution in trial.distributions.items():
            result.setdefault(parameter, set()).add(distribution)
    return result


def check_space(name: str, trials: Sequence[FrozenTrial], space: Space) -> None:
    """Compares a space with the trials of study `name`.

    Raises:
        SettingsError: the trials were suggested from other ranges than the space has.
    """
    found: dict[str, set[BaseDistribution]] = {}
    for trial in trials:
        for parameter, distribution in trial.distributions.items():
            found.setdefault(parameter, set()).add(distribution)
    if not found:
        return
    known = ranges(space)
    if not found.keys() & known.keys():
        raise SettingsError(
            f"--space: study {name!r} knows none of the parameters of this space, "
            f"but {shortened(', '.join(sorted(found)), 200)}"
        )
    for parameter in sorted(found.keys() & known.keys()):
        if not _may_agree(known[parameter], found[parameter]):
            here, there = (min(map(str, each[parameter])) for each in (known, found))
            raise SettingsError(
                f"--space: {parameter!r} is {there} in study {name!r}, "
                f"but {here} in this space; give another --name or --study-name"
            )


def _may_agree(here: set[BaseDistribution], there: set[BaseDistribution]) -> bool:
    """Whether a space that has some distributions of a parameter may have had others of it.

    A space may give one name several ranges; not all of the study's need be met here. Where a
    range depends on other parameters, no two are equal: Optuna's own rule decides then.
    """
    if not here.isdisjoint(there):
        return True
    return len(here) > 1 and any(_compatible(a, b) for a in here for b in there)


def _compatible(a: BaseDistribution, b: BaseDistribution) -> bool:
    try:
        check_distribution_compatibility(a, b)
    except ValueError:
        return False
    return True
