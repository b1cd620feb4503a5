"""Planted secrets of many shapes, in every option that takes a URI: none is shown or kept."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from mnist_ray import trackers
from mnist_ray.errors import MnistRayError
from mnist_ray.export.read import read_model
from mnist_ray.search_job.keeper import claim
from mnist_ray.search_job.plan import prepare
from mnist_ray.search_job.summary import describe
from mnist_ray.settings import (
    SearchSettings,
    masked,
    parse,
    resolved,
    scrubbed,
    trust,
)
from mnist_ray.storage import RunStorage
from mnist_ray.study import storages, warm_start
from mnist_ray.trackers.tracker import commands

HEAD, TAIL = "Zq7", "Kx9"  # a secret's two halves, between which a character stands that parts URLs
BETWEEN = ["", " ", "/", "?", "#", "@", ":", "&", "=", "+", "%40", "%2F", "ß", "'", '"', "$", "\\"]
PLACES = [
    "postgresql://me:{}@host:5432/db",
    "postgresql+psycopg2://me:{}@host/db?sslmode=require",
    "mysql://me:{}@host/db",
    "mariadb://:{}@host/db",
    "redis://:{}@host:6379/0",
    "rediss://{}@host:6379/0",
    "https://{}@host/path",
    "https://{}:x-oauth-basic@host/path",
    "http://me:{}@127.0.0.1:9/",
    "https://host/path?token={}",
    "https://host/path?a=1&api_key={}&b=2",
    "postgresql://host/db?user=me&password={}",
    "redis://host:6379/0?password={}",
    "sqlite:///x.db?key={}",
    "POSTGRESQL://me:{}@HOST/db",
    "jdbc:postgresql://me:{}@host/db",
]
SHAPES = [place.format(f"{HEAD}{c}{TAIL}") for place in PLACES for c in BETWEEN]
MISTYPED = [
    f"postgresql:me:{HEAD}{TAIL}@host/db",
    f"postgresql:/me:{HEAD}{TAIL}@host/db",
    f"me:{HEAD}{TAIL}@host/db",
    f"postgresql://me:{HEAD}{TAIL}",
    f"https://host/?{HEAD}{TAIL}",
    f"s3://me:{HEAD}{TAIL}@bucket/x",
    f"s3://me:{HEAD}/{TAIL}@bucket/x",
    f"s3://bucket/x?secret_key={HEAD}{TAIL}",
    f"s3://bucket/x\n?key={HEAD}{TAIL}",
    f"s3://[{HEAD}{TAIL}@bucket/x",
    f"file://me:{HEAD}{TAIL}@host/x",
]
ALL = SHAPES + MISTYPED
SAMPLE = [
    pytest.param(url, marks=[] if i % 4 == 0 or url in MISTYPED else pytest.mark.slow)
    for i, url in enumerate(ALL)
]


def leaks(text: str) -> list[str]:
    return [half for half in (HEAD, TAIL) if half in text]


def said(call: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """All that a call prints and raises, causes of the error excluded: a person sees one line."""
    try:
        returned = call()
    except MnistRayError as error:
        returned = str(error)
    except SystemExit:
        returned = ""
    out, err = capsys.readouterr()
    return f"{returned}{out}{err}"


def test_there_are_enough() -> None:
    assert len(ALL) >= 50
    assert sum(not param.marks for param in SAMPLE) >= 50
    assert all(leaks(url) for url in ALL)


@pytest.mark.parametrize("url", ALL)
def test_no_secret_is_shown(url: str) -> None:
    assert leaks(masked(url)) == []
    assert leaks(masked(f"--study={url}")) == []
    assert masked(masked(url)) == masked(url)


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/me@work/x.db",
        "postgresql://me@host:5432/db?sslmode=require#study",
        "postgresql://me:${PGPASSWORD}@host/db",
        "postgresql://${USER}:${PASSWORD}@host/db",
        "https://${TOKEN}@host/path",
        "${STUDY}",
        "http://127.0.0.1:5000",
        "https://[::1]:5000/x",
        "s3://bucket/a@b?endpoint_override=127.0.0.1:9000&scheme=http",
        "gs://anonymous@bucket/x",
        "a@b.journal",
        "mine:function",
        "--space-args",
        "max_width=16",
        "",
        "\n",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text
    assert scrubbed(f"no answer from {text}: refused", text) == f"no answer from {text}: refused"


@pytest.mark.parametrize("url", SAMPLE)
def test_no_option_shows_it(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused or not, where a person gives it and where a file does."""
    monkeypatch.chdir(tmp_path)
    settings = SearchSettings(study=url, warm_start=url, mlflow=url, storage="runs", name="a")
    calls: list[Any] = [
        lambda: resolved(settings),
        lambda: commands(settings, RunStorage("runs/a"), "x.journal", None, []),
        lambda: trackers.check(settings),
        lambda: storages.expanded(url, "--study") and None,
        lambda: trust.check({"study": url, "mlflow": url}, (), "run.json"),
    ]
    shown = [said(call, capsys) for call in calls]
    if "://" in url and not Path(url).exists():
        shown.append(said(lambda: read_model(url), capsys))
    assert [leaks(text) for text in shown if leaks(text)] == []
    assert not any((tmp_path / name).exists() for name in ("runs", "x.db"))


@pytest.mark.parametrize("url", ALL[:: len(ALL) // 12])
def test_no_command_line_shows_it(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"trials: 3\nstudy: {url}\nsamplre: tpe\n")
    for flags in (["--config", str(config)], [f"--studdy={url}"], ["--trials", url], [url]):
        text = said(lambda flags=flags: parse(SearchSettings, flags), capsys)  # type: ignore[misc]
        assert text
        assert leaks(text) == [], flags


PORT = re.compile(r"host(:\d+)?", re.IGNORECASE)


@pytest.mark.parametrize("url", SAMPLE)
def test_no_drivers_message_shows_it(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mnist_ray.study.servers.time.sleep", lambda seconds: None)
    url = PORT.sub("127.0.0.1:9", url)

    def opened() -> None:
        with storages.opened(url):
            pass

    def older() -> None:
        warm_start.older_trials(url, "val_accuracy", {}, lambda trial: {})

    for call in (opened, older):
        text = said(call, capsys)
        assert text
        assert leaks(text) == [], text


def test_no_file_of_a_run_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of it is accepted."""
    plan = prepare(SearchSettings(dataset="digits", storage=str(tmp_path), name="a", dry_run=True))
    monkeypatch.setattr("mnist_ray.search_job.keeper._git_commit", lambda: None)
    some = [*SHAPES[::5], *MISTYPED]
    for i, url in enumerate(some):
        monkeypatch.setattr(sys, "argv", ["search", "--study", url, f"--mlflow={url}"])
        settings = dataclasses.replace(plan.settings, study=url, mlflow=url, warm_start=url)
        storage = RunStorage(str(tmp_path / f"r{i}"))
        one = dataclasses.replace(plan, settings=settings, name=f"r{i}", storage=storage)
        assert leaks(describe(one)) == []
        assert leaks(one.resume_command) == []
        claim(one).patch(state="searched")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == len(some) >= 50
    assert [file for file in files if leaks(file.read_text(encoding="utf-8"))] == []


def test_ray_addresses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from mnist_ray.cluster.connection import _to_join

    for url in ALL:
        monkeypatch.setenv("RAY_ADDRESS", url)
        assert leaks(said(_to_join, capsys)) == []
