"""Settings made in Python: values of people's types, names, and which of them were given."""

import dataclasses
import functools
import os
import pwd
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import optuna
import pytest

from mnist_ray.errors import SettingsError
from mnist_ray.settings import (
    DrawSettings,
    ExportSettings,
    FinetuneSettings,
    PredictSettings,
    ReportSettings,
    SearchSettings,
    check_search,
    parse,
    resolved,
)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("space_args", {"max_width": 16, "norm": True}, ("max_width=16", "norm=True")),
        ("sampler_args", ["a=1"], ("a=1",)),
        ("storage", Path("runs"), "runs"),
        ("storage", "~/runs", str(Path.home() / "runs")),
        ("points", "~/p.yaml", str(Path.home() / "p.yaml")),
        ("portfolio", "~/p.yaml", str(Path.home() / "p.yaml")),
        ("stages", "~/s.yaml", str(Path.home() / "s.yaml")),
        ("config", "~/c.yaml", str(Path.home() / "c.yaml")),
        ("study", "~/s.journal", str(Path.home() / "s.journal")),
        ("name", "~", "~"),
        ("trials", np.int64(4), 4),
        ("cpus_per_trial", np.float32(0.5), 0.5),
        ("gpus_per_trial", "auto", "auto"),
        ("gpus_per_trial", 1, 1),
        ("max_concurrent", None, None),
        ("space", parse, "mnist_ray.settings.parse:parse"),
        ("sampler", SearchSettings, "mnist_ray.settings.options:SearchSettings"),
    ],
)
def test_values_of_python_become_those_of_the_command(
    name: str, value: object, expected: object
) -> None:
    found = getattr(SearchSettings.of(**{name: value}), name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("trials", "many", "a whole number"),
        ("trials", 2.5, "a whole number"),
        ("trials", True, "a whole number"),
        ("trials", None, "a whole number"),
        ("max_concurrent", "2", "a whole number or None"),
        ("reduction_factor", "3", "a number"),
        ("metric_mode", "most", "'max', 'min' or None"),
        ("gpus_per_trial", "some", "a number or 'auto'"),
        ("space_args", "max_width=16", "a list or a dict"),
        ("dataset", 3, "text"),
        ("finetune", "no", "True or False"),
    ],
)
def test_a_wrong_value_names_the_argument(name: str, value: object, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        SearchSettings.of(**{name: value})
    assert str(caught.value) == f"{name}: {value!r} is not allowed; expected {expected}"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("sampler", optuna.samplers.RandomSampler(), "an object of type RandomSampler is not"),
        ("scheduler", optuna.pruners.NopPruner(), "an object of type NopPruner is not"),
        ("space", functools.partial(parse), "an object of type partial is not"),
    ],
)
def test_an_object_in_place_of_its_class_is_told_from_it(
    name: str, value: object, expected: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        SearchSettings.of(**{name: value})
    kind = "function" if name == "space" else "class"
    hint = f"give its {kind}, and its options in {name}_args"
    assert str(caught.value) == f"{name}: {expected} allowed; {hint}"


def test_a_function_that_no_worker_could_import_is_refused() -> None:
    def space(trial: object) -> None:
        pass

    with pytest.raises(SettingsError, match="at the top of a module"):
        SearchSettings.of(space=space)


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        SettingsError, match=r"^trails: there is no such option; did you mean trial"
    ):
        SearchSettings.of(trails=3)
    with pytest.raises(
        SettingsError, match=r"^xyz: there is no such option; there are run, onnx, "
    ):
        FinetuneSettings.of(xyz=3)
    with pytest.raises(SettingsError, match=r"^given: "):
        SearchSettings.of(given={"trials"})


@pytest.mark.parametrize(
    ("made", "given"),
    [
        (lambda: SearchSettings(), set()),
        (lambda: SearchSettings(resume=True, trials=100), {"resume", "trials"}),
        (lambda: SearchSettings.of(trials=50), {"trials"}),
        (lambda: dataclasses.replace(SearchSettings.of(trials=50), seed=1), {"trials", "seed"}),
        (lambda: parse(SearchSettings, ["--trials=50", "--no-finetune"]), {"trials", "finetune"}),
        (lambda: parse(SearchSettings, ["--name", "trials"]), {"name"}),
    ],
)
def test_what_was_given_is_known_however_the_settings_were_made(made: Any, given: set[str]) -> None:
    assert made().given == given


