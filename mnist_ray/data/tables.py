"""`csv:FILE`, `parquet:PATH` and `hf:NAME`: a row for each picture, in columns known by name."""

import importlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq

from mnist_ray.data.listing import (
    ORDER,
    PART_NAMES,
    Columns,
    Listing,
    fingerprint,
    listing,
    number_of,
    part_in,
)
from mnist_ray.data.pictures import Picture
from mnist_ray.errors import SettingsError, first_line, shortened

COLUMNS = {
    "image": ("image", "img", "picture", "path", "file", "filename", "file_name", "filepath",
              "image_path"),
    "label": ("label", "class", "target", "category", "y", "labels", "fine_label"),
    "split": ("split", "part", "subset"),
    "group": ("group", "groups", "writer", "patient"),
    "weight": ("weight", "sample_weight"),
}  # fmt: skip
"""What a column holds -> its names in small letters, the first that is there counts."""
MOST_ROWS = 10_000_000  # of Parquet: a few bytes may hold 10^9 rows
BATCH = 1024  # rows of pictures that are read at a time


def read_csv(source: str, path: str) -> Listing:
    """A CSV file with a header: path (from the file's folder) or pixels, and label.

    Pixels are columns whose names end in numbers, as pixel0 … pixel783, of square grey images.
    """
    if not os.path.isfile(path):
        raise SettingsError(f"--dataset: {source}: there is no CSV file {path!r}")
    try:
        with open(path, encoding="utf-8-sig") as file:
            header = file.readline().rstrip("\r\n")
        names = [name.strip('"') for name in header.split(",")]
        pixels = [name for name in names if re.fullmatch(r"(pixel|px|p)_?\d+", name.strip())]
        pixels.sort(key=lambda name: int(re.sub(r"\D", "", name)))
        kinds = dict.fromkeys(names, pa.string()) | dict.fromkeys(pixels, pa.uint8())
        options = pyarrow.csv.ConvertOptions(  # NA and null may be classes
            column_types=kinds, strings_can_be_null=True, null_values=[""]
        )
        table = pyarrow.csv.read_csv(path, convert_options=options)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        said = getattr(error, "strerror", None) or first_line(error)
        raise SettingsError(f"--dataset: {source} cannot be read as CSV: {said}") from error
    found = _found(source, table.column_names, need_image=not pixels)
    columns = _columns(found, table, [f"row {i}" for i in range(1, len(table) + 1)])
    if pixels:
        side = round(len(pixels) ** 0.5)
        if side * side != len(pixels):
            raise SettingsError(f"--dataset: {source} has {len(pixels)} pixels; expected a square")
        _check_single(source, names, pixels)
        images = np.empty((len(table), len(pixels)), np.uint8)
        for i, name in enumerate(pixels):
            if table[name].null_count:
                raise SettingsError(f"--dataset: {source}: a value of {name} is missing")
            images[:, i] = table[name].to_numpy()
        squares = images.reshape(-1, side, side)
        return listing(source, columns, lambda: iter(squares), fingerprint([path]))
    folder = os.path.dirname(path)
    files = [
        os.path.join(folder, (each or "").strip()) for each in table[found["image"]].to_pylist()
    ]
    columns.names = files
    return listing(source, columns, lambda: iter(files), fingerprint([path, *files]))


def read_parquet(source: str, path: str) -> Listing:
    """A Parquet file, or a folder of files whose names, or folders', tell the part (`part_in`).

    Its images are files' bytes, as Hugging Face writes them, or paths from the file's folder.
    """
    files, parts = [path], [""]
    if os.path.isdir(path):
        files = sorted(str(file) for file in Path(path).rglob("*.parquet"))
        files.sort(key=lambda file: ORDER.index(_part_of(file, path) or "train"))
        parts = [_part_of(file, path) for file in files]
    strange = next((file for file in files or [path] if not os.path.isfile(file)), None)
    if strange is not None:
        raise SettingsError(f"--dataset: {source}: there is no Parquet file {strange!r}")
    try:
        rows = sum(pq.read_metadata(file).num_rows for file in files)
        if rows > MOST_ROWS:
            raise pa.ArrowInvalid(f"it has {rows:,} rows; at most {MOST_ROWS:,} are allowed")
        schemas = [pq.read_schema(file) for file in files]
        found = _found(source, schemas[0].names, need_image=True)
        for file, schema in zip(files, schemas, strict=True):
            _check_columns(source, os.path.relpath(file, path), schema.names, found)
        wanted = [name for kind, name in found.items() if kind != "image"]
        tables = [pq.read_table(file, columns=wanted) for file in files]
        named = [each for file in files for each in _parquet_named(file, found["image"])]
    except (OSError, pa.ArrowException) as error:
        raise SettingsError(
            f"--dataset: {source} cannot be read as Parquet: {first_line(error)}"
        ) from error
    names = [
        f"{os.path.basename(file)} row {i}"
        for file, each in zip(files, tables, strict=True)
        for i in range(1, len(each) + 1)
    ]
    classes = [_names_of_labels(schema, found["label"]) for schema in schemas]
    columns = _columns(found, _joined(source, tables, found["label"], classes), names, classes[0])
    notes = []
    if "split" not in found and len(files) > 1:
        each_part = [part or "train" for part in parts]
        columns.parts = np.repeat(each_part, [len(each) for each in tables]).tolist()
        if any(parts) and "" in parts:
            first = os.path.relpath(files[parts.index("")], path)
            notes.append(f"{parts.count('')} files name no part and are for training, as {first}")
    pictures = partial(_parquet_pictures, files, found["image"])
    return listing(source, columns, pictures, fingerprint([*files, *named]), notes)


