"""Settings: flags over YAML, and errors of one line that name the flag or file."""

import random
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mnist_ray.errors import MnistRayError, SettingsError
from mnist_ray.settings import (
    EvaluateSettings,
    FinetuneSettings,
    PredictSettings,
    PushSettings,
    SearchSettings,
    check_search,
    main,
    parse,
)


def test_a_flag_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("trials: 7\nmax_epochs: 3\nspace_args: {width: 8}\nfinetune: false\n")
    settings = parse(SearchSettings, ["--config", str(file), "--trials", "9"])
    assert (settings.trials, settings.max_epochs, settings.space_args, settings.finetune) == (
        9,
        3,
        ("width=8",),
        False,
    )


def test_every_field_can_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(
        "name: -dash\nstorage: 's3://b/p?scheme=http&x=1'\ntime_budget: 30m\n"
        "study: null\nseed: 3\nverbose: true\n"
    )
    settings = parse(SearchSettings, ["--config", str(file)])
    assert (settings.name, settings.storage, settings.time_budget) == (
        "-dash",
        "s3://b/p?scheme=http&x=1",
        "30m",
    )
    assert (settings.study, settings.seed, settings.verbose) == (None, 3, True)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("trails: 7", "'trails'"),
        ("trials: abc", "--trials"),
        ("- 1\n- 2", "list"),
        ("a: [", "plain YAML"),
        ("trials: !!python/object/apply:os.getcwd []", "plain YAML"),
        ("resume: true", "'resume'"),
        ("val_by: speed", "--val-by"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        parse(SearchSettings, ["--config", str(file)])
    message = str(caught.value)
    assert named in message
    assert str(file) in message
    assert "\n" not in message


def outcome(argv: list[str]) -> dict[str, object] | str:
    """The settings of a command line, or its error; with a file's name in neither."""
    try:
        check_search(settings := parse(SearchSettings, argv))
    except SettingsError as error:
        return re.sub(r"^\S+\.yaml: ", "", str(error))
    return {k: v for k, v in vars(settings).items() if k != "config"} | {
        "given": settings.given - {"config"}
    }


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("trials: 010", "--trials 010"),
        ("trials: 1_000", "--trials 1_000"),
        ("trials: 0x10", "--trials 0x10"),
        ("trials: '7'", "--trials 7"),
        ("trials: 1e1", "--trials 1e1"),
        ("trials: -3", "--trials=-3"),
        ("seed: +3", "--seed +3"),
        ("time_budget: 1:30", "--time-budget 1:30"),
        ("time_budget: 90", "--time-budget 90"),
        ("name: 2026_11_28", "--name 2026_11_28"),
        ("name: 2026-11-28", "--name 2026-11-28"),
        ("name: 0755", "--name 0755"),
        ("name: 1e3", "--name 1e3"),
        ("name: 'no'", "--name no"),
        ("target: .5", "--target .5"),
        ("target: 5e-1", "--target 5e-1"),
        ("target: .nan", "--target .nan"),
        ("reduction_factor: 1e1", "--reduction-factor 1e1"),
        ("gpus_per_trial: 0.50", "--gpus-per-trial 0.50"),
        ("study: ~\nstudy_name:\nonnx: null", ""),
        ("finetune: no\nverbose: yes", "--no-finetune --verbose"),
        (
            "space_args: {width: 010, lr: 1e-3, deep: 1:30, day: 2026-11-28, 010: -1, 'no': 5}",
            "--space-args width=010 lr=1e-3 deep=1:30 day=2026-11-28 010=-1 no=5",
        ),
        ("sampler_args: {a: 1_0, b: [3, 05]}", "--sampler-args a=1_0 'b=[3, 05]'"),
        (
            "constraint: [parameters<=5_0, accuracy>=1e-1]",
            "--constraint parameters<=5_0 accuracy>=1e-1",
        ),
        (
            "space_args: &a {x: 1}\nscheduler_args: {<<: *a, y: 02}",
            "--space-args x=1 --scheduler-args x=1 y=02",
        ),
    ],
)
def test_a_value_of_a_file_means_what_it_means_as_a_flag(
    tmp_path: Path, text: str, flags: str
) -> None:
    """In YAML 1.1 010 is 8, 1:30 is 90, 2026_11_28 is 20261128."""
    file = tmp_path / "my.yaml"
    file.write_text(text)
    assert outcome(["--config", str(file)]) == outcome(shlex.split(flags))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("trials: 5\nseed: 1\ntrials: 50\n", "in line 3: 'trials' is given twice"),
        ("trials: 5\n'trials': 5\n", "in line 2: 'trials' is given twice"),
        ("seed: 1\nspace_args: {width: 8, width: 9}\n", "in line 2: 'width' is given twice"),
        ("space_args:\n  width: 8\n  depth: 1\n  width: 9\n", "in line 4: 'width' is given twice"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        parse(SearchSettings, ["--config", str(file)])
    assert str(caught.value) == f"{file}: is not plain YAML {named}"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--trials 0", "--trials"),
        ("--trials x", "--trials"),
        ("--trils 3", "--trils"),
        ("--max-epochs 0", "--max-epochs"),
        ("--grace-period 5 --max-epochs 4", "--grace-period"),
        ("--confirm -1", "--confirm"),
        ("--confirm 2 --objectives accuracy,parameters", "--confirm"),
        ("--confirm 2 --scheduler pbt", "--confirm"),
        ("--reduction-factor 1", "--reduction-factor"),
        ("--reduction-factor nan", "--reduction-factor"),
        ("--gpus-per-trial -1", "--gpus-per-trial"),
        ("--gpus-per-trial 1.5", "--gpus-per-trial"),
        ("--gpus-per-trial inf", "--gpus-per-trial"),
        ("--gpus-per-trial nan", "--gpus-per-trial"),
        ("--reduction-factor inf", "--reduction-factor"),
        ("--cpus-per-trial 0", "--cpus-per-trial"),
        ("--time-budget soon", "--time-budget"),
        ("--space-args width", "--space-args"),
        ("--sampler-args a", "--sampler-args"),
        ("--resume", "--resume"),
        ("--resume --overwrite --name a", "--overwrite"),
        ("--seed -1", "--seed"),
        ("--config /does/not/exist.yaml", "/does/not/exist.yaml"),
        ("--trials", "--trials"),
        (f"--trials {10**30}", "--trials: 1000000000000000000000000000000 is not allowed"),
        ("--committee 10000001", "--committee: 10000001 is not allowed; expected at most 10,000,0"),
        ("--space-args width=8 width=9", "--space-args: width is given twice"),
        ("--target 99.5", "--target: 99.5 is not allowed with --metric val_accuracy; .* at most 1"),
        ("--metric val_loss --target 0", "--target: 0 is not allowed with --metric val_loss"),
    ],
)
def test_a_bad_flag_is_named_in_one_line(flags: str, named: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_search(parse(SearchSettings, flags.split()))
    assert re.search(named, str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["warm_start", "study", "name", "points", "stages", "data_dir"])
def test_an_empty_text_is_not_taken_for_none(name: str, tmp_path: Path) -> None:
    """`--study "$DATABASE"` with a variable that is not set must not search without it."""
    flag = f"--{name.replace('_', '-')}"
    (tmp_path / "my.yaml").write_text(f"{name}: ''\n")
    for call in (
        lambda: parse(SearchSettings, [flag, ""]),
        lambda: parse(SearchSettings, ["--config", str(tmp_path / "my.yaml")]),
        lambda: SearchSettings.of(**{name: ""}),
    ):
        with pytest.raises(SettingsError, match=f"{flag}: is empty; give a value, or leave it out"):
            call()


@pytest.mark.parametrize("words", [["", "a.png"], ["model.onnx", ""]])
def test_an_empty_word_is_not_the_working_directory(words: list[str]) -> None:
    with pytest.raises(SettingsError, match=r"^(MODEL|PICTURES): is empty"):
        parse(PredictSettings, words)


def test_a_working_directory_that_is_gone_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.getcwd", Mock(side_effect=FileNotFoundError(2, "No such directory")))
    with pytest.raises(SystemExit) as ended:
        main(SearchSettings, lambda _: 0, argv=[], program="search")
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "search: the working directory cannot be used: No such directory; change to another one\n"
    )


