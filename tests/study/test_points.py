"""--points: read in the space's types, and refused by file and point."""

from pathlib import Path
from typing import Any

import optuna
import pytest

from mnist_ray.errors import SettingsError
from mnist_ray.study.points import read_points
from tests.support.studies import one_line


def branching(trial: optuna.Trial) -> dict[str, Any]:
    hp: dict[str, Any] = {
        "lr": trial.suggest_float("lr", 1e-4, 1, log=True),
        "n": trial.suggest_int("n", 2, 8, step=2),
    }
    if trial.suggest_categorical("kind", ["plain", "deep"]) == "deep":
        hp["depth"] = trial.suggest_int("depth", 1, 9)
    return hp


def test_points_are_read_in_the_space_s_types(tmp_path: Path) -> None:
    file = tmp_path / "points.yaml"
    file.write_text(
        "- {lr: 1e-3, n: 4.0, kind: plain}\n- {depth: 3}\n- {lr: 1, kind: deep}\n"
    )  # YAML reads 1e-3 as text
    points = read_points(str(file), branching)
    assert points == [
        {"lr": 0.001, "n": 4, "kind": "plain"},
        {"depth": 3},
        {"lr": 1.0, "kind": "deep"},
    ]
    assert [type(v) for point in points for v in point.values()] == [
        float,
        int,
        str,
        int,
        float,
        str,
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lr: 1", "expected a list"),
        ("[]", "expected a list"),
        ("- 3", "expected a list"),
        ("- {lr: 2}", "point 1: lr: 2 is not allowed"),
        ("- {lr: 0.1}\n- {n: 3}", "point 2: n: 3 is not allowed"),
        ("- {n: true}", "point 1: n: True"),
        ("- {lr: true}", "point 1: lr: True"),
        ("- {lr: fast}", "'fast'"),
        ("- {lr: .nan}", "point 1"),
        ("- {lr: [1]}", "point 1"),
        ("- {kind: flat}", "'flat'"),
        ("- {speed: 1}", "unknown parameter 'speed'"),
        ("- {1: 1}", "unknown parameter '1'"),
        ("- {kind: plain, depth: 3}", "unknown parameter 'depth'"),
        ("- [", "not plain YAML"),
        ("- !!python/object/apply:os.getcwd []", "not plain YAML"),
    ],
)
def test_a_bad_point_names_file_and_point(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "points.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_points(str(file), branching)
    assert one_line(caught).startswith(f"--points: {file}")
    assert named in one_line(caught)


def test_a_missing_file_of_points() -> None:
    with pytest.raises(SettingsError, match="--points: /does/not/exist: cannot be read"):
        read_points("/does/not/exist", branching)
