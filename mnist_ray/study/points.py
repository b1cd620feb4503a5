"""--points: known good configurations, read from a YAML file and checked against the space."""

import warnings
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from mnist_ray.errors import SettingsError
from mnist_ray.settings import load_yaml, packaged
from mnist_ray.study.suggestions import Refusal, Space, suggested


def read_points(path: str, space: Space, flag: str = "--points") -> list[dict[str, Any]]:
    """The configurations of a YAML file: a list of mappings from suggested names to values.

    A point may leave parameters out: the sampler suggests those.

    Raises:
        SettingsError: a name is unknown to the space or a value is outside its range; the message
            has file and point.
    """
    points = load_yaml(packaged(path), f"{flag}: {path}")
    if (
        not isinstance(points, list)
        or not points
        or not all(isinstance(point, dict) and point for point in points)
    ):
        raise SettingsError(
            f"{flag}: {path}: expected a list of mappings from parameters to values"
        )
    return [
        checked(f"{flag}: {path}: point {i}", point, space)
        for i, point in enumerate(points, start=1)
    ]


def checked(where: str, point: dict[Any, Any], space: Space) -> dict[str, Any]:
    """The point with its values in the space's types.

    Raises:
        SettingsError: Begins with `where`: the space has not such a point.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    result: dict[str, Any] = {}
    met: set[str] = set()
    refusal, succeeded = None, False
    for _ in range(50):  # a value left out may decide which parameters there are
        study.enqueue_trial({str(k): v for k, v in point.items()})
        trial = study.ask()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # values out of range are refused below
            hp = suggested(space, trial)
        met |= trial.distributions.keys()
        for name in trial.distributions.keys() & point.keys():
            result[name] = _value(f"{where}: {name}", point[name], trial.distributions[name])
        if isinstance(hp, Refusal):
            refusal = hp
            continue
        if point.keys() <= result.keys():
            return {name: result[name] for name in point}
        succeeded = True
    unknown = sorted(map(str, point.keys() - result.keys()))
    if refusal is not None and not (succeeded and unknown):
        raise SettingsError(f"{where}: {refusal.reason}")
    raise SettingsError(
        f"{where}: unknown parameter {unknown[0]!r}; "
        f"with the point's other values the space has {', '.join(sorted(met))}"
    )


def _value(where: str, value: Any, distribution: BaseDistribution) -> Any:
    """The value in the parameter's type; SettingsError if the parameter cannot have it."""
    number = isinstance(distribution, FloatDistribution | IntDistribution)
    try:
        if number and isinstance(value, bool):
            raise ValueError
        # Checks that the distribution contains it.
        optuna.trial.create_trial(
            state=TrialState.RUNNING, params={"x": value}, distributions={"x": distribution}
        )
        return distribution.to_external_repr(distribution.to_internal_repr(value))
    except (ValueError, TypeError):
        raise SettingsError(f"{where}: {value!r} is not allowed; expected {distribution}") from None
