"""Text forms of values."""

import subprocess
import sys
import typing
from pathlib import Path
from typing import Any, Optional

import pytest
import yaml

from mnist_ray.errors import SettingsError
from mnist_ray.settings import (
    RECIPES,
    command,
    duration,
    key_values,
    load,
    load_yaml,
    packaged,
    read_yaml,
)
from mnist_ray.settings.text import arguments, class_weights, load_json
from mnist_ray.settings.yaml_files import Written


def test_durations_and_pairs() -> None:
    texts = ("90s", "30m", "2h", "1.5d", "7", None)
    assert [duration(text, "-") for text in texts] == [90, 1800, 7200, 129600, 7, None]
    assert key_values(("a=1", "b=c=d"), "-") == {"a": "1", "b": "c=d"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import no_such_module_at_all",
            "FILE:1: ModuleNotFoundError: No module named 'no_such_module_at_all'",
        ),
        ("f = 1 / 0", "FILE:1: ZeroDivisionError: division by zero"),
        ("x = 1\nf = g", "FILE:2: NameError: name 'g' is not defined"),
        ("def f(:", "FILE:1: SyntaxError: invalid syntax (NAME.py, line 1)"),
        ("other = 1", "AttributeError: module 'NAME' has no attribute 'f'"),
    ],
)
def test_a_module_of_one_s_own_that_cannot_be_imported_is_one_line(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"own_{abs(hash(source))}"
    file = tmp_path / f"{name}.py"
    file.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError) as caught:
        load(f"{name}:f", "--space", ["convnet"])
    expected = message.replace("FILE", str(file)).replace("NAME", name)
    assert str(caught.value) == f"--space: '{name}:f' cannot be imported: {expected}"


@pytest.mark.parametrize("folder", ["a b", "."])
def test_a_printed_command_works_where_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """In a shell that has not activated the environment, in any folder."""
    (tmp_path / folder).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / folder)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    line = command("--version")
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("mnist-ray "), done.stderr
    assert command("predict", "a b.onnx").endswith("-m mnist_ray predict 'a b.onnx'")


def test_a_printed_command_is_short_where_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    assert command("draw") == "bin/python -m mnist_ray draw"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mnist-ray").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert command("draw") == "mnist-ray draw"
    sent = tmp_path / "working_dir_files" / "x"
    sent.mkdir(parents=True)
    monkeypatch.chdir(sent)
    assert command("draw") == "python -m mnist_ray draw"


@pytest.mark.parametrize(
    "content",
    [
        "a: !!bool maybe",
        "a: !!int ''",
        "a: !!float ''",
        "a: !!timestamp noon",
        "a: " + "[" * 50_000,
        "? {a: 1}\n: 2",
        "a: &a [*a]",
        "a0: &a0 [x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40)),
        "a: !!python/object/apply:os.getcwd []",
        "a: \0",
    ],
    ids=["bool", "int", "float", "time", "deep", "key", "circle", "bomb", "tag", "zero"],
)
def test_yaml_that_no_schema_foresees_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(SettingsError, match=r"a\.yaml: is not plain YAML") as caught:
        read_yaml(str(tmp_path / "a.yaml"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_numbers_of_yaml_are_decimal(tmp_path: Path) -> None:
    """As in a stage: `epochs: 010`, `lr: 1e-3`."""
    (tmp_path / "a.yaml").write_text(
        "stages: [{epochs: 010, lr: 1e-3}, {epochs: -1_0, lr: +2.5E+1}]\n"
        "more: [.5, 5., .inf, -.INF, 0, 00, !!int 010]\n"
        "texts: [1:30, 0x1F, 2026-01-02, '10', e3, 1e, '', no-one]\n"
        "others: [yes, off, null, ~, ]\n"
        "base: &base {010: 1, no: 2}\nmerged: {<<: *base, 010: 3}\n"
    )
    assert read_yaml(str(tmp_path / "a.yaml")) == {
        "stages": [{"epochs": 10, "lr": 0.001}, {"epochs": -10, "lr": 25.0}],
        "more": [0.5, 5.0, float("inf"), -float("inf"), 0, 0, 10],
        "texts": ["1:30", "0x1F", "2026-01-02", "10", "e3", "1e", "", "no-one"],
        "others": [True, False, None, None],
        "base": {"010": 1, "no": 2},
        "merged": {"010": 3, "no": 2},
    }


def test_no_class_of_weights_is_lost_or_renamed(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text("010: 2\n8: 0.5\nno: 1\n")
    assert class_weights(str(file)) == '{"010": 2, "8": 0.5, "no": 1}'
    file.write_text("0: 2\n1: 3\n'0': 5\n")
    with pytest.raises(SettingsError, match="in line 3: '0' is given twice"):
        class_weights(str(file))


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_packaged_recipe_means_what_other_programs_read_in_it(path: Path) -> None:
    def texts(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: texts(each) for key, each in value.items()}
        if isinstance(value, list):
            return [texts(each) for each in value]
        return value if isinstance(value, bool | None) else str(value)

    expected = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert load_yaml(str(path), "-") == expected
    if path.parent == RECIPES and not path.stem.startswith("stages-"):  # those of --config
        assert load_yaml(str(path), "-", Written) == texts(expected)


def test_a_name_too_long_for_a_file_is_no_file() -> None:
    assert packaged("a" * 5000) == "a" * 5000
    assert load_json('{"a":' * 50_000) is None


def has_options(  # type: ignore[no-untyped-def]
    trial: Any,
    data: Any,
    most: int,
    least: Optional[int] = 3,  # noqa: UP045 (as people write it)
    rate: "typing.Union[float, None]" = 0.5,  # noqa: UP007
    name: str = "x",
    bare: str | None = "y",
    unknown="z",
    *others: int,
    **more: int,
) -> None:
    """A space."""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"most": "4"}, {"most": 4}),
        ({"least": "4", "rate": "1"}, {"least": 4, "rate": 1.0}),
        (dict.fromkeys(["least", "rate", "bare", "unknown"], "None"), None),
        ({"bare": "none", "name": "none"}, {"bare": "none", "name": "none"}),
    ],
)
def test_options_of_ones_own_parts(given: dict[str, str], expected: dict[str, Any] | None) -> None:
    wanted = dict.fromkeys(given) if expected is None else expected
    assert arguments(has_options, given, "--space-args", "space") == wanted


@pytest.mark.parametrize("given", [{"name": "None"}, {"most": "None"}, {"more": "1"}, {"data": ""}])
def test_what_is_no_option_or_no_value_of_it_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"^--space-args: "):
        arguments(has_options, given, "--space-args", "space")
