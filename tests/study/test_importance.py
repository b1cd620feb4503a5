"""The three measures of importance: what they find, what they leave out, on how many trials."""

import random
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial

from mnist_ray.study import importance

optuna.logging.set_verbosity(optuna.logging.ERROR)


def trials(
    n: int, value: Any = None, names: tuple[str, ...] = ("strong", "weak", "none")
) -> list[FrozenTrial]:
    """Complete trials of random points; `strong` decides most of the value; every second trial has
    `branch` too.
    """
    generator = random.Random(1)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for i in range(n):
        trial = study.ask()
        for name in names:
            trial.suggest_float(name, 0, 1)
        if i % 2:
            trial.suggest_int("branch", 0, 9)
        point = trial.params
        study.tell(
            trial,
            value
            if value is not None
            else 5 * point["strong"] + point["weak"] + 0.1 * generator.random(),
        )
    return study.get_trials()


def test_each_measure_finds_what_decides() -> None:
    found = importance.importances(trials(60), "maximize")
    assert list(found) == ["fANOVA", "impurity", "PED-ANOVA"]
    for shares in found.values():
        assert max(shares, key=lambda name: shares[name]) == "strong"
        assert sum(shares.values()) == pytest.approx(1)
    # the forests know only what all trials have
    assert "branch" not in found["fANOVA"]
    assert "branch" not in found["impurity"]


def test_the_same_trials_give_the_same_shares() -> None:
    assert importance.importances(trials(30), "maximize") == importance.importances(
        trials(30), "maximize"
    )


def test_the_direction_matters_to_what_asks_for_the_best() -> None:
    """A parameter that decides only among the good ones is important to find the highest values,
    not the lowest.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(100):
        trial = study.ask()
        first, second = trial.suggest_float("first", 0, 1), trial.suggest_float("second", 0, 1)
        study.tell(trial, 1 + second if first > 0.5 else first)
    up, down = (
        importance.importances(study.trials, d)["PED-ANOVA"]["second"]
        for d in ("maximize", "minimize")
    )  # type: ignore[arg-type]
    assert up > 2 * down


def test_the_table_has_a_line_for_each_parameter_and_a_dash_for_what_a_measure_does_not_know() -> (
    None
):
    lines = importance.text(trials(40), "maximize").splitlines()
    assert lines[0] == "importance of each parameter, from 40 complete trials:"
    assert lines[1].split() == ["parameter", "fANOVA", "impurity", "PED-ANOVA"]
    assert lines[2].startswith("strong")
    cells = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert set(cells) == {"strong", "weak", "none", "branch"}
    assert cells["branch"][:2] == ["-", "-"]


def test_one_line_says_why_there_is_no_table() -> None:
    assert importance.text(trials(7), "maximize") == (
        "importance of each parameter: none from 7 complete trials, it needs 8"
    )
    assert importance.text(trials(9, value=1.0), "maximize").endswith(
        "from 9 complete trials, all have one value"
    )
    assert importance.text([], "maximize").count("\n") == 0


def test_a_space_whose_trials_share_no_parameter() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for i in range(12):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("even" if i % 2 else "odd", 0, 1))
    found = importance.importances(study.trials, "maximize")
    assert found["fANOVA"] == found["impurity"] == {}
    assert importance.text(study.trials, "maximize").startswith(
        "importance of each parameter, from 12"
    )


def test_of_too_many_trials_the_forests_see_a_draw_and_the_table_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importance, "MOST", 20)
    text = importance.text(trials(50), "maximize")
    assert text.splitlines()[0].endswith(
        "from 50 complete trials; fANOVA, impurity: from 20 of them, drawn at random:"
    )
    assert text.splitlines()[2].startswith("strong")


def test_the_forests_grow_on_so_many_trials_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """fANOVA's seconds grow faster than the trials: 3 s for 300, 18 s for 1,000."""
    seen: dict[str, int] = {}
    shares = optuna.importance.get_param_importances

    def noted(study: optuna.Study, *, evaluator: Any) -> dict[str, float]:
        seen[type(evaluator).__name__] = len(study.trials)
        return shares(study, evaluator=evaluator)

    monkeypatch.setattr(optuna.importance, "get_param_importances", noted)
    monkeypatch.setattr(importance, "MOST", 20)
    importance.importances(trials(50), "maximize")
    assert seen == {
        "FanovaImportanceEvaluator": 20,
        "MeanDecreaseImpurityImportanceEvaluator": 20,
        "PedAnovaImportanceEvaluator": 50,
    }