NAMES = [
    "trials",
    "max-epochs",
    "metric",
    "scheduler",
    "grace-period",
    "reduction-factor",
    "sampler",
    "seed",
    "cpus-per-trial",
    "gpus-per-trial",
    "max-concurrent",
    "storage",
    "name",
    "time-budget",
    "space-args",
    "train-images",
    "precision",
    "stages",
]
VALUES = st.one_of(
    st.integers(-5, 10**6).map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["asha", "val_loss", "tpe", "30m", "a=b", "--trials", "{", "None", "true"]),
)


@given(st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=4))
@hypothesis_settings(max_examples=200, deadline=None)
def test_any_command_line_is_settings_or_one_line(pairs: list[tuple[str, str]]) -> None:
    argv = [word for name, value in pairs for word in (f"--{name}", value)]
    try:
        check_search(parse(SearchSettings, argv))
    except MnistRayError as error:
        assert error.exit_code == 2
        assert str(error)
        assert "\n" not in str(error)


@given(
    st.dictionaries(
        st.sampled_from([n.replace("-", "_") for n in NAMES]),
        st.recursive(VALUES, st.lists, max_leaves=3),
        max_size=4,
    )
)
@example({"trials": ["0", "\n"]})
@example({"trials": ["0", "0\n"]})
@hypothesis_settings(max_examples=100, deadline=None)
def test_any_file_is_settings_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, values: dict
) -> None:
    import yaml

    file = tmp_path_factory.mktemp("yaml") / "my.yaml"
    file.write_text(yaml.safe_dump(values))
    try:
        check_search(parse(SearchSettings, ["--config", str(file)]))
    except MnistRayError as error:
        assert error.exit_code == 2
        assert "\n" not in str(error)


