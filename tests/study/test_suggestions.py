"""A space that prunes or fails: in its ranges, in points, and where it has no suggestion at all."""

import json
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FixedTrial

from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.study.points import read_points
from mnist_ray.study.suggestions import (
    RESERVED,
    Refusal,
    check_space,
    check_suggests,
    drawn,
    ranges,
    suggested,
)
from mnist_ray.tune.trial import NUMBER, RETRAINS
from tests.support.studies import one_line


def refusing(trial: optuna.Trial) -> dict[str, Any]:
    """Prunes where kind is "pruned", has a slip where it is "slip"."""
    kind = trial.suggest_categorical("kind", ["fine", "pruned", "slip"])
    if kind == "pruned":
        raise optuna.TrialPruned("no such network")
    if kind == "slip":
        return {"n": trial.suggest_int("n", 1, 3), "typo": trial.params["m"]}
    return {"lr": trial.suggest_float("lr", 0, 1)}


def of(kind: str) -> Any:
    return suggested(refusing, optuna.trial.FixedTrial({"kind": kind, "n": 2, "lr": 0.5}))  # type: ignore[arg-type]


def test_why_a_space_gives_nothing() -> None:
    assert of("fine") == {"lr": 0.5}
    assert of("pruned") == Refusal("pruned by the space: no such network", pruned=True)
    slip = of("slip")
    assert slip.reason.startswith("KeyError: 'm' (study/test_suggestions.py:")
    assert isinstance(slip.error, KeyError)
    assert not slip.pruned


def test_what_is_no_dict_is_refused() -> None:
    trial = optuna.create_study().ask()
    assert suggested(lambda trial: 3, trial) == Refusal(  # type: ignore[arg-type,return-value]
        "the space returned a int; expected a dict"
    )


def test_errors_of_ours_end_the_search() -> None:
    def away(trial: optuna.Trial) -> dict[str, Any]:
        raise WorkError("the server is away")

    with pytest.raises(WorkError):
        suggested(away, optuna.create_study().ask())


def test_a_file_that_a_space_lacks_is_one_line_with_its_place() -> None:
    def away(trial: optuna.Trial) -> dict[str, Any]:
        return json.loads(Path("no-such-file.json").read_text())

    with pytest.raises(SettingsError) as caught:
        check_suggests(away, "mine:away")
    assert "FileNotFoundError: [Errno 2] No such file" in one_line(caught)
    assert "test_suggestions.py:" in one_line(caught)


def test_one_that_leaves_ends_its_trial() -> None:
    refusal = suggested(lambda trial: sys.exit(3), optuna.create_study().ask())
    assert isinstance(refusal, Refusal)
    assert refusal.reason.startswith("the code called sys.exit(3) (study/test_suggestions.py:")


def test_ranges_are_those_of_all_branches() -> None:
    assert set(ranges(refusing)) == {"kind", "n", "lr"}


def test_a_space_without_any_suggestion_is_refused() -> None:
    check_suggests(refusing, "mine:refusing")

    def never(trial: optuna.Trial) -> dict[str, Any]:
        return {"n": trial.suggest_int("n", 5, 3)}

    with pytest.raises(SettingsError) as caught:
        check_suggests(never, "mine:never")
    assert one_line(caught).startswith("--space: 'mine:never' gives no suggestion")
    assert "test_suggestions.py:" in one_line(caught)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("- {kind: fine}\n- {lr: 0.5}", None),
        ("- {kind: pruned}", "point 1: pruned by the space: no such network"),
        ("- {kind: fine}\n- {kind: slip}", "point 2: KeyError"),
        ("- {kind: fine, n: 2}", "unknown parameter 'n'"),
    ],
)
def test_points_of_such_a_space(tmp_path: Path, text: str, named: str | None) -> None:
    (tmp_path / "p.yaml").write_text(text)
    if named is None:
        assert read_points(str(tmp_path / "p.yaml"), refusing) == [{"kind": "fine"}, {"lr": 0.5}]
        return
    with pytest.raises(SettingsError) as caught:
        read_points(str(tmp_path / "p.yaml"), refusing)
    assert named in one_line(caught)