def _part_of(file: str, root: str) -> str:
    """The part that a file's name tells, else the folders between it and the root; "" if none."""
    names = Path(file).relative_to(root).parts
    return next((part for name in reversed(names) if (part := part_in(name))), "")


def _names_of_labels(schema: pa.Schema, label: str) -> list[str] | None:
    """The classes' names that Hugging Face's datasets writes into a file's metadata."""
    try:
        metadata = json.loads((schema.metadata or {})[b"huggingface"])
        names = metadata["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return [str(each) for each in names] if isinstance(names, list) else None


def _parquet_pictures(files: Sequence[str], column: str) -> Iterator[Picture]:
    for file in files:
        folder = os.path.dirname(file)
        try:
            with pq.ParquetFile(file) as opened:
                for batch in opened.iter_batches(BATCH, columns=[column]):
                    for value in batch.column(column).to_pylist():
                        yield _picture(value, folder)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise SettingsError(
                f"--dataset: {file}: the column {column} cannot be read: {first_line(error)}"
            ) from error


def _parquet_named(file: str, column: str) -> list[str]:
    """The picture files that a column names, read without the bytes beside them."""
    with pq.ParquetFile(file) as opened:
        leaves = [opened.schema.column(i) for i in range(len(opened.schema))]
        texts = {leaf.path for leaf in leaves if leaf.logical_type.type == "STRING"}
        texts &= {column, f"{column}.path"}
        if not texts:
            return []
        return _named(opened.read(columns=list(texts)).column(column), os.path.dirname(file))


def _named(cells: pa.ChunkedArray, folder: str) -> list[str]:
    """The picture files that cells of text, or the paths of cells {bytes, path}, name."""
    if pa.types.is_struct(cells.type) and cells.type.get_field_index("path") >= 0:
        cells = pyarrow.compute.struct_field(cells, "path")
    kind = getattr(cells.type, "value_type", cells.type)  # of text that is kept as categories
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return []
    return [os.path.join(folder, each) for each in cells.to_pylist() if isinstance(each, str)]


def _picture(value: Any, folder: str) -> Picture:
    """A cell's picture: bytes, a path, or both in Hugging Face's {bytes, path}; b"" for none."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return os.path.join(folder, value)
    if isinstance(value, list):
        try:
            pixels = np.asarray(value)
        except ValueError:
            return b""
        whole = (
            pixels.dtype.kind in "iu" and pixels.size and 0 <= pixels.min() <= pixels.max() < 256
        )
        return pixels.astype(np.uint8) if whole else pixels  # which is named as no picture
    return value if isinstance(value, bytes) else b""


# ---- hf:NAME


def read_hf(source: str, name: str) -> Listing:
    """A data set of Hugging Face's library: a folder that it saved, or a name that it loads.

    Raises:
        SettingsError: the library is not installed, or cannot load it.
    """
    try:
        datasets = importlib.import_module("datasets")  # an optional package
    except ImportError as error:
        raise SettingsError(
            f"--dataset: {source} needs the package datasets: pip install 'mnist_ray[hf]'"
        ) from error
    datasets.disable_progress_bars()
    try:
        local = os.path.isdir(name)
        loaded = datasets.load_from_disk(name) if local else datasets.load_dataset(name)
    except Exception as error:  # its own errors, and those of its network code
        raise SettingsError(f"--dataset: {source} cannot be loaded: {first_line(error)}") from error
    splits = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    known = {n: each for n, each in splits.items() if n.lower() in PART_NAMES}
    if not known:
        raise SettingsError(
            f"--dataset: {source} has the parts {', '.join(splits)}; expected train, val or test"
        )
    order = sorted(known, key=lambda n: ORDER.index(PART_NAMES[n.lower()]))
    found = _found(source, known[order[0]].column_names, need_image=True)
    for n in order:
        _check_columns(source, n, known[n].column_names, found)
    image = found["image"]
    parts = [
        known[n].cast_column(image, datasets.Image(decode=False))
        if isinstance(known[n].features[image], datasets.Image)
        else known[n]
        for n in order
    ]
    wanted = [column for kind, column in found.items() if kind != "image"]
    tables = [each.select_columns(wanted).with_format("arrow")[:] for each in parts]
    classes = [getattr(known[n].features[found["label"]], "names", None) for n in order]
    names = [f"{n} row {i}" for n, each in zip(order, parts, strict=True) for i in range(len(each))]
    columns = _columns(found, _joined(source, tables, found["label"], classes), names, classes[0])
    if "split" not in found and len(splits) > 1:
        columns.parts = [n for n, each in zip(order, parts, strict=True) for _ in range(len(each))]

    def pictures() -> Iterator[Picture]:
        for each in parts:
            for row in each.select_columns([image]):
                yield _picture(row[image], name if local else "")

    prints = "".join(each._fingerprint for each in known.values())
    cells = [each.select_columns([image]).with_format("arrow")[:][image] for each in parts]
    if named := [path for each in cells for path in _named(each, name if local else "")]:
        prints += fingerprint(named)
    left_out = shortened(", ".join(n for n in splits if n not in known), 150)
    notes = [f"parts that are none of train, val and test are left out: {left_out}"]
    return listing(source, columns, pictures, prints, notes if left_out else ())


# ---- columns


def _found(source: str, names: Sequence[str], *, need_image: bool) -> dict[str, str]:
    """A column's content -> its name, for those that are there."""
    lower = {name.strip().lower(): name for name in reversed(names)}
    found = {
        kind: next((lower[each] for each in known if each in lower), None)
        for kind, known in COLUMNS.items()
    }
    for kind, needed in (("image", need_image), ("label", True)):
        if needed and found[kind] is None:
            there = shortened(", ".join(names), 200)
            raise SettingsError(
                f"--dataset: {source} has the columns {there}; expected one of "
                f"{', '.join(COLUMNS[kind])}"
            )
    result = {kind: name for kind, name in found.items() if name is not None}
    _check_single(source, names, result.values())
    return result


def _check_single(source: str, names: Sequence[str], used: Iterable[str]) -> None:
    times = Counter(names)
    for name in used:
        if times[name] > 1:
            raise SettingsError(
                f"--dataset: {source} has {times[name]} columns {name!r}; expected one"
            )


def _check_columns(source: str, part: str, names: Sequence[str], found: dict[str, str]) -> None:
    """SettingsError if a part, or one of several files, lacks a column of the first one."""
    lacking = [name for name in found.values() if name not in names]
    if lacking:
        raise SettingsError(
            f"--dataset: {source}: {part} has no column {lacking[0]!r}, as others have; "
            f"its columns are {shortened(', '.join(names), 200)}"
        )
    _check_single(f"{source}: {part}", names, found.values())


def _joined(
    source: str, tables: Sequence[pa.Table], label: str, named: Sequence[list[str] | None]
) -> pa.Table:
    """The parts' rows in one table, with labels that are numbers of the first part's classes.

    Args:
        source: For messages.
        tables: Rows of each part.
        label: The column of labels.
        named: The classes that each part names for its numbers; None: it names none.

    Raises:
        SettingsError: A part has a class that the first has not, or columns of other types.
    """
    first, joined = named[0], []
    for table, own in zip(tables, named, strict=True):
        if first is not None and own is not None and own != first:
            place = table.column_names.index(label)
            said = [own[number_of(source, each, own)] for each in table[label].to_pylist()]
            unknown = set(said).difference(first)
            if unknown:
                raise SettingsError(
                    f"--dataset: {source} has the class {min(unknown)!r} in one part; the first "
                    f"part has {shortened(', '.join(first), 150)}"
                )
            numbers = pa.array([first.index(each) for each in said], pa.int64())
            joined.append(table.set_column(place, label, numbers))
        else:
            joined.append(table)
    try:
        return pa.concat_tables(joined, promote_options="permissive")
    except pa.ArrowException as error:
        raise SettingsError(
            f"--dataset: the parts of {source} have columns of different types: {first_line(error)}"
        ) from error


def _columns(
    found: dict[str, str], table: pa.Table, names: Sequence[str], classes: Any = None
) -> Columns:
    columns = Columns(names, table[found["label"]].to_pylist(), classes=classes)
    if "split" in found:
        columns.parts = table[found["split"]].to_pylist()
    if "group" in found:
        columns.groups = table[found["group"]].to_pylist()
    if "weight" in found:
        columns.weights = table[found["weight"]].to_pylist()
    return columns
