"""A space that prunes or fails: in its ranges, in points, and where it has no suggestion at all."""

from pathlib import Path
from typing import Any

import optuna
import pytest

from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.study.points import read_points
from mnist_ray.study.suggestions import Refusal, check_suggests, ranges, suggested
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
