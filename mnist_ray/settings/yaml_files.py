"""YAML files: plain values, each key once, and numbers as people write them.

PyYAML reads YAML 1.1: there 010 is 8, 1:30 is 90, 1e-3 is a text, and of two equal keys the last
one stays.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from mnist_ray.errors import SettingsError

MOST_VALUES = 100_000  # in a file, each counted as often as it is named
TEXT, MERGE, INT, FLOAT = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "merge", "int", "float"))
KEPT = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:null", MERGE)
NUMBERS = {
    INT: r"[-+]?[0-9][0-9_]*\Z",
    FLOAT: r"[-+]?((\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))\Z"
    r"|\.(nan|NaN|NAN)\Z",
}


class Written(yaml.SafeLoader):
    """Values as they are written, but for true, false and null; a key is a text, and stands once.

    So a flag's parser reads the same text as on the command line.
    """

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        """The pairs as they stand, before `<<` brings in others'."""
        node = super().compose_mapping_node(anchor)
        pairs: dict[Any, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                pairs[key] = key, value
                continue
            if key.value in pairs:
                problem = f"{key.value[:80]!r} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            pairs[key.value] = yaml.ScalarNode(TEXT, key.value, key.start_mark), value
        node.value = list(pairs.values())
        return node


class Typed(Written):
    """Numbers too, in decimal."""


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node).replace("_", ""))


Written.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in known if tag in KEPT]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Written.add_constructor(INT, _decimal)
for tag, form in NUMBERS.items():  # the first that fits
    Typed.add_implicit_resolver(tag, re.compile(form), list("-+.0123456789"))


def load_yaml(path: str, where: str, loader: type[Written] = Typed) -> Any:
    """The content of a YAML file without Python tags.

    Args:
        path: The file.
        where: Begins the message of an error.
        loader: Whether its numbers are numbers, or stay as they are written.

    Raises:
        SettingsError: It cannot be read or parsed, or has a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    try:
        value = yaml.load(text, loader)
        _check_size(value)
        return value
    except Exception as error:  # `!!bool x` is a KeyError, deep nesting a RecursionError
        # Not the line itself, which may hold a password.
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f" in line {mark.line + 1}" if mark else ""
        found = " ".join((problem or type(error).__name__).split())
        raise SettingsError(f"{where}: is not plain YAML{line}: {found}") from error


def _check_size(value: Any) -> None:
    """Raises YAMLError for a small file of aliases (`*a`) that stands for a huge value."""
    found, rest = 0, [value]
    while rest:
        each = rest.pop()
        found += 1
        if found > MOST_VALUES:
            raise yaml.MarkedYAMLError(problem=f"it stands for more than {MOST_VALUES:,} values")
        if isinstance(each, dict):
            rest += each.values()
        elif isinstance(each, list | tuple | set):
            rest += each


def read_yaml(path: str, loader: type[Written] = Typed) -> dict[str, Any]:
    """The content of a YAML file, which must be a mapping; else raises SettingsError."""
    values = load_yaml(path, path, loader)
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise SettingsError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    return values
