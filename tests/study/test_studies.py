"""Studies on real servers of the tests' own, shared by two processes, across a restart, and without a password anywhere."""

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest

from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.run.records import INTERRUPTED, Records
from mnist_ray.settings import SearchSettings, parse, resolved, without_password
from mnist_ray.study import studies
from tests.support import ROOT
from tests.support.servers import KINDS, SECRET, Server


@pytest.fixture(scope="module")
def servers() -> Iterator[Callable[[str], Server]]:
    """Starts the server of a kind when it is first asked for; all are stopped at the end."""
    running: dict[str, Server] = {}

    def server(kind: str) -> Server:
        if kind not in running:
            make, driver = KINDS[kind]
            pytest.importorskip(driver, reason=f"pip install 'mnist_ray[{kind}]'")
            running[kind] = make()
            running[kind].start()
        return running[kind]

    yield server
    for each in running.values():
        each.remove()


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Server:
    return servers(request.param)


def space(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "x": trial.suggest_float("x", 0, 1),
        "kind": trial.suggest_categorical("kind", ["a", "b"]),
    }


def new_study(storage: optuna.storages.BaseStorage, name: str = "s", **others: Any) -> optuna.Study:
    return studies.open_study(
        storage, name, "val_accuracy", optuna.samplers.RandomSampler(seed=1), **others
    )


def one_line(caught: pytest.ExceptionInfo) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert SECRET not in text
    return text


# ---- places

# Two trials at a time through the searcher, without Ray: what a search does to a study.
SEARCH = """
import sys, time, optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
from ray.tune.search import Searcher
from mnist_ray.tune.searcher import StudySearch
from mnist_ray.run.records import Records
from mnist_ray.study.studies import open_study, opened
place, run, trials, seed, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
space = lambda trial: {"x": trial.suggest_float("x", 0, 1), "kind": trial.suggest_categorical("kind", ["a", "b"])}
row = dict.fromkeys(["train_loss", "train_accuracy", "val_loss", "lr", "images_per_second", "seconds"], 0.5)
with opened(place) as storage:
    sampler, pruner = optuna.samplers.TPESampler(seed=seed), optuna.pruners.MedianPruner(2)
    study = open_study(storage, "shared", "val_accuracy", sampler, pruner, {"of": "test"})
    settled = lambda number: print("settled", number, flush=True)
    search = StudySearch(study, space, Records("val_accuracy", trials), run=run, max_epochs=3, on_settled=settled)
    live, asked = [], 0
    while True:
        while len(live) < 2:
            config = search.suggest(str(asked))
            if config is None or config == Searcher.FINISHED:
                break
            live.append([str(asked), config["x"], 0])
            asked += 1
        if not live or search.storage_error:
            break
        for trial in list(live):
            time.sleep(pause)
            trial[2] += 1
            result = {**row, "epoch": trial[2], "val_accuracy": trial[1] * trial[2] / 3, "n_parameters": 1, "node": "here"}
            if trial[2] == 3 or search.should_stop(trial[0], result):
                live.remove(trial)
                search.on_trial_complete(trial[0], result)
            else:
                search.on_trial_result(trial[0], result)
    print(search.storage_error or "end")
"""


def start_search(
    place: str, run: str, trials: int, seed: int, pause: float = 0.0
) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SEARCH, place, run, str(trials), str(seed), str(pause)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def check_shared(place: str, runs: Sequence[str], trials: int) -> None:
    """Each of the runs has its trials, ended and whole, and none is another's."""
    with studies.opened(place) as storage:
        study = studies.existing(storage, "shared")
        assert study is not None
        found = study.get_trials()
        assert study.user_attrs[studies.PURPOSE] == {"of": "test"}
    assert [t.number for t in found] == list(range(trials * len(runs)))
    for run in runs:
        own = [t for t in found if t.user_attrs[studies.RUN] == run]
        assert len(own) == trials
    assert len({t.params["x"] for t in found}) == len(found)
    for trial in found:
        assert trial.state.name in ("COMPLETE", "PRUNED")
        epochs = len(trial.intermediate_values)
        assert (epochs == 3) == (trial.state.name == "COMPLETE")
        assert trial.intermediate_values == {
            e: trial.params["x"] * e / 3 for e in range(1, epochs + 1)
        }
        assert len(trial.user_attrs[studies.SUMMARY]["rows"]) == epochs


