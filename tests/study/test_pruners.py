"""Pruners by name: what the settings make of them, and refusals in one line."""

import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import pruners
from optuna.trial import TrialState

from mnist_ray.errors import SettingsError
from mnist_ray.settings import SearchSettings, parse
from mnist_ray.settings.text import RECIPES
from mnist_ray.study.pruners import NAMES, read_scheduler


def made(scheduler: str, *args: str, **others: Any) -> optuna.pruners.BasePruner | None:
    return read_scheduler(
        SearchSettings(scheduler=scheduler, scheduler_args=args, **others)
    ).pruner()


def curve_is_stopped(
    pruner: optuna.pruners.BasePruner | None, curve: list[float], others: list[list[float]]
) -> int | None:
    """The epoch after which a trial with that curve is stopped, where the others are complete; None
    where it is not.
    """
    assert pruner is not None
    study = optuna.create_study(
        direction="maximize",
        pruner=pruner,
        sampler=optuna.samplers.RandomSampler(),
        study_name="of the test",
    )
    for other in others:
        trial = study.ask()
        for epoch, value in enumerate(other, start=1):
            trial.report(value, epoch)
            trial.should_prune()  # as it is asked in a run; they are complete whatever it says
        study.tell(trial, other[-1])
    trial = study.ask()
    for epoch, value in enumerate(curve, start=1):
        trial.report(value, epoch)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return epoch
    return None


RISING = [[0.1 * epoch for epoch in range(1, 10)]] * 6


@pytest.mark.parametrize(
    ("scheduler", "args", "grace", "expected"),
    [
        ("median", (), 1, 1),
        ("median", (), 4, 4),
        ("median", ("n_startup_trials=7",), 1, None),
        ("percentile", ("percentile=100",), 1, 1),
        ("percentile", ("percentile=100", "interval_steps=3"), 2, 2),
        ("successive-halving", (), 2, 2),
        ("successive-halving", ("min_early_stopping_rate=1",), 2, 6),
        ("threshold", ("lower=0.02",), 3, 3),
        ("threshold", ("lower=-1", "upper=1"), 1, None),
        ("patient", ("patience=3",), 1, 5),
        ("patient", ("wraps=none", "patience=1"), 1, 3),
        ("patient", ("wraps=percentile", "percentile=100", "patience=0"), 1, 2),
        ("patient", ("wraps=threshold", "lower=-1", "patience=0"), 1, None),
    ],
)
def test_when_a_falling_curve_is_stopped(
    scheduler: str, args: tuple[str, ...], grace: int, expected: int | None
) -> None:
    pruner = made(scheduler, *args, grace_period=grace, max_epochs=9)
    assert (
        curve_is_stopped(pruner, [0.01 - 0.001 * epoch for epoch in range(1, 10)], RISING)
        == expected
    )
    assert (
        curve_is_stopped(
            made(scheduler, *args, grace_period=grace, max_epochs=9),
            [0.2 * epoch for epoch in range(1, 5)],
            RISING,
        )
        is None
    )


@pytest.mark.parametrize(
    ("max_epochs", "rung"),
    [(1, 1), (4, 1), (5, 1), (6, 2), (8, 2), (10, 2), (24, 2), (25, 3), (52, 5), (100, 10)],
)
def test_the_first_rung_is_at_a_tenth_of_the_epochs(max_epochs: int, rung: int) -> None:
    for options in ({}, {"deterministic": True}, {"objectives": "accuracy,parameters"}):
        settings = SearchSettings.of(max_epochs=max_epochs, **options)
        assert read_scheduler(settings).grace_period == rung
    given = SearchSettings(max_epochs=max_epochs, grace_period=1)
    assert read_scheduler(given).grace_period == 1


@pytest.mark.parametrize("scheduler", ["hyperband", "median", "patient", "none", "pbt"])
def test_other_schedulers_may_stop_a_trial_after_one_epoch(scheduler: str) -> None:
    settings = SearchSettings(max_epochs=52, scheduler=scheduler)
    assert read_scheduler(settings).grace_period == 1


SEARCHES = [path for path in sorted(RECIPES.glob("*.yaml")) if "stages-" not in path.name]


@pytest.mark.parametrize("recipe", SEARCHES, ids=lambda path: path.stem)
def test_recipes_keep_their_first_rung(recipe: Path) -> None:
    settings = parse(SearchSettings, ["--config", str(recipe)])
    assert read_scheduler(settings).grace_period == (3 if recipe.stem == "s5-vgg" else 1)


