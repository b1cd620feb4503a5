"""Studies on real servers of the tests' own, shared by two processes, across a restart.

A password appears nowhere.
"""

import importlib.util
import os
import pickle
import socketserver
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
import sqlalchemy.exc

from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.run.records import Records
from mnist_ray.settings import SearchSettings, masked_command, parse, resolved
from mnist_ray.study import servers as study_servers
from mnist_ray.study import storages, studies
from mnist_ray.study.journal import journal_file, on_disk
from mnist_ray.study.optuna_private import started
from mnist_ray.study.trials import RUN, SUMMARY, keep_summary, read_trials
from tests.support import ROOT
from tests.support.servers import KINDS, SECRET, Server
from tests.support.studies import long_record, new_study, one_line, space


def test_a_trial_whose_answer_was_lost_is_not_made_twice() -> None:
    class Lossy(optuna.storages.InMemoryStorage):
        """Loses each first answer to a request for a new trial, or the request."""

        calls = 0

        def create_new_trial(self, *args: Any, **options: Any) -> int:
            self.calls += 1
            if self.calls % 3 == 1:
                super().create_new_trial(*args, **options)
            if self.calls % 3 != 0:
                raise sqlalchemy.exc.OperationalError("", {}, Exception("server closed"))
            return super().create_new_trial(*args, **options)

    lossy = Lossy()
    study = optuna.create_study(storage=cast(Any, study_servers.Patient(lossy, "", "")))
    for number in range(4):
        assert started(study, {RUN: "a"}, {"x": number}).number == number
    assert [trial.user_attrs for trial in study.trials] == [{RUN: "a"}] * 4
    assert study.ask().number == 4
    assert [trial.number for trial in lossy.get_all_trials(0)] == [0, 1, 2, 3, 4]


def test_redis_is_not_asked_again_beneath_the_journal() -> None:
    """Its client repeats a request whose answer was lost: a line would stand there twice."""
    pytest.importorskip("redis")
    evals = []

    class Closing(socketserver.BaseRequestHandler):
        """Answers everything but EVAL, for which it closes the connection."""

        def handle(self) -> None:
            while data := self.request.recv(65536):
                if b"EVAL" in data:
                    evals.append(data)
                    return
                self.request.sendall(b"+OK\r\n" * data.count(b"*"))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Closing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                url = f"redis://127.0.0.1:{server.server_address[1]}/0?protocol=2"
                log = study_servers._RedisLog(url)
            with pytest.raises(Exception, match="closed"):
                log.append_logs([{"op_code": 4}])
        finally:
            server.shutdown()
            thread.join()
    assert len(evals) == 1


def start_search(
    place: str, run: str, trials: int, seed: int, pause: float = 0.0
) -> subprocess.Popen:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.programs.shared_study",
            place,
            run,
            str(trials),
            str(seed),
            str(pause),
        ],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def check_shared(place: str, runs: Sequence[str], trials: int) -> None:
    """Each of the runs has its trials, ended and whole, and none is another's."""
    with storages.opened(place) as storage:
        study = studies.existing(storage, "shared")
        assert study is not None
        found = study.get_trials()
        assert study.user_attrs[studies.PURPOSE] == {"of": "test"}
    assert [t.number for t in found] == list(range(trials * len(runs)))
    for run in runs:
        own = [t for t in found if t.user_attrs[RUN] == run]
        assert len(own) == trials
    assert len({t.params["x"] for t in found}) == len(found)
    for trial in found:
        assert trial.state.name in ("COMPLETE", "PRUNED")
        epochs = len(trial.intermediate_values)
        assert (epochs == 3) == (trial.state.name == "COMPLETE")
        assert trial.intermediate_values == {
            e: trial.params["x"] * e / 3 for e in range(1, epochs + 1)
        }
        assert len(trial.user_attrs[SUMMARY]["rows"]) == epochs


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


def test_a_trial_of_many_epochs_is_kept(server: Server) -> None:
    """MySQL refuses an attribute of more than 65,535 bytes: some 275 epochs."""
    record = long_record(0, 1000)
    with storages.opened(server.url) as storage:
        study = new_study(storage, "long")
        trial = started(study, {RUN: "r"}, {})
        keep_summary(trial, record)
        study.tell(trial, 0.5)
    with storages.opened(server.url) as storage:
        again = studies.existing(storage, "long")
        assert again is not None
        [(_, found)] = read_trials(again, "r", "val_accuracy")
    assert found.summary() == record.summary()