def share(place: str) -> None:
    processes = [start_search(place, run, 6, seed) for seed, run in enumerate(("one", "two"))]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert output.endswith("end\n")
        assert SECRET not in output
    check_shared(place, ["one", "two"], 6)


def test_two_processes_on_one_study(server: Server) -> None:
    """Started at once on an empty database: both make its tables."""
    share(server.url)


@pytest.mark.parametrize("place", ["sqlite:///{}/study.db", "{}/study.journal"])
def test_two_processes_on_one_file(tmp_path: Path, place: str) -> None:
    share(place.format(tmp_path))


def test_a_restarted_server_is_waited_for(server: Server) -> None:
    with studies.opened(server.url) as storage:
        if studies.existing(storage, "shared"):
            optuna.delete_study(study_name="shared", storage=storage)
    process = start_search(server.url, "alone", 8, 3, pause=0.05)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("settled")
    server.stop()
    time.sleep(1)
    server.start()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert output.endswith("end\n"), output
    check_shared(server.url, ["alone"], 8)


def test_a_server_that_stays_away_is_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnist_ray.tune.searcher import StudySearch

    monkeypatch.setattr(studies, "PATIENCE", 0.3)
    with studies.opened(server.url) as storage:
        study = new_study(storage, "away")
        search = StudySearch(
            study,
            space,
            Records("val_accuracy", 5),
            run="r",
            max_epochs=3,
            on_settled=lambda number: None,
        )
        assert isinstance(search.suggest("a"), dict)
        server.stop()
        try:
            with pytest.raises(WorkError) as caught:
                study.get_trials()
            assert "does not answer" in one_line(caught)
            result = dict.fromkeys(
                [
                    "train_loss",
                    "train_accuracy",
                    "val_accuracy",
                    "val_loss",
                    "lr",
                    "images_per_second",
                    "seconds",
                ],
                0.5,
            )
            assert (
                search.should_stop("a", {**result, "epoch": 1, "n_parameters": 1, "node": "here"})
                is False
            )
            assert search.storage_error == str(caught.value)
            assert search.suggest("b") is None  # the search ends, and the trial can be continued
            with pytest.raises(SettingsError) as caught, studies.opened(server.url):
                pass
            assert "--study" in one_line(caught)
        finally:
            server.start()
        assert [t.state.name for t in study.get_trials()] == ["RUNNING"]


def test_what_a_server_refuses_is_one_line(servers: Callable[[str], Server]) -> None:
    """MariaDB's TEXT ends at 64 KiB: waiting would not help."""
    with studies.opened(servers("mysql").url) as storage:
        trial = new_study(storage, "refused").ask()
        started = time.monotonic()
        with pytest.raises(WorkError) as caught:
            trial.set_user_attr("long", "x" * 70_000)
        assert "cannot be written or read" in one_line(caught)
        assert len(one_line(caught)) < 300
        assert time.monotonic() - started < 5


def test_a_wrong_password_is_one_line_without_it(server: Server) -> None:
    with (
        pytest.raises(SettingsError) as caught,
        studies.opened(server.url.replace(SECRET, "not-" + SECRET)),
    ):
        pass
    assert "***" in one_line(caught)


def test_passwords_are_not_pickled(server: Server, tmp_path: Path) -> None:
    with studies.opened(server.url) as storage:
        study = new_study(storage, "pickle")
        for thing in (storage, study, study.ask()):
            with pytest.raises(TypeError, match="pickled"):
                pickle.dumps(thing)


