"""A study's journal: what is cut off, what is named, and that a lost file is not begun again."""

import contextlib
import errno
import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from mnist_ray.errors import CorruptFileError, WorkError
from mnist_ray.storage import RunStorage
from mnist_ray.study import journal
from mnist_ray.study.journal import journal_file
from mnist_ray.study.optuna_private import storage_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with two trials, the second of them running."""
    path = tmp_path / "study.journal"
    study = optuna.create_study(storage=journal_file(path), study_name="s")
    for value in (0.25, None):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.report(0.5, 1)
        if value:
            study.tell(trial, value)
    return path


def trials(path: Path) -> list[optuna.trial.FrozenTrial]:
    kept = journal.read(RunStorage(str(path.parent)), path.name)
    return kept.get_all_trials(kept.get_study_id_from_name("s"))


UNFINISHED = {
    "a cut line": lambda last: last[: len(last) // 2],
    "a cut line and its end": lambda last: last[:-9] + b"\n",
    "one byte": lambda last: last[:1],
    "zeros": lambda last: b"\0" * 300,
    "zeros and an end": lambda last: b"\0" * 300 + b"\n",
    "a cut line and zeros": lambda last: last[:-9] + b"\0" * 40,
    "a line without its end": lambda last: last[:-1],
    "an empty line": lambda last: b"\n",
}


@pytest.mark.parametrize("kind", UNFINISHED)
def test_a_record_that_was_being_written_is_cut_off(path: Path, kind: str) -> None:
    content = path.read_bytes()
    last = content.splitlines(keepends=True)[-1]
    path.write_bytes(content + UNFINISHED[kind](last))
    damaged = path.read_bytes()
    assert [t.state.name for t in trials(path)] == ["COMPLETE", "RUNNING"]
    assert path.read_bytes() == damaged  # whoever only reads writes nothing
    study = optuna.load_study(study_name="s", storage=journal_file(path))
    assert path.read_bytes() == content
    study.tell(1, 0.75)
    assert [t.value for t in trials(path)] == [0.25, 0.75]


DAMAGE = {
    "garbage at the end": lambda lines: [*lines, b"garbage\n"],
    "garbage in the middle": lambda lines: [*lines[:2], b"\xff\xfe\n", *lines[2:]],
    "another record glued to a cut one": lambda lines: [*lines[:2], lines[2][:9] + lines[3]],
    "a list": lambda lines: [*lines, b"[]\n"],
    "an unknown operation": lambda lines: [*lines, b'{"op_code": 99, "worker_id": "w"}\n'],
    "an operation that is text": lambda lines: [*lines, b'{"op_code": "4", "worker_id": "w"}\n'],
    "a missing field": lambda lines: [*lines, b'{"op_code": 7, "worker_id": "w"}\n'],
    "deep nesting": lambda lines: [*lines, b"[" * 100_000 + b"\n"],
    "a value that is text": lambda lines: [
        *lines,
        b'{"op_code":7,"worker_id":"w","trial_id":1,"step":2,"intermediate_value":"high"}\n',
    ],
    "a distribution that is none": lambda lines: [
        *lines,
        b'{"op_code":5,"worker_id":"w","trial_id":1,"param_name":"y","param_value_internal":1,'
        b'"distribution":"{}"}\n',
    ],
    "an end without a value": lambda lines: [
        *lines,
        b'{"op_code":6,"worker_id":"w","trial_id":1,"state":1,"values":null,'
        b'"datetime_complete":"2026-01-01T00:00:00"}\n',
    ],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_other_damage_is_named_with_its_line_and_left_as_it_is(path: Path, kind: str) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(DAMAGE[kind](lines)))
    damaged = path.read_bytes()
    line = 3 if "middle" in kind or "glued" in kind else len(lines) + 1
    for read in (lambda: trials(path), lambda: journal_file(path)):
        with pytest.raises(CorruptFileError, match=rf"study.journal is damaged in line {line}: "):
            read()
        assert path.read_bytes() == damaged
    assert sorted(each.name for each in path.parent.iterdir()) == ["study.journal"]


def test_what_another_process_is_writing_is_not_read_yet(path: Path) -> None:
    study = optuna.load_study(study_name="s", storage=journal_file(path))
    record = {"op_code": 2, "worker_id": "w", "study_id": 0, "user_attr": {"a": 1}}
    line = json.dumps(record).encode() + b"\n"
    with path.open("ab") as file:
        file.write(line[:10])
        file.flush()
        assert study.user_attrs == {}
        file.write(line[10:])
    assert study.user_attrs == {"a": 1}


PART = b'{"op_code":8,"wor'


@pytest.mark.parametrize("whole_line", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_a_part_that_another_writer_left_is_cut_off(
    path: Path, whole_line: bool, held: bool
) -> None:
    """It was killed, or its disk was full: what this search appends must not be glued to it."""
    one = optuna.load_study(study_name="s", storage=journal_file(path))
    two = optuna.load_study(study_name="s", storage=journal_file(path))
    trial = two.ask()
    if whole_line:
        one.set_user_attr("note", 1)
    with journal.together(two) if held else contextlib.nullcontext():
        if held:
            trial.suggest_float("x", 0, 1)
        with path.open("ab") as file:
            file.write(PART)
        if not held:
            trial.report(0.5, 1)
    assert PART not in path.read_bytes()
    two.tell(trial, 0.75)
    assert two.user_attrs == one.user_attrs == ({"note": 1} if whole_line else {})
    fresh = optuna.load_study(study_name="s", storage=journal_file(path))
    for study in (one, two, fresh):
        assert [t.value for t in study.trials] == [0.25, None, 0.75]
        assert len(study.trials[2].params) == held
        assert study.trials[2].intermediate_values == ({} if held else {1: 0.5})


@pytest.mark.parametrize("moved", [False, True])
def test_a_journal_that_is_gone_is_not_begun_again(tmp_path: Path, moved: bool) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "study.journal"
    study = optuna.create_study(storage=journal_file(path), study_name="s")
    trial = study.ask()
    if moved:
        folder.rename(tmp_path / "elsewhere")
    else:
        path.unlink()
    with pytest.raises(WorkError, match=r"study\.journal is gone: it was deleted or moved"):
        trial.report(0.5, 1)
    assert not path.exists()


def test_a_missing_journal_has_no_study(tmp_path: Path) -> None:
    assert journal.read(RunStorage(str(tmp_path)), "study.journal").get_all_studies() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other_writes", [False, True])
def test_a_suggestion_is_written_in_one_go(tmp_path: Path, other_writes: bool) -> None:
    path = tmp_path / "study.journal"
    study = optuna.create_study(storage=journal_file(path), study_name="s")
    for value in (0.5, 0.25):
        trial = study.ask()
        before = path.read_bytes()
        with journal.together(study):
            names = [trial.suggest_float(name, 0, 1) for name in "xyz"]
            assert path.read_bytes() == before
            assert list(study.trials[-1].params.values()) == names  # Optuna knows them
            if other_writes:  # as a dashboard does
                other = optuna.load_study(study_name="s", storage=journal_file(path))
                other.set_user_attr("note", value)
        assert path.read_bytes().count(b"\n") == before.count(b"\n") + 3 + other_writes
        trial.report(0.5, 1)
        assert study.user_attrs == ({"note": value} if other_writes else {})
        study.tell(trial, value)
        assert list(study.trials[-1].params.values()) == names
    assert [t.value for t in trials(path)] == [0.5, 0.25]
    assert [t.params for t in trials(path)] == [t.params for t in study.trials]


def test_what_must_be_on_the_disk_at_once_takes_the_lines_before_it_along(path: Path) -> None:
    study = optuna.load_study(study_name="s", storage=journal_file(path))
    trial = study.ask()
    with journal.together(study):
        trial.suggest_float("x", 0, 1)
        study.tell(1, 0.75)
        trial.suggest_float("y", 0, 1)
        assert [len(t.params) for t in trials(path)] == [1, 1, 1]
        assert trials(path)[1].value == 0.75
    assert [len(t.params) for t in trials(path)] == [1, 1, 2]
    study.tell(trial, 0.5)
    assert [t.value for t in trials(path)] == [0.25, 0.75, 0.5]


def test_another_thread_may_read_and_write_meanwhile(path: Path) -> None:
    study = optuna.load_study(study_name="s", storage=journal_file(path))
    errors: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            while not done.is_set():
                study.set_user_attr("seen", len(study.trials))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(40):
        trial = study.ask()
        with journal.together(study):
            for name in "xyz":
                trial.suggest_float(name, 0, 1)
        study.tell(trial, 0.5)
    done.set()
    thread.join()
    assert errors == []
    assert [len(t.params) for t in trials(path)[2:]] == [3] * 40


class Failing:
    """Fails as a network disk does, `times` times; then it does what the real one does."""

    def __init__(self, plain: Callable[..., Any], code: int, times: int = 1) -> None:
        self.plain, self.code, self.left = plain, code, times

    def __call__(self, *of: Any, **options: Any) -> Any:
        if self.left:
            self.left -= 1
            raise OSError(self.code, os.strerror(self.code))
        return self.plain(*of, **options)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnist_ray.storage.run_storage.FIRST_PAUSE", 0.01)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("where", ["os.open", "os.fsync", "os.pread", "pathlib.Path.open"])
def test_a_passing_error_of_a_network_disk_is_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, at_once: None, where: str, code: int
) -> None:
    """No line is lost, and none is written twice."""
    study = optuna.load_study(study_name="s", storage=journal_file(path))
    before = path.read_bytes()
    module, _, name = where.rpartition(".")
    plain = Path.open if module == "pathlib.Path" else getattr(os, name)
    failing = Failing(plain, code)
    with monkeypatch.context() as patch:
        if module == "pathlib.Path":
            patch.setattr(Path, "open", lambda self, *of, **more: failing(self, *of, **more))
        else:
            patch.setattr(where, failing)
        study.tell(1, 0.75)
        journal.on_disk(study)
        assert study.trials[1].value == 0.75
    assert failing.left == 0
    assert path.read_bytes().count(b"\n") == before.count(b"\n") + 1
    assert [t.value for t in trials(path)] == [0.25, 0.75]


@pytest.mark.parametrize("written", [0, 1, 60, 100_000])
@pytest.mark.parametrize("other_writes", [False, True])
def test_lines_of_which_a_part_was_written_are_completed(
    path: Path, monkeypatch: pytest.MonkeyPatch, at_once: None, written: int, other_writes: bool
) -> None:
    study = optuna.load_study(study_name="s", storage=journal_file(path))
    other = optuna.load_study(study_name="s", storage=journal_file(path))
    trial = study.ask()
    before = path.read_bytes().count(b"\n")

    class Part(io.FileIO):
        """Takes a part of what it is given, and fails."""

        def write(self, data: Any) -> int:
            super().write(bytes(data)[:written])
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    storage = storage_of(study)
    assert isinstance(storage, journal.Journal)
    log, opened, tries = storage.log, journal.FileLog._opened, list[int]()

    def once(self: journal.FileLog) -> Any:
        tries.append(len(tries))
        if len(tries) == 1:
            return Part(os.open(path, os.O_RDWR | os.O_APPEND), "ab")
        if len(tries) == 2 and other_writes:
            log.lock.release()  # as if it had come between the two tries
            other.set_user_attr("note", 1)
            log.lock.acquire()
        return opened(self)

    with monkeypatch.context() as patch, journal.together(study):
        names = [trial.suggest_float(name, 0, 1) for name in "xyz"]
        patch.setattr(log, "_opened", lambda: once(log))
    study.tell(trial, 0.5)
    assert path.read_bytes().count(b"\n") == before + 3 + other_writes + 1
    for each in (study, optuna.load_study(study_name="s", storage=journal_file(path))):
        assert list(each.trials[-1].params.values()) == names
        assert each.trials[-1].value == 0.5
        assert each.user_attrs == ({"note": 1} if other_writes else {})


def test_a_full_disk_is_told_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.load_study(study_name="s", storage=journal_file(path))
    failing = Failing(os.fsync, errno.ENOSPC, 9)
    monkeypatch.setattr("os.fsync", failing)
    with pytest.raises(WorkError, match=r"^cannot write .*study\.journal: No space left on device"):
        study.tell(1, 0.75)
    assert failing.left == 8


def test_a_disk_that_stays_away_ends_the_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", "0.3")
    study = optuna.load_study(study_name="s", storage=journal_file(path))
    monkeypatch.setattr("os.fsync", Failing(os.fsync, errno.EIO, 99))
    with pytest.raises(WorkError, match=r"^cannot write .*study\.journal: Input/output error"):
        study.tell(1, 0.75)