def test_a_restarted_server_is_waited_for(server: Server) -> None:
    with storages.opened(server.url) as storage:
        if studies.existing(storage, "shared"):
            optuna.delete_study(study_name="shared", storage=storage)
    process = start_search(server.url, "alone", 8, 3, pause=0.1)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("settled")
    server.stop()
    time.sleep(3)
    assert process.poll() is None, "the search ended before the server was away"
    server.start()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert output.endswith("end\n"), output
    check_shared(server.url, ["alone"], 8)


def test_a_server_that_stays_away_is_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnist_ray.tune.searcher import StudySearch

    monkeypatch.setattr(study_servers, "PATIENCE", 0.3)
    with storages.opened(server.url) as storage:
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
            with pytest.raises(SettingsError) as refused, storages.opened(server.url):
                pass
            assert "--study" in one_line(refused)
        finally:
            server.start()
        assert [t.state.name for t in study.get_trials()] == ["RUNNING"]


def test_what_a_server_refuses_is_one_line(servers: Callable[[str], Server]) -> None:
    """MariaDB's TEXT ends at 64 KiB: waiting would not help."""
    with storages.opened(servers("mysql").url) as storage:
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
        storages.opened(server.url.replace(SECRET, "not-" + SECRET)),
    ):
        pass
    assert "***" in one_line(caught)


def test_passwords_are_not_pickled(server: Server, tmp_path: Path) -> None:
    with storages.opened(server.url) as storage:
        study = new_study(storage, "pickle")
        for thing in (storage, study, study.ask()):
            with pytest.raises(TypeError, match="pickled"):
                pickle.dumps(thing)


def test_memory_and_a_password_from_the_environment(
    servers: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    with storages.opened("memory") as storage:
        assert new_study(storage).ask().number == 0
    url = servers("redis").url
    monkeypatch.setenv("OF_THE_TEST", SECRET)
    with storages.opened(url.replace(SECRET, "${OF_THE_TEST}")) as storage:
        new_study(storage, "environment")
    monkeypatch.delenv("OF_THE_TEST")
    with (
        pytest.raises(SettingsError, match="OF_THE_TEST is not set"),
        storages.opened(url.replace(SECRET, "${OF_THE_TEST}")),
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
    with pytest.raises(SettingsError) as caught, storages.opened(place):
        pass
    assert named in one_line(caught)
    assert one_line(caught).startswith("--study: ")


def test_a_file_that_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "x.journal").write_text("1\n2\n")
    with pytest.raises(SettingsError) as caught, storages.opened(str(tmp_path / "x.journal")):
        pass
    assert "x.journal is damaged in line 1: expected a JSON object" in one_line(caught)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_driver_names_the_extra(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError) as caught, storages.opened(f"{kind}://u:{SECRET}@host/x"):
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
        command = masked_command(["search.py", "--study", url, "--trials", "3"])
        assert SECRET not in command
        assert command.endswith(" --trials 3")


def test_a_suggestion_waits_for_the_disk_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    study = optuna.create_study(storage=journal_file(tmp_path / "study.journal"), study_name="s")
    fsync = os.fsync

    def waited(file: int) -> None:
        waits.append(file)
        fsync(file)

    monkeypatch.setattr(os, "fsync", waited)
    trial = started(study, {"mine": 1}, {})
    drawn = [trial.suggest_float(f"x{i}", 0, 1) for i in range(8)]
    assert waits == []
    on_disk(study)
    assert len(waits) == 1
    # Another process sees it all, before and after.
    other = optuna.load_study(study_name="s", storage=journal_file(tmp_path / "study.journal"))
    assert list(other.trials[0].params.values()) == drawn
    trial.report(0.5, 1)
    assert len(waits) == 2
    study.tell(trial, 0.5)
    assert len(waits) == 3
    on_disk(optuna.create_study())  # in memory: nothing to wait for
