"""Makes the packaged portfolios: at most four configurations of a space, to be tried first.

    cd benchmarks/curves
    python ../portfolio.py    # of convnet: digits, clothes, letters
    python ../portfolio.py --curves mlp-digits.parquet mlp-clothes.parquet mlp-letters.parquet

The files are those of replay_curves.py, one a data set. They hold the same draws, so that every
configuration was trained on every data set. Points are chosen greedily: the next one is that with
which the best of the portfolio has the smallest mean regret over data sets. Regret is the distance
to the data set's best value, divided by that of the median configuration from it.

For each family of data sets (see study/portfolio.py) a portfolio is made without that family, and
judged on it: its regret beside that of as many random configurations.
"""

import contextlib
import functools
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow.parquet as pq
import yaml
from common import BENCHMARKS, BenchmarkSettings, section
from replay_curves import family, read

from mnist_ray import spaces
from mnist_ray.errors import SettingsError
from mnist_ray.settings import main
from mnist_ray.spaces import DataShape
from mnist_ray.study.points import checked
from mnist_ray.study.portfolio import FAMILIES, FILE

SHAPE = DataShape(1, (28, 28), 10, (0.1307,), (0.3081,))


@dataclass(frozen=True)
class PortfolioSettings(BenchmarkSettings):
    """Choose the starting configurations of a space."""

    curves: tuple[str, ...] = tuple(
        str(BENCHMARKS / "curves" / f"{name}.parquet") for name in ("digits", "clothes", "letters")
    )
    """Files of replay_curves.py, one a data set, of one space."""
    points: int = 4
    """Most configurations of a portfolio."""
    file: str = FILE
    """The file that --portfolio auto reads; its part of the space is replaced."""


def regrets(path: str) -> tuple[str, dict[int, float], dict[int, dict[str, Any]]]:
    """Space, and by number of the draw its regret and its parameters."""
    metadata = pq.read_schema(path).metadata or {}
    rows = read(Path(path))
    last = {row["number"]: max(row["val_accuracy"], default=0.0) for row in rows}
    best, median = max(last.values()), float(np.median(list(last.values())))
    name = metadata[b"space"].decode()
    space = functools.partial(spaces.find(name), data=SHAPE)
    params: dict[int, dict[str, Any]] = {}
    for row in rows:
        with contextlib.suppress(SettingsError):
            params[row["number"]] = checked(name, row["params"], space)
    found = {number: (best - last[number]) / (best - median) for number in params}
    return name, found, params


def greedy(tasks: list[dict[int, float]], most: int) -> list[int]:
    """Numbers of the draws; fewer than `most` if a further one changes nothing."""
    common = sorted(set.intersection(*(set(task) for task in tasks)))
    table = np.array([[task[number] for number in common] for task in tasks])
    best = np.full(len(tasks), np.inf)
    chosen: list[int] = []
    while len(chosen) < most:
        means = np.minimum(table, best[:, None]).mean(0)
        place = int(means.argmin())
        if chosen and means[place] >= best.mean():
            break
        chosen.append(common[place])
        best = np.minimum(best, table[:, place])
    return chosen


def by_chance(task: dict[int, float], n: int) -> float:
    """The mean regret of the best of n random configurations."""
    values, chance = np.array(list(task.values())), np.random.default_rng(0)
    return float(np.mean([chance.choice(values, n, replace=False).min() for _ in range(10_000)]))


def measure(settings: PortfolioSettings) -> None:
    """Writes the file and, with at least two families, the section of the judgement."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    families: dict[str, list[dict[int, float]]] = defaultdict(list)
    names: set[str] = set()
    params: dict[int, dict[str, Any]] = {}
    for path in settings.curves:
        name, task, drawn = regrets(path)
        if any(params.get(number, point) != point for number, point in drawn.items()):
            raise SettingsError(f"--curves: {path} holds other draws than {settings.curves[0]}")
        params |= drawn
        families[family(Path(path))].append(task)
        names.add(name)
    if len(names) != 1:
        raise SettingsError(f"--curves: expected files of one space, not of {sorted(names)}")
    everywhere = set.intersection(*(set(task) for own in families.values() for task in own))
    for own in families.values():
        own[:] = [{number: task[number] for number in sorted(everywhere)} for task in own]
    made: dict[str, list[dict[str, Any]]] = {}
    body = []
    for left_out in ("none", *sorted(set(FAMILIES.values()))):
        tasks = [task for kind, own in families.items() if kind != left_out for task in own]
        chosen = greedy(tasks, settings.points) if tasks else []
        made[left_out] = [dict(params[number]) for number in chosen]  # YAML shows it whole
        for task in families.get(left_out, []) if chosen else []:
            regret = min(task[number] for number in chosen)
            random = by_chance(task, len(chosen))
            body.append([left_out, str(len(chosen)), f"{regret:.3f}", f"{random:.3f}"])
    file = Path(settings.file)
    kept = yaml.safe_load(file.read_text()) if file.exists() else {}
    space = names.pop()
    text = yaml.safe_dump({**kept, space: made}, sort_keys=False)
    comment = "# By benchmarks/portfolio.py: space -> family that had no part in it -> points.\n"
    file.write_text(comment + text)
    if not body:
        print("not judged: that needs curves of at least two families of data", flush=True)
        return
    section(
        f"Portfolios of {space}, judged on the family that was left out",
        ["family left out", "configurations", "regret of the best", "of as many random ones"],
        body,
        n=f"{len(settings.curves)} data sets of {len(families)} families",
        out=settings.out,
    )


if __name__ == "__main__":
    main(PortfolioSettings, measure)