def test_memory_and_a_password_from_the_environment(
    servers: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    with studies.opened("memory") as storage:
        assert new_study(storage).ask().number == 0
    url = servers("redis").url
    monkeypatch.setenv("OF_THE_TEST", SECRET)
    with studies.opened(url.replace(SECRET, "${OF_THE_TEST}")) as storage:
        new_study(storage, "environment")
    monkeypatch.delenv("OF_THE_TEST")
    with (
        pytest.raises(SettingsError, match="OF_THE_TEST is not set"),
        studies.opened(url.replace(SECRET, "${OF_THE_TEST}")),
    ):
        pass


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("nothing", "expected sqlite:///FILE"),
        ("ftp://host/x", "expected sqlite:///FILE"),
        ("sqlite://", "expected sqlite:///FILE"),
        ("sqlite:///:memory:", "expected sqlite:///FILE"),
        ("sqlite:////does/not/exist/study.db", "unable to open database file"),
        ("/does/not/exist/x.journal", "its folder does not exist"),
        (
            "postgresql://u:" + SECRET + "@127.0.0.1:1/x",
            "postgresql://u:***@127.0.0.1:1/x cannot be opened",
        ),
        ("postgresql://u:" + SECRET + "@127.0.0.1:notaport/x", "cannot be opened"),
        ("postgresql+nodriver://u:" + SECRET + "@127.0.0.1/x", "cannot be opened"),
        ("mysql://u:" + SECRET + "@127.0.0.1:1/x", "cannot be opened"),
        ("redis://:" + SECRET + "@127.0.0.1:1/0", "cannot be opened"),
        ("redis://127.0.0.1:1/0?password=" + SECRET, "password=***"),
        ("postgresql://u:***@host/x", "kept nowhere"),
    ],
)
def test_places_that_cannot_be_opened(place: str, named: str) -> None:
    for driver in ("psycopg2", "pymysql", "redis"):
        pytest.importorskip(driver)
    with pytest.raises(SettingsError) as caught, studies.opened(place):
        pass
    assert named in one_line(caught)
    assert one_line(caught).startswith("--study: ")


def test_a_file_that_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "x.journal").write_text("1\n2\n")
    with pytest.raises(SettingsError) as caught, studies.opened(str(tmp_path / "x.journal")):
        pass
    assert "no journal" in one_line(caught)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_driver_names_the_extra(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError) as caught, studies.opened(f"{kind}://u:{SECRET}@host/x"):
        pass
    assert f"pip install 'mnist_ray[{kind}]'" in one_line(caught)


def test_settings_are_kept_without_a_password() -> None:
    literal = parse(SearchSettings, ["--study", f"postgresql://me:{SECRET}@host:5/db"])
    named = parse(SearchSettings, ["--study", "postgresql://me:${PASSWORD}@host:5/db"])
    assert resolved(literal)["study"] == "postgresql://me:***@host:5/db"
    assert resolved(named)["study"] == "postgresql://me:${PASSWORD}@host:5/db"
    assert (
        resolved(parse(SearchSettings, ["--study", "sqlite:///a.db"]))["study"] == "sqlite:///a.db"
    )
    for url in (
        f"mysql://me:a/b@{SECRET}@host/db",
        f"redis://:{SECRET}@host",
        f"redis://h?password={SECRET}&x=1",
    ):
        assert SECRET not in without_password(f"search.py --study {url} --trials 3")
        assert without_password(f"search.py --study {url} --trials 3").endswith(" --trials 3")


# ---- the right study


def test_the_other_direction_is_refused() -> None:
    storage = optuna.storages.InMemoryStorage()
    new_study(storage)
    with pytest.raises(SettingsError) as caught:
        studies.open_study(storage, "s", "val_loss", optuna.samplers.RandomSampler())
    assert (
        one_line(caught)
        == "--metric: val_loss is to minimize, but study 's' is to maximize already"
    )


