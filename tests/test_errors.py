"""Messages in one line: whole where the first line only announces what follows."""

import pickle

import pytest

from mnist_ray.errors import (
    CaptureError,
    CorruptFileError,
    SettingsError,
    WorkError,
    first_line,
    is_of_own_code,
    reason,
    shortened,
)

VERSIONS = """Version mismatch: The cluster was started with:
    Ray: 2.60.0
    Python: 3.12.1
This process on node 10.0.0.1 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""
STATE = """Error(s) in loading state_dict for Sequential:
\tMissing key(s) in state_dict: "0.weight", "0.bias".
\tUnexpected key(s) in state_dict: "1.weight". """
CLASSES = "expected one of ['a',\n 'b',\n 'c']"
TRACE = "Traceback (most recent call last):\n  File 'x', line 1\nValueError: the reason"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "ValueError"),
        ("one\ntwo", "one"),
        ("\n  one  \n", "one"),
        (VERSIONS, " ".join(VERSIONS.split())),
        (STATE, " ".join(STATE.split())),
        (CLASSES, "expected one of ['a', 'b', 'c']"),
        (TRACE, "ValueError: the reason"),
    ],
)
def test_a_message_in_one_line(text: str, line: str) -> None:
    assert first_line(ValueError(text)) == line


def test_what_was_cut_is_marked() -> None:
    names = ", ".join(f"class {number}" for number in range(200))
    assert shortened(names, 10_000) == names
    cut = shortened(names, 100)
    assert len(cut) <= 100
    assert cut.endswith(" …")
    assert names.startswith(cut.removesuffix(" …"))
    rows = names.replace(", ", ",\n")
    long = first_line(ValueError(f"expected one of [{rows}"))
    assert len(long) <= 400
    assert long.endswith(" …")
    assert reason(WorkError(names)).endswith(" …")


@pytest.mark.parametrize("kind", [SettingsError, WorkError, CaptureError, CorruptFileError])
def test_what_a_person_can_cause_is_one_line_whatever_it_quotes(kind: type[Exception]) -> None:
    error = kind("model.json: expected a\nb\r\n")
    assert str(error) == "model.json: expected a b"
    again = pickle.loads(pickle.dumps(error))  # as Ray hands it on
    assert (type(again), str(again)) == (kind, str(error))


@pytest.mark.parametrize(
    ("file", "own"),
    [
        ("/home/me/mine.py", True),
        ("/usr/local/lib/python3.12/site-packages/optuna/x.py", False),
        ("/usr/local/lib/python3.12/dist-packages/optuna/x.py", False),  # Debian's, Colab's
    ],
)
def test_whose_code_failed(file: str, own: bool) -> None:
    with pytest.raises(KeyError) as caught:
        exec(compile("{}['key']", file, "exec"), {"__name__": "x"})
    error = caught.value
    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # less this test
    assert is_of_own_code(error) is own
