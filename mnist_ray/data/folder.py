"""`folder:PATH`: a folder for each class, below `train`, `val` and `test` where these are there."""

import os
from collections.abc import Iterator

from mnist_ray.data.listing import ORDER, PART_NAMES, Columns, Listing, fingerprint, listing
from mnist_ray.data.pictures import ENDINGS
from mnist_ray.errors import SettingsError


def read(source: str, path: str) -> Listing:
    """The pictures below `path`, in the order of part, class and name.

    Files with other endings than a picture's and hidden files are left out.
    """
    if not os.path.isdir(path):
        raise SettingsError(f"--dataset: {source}: there is no folder {path!r}")
    top = _folders(source, path)
    by_part = any(PART_NAMES.get(name.lower()) == "train" for name in top)
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
    for part in sorted(top, key=_by_place) if by_part else [""]:
        below = os.path.join(path, part) if part else path
        for label in _folders(source, below) if part else top:
            found = sorted(_files(os.path.join(below, label)))
            pictures = [file for file in found if file.lower().endswith(ENDINGS)]
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
    columns = Columns(files, labels, parts if by_part else None)
    return listing(source, columns, lambda: iter(files), fingerprint(files), notes)


def _by_place(part: str) -> tuple[int, str]:
    return ORDER.index(PART_NAMES[part.lower()]), part


def _folders(source: str, path: str) -> list[str]:
    """Names of the folders in it, sorted; hidden ones are left out."""
    try:
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise SettingsError(f"--dataset: {source}: {path}: {error.strerror}") from error


def _files(path: str) -> Iterator[str]:
    """All files at any depth, without hidden ones."""
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(folder, name) for name in names if not name.startswith("."))