def test_another_purpose_is_refused_and_one_of_ones_own_is_noted() -> None:
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(
        storage=storage, study_name="s", direction="maximize"
    )  # as the optuna CLI makes it: nothing is known of it
    new_study(storage, purpose={"dataset": "digits", "space_args": ["a=1"]})
    new_study(storage, purpose={"dataset": "digits", "space_args": ["a=1"]})
    with pytest.raises(SettingsError) as caught:
        new_study(storage, purpose={"dataset": "mnist", "space_args": ["a=1"]})
    assert "dataset='digits'" in one_line(caught)
    assert "space_args" not in one_line(caught)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (
            lambda trial: {
                "x": trial.suggest_float("x", 0, 2),
                "kind": trial.suggest_categorical("kind", ["a", "b"]),
            },
            "'x'",
        ),
        (
            lambda trial: {
                "x": trial.suggest_float("x", 0, 1),
                "kind": trial.suggest_categorical("kind", ["a", "c"]),
            },
            "'kind'",
        ),
        (lambda trial: {"x": trial.suggest_int("x", 0, 1)}, "'x'"),
        (lambda trial: {"y": trial.suggest_int("y", 0, 1)}, "none of the parameters"),
    ],
)
def test_a_contradicting_space_is_refused(
    other: Callable[[optuna.Trial], dict[str, Any]], named: str
) -> None:
    study = new_study(optuna.storages.InMemoryStorage())
    studies.check_study(study, "val_accuracy", None, other)  # an empty study contradicts nothing
    space(study.ask())
    studies.check_study(study, "val_accuracy", None, space)
    with pytest.raises(SettingsError) as caught:
        studies.check_study(study, "val_accuracy", None, other)
    assert named in one_line(caught)


def test_a_space_with_ranges_that_depend_on_each_other_contradicts_nothing() -> None:
    def nested(trial: optuna.Trial) -> dict[str, Any]:
        return {
            "n": trial.suggest_int("n", 1, 3),
            "m": trial.suggest_int("m", 1, trial.params["n"]),
            "o": trial.suggest_float("o", 0, 1),
        }

    study = new_study(optuna.storages.InMemoryStorage())
    nested(study.ask())
    studies.check_study(study, "val_accuracy", None, nested)


def test_a_run_s_name_is_taken_once() -> None:
    study = new_study(optuna.storages.InMemoryStorage())
    study.ask().set_user_attr(studies.RUN, "mine")
    studies.check_run(study, "yours")
    with pytest.raises(SettingsError) as caught:
        studies.check_run(study, "mine")
    assert "--name" in one_line(caught)


# ---- a run's trials


def test_only_the_run_s_own_trials_are_read_and_closed() -> None:
    study = new_study(optuna.storages.InMemoryStorage())
    for run in ("mine", "yours", "mine"):
        trial = study.ask()
        space(trial)
        trial.set_user_attr(studies.RUN, run)
        trial.report(0.5, 1)
    pairs = studies.read_trials(study, "mine")
    assert [(frozen.number, record.state, list(record.rows)) for frozen, record in pairs] == [
        (0, "RUNNING", [1]),
        (2, "RUNNING", [1]),
    ]
    studies.close_interrupted(study, *pairs[0])
    assert [t.state.name for t in study.get_trials()] == ["FAIL", "RUNNING", "RUNNING"]
    assert studies.read_trials(study, "mine")[0][1].reason == INTERRUPTED
    # its values are tried again once, and not twice where the run is cut off before they are handed out
    assert studies.to_try_again(study, "yours") == []
    assert studies.to_try_again(study, "mine") == [(0, study.trials[0].params)]
    studies.ask(study, {studies.AGAIN: 0}, study.trials[0].params)
    assert studies.to_try_again(study, "mine") == []


# ---- points


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
    points = studies.read_points(str(file), branching)
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
        studies.read_points(str(file), branching)
    assert one_line(caught).startswith(f"--points: {file}")
    assert named in one_line(caught)


def test_a_missing_file_of_points() -> None:
    with pytest.raises(SettingsError, match="--points: /does/not/exist: cannot be read"):
        studies.read_points("/does/not/exist", branching)


# ---- warm start

PURPOSE = {"dataset": "digits", "space": "s", "metric": "val_accuracy", "max_epochs": 3}


def older(path: Path, *names: str, **noted: Any) -> str:
    """A study of one complete, one pruned, one failed and one running trial, in a journal."""
    place = str(path / "old.journal")
    with studies.opened(place) as storage:
        for name in names:
            study = new_study(storage, name, purpose={**PURPOSE, **noted})
            for number, state in enumerate(("COMPLETE", "PRUNED", "FAIL", None)):
                trial = study.ask()
                space(trial)
                trial.set_user_attr(studies.RUN, "old")
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
    trials = studies.older_trials(place, "val_accuracy", PURPOSE, space)
    study = new_study(optuna.storages.InMemoryStorage(), "new")
    assert studies.take_over(study, trials) == 2
    assert studies.take_over(study, trials) == 0
    assert [(t.state.name, t.value, t.intermediate_values) for t in study.trials] == [
        ("COMPLETE", 0.9, {1: 0.0}),
        ("PRUNED", 0.1, {1: 0.1}),
    ]
    assert [t.user_attrs for t in study.trials] == [
        {studies.SOURCE: [f"{place}#old", number]} for number in (0, 1)
    ]
    # they are nobody's: neither counted nor read, and no sibling's
    assert studies.read_trials(study, "old") == []
    studies.check_run(study, "old")
    studies.check_alone(study, "new")
    with studies.opened(place) as storage:
        found = studies.existing(storage, "old")
        assert found is not None
        assert [t.params for t in found.trials[:2]] == [t.params for t in study.trials]