@pytest.mark.parametrize("seed", range(20))
def test_any_command_line_as_a_whole_process(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    values = [
        "-1",
        "0",
        "1",
        "7",
        "1e9",
        "nan",
        "",
        "ä",
        "asha",
        "val_loss",
        "tpe",
        "30m",
        "a=b",
        "--trials",
        "{",
        "None",
        "true",
        "../x",
    ]
    argv = [
        word for name in chance.sample(NAMES, 3) for word in (f"--{name}", chance.choice(values))
    ]
    command = [
        sys.executable,
        str(Path(__file__).parent.parent.parent / "jobs/search.py"),
        *argv,
        "--dataset",
        "digits",
        "--dry-run",
    ]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert out.returncode in (0, 2), (argv, out.stderr)
    assert "Traceback" not in out.stderr, argv
    if out.returncode:
        assert len((out.stdout + out.stderr).strip().splitlines()) == 1, (argv, out.stderr)
        assert list(tmp_path.iterdir()) == []


def test_a_wrong_flag_exits_with_2_and_one_line() -> None:
    root = Path(__file__).parent.parent.parent
    out = subprocess.run(
        [sys.executable, "jobs/search.py", "--trials", "0"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert out.returncode == 2
    assert out.stderr.count("\n") == 1
    assert "--trials" in out.stderr


@pytest.mark.parametrize(
    ("cls", "words", "message"),
    [
        (SearchSettings, "--trials ten", "--trials: 'ten' is not allowed; expected a whole number"),
        (SearchSettings, "--target x", "--target: 'x' is not allowed; expected a number"),
        (
            SearchSettings,
            "--gpus-per-trial 0.2.5",
            "--gpus-per-trial: '0.2.5' is not allowed; expected a number or auto",
        ),
        (
            SearchSettings,
            "--val-by groups",
            "--val-by: 'groups' is not allowed; expected class or group or own",
        ),
        (SearchSettings, "--storage", "--storage: a value is missing; expected FOLDER"),
        (SearchSettings, "--resum", "--resum: there is no such option; did you mean --resume?"),
        (
            SearchSettings,
            "--trails=3 --trials 4",
            "--trails=3: there is no such option; did you mean --trials?",
        ),
        (SearchSettings, "--xyzzy", "--xyzzy: there is no such option; --help lists all"),
        (SearchSettings, "--resume yes", "--resume: takes no value; leave out 'yes'"),
        (
            FinetuneSettings,
            "runs/first",
            "'runs/first' belongs to no option; did you mean --run runs/first?",
        ),
        (EvaluateSettings, "model.onnx other", "'other' belongs to no option"),
        (
            EvaluateSettings,
            "",
            "MODEL is missing; expected an ONNX file or a run's directory, local or s3://…",
        ),
        (PushSettings, "run", "REPO is missing; expected the repository, as me/digits"),
        (SearchSettings, "--config demmo", "--config: 'demmo' is neither a recipe nor a file"),
    ],
)
def test_a_typing_error_is_told_in_plain_words(cls: type, words: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(cls, words.split())
    assert str(caught.value).startswith(message)