def test_a_home_folder_is_asked_for_only_when_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a container whose user has neither HOME nor a line in /etc/passwd."""

    def unknown(uid: int) -> NoReturn:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("MNIST_RAY_DATA", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(SystemExit) as end:
        parse(SearchSettings, ["--help"])
    assert end.value.code == 0
    assert "--storage" in capsys.readouterr().out
    check_search(parse(SearchSettings, ["--storage", "runs", "--dataset", "digits"]))
    with pytest.raises(SettingsError, match=r"^--storage: ~/mnist_ray: .* HOME$"):
        check_search(parse(SearchSettings, []))
    with pytest.raises(SettingsError, match=r"^--png: '~/figs' is no place on this machine"):
        parse(ReportSettings, ["run", "--png=~/figs"])


@pytest.mark.parametrize(
    ("cls", "words", "flag"),
    [
        (ReportSettings, ["run"], "--png"),
        (ReportSettings, ["run"], "--out"),
        (DrawSettings, ["model.onnx"], "--export"),
        (ExportSettings, ["run"], "--out"),
    ],
)
def test_what_a_command_writes_lies_on_this_machine(
    cls: Any, words: list[str], flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in a folder `~` or `s3:` of the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    name = flag.removeprefix("--")
    assert getattr(parse(cls, [*words, f"{flag}=~/figs"]), name) == "/home/me/figs"
    assert getattr(parse(cls, [*words, f"{flag}=a/~/figs"]), name) == "a/~/figs"
    for place, shown in (
        ("s3://bucket/figs", "s3://bucket/figs"),
        ("s3://key:planted@bucket/figs", "s3://***@bucket/figs"),
        ("file:///tmp/figs", "file:///tmp/figs"),
    ):
        with pytest.raises(SettingsError) as caught:
            parse(cls, [*words, f"{flag}={place}"])
        expected = f"{flag}: {shown!r} is no place on this machine; expected a path"
        assert str(caught.value) == expected
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_home_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "weights.yaml").write_text("a: 1\n")
    (tmp_path / "my.yaml").write_text("trials: 7\nclass_weights: ~/weights.yaml\n")
    found = parse(SearchSettings, ["--config=~/my.yaml"])
    assert (found.trials, found.class_weights) == (7, '{"a": 1}')


def test_every_option_of_a_search_belongs_to_one_group() -> None:
    names = [f.name for f in dataclasses.fields(SearchSettings) if f.name != "given"]
    grouped = [f.name for g in SearchSettings.__bases__ for f in dataclasses.fields(g)]
    assert sorted(grouped) == sorted(names)
    assert set(resolved(SearchSettings())) == set(names)


def test_the_help_has_a_title_for_each_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(SearchSettings, ["--help"])
    out = capsys.readouterr().out
    for group in SearchSettings.__bases__:
        title = group.__name__.removesuffix("Options").lower()
        assert f"\n{title} options:\n" in out
        assert (group.__doc__ or "-") in out.replace("\n  ", " ")


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"storage": "runs"}, "--storage"),
        ({"storage": "./runs"}, "--storage"),
        ({"study": "sqlite:///study.db"}, "--study"),
        ({"study": "mine.journal"}, "--study"),
        ({"mlflow": "sqlite:///mlflow.db"}, "--mlflow"),
    ],
)
def test_what_a_submitted_job_would_lose_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], flag: str
) -> None:
    folder = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    settings = SearchSettings(**{"storage": str(tmp_path), **options})
    check_search(settings)  # not in a job
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    check_search(settings)  # a job without a working directory of its own
    monkeypatch.chdir(folder)
    with pytest.raises(SettingsError, match=rf"^{flag}: .* is relative to Ray's temporary copy"):
        check_search(settings)


@pytest.mark.parametrize(
    "options",
    [
        {"storage": "s3://bucket/runs"},
        {"storage": "file:///shared/runs"},
        {"study": "sqlite:////shared/study.db"},
        {"study": "postgresql://me@host/db"},
        {"study": "/shared/mine.journal"},
        {"study": "memory"},
        {"mlflow": "http://host:5000"},
    ],
)
def test_what_a_submitted_job_keeps_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    check_search(SearchSettings(**{"storage": str(tmp_path), **options}))


def test_a_text_that_is_no_utf_8_is_refused_where_a_run_would_record_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = os.fsdecode(b"caf\xe9")  # as Python has such a word of the command
    said = r"caf\\udce9 is no UTF-8; rename it, or name a link to it$"
    for made, flag in (
        (lambda: SearchSettings(points=odd), "--points"),
        (lambda: SearchSettings(dataset=f"folder:{odd}"), "--dataset"),
        (lambda: SearchSettings(data_dir=odd), "--data-dir"),
        (lambda: SearchSettings(space_args=("a=1", f"b={odd}")), "--space-args"),
        (lambda: FinetuneSettings(run=odd), "--run"),
    ):
        with pytest.raises(SettingsError, match=rf"^{flag}: .*{said}"):
            made()
    PredictSettings(odd, (odd,))  # is written nowhere
    monkeypatch.setenv("MNIST_RAY_DATA", odd)
    assert SearchSettings().data_dir == odd  # nobody gave it
    FinetuneSettings(run="runs/a")
    monkeypatch.delenv("MNIST_RAY_DATA")
    (tmp_path / odd).mkdir()
    monkeypatch.chdir(tmp_path / odd)
    with pytest.raises(SettingsError, match=r"^--dataset: folder:/.*caf\\udce9/photos is no UTF-8"):
        SearchSettings(dataset="folder:photos")


def test_images_that_a_submitted_job_would_lose_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    place = str(tmp_path)
    check_search(SearchSettings(dataset="folder:photos", storage=place))  # not in a job
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for kept in (f"folder:{tmp_path}/photos", "hf:name", "digits", "mine:images"):
        check_search(SearchSettings(dataset=kept, storage=place))
    for lost in ("folder:photos", "npz:images.npz"):
        settings = SearchSettings(dataset=lost, storage=place)
        with pytest.raises(SettingsError, match="^--dataset: .* give an absolute path"):
            check_search(settings)
        check_search(settings, merged=True)  # a run that has it goes on
