"""The options of a command as people read them: for `--help` and for the page docs/options.md.

The text of an option is the text below it in `options.py`. `(default: …)` at its end replaces the
field's own default, for a default that depends on something.
"""

import argparse
import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from tyro.conf import DisallowNone, Positional

from mnist_ray.settings.options import Options
from mnist_ray.settings.text import keywords, one_line

WIDTH = 80
DEFAULT = re.compile(r"\s*\(default: ((?:[^()]|\([^()]*\))*)\)")
POSITIONAL = get_args(Positional[str])[1]
OpenSwitch = DisallowNone[bool | None]  # a switch with a third state: not given
PARTS = ("space", "sampler", "scheduler")  # have options of their own, listed by --help-PART NAME
EXAMPLES = {
    "SearchSettings": (
        "--dataset digits --trials 10 --max-epochs 8",
        "--config small --time-budget 30m --name small",
        "--storage s3://bucket/runs --name small --resume",
        "--space mine:space --space-args most=32 --dry-run",
    ),
    "FinetuneSettings": (
        "--run ~/mnist_ray/first",
        "--run s3://bucket/runs/first --stages my-stages.yaml",
        "--run ~/mnist_ray/first --committee 3",
        "--onnx model.onnx --dataset mnist --name further",
    ),
    "EvaluateSettings": (
        "~/mnist_ray/first",
        "model.onnx --dataset mnist",
        "model.onnx --part train",
        "s3://bucket/runs/first",
    ),
    "PredictSettings": (
        "~/mnist_ray/first my-digit.png",
        "~/mnist_ray/first my-digit.png another.jpg",
        "model.onnx my-digit.png",
        "s3://bucket/runs/first my-digit.png",
    ),
    "ReportSettings": (
        "~/mnist_ray/first",
        "~/mnist_ray/first --png figures",
        "~/mnist_ray/first ~/mnist_ray/second --out both.html",
        "s3://bucket/runs/first",
    ),
    "DrawSettings": (
        "~/mnist_ray/first",
        "~/mnist_ray/first --port 8000",
        "model.onnx --export site",
        "s3://bucket/runs/first",
    ),
    "ServeSettings": (
        "~/mnist_ray/first",
        "~/mnist_ray/first --port 8000",
        "model.onnx --host 0.0.0.0 --port 8000",
        "s3://bucket/runs/first",
    ),
    "ExportSettings": (
        "~/mnist_ray/first",
        "~/mnist_ray/first --to huggingface --out for-the-hub",
        "~/mnist_ray/first --to triton --out models",
        "s3://bucket/runs/first --to triton",
    ),
    "PushSettings": (
        "~/mnist_ray/first me/digits",
        "s3://bucket/runs/first me/digits",
        "~/mnist_ray/second my-team/digits",
        "runs/first me/digits",
    ),
}


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: Its name in Python and in a YAML file.
        flags: Its flags; empty for an argument without a flag.
        value: How its value is written, as `N`, `FILE` or `a|b`; empty for a switch.
        default: Its value if nothing is given; empty if it must be given.
        meaning: Its effect, without a full stop.
    """

    name: str
    flags: tuple[str, ...]
    value: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Group:
    """Options of one purpose; `title` is empty if a command has one group only."""

    title: str
    purpose: str
    options: tuple[Option, ...]


def groups(cls: type[Any]) -> list[Group]:
    """The options of a command, in the order of its help."""
    bases = [b for b in reversed(cls.__bases__) if b is not Options and issubclass(b, Options)]
    return [
        Group(
            base.__name__.removesuffix("Options").lower() if bases else "",
            inspect.getdoc(base) or "",
            tuple(_options(base)),
        )
        for base in bases or [cls]
    ]


def text(cls: type[Any], program: str) -> str:
    """The answer to --help, at most WIDTH columns wide."""
    examples = EXAMPLES.get(cls.__name__, ())
    parser = argparse.ArgumentParser(
        program,
        usage=f"{program} {_positionals(cls)}[OPTIONS]",
        description=inspect.getdoc(cls),
        epilog="\n".join(["examples:", *(f"  {program} {e}" for e in examples)])
        if examples
        else "",
        formatter_class=_Format,
        add_help=False,
    )
    for group in groups(cls):
        title = f"{group.title} options" if group.title else "options"
        shown = parser.add_argument_group(title, group.purpose if group.title else None)
        for option in group.options:
            _add(shown, option)
    last = parser.add_argument_group("help options")
    for part in PARTS if cls.__name__ == "SearchSettings" else ():
        meaning = f"List the options of a {part}, for --{part}-args."
        last.add_argument(f"--help-{part}", metavar="NAME", help=meaning)
    last.add_argument("-h", "--help", action="store_true", help="Show this help.")
    return parser.format_help().rstrip()


def part_options(function: Callable[..., Any], defaults: Mapping[str, Any]) -> tuple[Option, ...]:
    """The keywords of a space, a sampler or a scheduler that --PART-args can give.

    Args:
        function: The space, or the sampler's or scheduler's class or function.
        defaults: Those that replace the function's own.
    """
    owners = (
        [o for o in inspect.getmro(function) if o is not object]
        if isinstance(function, type)
        else [function]
    )
    meanings: dict[str, str] = {}
    for owner in reversed(owners):
        meanings |= _arguments(inspect.cleandoc(owner.__doc__ or ""))
    return tuple(
        Option(
            name,
            (),
            {int: "N", float: "X", bool: "true|false"}.get(kind, "TEXT"),
            _named(defaults.get(name, default)),
            meanings.get(name, ""),
        )
        for name, (kind, default) in keywords(function, ("seed",)).items()
    )


def part_text(part: str, name: str, options: tuple[Option, ...]) -> str:
    """The answer to --help-PART NAME."""
    if not options:
        return f"The {part} {name} has no options of its own."
    parser = argparse.ArgumentParser(formatter_class=_Format, add_help=False, usage="")
    shown = parser.add_argument_group(f"options of the {part} {name}, for --{part}-args")
    for option in options:
        _add(shown, dataclasses.replace(option, value=f"{option.name}={option.value}"))
    return parser.format_help().partition("\n\n")[2].rstrip()


def _arguments(doc: str) -> dict[str, str]:
    """The first sentence of each argument in a Google-style docstring."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n|\n)*)", doc + "\n", re.MULTILINE)
    lines = textwrap.dedent(section[1]) if section else ""
    found = re.findall(r"^(\w+):(.*(?:\n+[ ]+.*)*)", lines, re.MULTILINE)
    return {name: _plain(meaning) for name, meaning in found}


