"""What a person names as text: an object by "module:attribute", and a function's options by KEY=VALUE."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from mnist_ray.errors import SettingsError, described

KINDS: dict[str, type] = {kind.__name__: kind for kind in (bool, int, float, str)}


def load(path: str, flag: str, known: Iterable[str]) -> Any:
    """The object that "module:attribute" names; a module in the working directory is found too.

    Raises SettingsError naming the flag, and the `known` names that could have been given instead.
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
        raise SettingsError(f"{flag}: {path!r} cannot be imported: {described(error)}") from error


def arguments(
    function: Callable[..., Any],
    given: Mapping[str, str],
    flag: str,
    owner: str,
    reserved: Collection[str] = (),
) -> dict[str, Any]:
    """Texts as keyword arguments of a function, each converted to the type in its signature: bool, int, float or str.

    owner: whose options they are, for the messages. reserved: options that are not for a person to give.
    Raises SettingsError naming flag and key where the function has no such option or the text is not of its type.
    """
    known = {
        p.name: p
        for p in inspect.signature(function).parameters.values()
        if p.default is not p.empty and p.name not in reserved and _kind(p) is not None
    }
    result: dict[str, Any] = {}
    for key, text in given.items():
        kind = _kind(known[key]) if key in known else None
        if kind is None:
            raise SettingsError(
                f"{flag}: {owner} has no option {key!r}; it has {', '.join(known) if known else 'none'}"
            )
        try:
            result[key] = (
                {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
            )
        except (ValueError, KeyError) as error:
            expected = "true or false" if kind is bool else f"a value of type {kind.__name__}"
            raise SettingsError(
                f"{flag}: {key}={text!r} is not allowed; expected {expected}"
            ) from error
    return result


def _kind(parameter: inspect.Parameter) -> type | None:
    """The type to convert to: the annotation's ("int | None" is int), else the default's; None where neither is plain."""
    annotation = parameter.annotation
    name = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    kind = KINDS.get(name.split(" | ")[0])
    return kind or KINDS.get(type(parameter.default).__name__)
