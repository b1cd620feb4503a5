"""The content of a source of one's own: labelled pictures that are not decoded yet."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnist_ray.data.pictures import Picture
from mnist_ray.errors import SettingsError, shortened

PART_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Names of parts as people write them, in small letters -> train, val or test.

Eval is test, as for Hugging Face's library.
"""
ORDER = ("train", "val", "test")


def part_in(name: str) -> str | None:
    """The part that a word of a file's or folder's name tells; None if no word does.

    The first such word counts: a name of PART_NAMES between other characters than letters, also
    with set, data or images behind it. `my_test-0` and `testset` are test; `testimony` is none.
    """
    for word in re.findall("[a-z]+", name.lower()):
        part = PART_NAMES.get(re.sub("(sets?|data|images)$", "", word))
        if part:
            return part
    return None


def as_text(value: Any) -> str:
    """The value as text; bytes as what they spell, and not as b'…'.

    Raises:
        UnicodeDecodeError: They are no UTF-8.
    """
    return value.decode() if isinstance(value, bytes) else str(value)


@dataclass(frozen=True)
class Listing:
    """The pictures of a source in its order; n of them.

    Attributes:
        source: As --dataset names it, for messages.
        names: A name for each picture, for messages.
        pictures: Gives the pictures, from the first on, each time that it is called.
        labels: int64 [n], places in `classes`.
        classes: The labels' names.
        parts: train, val or test for each picture; None if the source does not say.
        groups: int64 [n], or None.
        weights: float64 [n], or None.
        fingerprint: Differs if the source has changed.
        notes: Findings for the log.
    """

    source: str
    names: Sequence[str]
    pictures: Callable[[], Iterator[Picture]]
    labels: np.ndarray
    classes: tuple[str, ...]
    parts: np.ndarray | None
    groups: np.ndarray | None
    weights: np.ndarray | None
    fingerprint: str
    notes: tuple[str, ...] = ()


@dataclass
class Columns:
    """A source's statements on its pictures, one value each, as it says them."""

    names: Sequence[str]
    labels: Sequence[Any] | np.ndarray
    parts: Sequence[Any] | None = None
    groups: Sequence[Any] | np.ndarray | None = None
    weights: Sequence[Any] | np.ndarray | None = None
    classes: Sequence[str] | None = None  # the names of labels 0, 1, …


def listing(
    source: str,
    columns: Columns,
    pictures: Callable[[], Iterator[Picture]],
    fingerprint: str,
    notes: Iterable[str] = (),
) -> Listing:
    """The columns, checked.

    Raises:
        SettingsError: there are none, or a value is missing or not allowed.
    """
    n = len(columns.names)
    if not n:
        raise SettingsError(f"--dataset: {source} holds no pictures")
    for what in ("labels", "parts", "groups", "weights"):
        values = getattr(columns, what)
        if values is not None and len(values) != n:
            raise SettingsError(f"--dataset: {source} has {n} pictures and {len(values)} {what}")
    labels, classes = _labels(source, columns)
    parts = None
    if columns.parts is not None:
        parts = np.array([_part(source, each) for each in columns.parts])
    groups = None
    if columns.groups is not None:
        names = [_missing_refused(source, "group", each) for each in columns.groups]
        groups = np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)
    weights = None
    if columns.weights is not None:
        weights = _weights(source, columns.weights)
    return Listing(
        source, columns.names, pictures, labels, classes, parts, groups, weights, fingerprint,
        tuple(notes),
    )  # fmt: skip


def _labels(source: str, columns: Columns) -> tuple[np.ndarray, tuple[str, ...]]:
    """Places in the classes, and the classes: as given, else the labels in their order.

    Whole numbers are in the order of their values, also if they are written as text.
    """
    if columns.classes is not None:
        classes = _printable(source, tuple(_said(source, "class", c) for c in columns.classes))
        numbers = np.array([number_of(source, each, classes) for each in columns.labels])
        return numbers.astype(np.int64), classes
    texts = [_label(source, each) for each in columns.labels]
    found = set(texts)
    numeric = all(re.fullmatch(r"-?\d+", each) for each in found)
    ordered = sorted(found, key=(lambda each: (int(each), each)) if numeric else None)
    place = {each: i for i, each in enumerate(ordered)}
    return np.array([place[each] for each in texts], np.int64), _printable(source, tuple(ordered))


def number_of(source: str, value: Any, classes: Sequence[str]) -> int:
    """A label's place in classes that are named. SettingsError if it is none."""
    text = _label(source, value)
    number = int(text) if re.fullmatch(r"\d{1,9}", text) else -1
    if not 0 <= number < len(classes):
        raise SettingsError(
            f"--dataset: {source} names its classes, and has the label {shortened(text, 40)!r}; "
            f"allowed are 0..{len(classes) - 1}"
        )
    return number


def _label(source: str, value: Any) -> str:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    if isinstance(value, float | np.floating) and not np.isnan(value):
        raise SettingsError(
            f"--dataset: {source} has the label {value}; expected whole numbers or names"
        )
    return _missing_refused(source, "label", value)


def _missing_refused(source: str, what: str, value: Any) -> str:
    text = "" if value is None or value != value else _said(source, what, value).strip()
    if not text:
        raise SettingsError(f"--dataset: {source} has a picture without a {what}")
    return text


def _said(source: str, what: str, value: Any) -> str:
    try:
        return as_text(value)
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"--dataset: {source} has the {what} {shortened(repr(value), 40)}; expected UTF-8"
        ) from error


def _printable(source: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    for each in classes:
        if not each.isprintable():
            raise SettingsError(f"--dataset: {source} has a class {each!r}: expected plain text")
    if not classes:
        raise SettingsError(f"--dataset: {source} has no class; expected at least two")
    if len(set(classes)) < len(classes):
        twice = next(each for each in classes if classes.count(each) > 1)
        raise SettingsError(f"--dataset: {source} names two classes {twice!r}")
    return classes


def _part(source: str, value: Any) -> str:
    name = "train" if value is None else _said(source, "part", value).strip().lower()
    if name not in PART_NAMES:
        raise SettingsError(
            f"--dataset: {source} has the part {value!r}; expected train, val or test"
        )
    return PART_NAMES[name]


def _weights(source: str, values: Any) -> np.ndarray:
    try:
        weights = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise SettingsError(f"--dataset: {source}: weights must be numbers: {error}") from error
    if weights.ndim != 1:
        raise SettingsError(f"--dataset: {source}: weights must be one number a picture")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise SettingsError(
            f"--dataset: {source}: weights must be finite numbers of at least 0, and not all 0"
        )
    return weights


def fingerprint(paths: Iterable[str]) -> str:
    """A digest of the files' whole paths, sizes and times; of a missing file its path.

    Archives give their files the times that they had elsewhere; that of the last change (ctime) is
    this disk's own.
    """
    sha = hashlib.sha256()
    for path in map(os.path.abspath, paths):
        try:
            status = os.stat(path)
            text = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        except (OSError, ValueError):
            text = "missing"
        sha.update(os.fsencode(path) + f"\0{text}\0".encode())
    return sha.hexdigest()
