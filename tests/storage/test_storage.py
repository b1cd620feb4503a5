"""What holds on a disk and on S3 alike."""

import functools
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mnist_ray.errors import CorruptFileError, SettingsError, WorkError
from mnist_ray.storage import OwnedStorage, RunStorage, check_writable, open_run
from mnist_ray.storage.object_store import PART_BYTES


def test_files_of_a_run(place: str) -> None:
    run = open_run(place, "first")
    assert not run.exists()
    assert run.list() == []
    run.write_bytes("best/model.safetensors", b"one")
    run.write_bytes("best/model.safetensors", b"three")
    run.write_bytes("finetune/stage-1/curve one.parquet", b"")
    run.write_json("run.json", {"z": 1, "a": "größer"})
    assert run.exists()
    assert run.exists("best")
    assert run.exists("run.json")
    assert not run.exists("run.jso")
    assert run.read_bytes("best/model.safetensors") == b"three"
    assert run.read_bytes("finetune/stage-1/curve one.parquet") == b""
    assert list(run.read_json("run.json")) == ["z", "a"]
    assert run.read_bytes("run.json") == '{\n "z": 1,\n "a": "größer"\n}\n'.encode()
    everything = ["best/model.safetensors", "finetune/stage-1/curve one.parquet", "run.json"]
    assert run.list() == everything
    assert run.list("best") == everything[:1]
    run.delete("best")
    run.delete("run.json")
    run.delete("run.json")
    run.delete("never/was")
    assert run.list() == everything[1:2]
    run.delete("")
    assert run.list() == []


def test_missing_and_damaged_files_have_their_own_errors(place: str) -> None:
    run = open_run(place, "first")
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        run.read_json("run.json")
    run.write_bytes("run.json", b'{"half": ')
    with pytest.raises(CorruptFileError, match=r"run\.json.* is not JSON"):
        run.read_json("run.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_json("run.json", {"loss": float("nan")})


def test_a_text_that_is_no_utf_8_is_kept(tmp_path: Path) -> None:
    """As a word of the command may be."""
    run, word = RunStorage(str(tmp_path)), os.fsdecode(b"caf\xe9")
    run.write_json("run.json", {"command": word, "a": "größer"})
    run.change_json("run.json", lambda now: {**now, "state": "done"})
    assert run.read_json("run.json") == {"command": word, "a": "größer", "state": "done"}


def test_a_uri_of_a_file_opens_that_file(place: str) -> None:
    run = open_run(place, "first")
    run.write_bytes("best/a b", b"x")
    assert RunStorage(run.join("best")).read_bytes("a b") == b"x"
    assert run.join("") == run.uri


def test_only_the_first_takes_a_name(place: str) -> None:
    run = open_run(place, "first")
    assert run.create_exclusive("lock", b"mine")
    assert not run.create_exclusive("lock", b"yours")
    assert run.read_bytes("lock") == b"mine"


@pytest.fixture
def patience(little_patience: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine the eighth of those that lock a file waits longer than 0.3 s."""
    monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", "20")


def all_at_once(take: Callable[[bytes], bool], number: int = 8) -> list[bytes]:
    """Those of the values for which `take`, called in threads of their own, was True."""
    start = threading.Barrier(number)

    def one(value: bytes) -> bool:
        start.wait()
        return take(value)

    values = [str(i).encode() for i in range(number)]
    with ThreadPoolExecutor(number) as pool:  # whose errors come out here
        return [value for value, won in zip(values, pool.map(one, values), strict=True) if won]


@pytest.mark.usefixtures("patience")
def test_of_writers_at_the_same_moment_one_wins(place: str) -> None:
    run = open_run(place, "first")
    for number in range(5):
        name = f"lock-{number}"
        won = all_at_once(functools.partial(run.create_exclusive, name))
        assert won == [run.read_bytes(name)]


def test_a_file_is_replaced_only_while_it_holds_what_was_read(place: str) -> None:
    run = open_run(place, "first")
    assert not run.replace_exclusive("lease", b"old", b"new")  # there is none
    assert not run.exists("lease")
    run.write_bytes("lease", b"old")
    assert not run.replace_exclusive("lease", b"older", b"new")
    assert run.replace_exclusive("lease", b"old", b"new")
    assert run.read_bytes("lease") == b"new"
    assert not run.replace_exclusive("lease", b"old", None)
    assert run.replace_exclusive("lease", b"new", None)
    assert run.list() == []


@pytest.mark.usefixtures("patience")
def test_of_those_who_replace_a_file_at_the_same_moment_one_wins(place: str) -> None:
    run = open_run(place, "first")
    before = b"old"
    run.write_bytes("lease", before)
    for number in range(5):
        mark = str(number).encode()

        def take(value: bytes, before: bytes = before, mark: bytes = mark) -> bool:
            return run.replace_exclusive("lease", before, mark + value)

        won = all_at_once(take)
        before = run.read_bytes("lease")
        assert [mark + value for value in won] == [before]


@pytest.mark.usefixtures("patience")
def test_of_changes_at_the_same_moment_none_is_lost(place: str) -> None:
    run = open_run(place, "first")
    run.write_json("run.json", {"state": "searching"})

    def change(value: bytes) -> bool:
        run.change_json("run.json", lambda now: {**now, value.decode(): 1})
        return True

    changes = all_at_once(change)
    assert len(changes) == 8
    assert run.read_json("run.json") == {"state": "searching"} | {c.decode(): 1 for c in changes}
    with pytest.raises(FileNotFoundError):
        run.change_json("none.json", lambda now: now)


def test_an_owner_writes_what_it_likes_while_the_mark_is_its_own(place: str) -> None:
    run = open_run(place, "first")
    run.write_bytes("mark", b"mine")

    def check(content: bytes | None) -> None:
        if content != b"mine":
            raise WorkError(f"the mark is {content!r}")

    owned = OwnedStorage(run.uri, "mark", check)
    for data in (b"one", b"three", b"", bytes(PART_BYTES + 1)):
        owned.write_bytes("best/a", data)
        assert run.read_bytes("best/a") == data
    run.write_bytes("mark", b"yours")
    with pytest.raises(WorkError, match="^the mark is b'yours'$"):
        owned.write_bytes("best/a", b"")
    run.delete("")
    with pytest.raises(WorkError, match="^the mark is None$"):
        owned.write_bytes("best/a", b"")
    assert run.list() == []


def test_pickled_it_is_its_uri(place: str) -> None:
    run = open_run(place, "first")
    run.write_bytes("a", b"x")
    data = pickle.dumps(run)
    assert b"test-secret-of-s3-server" not in data
    assert pickle.loads(data).read_bytes("a") == b"x"


def test_a_writable_place_is_left_as_it_was(place: str, tmp_path: Path) -> None:
    check_writable(place)
    assert RunStorage(place).list() == []
    assert not RunStorage(place).exists()
    assert list(tmp_path.iterdir()) == []
    RunStorage(place).write_bytes("a", b"x")
    check_writable(place)
    assert RunStorage(place).list() == ["a"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for uri in (
        f"{file}",
        f"{file}/runs",
        "/proc/runs",
        "/proc/1/runs/a",
        f"{tmp_path}/dangling",
        f"{tmp_path}/{'x' * 300}",
    ):
        with pytest.raises(SettingsError, match="--storage: cannot write to"):
            check_writable(uri)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]


def test_patience_must_be_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("soon", "nan", "-1"):
        monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", text)
        with pytest.raises(SettingsError, match=f"MNIST_RAY_STORAGE_RETRY_SECONDS={text}"):
            RunStorage(str(tmp_path)).exists()
