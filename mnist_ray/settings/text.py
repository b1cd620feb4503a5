"""Text forms of values: lists from Python, paths, durations, KEY=VALUE, module:attribute.

Also the recipes of this package, which are named in place of a YAML file.
"""

import difflib
import importlib
import inspect
import json
import operator
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from mnist_ray.errors import SettingsError, described
from mnist_ray.settings.secrets import masked
from mnist_ray.settings.yaml_files import load_yaml

KINDS: dict[str, type] = {kind.__name__: kind for kind in (bool, int, float, str)}
RECIPES = Path(__file__).resolve().parent.parent / "recipes"
CACHE = "~/.cache/mnist_ray"  # of what is downloaded, and can be again
SHIPPED = "working_dir_files"  # Ray's folder for a working directory that came from elsewhere
WRONG = object()  # no value of the wanted type
# What a part of a search is. Its options are given beside it: a run records them.
PARTS = {"space": "function", "sampler": "class", "scheduler": "class"}


# ---- values from Python


def converted(value: Any, kind: Any, name: str) -> Any:
    """A value from Python as the option's type has it.

    A path becomes text, a function or class its module:name, a dict KEY=VALUE texts, a list a
    tuple, a NumPy number a plain one.

    Args:
        value: As a person gave it.
        kind: The option's annotation.
        name: The option's name, for the error.

    Raises:
        SettingsError: The value is not of that type.
    """
    if inspect.isfunction(value) or inspect.isclass(value):
        value = _named(value, name)
    kinds = (kind,) if get_origin(kind) in (None, Literal, tuple, frozenset) else get_args(kind)
    for each in kinds:
        found = _as(value, each)
        if found is not WRONG:
            return found
    if name in PARTS and type(value).__module__ != "builtins":
        raise SettingsError(
            f"{name}: an object of type {type(value).__name__} is not allowed; "
            f"give its {PARTS[name]}, and its options in {name}_args"
        )
    allowed = " or ".join(_described(each) for each in kinds)
    raise SettingsError(f"{name}: {value!r} is not allowed; expected {allowed}")


def _named(value: Any, name: str) -> str:
    """A function's or class's module:name, by which the workers import it."""
    if value.__module__ == "__main__" or "<" in value.__qualname__:
        raise SettingsError(
            f"{name}: {value.__qualname__} cannot be imported by the workers; "
            "expected a function or class at the top of a module (a file.py) of its own"
        )
    return f"{value.__module__}:{value.__qualname__}"


def _as(value: Any, kind: Any) -> Any:
    """The value as that one type, or WRONG."""
    result = WRONG
    if get_origin(kind) is Literal:
        result = value if isinstance(value, str) and value in get_args(kind) else WRONG
    elif get_origin(kind) is tuple and isinstance(value, Mapping):
        result = tuple(f"{key}={each}" for key, each in value.items())
    elif get_origin(kind) is tuple and isinstance(value, list | tuple):
        result = tuple(map(str, value))
    elif kind is str and isinstance(value, str | os.PathLike):
        result = os.fspath(value)
    elif kind is int and hasattr(value, "__index__") and not isinstance(value, bool):
        result = operator.index(value)
    elif kind is float and isinstance(value, Real) and not isinstance(value, bool):
        result = value if isinstance(value, int | float) else float(value)
    elif kind in (bool, NoneType) or get_origin(kind) is frozenset:
        result = value if isinstance(value, get_origin(kind) or kind) else WRONG
    return result


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return "a list or a dict"
    return {str: "text", int: "a whole number", float: "a number", NoneType: "None"}.get(
        kind, "True or False"
    )


# ---- paths

# Options whose value is a path of this machine or may be one: ~ is the home folder, which a shell
# puts into `--png ~/figs`, but neither into `--png=~/figs` nor into a file. (What names a run's
# directory or a model is read by RunStorage, which does the same.)
READ = (
    "storage", "data_dir", "config", "stages", "points", "portfolio", "class_weights", "study",
)  # fmt: skip
WRITTEN = ("png", "export", "out")


def as_meant(name: str, value: Any, shown: Callable[[str], str]) -> Any:
    """An option's value with the whole path of a file, and with a file's content for its name.

    Args:
        name: The option.
        value: Of its type, not None.
        shown: Gives the option's flag, for the error.

    Raises:
        SettingsError: The file cannot be read, or the place is not on this machine.
    """
    if name in WRITTEN:
        return local(value, shown(name))
    value = os.path.expanduser(value) if name in READ else value
    resolve = {"dataset": with_whole_path, "class_weights": class_weights}.get(name)
    return resolve(value) if resolve else value


