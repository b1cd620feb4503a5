"""`folder:PATH`: a folder for each class, below `train`, `val` and `test` where these are there."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from mnist_ray.data.listing import (
    ORDER,
    PART_NAMES,
    Columns,
    Listing,
    fingerprint,
    listing,
    part_in,
)
from mnist_ray.data.pictures import ENDINGS
from mnist_ray.errors import SettingsError, shortened


def read(source: str, path: str) -> Listing:
    """The pictures below `path`, in the order of part, class and name.

    Files with other endings than a picture's and hidden files are left out.
    """
    if not os.path.isdir(path):
        raise SettingsError(f"--dataset: {source}: there is no folder {path!r}")
    top = _folders(source, path)
    by_part = _by_part(source, path, top)
    strange = [name for name in top if by_part and name.lower() not in PART_NAMES]
    if strange:
        raise SettingsError(
            f"--dataset: {source} holds the folders train and {strange[0]!r}; "
            "beside train only val and test are allowed"
        )
    files: list[str] = []
    labels: list[str] = []
    parts: list[str] = []
    left_out: list[str] = []
    without: set[str] = set()
    for part in sorted(top, key=_by_place) if by_part else [""]:
        below = os.path.join(path, part) if part else path
        for label in _folders(source, below) if part else top:
            found = sorted(_files(source, os.path.join(below, label)))
            pictures = [file for file in found if file.lower().endswith(ENDINGS)]
            without |= set() if pictures else {label}
            left_out += [file for file in found if not file.lower().endswith(ENDINGS)]
            files += pictures
            labels += [label] * len(pictures)
            parts += [PART_NAMES[part.lower()] if part else ""] * len(pictures)
    if not files:
        raise SettingsError(
            f"--dataset: {source} holds no pictures in folders; "
            "expected one folder for each class, with its pictures in it"
        )
    notes = []
    if left_out:
        first = os.path.relpath(left_out[0], path)
        notes.append(f"{len(left_out)} files are no pictures and left out, as {first}")
    if empty := without.difference(labels):  # a class may be in the training part alone
        named = shortened(", ".join(sorted(empty)), 150)
        notes.append(f"folders without pictures, which are no class: {named}")
    columns = Columns(files, labels, parts if by_part else None)
    return listing(source, columns, lambda: iter(files), fingerprint(files), notes)


def _by_part(source: str, path: str, top: list[str]) -> bool:
    """Whether the folders are parts: there is a train, or there are no others than parts.

    A folder of such a name that holds no folders may be a class, as `train` beside `bus`.

    Raises:
        SettingsError: They seem to be parts of other names, as training_set and test_set.
    """

    def holds_folders(name: str) -> bool:
        return bool(_folders(source, os.path.join(path, name)))

    named = [name for name in top if name.lower() in PART_NAMES]
    parts = {PART_NAMES[name.lower()] for name in named}
    if "train" in parts and (len(parts) > 1 or any(map(holds_folders, named))):
        return True
    if named and named == top and all(map(holds_folders, named)):
        return True
    told = {part_in(name): name for name in reversed(top)}
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        pair = [told[part] for part in (one, other) if part in told]
        if len(pair) == 2 and (None not in told or all(map(holds_folders, pair))):
            raise SettingsError(
                f"--dataset: {source} holds {pair[0]} and {pair[1]}: name them {one} and {other}"
            )
    return False


def _by_place(part: str) -> tuple[int, str]:
    return ORDER.index(PART_NAMES[part.lower()]), part


def _folders(source: str, path: str) -> list[str]:
    """Names of the folders in it, sorted; hidden ones are left out."""
    try:
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        _refuse(source, error)


def _refuse(source: str, error: OSError) -> NoReturn:
    raise SettingsError(f"--dataset: {source}: {error.filename}: {error.strerror}") from error


def _files(source: str, path: str) -> Iterator[str]:
    """All files at any depth, without hidden ones; links to folders are followed.

    A folder that several links lead to is read once, and none that holds `path` itself.
    """
    real = os.path.realpath(path)
    seen = {real, *map(str, Path(real).parents)}
    walk = os.walk(path, onerror=lambda error: _refuse(source, error), followlinks=True)
    for folder, folders, names in walk:
        inner = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(folder, name))
            if not name.startswith(".") and real not in seen:
                seen.add(real)
                inner.append(name)
        folders[:] = inner
        yield from (os.path.join(folder, name) for name in names if not name.startswith("."))
