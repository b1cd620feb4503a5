"""--help: it fits a terminal, has every option once, and its examples are right."""

import shlex
from collections.abc import Iterable
from typing import Any

import pytest

from mnist_ray import cli
from mnist_ray.search_job.part_options import part_options
from mnist_ray.settings import SearchSettings, help, parse
from mnist_ray.spaces import SPACES
from mnist_ray.study.pruners import NAMES
from mnist_ray.study.samplers import SAMPLERS

SETTINGS = {name: command.settings for name, command in cli.COMMANDS.items()}
BUILT_IN: dict[str, Iterable[str]] = {"space": SPACES, "sampler": SAMPLERS, "scheduler": NAMES}
EVERY_PART = [(part, name) for part, names in BUILT_IN.items() for name in names]


@pytest.mark.parametrize("name", SETTINGS)
def test_help_fits_80_columns_and_has_every_flag(name: str) -> None:
    text = help.text(SETTINGS[name], f"mnist-ray {name}")
    assert max(map(len, text.splitlines())) <= 80
    for field in SETTINGS[name].__dataclass_fields__.keys() - {"given"}:
        flag = field.replace("_", "-")
        assert f"\n  --{flag}" in text or f"\n  {field.upper()}".rstrip("S") in text, field


def test_the_overview_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.console([])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize("name", SETTINGS)
def test_an_option_has_one_default_and_a_meaning(name: str) -> None:
    options = [option for group in help.groups(SETTINGS[name]) for option in group.options]
    for option in options:
        assert bool(option.default) == bool(option.flags), option
        assert "(default" not in option.meaning, option
        assert option.meaning
        assert option.value != "TEXT", "say how its value is written"


@pytest.mark.parametrize("name", SETTINGS)
def test_its_examples_are_right(name: str) -> None:
    examples = help.EXAMPLES[SETTINGS[name].__name__]
    assert len(examples) == 4
    text = help.text(SETTINGS[name], f"mnist-ray {name}")
    for example in examples:
        assert f"\n  mnist-ray {name} {example}" in text
        assert parse(SETTINGS[name], shlex.split(example)) is not None


@pytest.mark.parametrize(("part", "name"), EVERY_PART)
def test_the_options_of_each_part_fit_and_have_a_meaning(part: str, name: str) -> None:
    options = part_options(part, name)
    text = help.part_text(part, name, options)
    assert max(map(len, text.splitlines())) <= 80
    assert [option.name for option in options if not option.meaning] == []
    for option in options:
        assert f"\n  {option.name}=" in text


def of_a_function(trial: Any, most: int) -> dict[str, Any]:
    """A space for --train.

    Args:
        trial: Optuna's.
        most: The most.
    """
    return {}


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--help-space", "convnet"], 0, "max_width=N"),
        (["--help-space=examples.own_parts:none"], 2, "--space: 'examples.own_parts:none' cannot"),
        (["--help-sampler", "tpe"], 0, "n_startup_trials=N"),
        (["--help-scheduler", "patient"], 0, "wraps=TEXT"),
        (["--help-scheduler", "asha"], 0, "The scheduler asha has no options of its own."),
        (["--trials", "3", "--help-space", "convnet"], 0, "max_width=N"),
        (["--train", "x:y", f"--help-space={__name__}:of_a_function"], 0, "most=N  The most."),
        (["--help-scheduler"], 2, "--scheduler: '' is unknown; expected one of asha, "),
    ],
)
def test_the_options_of_a_part_are_listed(
    flags: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.console(["search", *flags])
    assert end.value.code == code
    out, err = capsys.readouterr()
    assert words in (err if code else out)
    assert out == "" or err == ""


def test_defaults_are_those_of_this_program() -> None:
    """Optuna's own TPE treats each parameter alone."""
    defaults = {option.name: option.default for option in part_options("sampler", "tpe")}
    assert defaults["multivariate"] == "yes"
    shown = {o.name: o.default for group in help.groups(SearchSettings) for o in group.options}
    assert (shown["trials"], shown["max_epochs"], shown["val_by"][:3]) == ("50", "10", "own")
