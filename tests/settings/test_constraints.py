"""--constraint: its forms, what is refused, and how far a value is from a limit."""

from pathlib import Path

import pytest

from mnist_ray.errors import SettingsError
from mnist_ray.settings import SearchSettings, check_search, constraints, parse
from mnist_ray.settings.constraints import Constraint, read


@pytest.mark.parametrize(
    ("text", "name", "limit", "shown"),
    [
        ("parameters<=50000", "parameters", 50_000, "parameters<=50,000"),
        ("parameters <= 50k", "parameters", 50_000, "parameters<=50,000"),
        ("parameters<=1.5M", "parameters", 1_500_000, "parameters<=1,500,000"),
        ("size<=200kB", "size", 200_000, "size<=200,000"),
        ("size<=1MB", "size", 1_000_000, "size<=1,000,000"),
        ("latency<=0.25", "latency", 0.25, "latency<=0.25"),
        ("accuracy>=0.97", "accuracy", 0.97, "accuracy>=0.97"),
        ("parameters<=5e4", "parameters", 50_000, "parameters<=50,000"),
    ],
)
def test_forms(text: str, name: str, limit: float, shown: str) -> None:
    [found] = read([text])
    assert (found, str(found)) == (Constraint(name, limit), shown)
    assert read([shown.replace(",", "")]) == (found,)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["speed<=3"], "'speed<=3' is not allowed; expected parameters<=N, latency<=N, size<=N"),
        (["parameters"], "'parameters' is not allowed"),
        (["parameters<50000"], "'parameters<50000' is not allowed"),
        (["parameters<=many"], "'parameters<=many' is not allowed"),
        (["parameters<=-5"], "is not allowed"),
        (["parameters>=50000"], "is not allowed; expected parameters<=N"),
        (["accuracy<=0.5"], "is not allowed; expected accuracy>=N"),
        (["accuracy>=97"], "expected a number above 0 and at most 1"),
        (["accuracy>=0"], "expected a number above 0"),
        (["size<=0"], "expected a number above 0"),
        (["size<=1.2.3"], "expected a number above 0"),
        (["size<=1e999"], "expected a number above 0"),
        (["size<=5", "size<=6"], "size is limited twice"),
        ([""], "is empty; give a value"),
    ],
)
def test_a_wrong_limit_is_one_line(texts: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=rf"^--constraint: .*{message}") as error:
        check_search(SearchSettings(constraint=tuple(texts)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "pbt"}, "^--constraint: with --scheduler pbt"),
        ({"deterministic": True, "constraint": ("latency<=1",)}, "^--constraint: latency is"),
        (
            {"committee": 3},
            "^--committee: 3 networks .* are beyond --constraint parameters<=50,000",
        ),
    ],
)
def test_what_contradicts_a_limit_is_refused(options: dict, message: str) -> None:
    settings = {"constraint": ("parameters<=50000",), **options}
    with pytest.raises(SettingsError, match=message):
        check_search(SearchSettings(**settings))
    check_search(SearchSettings(constraint=("accuracy>=0.9",), committee=3))


def test_a_flag_may_be_repeated_and_a_file_has_a_list(tmp_path: Path) -> None:
    both = ("parameters<=50000", "accuracy>=0.9")
    for argv in (
        ["--constraint", both[0], "--trials", "3", "--constraint", both[1]],
        [f"--constraint={both[0]}", "--trials", "3", f"--constraint={both[1]}"],
        ["--trials", "3", "--constraint", *both],
    ):
        found = parse(SearchSettings, argv)
        assert (found.constraint, found.trials) == (both, 3)
        assert "constraint" in found.given
    file = tmp_path / "s.yaml"
    file.write_text(f"constraint: ['{both[0]}', '{both[1]}']\n")
    assert parse(SearchSettings, ["--config", str(file)]).constraint == both
    assert parse(SearchSettings, ["--config", str(file), "--constraint", "size<=9"]).constraint == (
        "size<=9",
    )
    assert SearchSettings.of(constraint=list(both)).constraint == both


@pytest.mark.parametrize(
    ("flag", "again"),
    [
        ("--constraint", "--constraint"),
        ("--space-args", "--space-args"),
        ("--sampler-args", "--sampler-args"),
        ("--scheduler-args", "--scheduler-args"),
        ("--space-args", "--space_args"),
        ("--scheduler_args", "--scheduler-args"),
    ],
)
def test_each_flag_of_several_values_may_be_repeated(flag: str, again: str) -> None:
    name = flag.removeprefix("--").replace("-", "_")
    for argv in (
        [flag, "a=1", "--trials", "3", again, "b=2"],
        [f"{flag}=a=1", f"{again}=b=2", "--trials", "3"],
        ["--trials", "3", flag, "a=1", again, "b=2"],
    ):
        found = parse(SearchSettings, argv)
        assert (getattr(found, name), found.trials) == (("a=1", "b=2"), 3)
        assert name in found.given


def test_flags_of_several_values_do_not_take_each_other_s() -> None:
    words = "--space-args a=1 --sampler-args c=3 --space-args b=2 --no-finetune --sampler-args d=4"
    found = parse(SearchSettings, words.split())
    assert (found.space_args, found.sampler_args) == (("a=1", "b=2"), ("c=3", "d=4"))
    assert not found.finetune
    with pytest.raises(SettingsError, match="^--space-args: width is given twice"):
        check_search(parse(SearchSettings, ["--space-args=width=8", "--space_args=width=9"]))
    with pytest.raises(SettingsError, match="^'b=2' belongs to no option"):
        parse(SearchSettings, ["--space-args", "a=1", "--trials", "3", "b=2"])


def test_the_violation_is_the_sum_of_what_is_beyond() -> None:
    limits = read(["parameters<=1000", "accuracy>=0.8", "latency<=2"])
    measured = {"parameters": 1500, "accuracy": 0.6, "latency": None, "size": 7}
    assert constraints.excesses(limits, measured) == pytest.approx(
        {"parameters": 0.5, "accuracy": 0.25}
    )
    assert constraints.violation(limits, measured) == pytest.approx(0.75)
    assert constraints.broken(limits, measured) == (
        "parameters=1,500, not parameters<=1,000; accuracy=0.6000, not accuracy>=0.8"
    )
    assert constraints.unfit(limits, measured) == "parameters=1,500, not parameters<=1,000"
    kept = {"parameters": 1000, "accuracy": 0.8, "latency": 2.0}
    assert constraints.violation(limits, kept) == 0
    assert constraints.broken(limits, kept) == ""
