"""--constraint: limits that the winner must keep, and how far a trial is from them.

A row of an epoch has the sum of its violations: 0 where it keeps all limits. An infeasible epoch is
worse than every feasible one, whatever its value (see `records.rank`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mnist_ray.errors import SettingsError
from mnist_ray.settings import objectives

if TYPE_CHECKING:
    from mnist_ray.settings import SearchSettings

Measured = Mapping[str, float | None]
"""Name of a limit -> its value for one trial; None where it is not known."""

BEFORE_TRAINING = ("parameters", "latency", "size")
"""Known of a network before its first epoch."""
NAMES = (*BEFORE_TRAINING, "accuracy")
AT_LEAST = ("accuracy",)  # of all others less is better
UNITS = {"": 1, "k": 1e3, "M": 1e6, "kB": 1e3, "MB": 1e6}
FORMATS = {"parameters": ",.0f", "latency": ".3f", "size": ",.0f", "accuracy": ".4f"}
FLAG = "--constraint"


@dataclass(frozen=True)
class Constraint:
    """One limit.

    Attributes:
        name: One of NAMES: trainable numbers, milliseconds of one image, bytes of the ONNX file,
            or the validation accuracy of the trial's best epoch.
        limit: More than 0; an accuracy at most 1.
    """

    name: str
    limit: float

    def excess(self, value: float) -> float:
        """How far a value is beyond the limit, as a share of it; 0 or less where it is kept."""
        over = value / self.limit - 1
        return -over if self.name in AT_LEAST else over

    def __str__(self) -> str:
        sign = ">=" if self.name in AT_LEAST else "<="
        return f"{self.name}{sign}{self.limit:{',.0f' if self.limit >= 1000 else 'g'}}"


def read(texts: Sequence[str]) -> tuple[Constraint, ...]:
    """The limits that --constraint gives, as `parameters<=50000`, `size<=200kB`, `accuracy>=0.97`.

    Raises:
        SettingsError: One is unknown, or given twice, or its number is not allowed.
    """
    found: dict[str, Constraint] = {}
    for text in texts:
        match = re.fullmatch(
            r"\s*(\w+)\s*(<=|>=)\s*([\d._]+(?:e[+-]?\d+)?)\s*(k|M|kB|MB)?\s*", text
        )
        name = match[1] if match else ""
        if not match or name not in NAMES:
            raise SettingsError(
                f"{FLAG}: {text!r} is not allowed; expected {', '.join(map(_form, NAMES))}"
            )
        if match[2] != (">=" if name in AT_LEAST else "<="):
            raise SettingsError(f"{FLAG}: {text!r} is not allowed; expected {_form(name)}")
        if name in found:
            raise SettingsError(f"{FLAG}: {name} is limited twice; give it once")
        try:
            limit = float(match[3]) * UNITS[match[4] or ""]
        except ValueError:
            limit = 0
        if not 0 < limit < float("inf") or (name in AT_LEAST and limit > 1):
            most = " and at most 1" if name in AT_LEAST else ""
            raise SettingsError(f"{FLAG}: {text!r}: expected a number above 0{most}")
        found[name] = Constraint(name, limit)
    return tuple(found.values())


def _form(name: str) -> str:
    return f"{name}{'>=' if name in AT_LEAST else '<='}N"


def check(settings: "SearchSettings") -> None:
    """Raises SettingsError, naming --constraint, if other settings contradict it."""
    s, limited = settings, {each.name for each in read(settings.constraint)}
    if not limited:
        return
    if s.scheduler == "pbt":
        raise SettingsError(
            f"{FLAG}: with --scheduler pbt no sampler could keep to limits; give asha or none"
        )
    if s.deterministic and "latency" in limited:
        raise SettingsError(
            f"{FLAG}: latency is measured, and never twice the same: --deterministic excludes it"
        )
    check_committee(s.constraint, s.committee)


def check_committee(texts: Sequence[str], committee: int) -> None:
    """Raises SettingsError if the limits of one network would be broken by a file of several."""
    sizes = [each for each in read(texts) if each.name in BEFORE_TRAINING]
    if sizes and committee > 1:
        raise SettingsError(
            f"--committee: {committee} networks in one file are beyond --constraint {sizes[0]}, "
            "which is for one; give --committee 1"
        )


def purpose(texts: Sequence[str]) -> dict[str, list[str]]:
    """The limits as searches that share a study must agree in them; {} where there are none."""
    return {"constraint": sorted(map(str, read(texts)))} if texts else {}


def wanted(settings: Mapping[str, object], name: str) -> bool:
    """Whether a search measures it: as an objective, or to keep a limit."""
    texts, several = settings.get("constraint"), settings.get("objectives")
    limits = read(texts) if isinstance(texts, list | tuple) else ()
    chosen = objectives.names(several) if isinstance(several, str) else ()
    return name in chosen or any(each.name == name for each in limits)


def excesses(constraints: Sequence[Constraint], measured: Measured) -> dict[str, float]:
    """Name -> how far the value is beyond the limit, of the values that are known."""
    values = [(each, measured.get(each.name)) for each in constraints]
    return {each.name: each.excess(value) for each, value in values if value is not None}


def violation(constraints: Sequence[Constraint], measured: Measured) -> float:
    """The sum of what is beyond a limit; 0 where all limits are kept that are known."""
    return sum(max(0.0, excess) for excess in excesses(constraints, measured).values())


def unfit(constraints: Sequence[Constraint], measured: Measured) -> str:
    """As `broken`, of the limits that no training changes."""
    return broken([each for each in constraints if each.name in BEFORE_TRAINING], measured)


def broken(constraints: Sequence[Constraint], measured: Measured) -> str:
    """The values beyond their limits, as "parameters=61,002, not parameters<=50,000"."""
    over = {name for name, excess in excesses(constraints, measured).items() if excess > 0}
    return "; ".join(
        f"{each.name}={measured[each.name]:{FORMATS[each.name]}}, not {each}"
        for each in constraints
        if each.name in over
    )