def _plain(text: str) -> str:
    """The first sentence without reStructuredText, and without its full stop."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"\1", one_line(text)).replace("`", "")
    return re.split(r"\.\s", text)[0].rstrip(".")


class _Format(argparse.RawDescriptionHelpFormatter):
    """Of a fixed width, with the examples as they are written."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=WIDTH - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return super()._fill_text(text, width, indent)
        return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def _add(parser: argparse._ArgumentGroup, option: Option) -> None:
    default = f" (default: {option.default})" if option.default else ""
    meaning = f"{option.meaning}{default}.".lstrip().replace("%", "%%")
    if not option.flags:
        parser.add_argument(option.name, metavar=option.value, help=meaning)
    elif option.value:
        parser.add_argument(*option.flags, metavar=option.value, help=meaning)
    else:
        parser.add_argument(*option.flags, action="store_true", help=meaning)


def _positionals(cls: type[Any]) -> str:
    names = [o.value for group in groups(cls) for o in group.options if not o.flags]
    return "".join(f"{name} " for name in names)


def _options(cls: type[Any]) -> Iterator[Option]:
    hints = typing.get_type_hints(cls, include_extras=True)
    below = texts(cls)
    for field in dataclasses.fields(cls):
        if field.name == "given":
            continue
        kind = hints[field.name]
        written = DEFAULT.search(below[field.name])
        meaning = DEFAULT.sub("", below[field.name]).rstrip(".")
        flag = "--" + field.name.replace("_", "-")
        switch = kind in (bool, OpenSwitch)
        flags: tuple[str, ...] = (flag, flag.replace("--", "--no-", 1)) if switch else (flag,)
        positional = get_origin(kind) is typing.Annotated and POSITIONAL in kind.__metadata__
        yield Option(
            field.name,
            () if positional else flags,
            "" if switch else _value(kind),
            written[1] if written else _default(field),
            meaning,
        )


def texts(cls: type[Any]) -> dict[str, str]:
    """The text below each field, of the class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in zip(definition.body, definition.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[field.target.id] = one_line(str(below.value.value))
    return found


def _value(kind: Any) -> str:
    """How a value of that type is written."""
    origin = get_origin(kind)
    if origin is typing.Annotated:
        names = [each for each in kind.__metadata__ if isinstance(each, str)]
        return names[0] if names else _value(get_args(kind)[0])
    if origin is Literal:
        return "|".join(map(str, get_args(kind)))
    if kind in (int, float, NoneType):
        return {int: "N", float: "X"}.get(kind, "")
    return "|".join(filter(None, map(_value, get_args(kind)))) or "TEXT"


def _default(field: dataclasses.Field[Any]) -> str:
    return "" if field.default is dataclasses.MISSING else _named(field.default)


def _named(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return ""
    if value is None or value == ():
        return "none"
    return {False: "no", True: "yes"}[value] if isinstance(value, bool) else str(value)