def local(path: str, flag: str) -> str:
    """A path of this machine, with the home folder for ~.

    Raises:
        SettingsError: It is the address of another place, as s3://…, or there is no home folder.
    """
    expanded = os.path.expanduser(path)
    if "://" in path or f"{expanded}/".startswith("~/"):
        raise SettingsError(
            f"{flag}: {masked(path)!r} is no place on this machine; expected a path"
        )
    return expanded


# ---- texts


def key_values(pairs: Sequence[str], flag: str) -> dict[str, str]:
    """("a=1", "b=2") as {"a": "1", "b": "2"}; else raises SettingsError naming the flag."""
    result = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise SettingsError(f"{flag}: {pair!r} is not of the form KEY=VALUE")
        if key in result:
            raise SettingsError(f"{flag}: {key} is given twice; give it once")
        result[key] = value
    return result


def duration(text: str | None, flag: str) -> float | None:
    """Seconds of "90s", "30m", "2h", or of a number of seconds; None stays None."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text)
    if not match or float(match[1]) <= 0:
        raise SettingsError(
            f"{flag}: {text!r} is not a duration; expected a number with s, m, h or d, as 30m"
        )
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def command(*words: str) -> str:
    """The shell's line for `mnist-ray WORDS`, which works in the shell that shows it.

    That is `mnist-ray` if this shell finds the one of this environment, else the interpreter
    that runs here: it may be in no PATH. In a job whose working directory was sent to a cluster it
    is the `python` of the reader's shell.
    """
    if SHIPPED in Path.cwd().parts:
        return shlex.join(["python", "-m", "mnist_ray", *words])
    python, script = Path(sys.executable or "python"), shutil.which("mnist-ray")
    if script and Path(script).parent.absolute() == python.parent:
        return shlex.join(["mnist-ray", *words])
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return shlex.join([str(python), "-m", "mnist_ray", *words])


# ---- objects that a text names

STORED = {
    "folder": "mnist_ray.data.folder:read",
    "npz": "mnist_ray.data.arrays:read_npz",
    "csv": "mnist_ray.data.tables:read_csv",
    "parquet": "mnist_ray.data.tables:read_parquet",
    "hf": "mnist_ray.data.tables:read_hf",
}
"""Kinds of data sets that are files, --dataset KIND:PATH, and the function that reads each."""

ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
"""How the names of the pictures in a folder end, in small letters."""


def is_stored(dataset: str) -> bool:
    """Whether the data set is a folder, file or table of one's own, which needs no code."""
    return dataset.partition(":")[0] in STORED and ":" in dataset


def with_whole_path(dataset: str) -> str:
    """The name of such a data set with its whole path; any other name as it is."""
    kind, _, path = dataset.partition(":")
    if not is_stored(dataset) or not path:
        return dataset
    expanded = os.path.expanduser(path)
    if kind == "hf" and not os.path.isdir(expanded):
        return dataset
    return f"{kind}:{os.path.abspath(expanded)}"


