"""What may be given as --storage and --name, and as the name of a file."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_ray.errors import SettingsError
from mnist_ray.storage import RunStorage, check_writable, open_run, refuse_credentials


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a..b", "a/b", "a b", "ä", "a\n", "a\\b", "x" * 201]
)
def test_run_names_that_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--name"):
        open_run(str(tmp_path), name)


@given(st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_no_run_name_leads_out_of_the_storage(name: str) -> None:
    try:
        run = open_run("/storage/runs", name)
    except SettingsError:
        return
    assert run.uri == f"/storage/runs/{name}"
    assert os.path.normpath(run.uri) == run.uri


@given(
    st.one_of(
        st.text(max_size=20),
        st.lists(st.sampled_from(["a", "..", ".", "", "b c", "\\", "x" * 9])).map("/".join),
    )
)
@settings(max_examples=150, deadline=None)
def test_no_file_name_leads_out_of_the_run(name: str) -> None:
    run = RunStorage("/storage/runs/first")
    try:
        path = run.join(name)
    except ValueError:
        return
    assert os.path.normpath(path) == path
    assert path == run.uri or path.startswith(f"{run.uri}/")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../b", "a//b", "a/", ".", "a\\b", "a\0b"])
def test_names_that_lead_out_of_a_run_are_refused(name: str, tmp_path: Path) -> None:
    run = RunStorage(str(tmp_path))
    operations: list[Callable[[], object]] = [
        lambda: run.read_bytes(name),
        lambda: run.write_bytes(name, b""),
        lambda: run.delete(name),
        lambda: run.exists(name),
        lambda: run.list(name),
        lambda: run.join(name),
        lambda: run.create_exclusive(name, b""),
        lambda: run.replace_exclusive(name, b"", b"x"),
    ]
    for operation in operations:
        with pytest.raises(ValueError, match="not a name inside"):
            operation()


def test_the_query_stays_at_the_end() -> None:
    query = "?endpoint_override=127.0.0.1:9000&scheme=http"
    run = open_run(f"s3://bucket/runs/{query}", "first")
    assert run.uri == f"s3://bucket/runs/first{query}"
    assert run.join("best/a b") == f"s3://bucket/runs/first/best/a%20b{query}"
    assert (run.is_local, run.local_path) == (False, None)
    assert open_run("s3://bucket", "first").uri == "s3://bucket/first"


def test_local_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_run("runs", "first").uri == str(tmp_path / "runs" / "first")
    assert open_run("~/runs/", "first").local_path == tmp_path / "home" / "runs" / "first"
    assert open_run(f"file://{tmp_path}/a%20b", "first").local_path == tmp_path / "a b" / "first"
    assert (
        open_run(str(tmp_path / "50%20?x=#1"), "first").local_path
        == tmp_path / "50%20?x=#1" / "first"
    )


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "a\nb",
        "a\0b",
        "s3:/bucket/runs",
        "file:runs",
        "http://host/runs",
        "S3://bucket",
        "file://otherhost/runs",
        "file:///a?b=c",
        "s3://",
        "s3:///runs",
        "s3://bucket/a/../b",
        "s3://bucket//a",
        "s3://bucket/a b",
        "s3://bucket/a#b",
        "s3://bucket?endpoint=x",
        "s3://bucket?scheme=ftp",
        "az://",
        "az://container?account_name=x",
        "s3://bucket?allow_bucket_creation=true",
        "s3://[bucket/a",
    ],
)
def test_uris_that_are_refused(uri: str) -> None:
    with pytest.raises(SettingsError, match="--storage"):
        RunStorage(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA7:hunter2@bucket/runs",
        "s3://hunter2@bucket/runs",
        "s3://bucket/runs?access_key=AKIA7&secret_key=hunter2",
        "s3://bucket/runs?Secret%5FKey=hunter2",
        "s3://bucket/runs?session_token=hunter2",
        "gs://user:hunter2@bucket/runs",
        "az://container/runs?sig=hunter2",
        "s3://bucket/runs?endpoint_override=AKIA7:hunter2@host:9000",
        "s3://bucket?X-Amz-Signature=hunter2",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    for refuse in (
        refuse_credentials,
        RunStorage,
        check_writable,
        lambda uri: open_run(uri, "first"),
    ):
        with pytest.raises(
            SettingsError, match=r"--storage .*environment, IAM or files only"
        ) as caught:
            refuse(uri)
        assert "hunter2" not in str(caught.value)
        assert "AKIA7" not in str(caught.value)


def test_all_of_a_bucket_or_disk_is_never_deleted() -> None:
    for uri in ("/", "s3://bucket"):
        with pytest.raises(ValueError, match="will not delete all"):
            RunStorage(uri).delete("")
