"""tyro's errors in the words of this program: the option, the value found, the values allowed."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mnist_ray.settings import help
from mnist_ray.settings.text import one_line

EXPECTED = {"N": "a whole number", "X": "a number"}


def refusal(cls: type[Any], argv: Sequence[str], framed: str) -> str:
    """An error of tyro as one line.

    Args:
        cls: The type of the command's settings.
        argv: The words of the command line.
        framed: Tyro's error, with its frame and the help that it repeats.
    """
    message = _message(framed)
    options = [option for group in help.groups(cls) for option in group.options]
    flags = {flag: option for option in options for flag in option.flags}
    if found := re.match(r"Unrecognized options: (\S+)", message):
        rest = message.partition(": ")[2]
        word = next((each for each in argv if each and rest.startswith(each)), found[1])
        return _unknown(word, argv, options[0], flags)
    if found := re.match(r"Missing value for argument '(--[\w-]+)", message):
        return f"{found[1]}: a value is missing; expected {_expected(flags, found[1])}"
    if found := re.match(r"invalid choice '(.*)' for argument '(--[\w-]+)'", message):
        return f"{found[2]}: {found[1]!r} is not allowed; expected {_expected(flags, found[2])}"
    if found := re.match(r"Error parsing (--[\w-]+): .*?'(.*)'\]?\.?$", message):
        return f"{found[1]}: {found[2]!r} is not allowed; expected {_expected(flags, found[1])}"
    for option in options:
        if message.startswith("Missing from") and not option.flags and option.meaning in message:
            expected = option.meaning[0].lower() + option.meaning[1:]
            return f"{option.value} is missing; expected {expected}"
    return message


def _message(framed: str) -> str:
    """The first paragraph in the frame."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", framed)
    lines = [line.strip("│╭╮╰╯─ \t") for line in text.splitlines()]
    message: list[str] = []
    for line in lines[1:]:
        if (not line and message) or line.startswith(("For full helptext", "Argument helptext")):
            break
        message.append(line)
    return one_line(" ".join(message)) or one_line(" ".join(lines))


def _unknown(
    word: str, argv: Sequence[str], first: help.Option, flags: Mapping[str, help.Option]
) -> str:
    """A word that tyro could not place."""
    if word.startswith("-"):
        close = difflib.get_close_matches(word.partition("=")[0].replace("_", "-"), flags, 1)
        hint = f"did you mean {close[0]}?" if close else "--help lists all"
        return f"{word}: there is no such option; {hint}"
    before = argv[argv.index(word) - 1] if word in argv[1:] else ""
    if before in flags and not flags[before].value:
        return f"{before}: takes no value; leave out {word!r}"
    hint = f"; did you mean {first.flags[0]} {word}?" if first.flags else ""
    return f"{word!r} belongs to no option{hint}"


def _expected(flags: Mapping[str, help.Option], flag: str) -> str:
    """The values that an option takes, in words."""
    value = flags[flag].value if flag in flags else "a value"
    return " or ".join(EXPECTED.get(each, each) for each in value.split("|"))