def test_hyperband_takes_its_layout_from_the_settings() -> None:
    pruner = made("hyperband", grace_period=2, max_epochs=18, reduction_factor=3.0)
    assert isinstance(pruner, pruners.HyperbandPruner)
    study = optuna.create_study(study_name="layout", pruner=pruner)
    pruner.prune(study, optuna.trial.create_trial(state=TrialState.RUNNING))
    assert [
        (p._min_resource, p._reduction_factor, p._min_early_stopping_rate) for p in pruner._pruners
    ] == [
        (2, 3, 0),
        (2, 3, 1),
        (2, 3, 2),
    ]


def test_asha_and_none_are_no_pruners() -> None:
    assert made("asha") is None
    assert made("none") is None


def test_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_pruner.py").write_text(
        "import optuna\n"
        "class Odd(optuna.pruners.BasePruner):\n"
        "    def __init__(self, every: int = 2):\n        self.every = every\n"
        "    def prune(self, study, trial):\n        return trial.last_step % self.every == 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert curve_is_stopped(made("my_pruner:Odd", "every=3"), [1.0] * 5, []) == 3


class Unmade(optuna.pruners.NopPruner):
    def __init__(self) -> None:
        raise KeyError("nothing")


def test_an_option_that_must_be_given_can_be_given() -> None:
    pruner = made("optuna.pruners:PercentilePruner", "percentile=30")
    assert isinstance(pruner, optuna.pruners.PercentilePruner)
    assert pruner._percentile == 30


@pytest.mark.parametrize(
    ("scheduler", "args", "others", "named"),
    [
        ("nothing", (), {}, "--scheduler: 'nothing' is unknown"),
        ("no.module:Class", (), {}, "--scheduler: 'no.module:Class' cannot be imported"),
        ("pathlib:Path", (), {}, "--scheduler: 'pathlib:Path' is a PosixPath"),
        (f"{__name__}:Unmade", (), {}, "cannot be made with {}: "),
        (f"{__name__}:Unmade", (), {}, "test_pruners.py:"),
        ("asha", ("a=1",), {}, "--scheduler-args: scheduler 'asha' has no options"),
        ("none", ("a=1",), {}, "--scheduler-args"),
        ("median", ("nothing=1",), {}, "has no option 'nothing'; it has n_startup_trials"),
        ("median", ("n_startup_trials=x",), {}, "--scheduler-args: n_startup_trials='x'"),
        ("median", ("n_startup_trials=-1",), {}, "negative"),
        ("percentile", ("percentile=101",), {}, "between 0 and 100"),
        ("threshold", (), {}, "lower or upper"),
        ("patient", ("patience=-1",), {}, "negative"),
        ("patient", ("wraps=asha",), {}, "patient cannot wrap 'asha'"),
        ("patient", ("wraps=patient",), {}, "patient cannot wrap 'patient'"),
        (
            "patient",
            ("wraps=median", "percentile=1"),
            {},
            "scheduler 'median' has no option 'percentile'",
        ),
        ("hyperband", (), {"reduction_factor": 2.5}, "--reduction-factor: 2.5"),
        ("successive-halving", (), {"reduction_factor": float("inf")}, "--reduction-factor: inf"),
        ("hyperband", (), {"sampler": "grid"}, "--scheduler: hyperband hides"),
    ],
)
def test_refusals_are_one_line(
    scheduler: str, args: tuple[str, ...], others: dict[str, Any], named: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        made(scheduler, *args, **others)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_name_can_be_made_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in NAMES:
            made(name, *(["lower=0"] if name == "threshold" else []))


@pytest.mark.parametrize(
    "scheduler", [("pathlib:Path",), ("patient", "--scheduler-args", "wraps=none")]
)
def test_a_grace_period_that_the_rule_would_not_know_is_refused(
    scheduler: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnist_ray.study.pruners.Scheduler.pruner", lambda self: None)
    settings = parse(SearchSettings, ["--grace-period", "8", "--scheduler", *scheduler])
    with pytest.raises(SettingsError, match="^--grace-period: 8 was given, but the rule of"):
        read_scheduler(settings)
    read_scheduler(parse(SearchSettings, ["--scheduler", *scheduler]))