@pytest.mark.parametrize("choices", [[(16, 32), (32, 64)], [[1], [2]], np.arange(16, 65, 16)])
def test_choices_that_a_study_cannot_keep_are_refused(choices: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        check_suggests(lambda trial: {"k": trial.suggest_categorical("k", choices)}, "mine:space")
    assert one_line(caught).startswith("--space: 'mine:space' suggests 'k' among ")
    assert one_line(caught).endswith("a choice may be None, bool, int, float or str")


@pytest.mark.parametrize("key", [NUMBER, RETRAINS])
def test_a_key_of_the_engine_is_refused(key: str) -> None:
    assert key.startswith(RESERVED)
    with pytest.raises(SettingsError) as caught:
        check_suggests(lambda trial: {key: trial.suggest_int("n", 1, 3)}, "mine:space")
    assert one_line(caught) == (
        f"--space: 'mine:space' returns the key '{key}'; "
        "keys that begin with mnist_ray: are not allowed"
    )


class Awkward:
    """Neither compared nor written."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")

    __hash__ = None  # type: ignore[assignment]

    def tolist(self) -> None:
        raise ValueError("no list")


@pytest.mark.parametrize(
    "others",
    [
        lambda trial: {"number": trial.number, "seed": 7 * trial.number},
        lambda trial: {"nan": math.nan, "many": [math.nan, None, (1, 2)]},
        lambda trial: {"array": np.zeros(3), "scalar": np.float32(0.1), "whole": np.int64(3)},
        lambda trial: {"object": object(), "function": lambda: 0, "set": {1, 2}, "odd": Awkward()},
        lambda trial: {"nested": {"a": [np.ones(2), object()], 3: "b"}},
        lambda trial: trial.set_user_attr("seen", True) or {},
    ],
)
def test_values_that_do_not_compare_are_no_reason_to_refuse(
    others: Callable[[optuna.Trial], dict[str, Any]],
) -> None:
    def mine(trial: optuna.Trial) -> dict[str, Any]:
        return {"x": trial.suggest_float("x", 0, 1), **others(trial)}

    assert "x" in check_suggests(mine, "mine:space")


@pytest.mark.parametrize(
    ("others", "named"),
    [
        (lambda trial: {"n": len(trial.study.trials)}, "AttributeError: .*'study'"),
        (
            lambda trial: {"seed": random.uniform(0.1, 0.9)},
            r"'seed' is 0\.\d+ the first time and 0\.",
        ),
        (
            lambda trial: {"a": np.array([random.uniform(0.1, 0.9)])},
            r"'a' is \[0\.\d+\] the",
        ),
        (
            lambda trial: {} if isinstance(trial, FixedTrial) else {"late": 1},
            "'late' is 1 the first time and missing the second",
        ),
    ],
)
def test_a_space_that_depends_on_more_than_its_suggestions_is_refused(
    others: Callable[[optuna.Trial], dict[str, Any]], named: str
) -> None:
    """--confirm and a resume would train another configuration under the trial's number."""

    def mine(trial: optuna.Trial) -> dict[str, Any]:
        return {"x": trial.suggest_float("x", 0, 1), **others(trial)}

    with pytest.raises(SettingsError, match=f"^--space: 'odd' depends on more .*: {named}"):
        check_suggests(mine, "odd")


def dependent(trial: optuna.Trial) -> dict[str, Any]:
    """Its ranges depend on what was suggested before."""
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    return {"least": trial.suggest_float("least", 1e-6, lr, log=True)}


def test_a_range_that_depends_on_another_parameter_is_its_own_study_s() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=7))
    for _ in range(5):
        dependent(study.ask())
    trials = study.get_trials()
    assert ranges(dependent)["least"].isdisjoint({t.distributions["least"] for t in trials})
    check_space("s", trials, dependent)

    def other(trial: optuna.Trial) -> dict[str, Any]:
        lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        return {"least": trial.suggest_float("least", 0, lr)}

    with pytest.raises(SettingsError, match="'least' is FloatDistribution"):
        check_space("s", trials, other)


def test_drawn_suggestions_are_those_that_the_space_gives() -> None:
    found = drawn(refusing, optuna.samplers.RandomSampler(seed=0), 9)
    assert len(found) == 9
    assert all(set(hp) == {"lr"} for hp in found)
    pruned: Any = lambda trial: refusing(FixedTrial({"kind": "pruned"}))  # type: ignore[arg-type] # noqa: E731
    assert drawn(pruned, optuna.samplers.RandomSampler(seed=0), 9) == []