def test_curves_of_other_epochs_are_left_behind(tmp_path: Path) -> None:
    place = older(tmp_path, "old", max_epochs=9)
    trials = studies.older_trials(place, "val_accuracy", PURPOSE, space)
    assert [(t.state.name, t.value, t.intermediate_values) for t in trials] == [
        ("COMPLETE", 0.9, {})
    ]


def test_a_run_s_directory_is_a_warm_start_too(tmp_path: Path) -> None:
    place = older(tmp_path, "its-name")
    run = tmp_path / "run"
    run.mkdir()
    Path(place).rename(run / "study.journal")
    (run / "run.json").write_text(
        json.dumps({"settings": {"name": "its-name", "study_name": None, "study": None}})
    )
    before = sorted(path.name for path in run.iterdir())
    assert len(studies.older_trials(str(run), "val_accuracy", PURPOSE, space)) == 2
    assert sorted(path.name for path in run.iterdir()) == before
    (run / "run.json").write_text(
        json.dumps({"settings": {"name": "its-name", "study": "redis://:***@h/0"}})
    )
    with pytest.raises(SettingsError) as caught:
        studies.older_trials(str(run), "val_accuracy", PURPOSE, space)
    assert "#STUDY_NAME" in one_line(caught)


def test_a_warm_start_from_a_server(server: Server, tmp_path: Path) -> None:
    with studies.opened(server.url) as storage:
        study = new_study(storage, "old study")
        trial = study.ask()
        space(trial)
        study.tell(trial, 0.5)
    [taken] = studies.older_trials(f"{server.url}#old study", "val_accuracy", PURPOSE, space)
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
        studies.older_trials(place + hash_, metric, {**PURPOSE, **changed}, space)
    assert named in one_line(caught)


@pytest.mark.parametrize("place", ["/does/not/exist", "/does/not/exist.journal", "nothing#s"])
def test_a_missing_older_study_is_refused(place: str) -> None:
    with pytest.raises(SettingsError) as caught:
        studies.older_trials(place, "val_accuracy", PURPOSE, space)
    assert one_line(caught).startswith("--warm-start: ")


# ---- the whole search


