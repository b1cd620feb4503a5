"""--warm-start: what is taken over, and what is refused."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from mnist_ray.errors import SettingsError
from mnist_ray.settings import constraints
from mnist_ray.study import storages, studies
from mnist_ray.study.trials import RUN, SOURCE, read_trials, take_over
from mnist_ray.study.warm_start import older_trials
from tests.support.about import facts
from tests.support.servers import SECRET, Server
from tests.support.studies import new_study, one_line, space

PURPOSE = {"dataset": "digits", "space": "s", "metric": "val_accuracy", "max_epochs": 3}


def older(path: Path, *names: str, **noted: Any) -> str:
    """A study of one complete, one pruned, one failed and one running trial, in a journal."""
    place = str(path / "old.journal")
    with storages.opened(place) as storage:
        for name in names:
            study = new_study(storage, name, purpose={**PURPOSE, **noted})
            for number, state in enumerate(("COMPLETE", "PRUNED", "FAIL", None)):
                trial = study.ask()
                space(trial)
                trial.set_user_attr(RUN, "old")
                if state != "FAIL":
                    trial.report(0.1 * number, 1)
                if state:
                    study.tell(
                        trial,
                        0.9 if state == "COMPLETE" else None,
                        state=optuna.trial.TrialState[state],
                    )
    return place


def test_a_warm_start_takes_finished_trials_over_once(tmp_path: Path) -> None:
    place = older(tmp_path, "old")
    trials = older_trials(place, "val_accuracy", PURPOSE, space)
    study = new_study(optuna.storages.InMemoryStorage(), "new")
    assert take_over(study, trials) == 2
    assert take_over(study, trials) == 0
    assert [(t.state.name, t.value, t.intermediate_values) for t in study.trials] == [
        ("COMPLETE", 0.9, {1: 0.0}),
        ("PRUNED", 0.1, {1: 0.1}),
    ]
    assert [t.user_attrs for t in study.trials] == [
        {SOURCE: [f"{place}#old", number]} for number in (0, 1)
    ]
    # they are nobody's: neither counted nor read, and no sibling's
    assert read_trials(study, "old", "val_accuracy") == []
    studies.check_run(study, "old")
    studies.check_alone(study, "new")
    with storages.opened(place) as storage:
        found = studies.existing(storage, "old")
        assert found is not None
        assert [t.params for t in found.trials[:2]] == [t.params for t in study.trials]


def test_curves_of_other_epochs_are_left_behind(tmp_path: Path) -> None:
    place = older(tmp_path, "old", max_epochs=9)
    trials = older_trials(place, "val_accuracy", PURPOSE, space)
    assert [(t.state.name, t.value, t.intermediate_values) for t in trials] == [
        ("COMPLETE", 0.9, {})
    ]


def test_a_limit_of_values_that_are_not_known_leaves_the_older_trials_out(tmp_path: Path) -> None:
    place = older(tmp_path, "old")
    limits = constraints.read(["parameters<=5"])
    assert older_trials(place, "val_accuracy", PURPOSE, space, (), limits) == []


def test_a_run_s_directory_is_a_warm_start_too(tmp_path: Path) -> None:
    place = older(tmp_path, "its-name")
    run = tmp_path / "run"
    run.mkdir()
    Path(place).rename(run / "study.journal")
    (run / "run.json").write_text(json.dumps({**facts(name="its-name"), "name": "its-name"}))
    before = sorted(path.name for path in run.iterdir())
    assert len(older_trials(str(run), "val_accuracy", PURPOSE, space)) == 2
    assert sorted(path.name for path in run.iterdir()) == before
    (run / "run.json").write_text(json.dumps(facts(study="redis://:***@h/0")))
    with pytest.raises(SettingsError) as caught:
        older_trials(str(run), "val_accuracy", PURPOSE, space)
    assert "#STUDY_NAME" in one_line(caught)


def test_a_warm_start_from_a_server(server: Server, tmp_path: Path) -> None:
    with storages.opened(server.url) as storage:
        study = new_study(storage, "old study")
        trial = study.ask()
        space(trial)
        study.tell(trial, 0.5)
    [taken] = older_trials(f"{server.url}#old study", "val_accuracy", PURPOSE, space)
    assert taken.value == 0.5
    assert SECRET not in str(taken.user_attrs)


@pytest.mark.parametrize(
    ("hash_", "metric", "changed", "named"),
    [
        ("", "val_accuracy", {}, "it has one, two"),
        ("#three", "val_accuracy", {}, "it has one, two"),
        ("#one", "val_loss", {}, "--metric"),
        ("#one", "val_accuracy", {"dataset": "mnist"}, "dataset='digits'"),
        ("#one", "val_accuracy", {"space": "other"}, "space='s'"),
    ],
)
def test_an_unsuitable_older_study_is_refused(
    tmp_path: Path, hash_: str, metric: str, changed: dict[str, str], named: str
) -> None:
    place = older(tmp_path, "one", "two")
    with pytest.raises(SettingsError) as caught:
        older_trials(place + hash_, metric, {**PURPOSE, **changed}, space)
    assert named in one_line(caught)


@pytest.mark.parametrize("linked", [False, True])
def test_an_older_journal_is_only_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    """It may be another person's, and lie in a folder that is not to be written."""
    (tmp_path / "theirs").mkdir()
    place = older(tmp_path / "theirs", "old")
    before = Path(place).stat()
    if linked:
        (tmp_path / "link.journal").symlink_to(place)
    monkeypatch.setenv("OLD", str(tmp_path / "link.journal") if linked else place)
    monkeypatch.setattr(Path, "touch", None)
    assert len(older_trials("${OLD}", "val_accuracy", PURPOSE, space)) == 2
    assert Path(place).stat().st_mtime_ns == before.st_mtime_ns
    assert [each.name for each in Path(place).parent.iterdir()] == ["old.journal"]


@pytest.mark.parametrize("text", ["sqlite:///{}", "sqlite+pysqlite:///{}?timeout=5", "${{URL}}"])
def test_a_mistyped_database_is_refused_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("URL", f"sqlite:///{tmp_path}/typo.db")
    with pytest.raises(SettingsError) as caught:
        older_trials(text.format(tmp_path / "typo.db"), "val_accuracy", PURPOSE, space)
    assert one_line(caught).startswith("--warm-start: ")
    assert one_line(caught).endswith(": there is no such file")
    assert list(tmp_path.iterdir()) == []
    with storages.opened(f"sqlite:///{tmp_path}/there.db") as storage:
        study = new_study(storage, "old")
        trial = study.ask()
        space(trial)
        study.tell(trial, 0.5)
    monkeypatch.setenv("URL", f"sqlite:///{tmp_path}/there.db")
    place = text.format(tmp_path / "there.db")
    assert len(older_trials(place, "val_accuracy", PURPOSE, space)) == 1


@pytest.mark.parametrize("place", ["/does/not/exist", "/does/not/exist.journal", "nothing#s"])
def test_a_missing_older_study_is_refused(place: str) -> None:
    with pytest.raises(SettingsError) as caught:
        older_trials(place, "val_accuracy", PURPOSE, space)
    assert one_line(caught).startswith("--warm-start: ")