def load(path: str, flag: str, known: Iterable[str]) -> Any:
    """The object that "module:attribute" names; a module in the working directory is found too.

    Args:
        path: As a person gave it.
        flag: Its option, for the error.
        known: The names that could have been given instead, for the error.

    Raises:
        SettingsError: There is no such object, or its module cannot be imported.
    """
    module, _, attribute = path.partition(":")
    if not (module and attribute):
        raise SettingsError(
            f"{flag}: {path!r} is unknown; expected one of {', '.join(known)} or module:attribute"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a module of a person's own fails in any way
        missing = isinstance(error, ModuleNotFoundError) and error.name == module
        kinds = [each.partition(":")[0] for each in known if ":" in each]
        close = difflib.get_close_matches(module, kinds, 1) if missing else []
        hint = f"; did you mean {close[0]}:{attribute}?" if close else ""
        raise SettingsError(
            f"{flag}: {path!r} cannot be imported: {described(error)}{hint}"
        ) from error


def arguments(
    function: Callable[..., Any],
    given: Mapping[str, str],
    flag: str,
    owner: str,
    reserved: Collection[str] = (),
) -> dict[str, Any]:
    """Texts as keyword arguments of a function, of the types in its signature.

    Args:
        function: Takes plain values only: bool, int, float or str.
        given: Option and text.
        flag: The option that holds them, for the error.
        owner: Whose options they are, for the error.
        reserved: Options that are not for a person to give.

    Raises:
        SettingsError: The function has no such option, or the text is not of its type.
    """
    kinds = {name: kind for name, (kind, _) in keywords(function, reserved).items()}
    parameters = inspect.signature(function).parameters
    result: dict[str, Any] = {}
    for key, text in given.items():
        if key not in kinds:
            raise SettingsError(
                f"{flag}: {owner} has no option {key!r}; it has {', '.join(kinds) or 'none'}"
            )
        kind, wanted = kinds[key], parameters[key]
        if text == "None" and (wanted.default is None or "None" in _types(wanted)):
            result[key] = None
            continue
        try:
            value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
            if value != value or value == "None":  # NaN compares with nothing
                raise ValueError(text)
        except (ValueError, KeyError) as error:
            expected = "true or false" if kind is bool else f"a value of type {kind.__name__}"
            expected += ", not None" if text == "None" else ""
            raise SettingsError(
                f"{flag}: {key}={text!r} is not allowed; expected {expected}"
            ) from error
        result[key] = value
    return result


def keywords(
    function: Callable[..., Any], reserved: Collection[str] = ()
) -> dict[str, tuple[type, Any]]:
    """Type and default of each keyword of a function that a text can give.

    The default is Parameter.empty of one that must be given.
    """
    return {
        p.name: (kind, p.default)
        for p in inspect.signature(function).parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in reserved
        if (kind := _kind(p)) is not None
    }


def _kind(parameter: inspect.Parameter) -> type | None:
    """The annotation's first type beside None, else the default's; None if not plain."""
    kinds = [name for name in _types(parameter) if name != "None"]
    return KINDS.get(kinds[0] if kinds else "") or KINDS.get(type(parameter.default).__name__)


def _types(parameter: inspect.Parameter) -> list[str]:
    """The annotation's types as texts, also of Optional[int]; None alone if it has none."""
    annotation = None if parameter.annotation is parameter.empty else parameter.annotation
    name = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    union = re.fullmatch(r"(?:typing\.)?(Optional|Union)\[(.*)\]", name.replace("NoneType", "None"))
    types = re.split(r" \| |, ", union[2] if union else name)
    return [*types, "None"] if union and union[1] == "Optional" else types


def class_weights(text: str) -> str:
    """The value of --class-weights: "balanced", or a file's weights as JSON {class: weight}.

    Raises:
        SettingsError: the file cannot be read, or a weight is no number of at least 0.
    """
    if text == "balanced":
        return text
    if text.startswith("{"):
        where, values = "--class-weights", load_json(text)
    else:
        where = f"--class-weights: {text}"
        if not os.path.exists(text):
            raise SettingsError(f"{where}: there is no such file; expected balanced or a YAML file")
        values = load_yaml(text, where)
    if not isinstance(values, dict) or not values:
        raise SettingsError(f"{where}: expected `class: weight` lines")
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise SettingsError(f"{where}: {name}: {value!r} is not allowed; expected 0 or more")
    return json.dumps({str(name): value for name, value in values.items()}, ensure_ascii=False)


def load_json(text: str) -> Any:
    """The value of a JSON text; None if the text is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# ---- recipes, and lines


def packaged(path: str, prefix: str = "") -> str:
    """The YAML file that a person means: a file of that path, or a recipe of this package.

    A recipe is named as "default", or by its old path "jobs/recipes/default.yaml"; `prefix` may be
    left out of its name. Any other path is returned as it is.
    """
    if os.path.isfile(path):
        return path
    name = Path(path).name.removesuffix(".yaml") if re.search(r"(^|/)jobs/recipes/", path) else path
    if re.fullmatch(r"[\w-]+", name):
        for found in (
            RECIPES / f"{prefix}{name}.yaml",
            RECIPES / f"{name}.yaml",
            RECIPES / "points" / f"{name}.yaml",
        ):
            if os.path.isfile(found):
                return str(found)
    return path


def recipes(*, of_stages: bool = False) -> list[str]:
    """The names of the packaged recipes of a search, for --config, or of stages, for --stages."""
    names = [file.stem for file in RECIPES.glob("*.yaml")]
    stages = {name.removeprefix("stages-") for name in names if name.startswith("stages-")}
    return sorted(stages if of_stages else {n for n in names if not n.startswith("stages-")})


def one_line(text: str) -> str:
    """The text with single spaces for its line ends."""
    return re.sub(r"\s+", " ", text).strip()