def search(*arguments: str, study: str, storage: Path, name: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "jobs/search.py",
        "--storage",
        str(storage),
        "--name",
        name,
        *arguments,
    ]
    if study:
        command += ["--study", study]
    if "--resume" not in arguments:
        command += [
            "--dataset",
            "digits",
            "--train-images",
            "200",
            "--space",
            "tests.study.test_studies:tiny",
            "--study-name",
            "both",
        ]
        command += ["--no-finetune"]
    env = {
        k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    }
    env |= {"OF_THE_TEST": SECRET, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def tiny(trial: optuna.Trial, data: Any) -> dict[str, Any]:
    """A space of networks that train in no time."""
    hp = {
        "model": "mlp",
        "units": [8],
        "dropouts": [0.1],
        "optimizer": "adam",
        "batch_size": 32,
        **data.hyperparameters(),
    }
    return {**hp, "lr": trial.suggest_float("lr", 1e-4, 1e-1, log=True)}


def ended(process: subprocess.Popen, code: int) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    assert SECRET not in output
    return output


@pytest.mark.slow
def test_two_searches_share_a_study_and_keep_its_password_to_themselves(
    servers: Callable[[str], Server], tmp_path: Path
) -> None:
    url = servers("postgresql").url
    named = url.replace(SECRET, "${OF_THE_TEST}")
    points = tmp_path / "points.yaml"
    points.write_text("- {lr: 0.01}\n- {lr: 0.02}\n")
    size = ["--trials", "4", "--max-epochs", "2", "--scheduler", "median"]
    one = search(*size, "--points", str(points), study=url, storage=tmp_path / "runs", name="one")
    two = search(*size, study=named, storage=tmp_path / "runs", name="two")
    ended(one, 0)
    ended(two, 0)

    def trials(run: str) -> list[optuna.trial.FrozenTrial]:
        with studies.opened(url) as storage:
            study = studies.existing(storage, "both")
            assert study is not None
            return [t for t in study.get_trials() if t.user_attrs[studies.RUN] == run]

    assert [len(trials("one")), len(trials("two"))] == [4, 4]
    assert [t.params["lr"] for t in trials("one")[:2]] == [0.01, 0.02]
    assert not {t.params["lr"] for t in trials("one")} & {t.params["lr"] for t in trials("two")}
    assert len(pq.read_table(tmp_path / "runs" / "one" / "trials.parquet")) == 4

    # one goes on with the password given anew, two with its variable
    assert "kept nowhere" in ended(
        search("--resume", "--trials", "5", study="", storage=tmp_path / "runs", name="one"), 2
    )
    ended(search("--resume", "--trials", "5", study=url, storage=tmp_path / "runs", name="one"), 0)
    ended(search("--resume", "--trials", "5", study="", storage=tmp_path / "runs", name="two"), 0)
    assert [len(trials("one")), len(trials("two"))] == [5, 5]
    assert [t.params["lr"] for t in trials("one")].count(0.01) == 1

    for wrong, named_there in (
        (["--max-epochs", "3"], "max_epochs=2"),
        (["--metric", "val_loss"], "minimize"),
        (["--val-images", "50"], "val_images=215"),
    ):
        output = ended(
            search(*size, *wrong, study=named, storage=tmp_path / "runs", name="three"), 2
        )
        assert output.count("\n") == 1
        assert named_there in output
        assert not (tmp_path / "runs" / "three").exists()
    output = ended(search(*size, study=named, storage=tmp_path / "elsewhere", name="one"), 2)
    assert "--name: a run 'one'" in output
    output = ended(
        search("--resume", study="mysql://u:x@127.0.0.1/y", storage=tmp_path / "runs", name="two"),
        2,
    )
    assert "which stays" in output

    output = ended(
        search(
            *size,
            "--warm-start",
            str(tmp_path / "runs" / "two"),
            study="memory",
            storage=tmp_path / "runs",
            name="warm",
        ),
        2,
    )
    assert "give that, with #STUDY_NAME" in output
    output = ended(
        search(
            *size,
            "--warm-start",
            f"{url}#both",
            study="memory",
            storage=tmp_path / "runs",
            name="warm",
        ),
        0,
    )
    assert "learning from 10 trials" in output
    assert len(pq.read_table(tmp_path / "runs" / "warm" / "trials.parquet")) == 4
    assert "in memory" in ended(
        search("--resume", study="", storage=tmp_path / "runs", name="warm"), 2
    )

    kept = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(kept) > 8
    for path in kept:
        assert SECRET.encode() not in path.read_bytes(), path
    assert (
        json.loads((tmp_path / "runs" / "two" / "run.json").read_text())["settings"]["study"]
        == named
    )


def test_a_suggestion_waits_for_the_disk_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    study = optuna.create_study(
        storage=studies.journal_file(tmp_path / "study.journal"), study_name="s"
    )
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (waits.append(file), fsync(file)))
    trial = studies.ask(study, {"mine": 1}, {})
    drawn = [trial.suggest_float(f"x{i}", 0, 1) for i in range(8)]
    assert waits == []
    studies.on_disk(study)
    assert len(waits) == 1
    # Another process sees it all, before and after.
    other = optuna.load_study(
        study_name="s", storage=studies.journal_file(tmp_path / "study.journal")
    )
    assert list(other.trials[0].params.values()) == drawn
    trial.report(0.5, 1)
    assert len(waits) == 2
    study.tell(trial, 0.5)
    assert len(waits) == 3
    studies.on_disk(optuna.create_study())  # in memory: nothing to wait for
