"""--portfolio: a few configurations that were good on other data sets are tried first."""

import contextlib
from typing import Any

from mnist_ray.errors import SettingsError
from mnist_ray.settings import SearchSettings, load_yaml
from mnist_ray.settings.text import RECIPES
from mnist_ray.study.points import checked, read_points
from mnist_ray.study.suggestions import Space, ranges

FLAG = "--portfolio"
FILE = str(RECIPES / "points" / "portfolio.yaml")
# Data sets of one family are alike: none of them may have had a part in the others' portfolio.
FAMILIES = {
    "mnist": "digits",
    "digits": "digits",
    "kmnist": "characters",
    "fashion-mnist": "clothes",
    "cifar10": "photos",
}


def starting_points(settings: SearchSettings, space: Space) -> list[dict[str, Any]]:
    """The configurations that are tried first: those of --points, then those of --portfolio.

    Raises:
        SettingsError: A file cannot be read, or names what the space has not.
    """
    given = read_points(settings.points, space) if settings.points else []
    return given + [point for point in _portfolio(settings, space) if point not in given]


def _portfolio(settings: SearchSettings, space: Space) -> list[dict[str, Any]]:
    """The points of a file, or those that benchmarks/portfolio.py has made for the data set.

    Of the latter a value is left out that --space-args fix, and a whole one if the space has it
    not with these --space-args.
    """
    if settings.portfolio == "none":
        return []
    if settings.portfolio != "auto":
        return read_points(settings.portfolio, space, FLAG)
    found: list[dict[str, Any]] = []
    for point in made(settings.space, FAMILIES.get(settings.dataset, "none")):
        with contextlib.suppress(SettingsError):
            free = _free(point, space)
            found += [free] if free not in found else []
    if not found and "portfolio" in settings.given:
        which = f"space {settings.space!r} and data set {settings.dataset!r}"
        print(f"{FLAG} auto: there is none for {which}", flush=True)
    return found


def _free(point: dict[str, Any], space: Space) -> dict[str, Any]:
    """The point, without the values that the space fixes. Raises SettingsError as `checked`."""
    try:
        return checked(FLAG, point, space)
    except SettingsError:
        known = ranges(space)
        fixed = {name for name, each in known.items() if all(d.single() for d in each)}
        free = {k: v for k, v in point.items() if k in known.keys() - fixed}
        return checked(FLAG, free, space)


def made(space: str, family: str) -> list[dict[str, Any]]:
    """The packaged portfolio of a space, made without a family of data sets; none: of all."""
    made: dict[str, dict[str, list[dict[str, Any]]]] = load_yaml(FILE, FLAG)
    return made.get(space, {}).get(family, [])
