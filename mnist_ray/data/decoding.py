"""Listed pictures -> one file of decoded images, which later runs map into memory."""

import collections
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import numpy as np
import PIL

from mnist_ray.data import pictures
from mnist_ray.data.listing import Listing
from mnist_ray.data.pictures import Picture
from mnist_ray.errors import SettingsError
from mnist_ray.settings import SearchSettings, resolved

log = logging.getLogger(__name__)

Channels = Literal["grey", "colour"]
FORMAT = 2  # of the decoded file: a change makes older ones unread
LARGEST = 64  # pixels: the longer side if --image-size is not given
LARGEST_ASKED = 1024  # of --image-size, which a file may name too: memory grows with its square
CHUNK = 256  # pictures that a thread decodes at a time
KEPT = 8  # decoded files in the cache, those that were used last
LEFT = 86_400.0  # seconds
NAMED = 20  # broken pictures that are named, a line each

T = TypeVar("T")


@dataclass(frozen=True)
class Reading:
    """How a source of one's own is read: options of the same names.

    Attributes:
        image_size: Height and width; one number for squares; None: found out.
        channels: None: found out.
        padding: The sides of a picture of another shape; "stretch": nothing, it is stretched.
        skip_broken: Whether pictures that cannot be read are left out.
        verify_data: Whether all is read again, also with a full cache.
        class_weights: How much each class counts (see `weights.of_classes`).
    """

    image_size: int | tuple[int, int] | None = None
    channels: Channels | None = None
    padding: str = "black"
    skip_broken: bool = False
    verify_data: bool = False
    class_weights: str | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Reading":
        """The options among a search's settings; those that an older run lacks have defaults."""
        names = {f.name for f in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in settings.items() if name in names})

    def to_json(self) -> str:
        """For a model's metadata."""
        return json.dumps({**dataclasses.asdict(self), "verify_data": False})

    @classmethod
    def from_json(cls, text: str, source: str) -> "Reading":
        """The inverse of `to_json`. Raises SettingsError, naming `source`, for any other text."""
        try:
            values = json.loads(text)
            # A name would be that of a file, which is another's choice.
            if not str(values.get("class_weights") or "balanced").startswith(("balanced", "{")):
                raise ValueError("class_weights are neither balanced nor numbers")
            return cls.of(resolved(SearchSettings.of(**values)))
        except (ValueError, TypeError, AttributeError, SettingsError) as error:
            raise SettingsError(f"{source} does not say how images are read: {error}") from error

    @classmethod
    def of_model(
        cls, shape: tuple[int, int, int], padding: str | None, own: str | None, source: str
    ) -> "Reading":
        """How images are read for a model: at its size and in its colours.

        Args:
            shape: Of its images: C, H, W.
            padding: That of its metadata.
            own: How its own images were read, as `to_json`; None for others. Their class weights
                and broken pictures say nothing of others.
            source: The model, for messages.

        Raises:
            SettingsError: `own` or `padding` does not say how images are read.
        """
        channels, height, width = shape
        found = cls.from_json(own or json.dumps({"padding": padding or "black"}), source)
        return dataclasses.replace(
            found,
            image_size=found.image_size or (height if height == width else (height, width)),
            channels=found.channels or ("grey" if channels == 1 else "colour"),
        )


@dataclass(frozen=True)
class Decoded:
    """The pictures of a listing, decoded.

    Attributes:
        images: uint8 [n, C, H, W], read-only.
        kept: int64 [n], places in the listing: without the broken ones.
        notes: Findings for the log.
    """

    images: np.ndarray
    kept: np.ndarray
    notes: tuple[str, ...]


def decoded(listing: Listing, reading: Reading, order: np.ndarray) -> Decoded:
    """The listing's pictures, from the cache if it has them.

    Args:
        listing: The pictures.
        reading: How to read them.
        order: int64, the places in the listing of the images in their order.

    Raises:
        SettingsError: Pictures are broken and `skip_broken` is not set, or nothing can be read.
    """
    of_data = listing.source, listing.fingerprint, hashlib.sha256(order.tobytes()).hexdigest()
    how = reading.image_size, reading.channels, reading.padding, reading.skip_broken
    key = hashlib.sha256(json.dumps([FORMAT, PIL.__version__, *of_data, *how]).encode()).hexdigest()
    folder = cache_folder()
    path = folder / f"{key[:32]}.images" if folder else None
    if path and not reading.verify_data and (kept := _kept(path)):
        return kept
    try:
        with tempfile.TemporaryFile(dir=folder) as raw:
            found = _decode(listing, reading, raw)
            handle, name = tempfile.mkstemp(prefix=".new-", dir=folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    _write(file, found, raw, order)
                result = _read(Path(name))
                if path:
                    os.replace(name, path)
            finally:
                Path(name).unlink(missing_ok=True)  # a mapped file stays
    except OSError as error:
        raise SettingsError(
            f"--dataset: the decoded images of {listing.source} cannot be kept in "
            f"{folder or tempfile.gettempdir()}: {error.strerror or error}; "
            "XDG_CACHE_HOME names another folder"
        ) from error
    if folder:
        _tidy(folder)
    return result


# ---- the cache


def cache_folder() -> Path | None:
    """The folder of decoded images; None if this user cannot write there."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if root.startswith("~"):  # no home folder
        return None
    folder = Path(root, "mnist_ray", "images")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def _kept(path: Path) -> Decoded | None:
    """The cache's images; None if it has none, or a file that is damaged."""
    try:
        result = _read(path)
        os.utime(path)  # it was used last
    except (OSError, ValueError, EOFError, KeyError):
        return None
    return result


def _read(path: Path) -> Decoded:
    """A decoded file: three arrays one after the other, of which the first is mapped."""
    mapped = np.load(path, mmap_mode="r")
    with path.open("rb") as file:
        file.seek(mapped.offset + mapped.nbytes)
        kept, notes = np.load(file), json.loads(np.load(file).tobytes())
    if mapped.dtype != np.uint8 or mapped.ndim != 4 or len(kept) != len(mapped):
        raise ValueError("no file of ours")
    return Decoded(np.asarray(mapped), kept, tuple(map(str, notes)))


def _tidy(folder: Path) -> None:
    """Leaves the files that were used last; a file that a process has mapped stays for it.

    Files of processes that were killed while they decoded go after LEFT seconds.
    """
    with suppress(OSError):
        files = sorted(folder.glob("*.images"), key=lambda file: file.stat().st_mtime)
        cut_off = [f for f in folder.glob(".new-*") if f.stat().st_mtime < time.time() - LEFT]
        for file in files[:-KEPT] + cut_off:
            file.unlink(missing_ok=True)


# ---- decoding


@dataclass(frozen=True)
class _Found:
    """The decoded pictures: raw images of `shape`, in the listing's order."""

    shape: tuple[int, int, int]
    grey: bool  # whether no picture has a colour
    kept: np.ndarray
    notes: tuple[str, ...]


def _decode(listing: Listing, reading: Reading, raw: IO[bytes]) -> _Found:
    """Writes the decoded pictures to `raw`, the broken ones left out."""
    size, may_be_coloured, notes = _look(listing, reading)
    channels = 3 if may_be_coloured else 1
    kept: list[int] = []
    broken: list[str] = []
    grey = True
    place = itertools.count()
    for images, errors in _each_chunk(
        listing, lambda each, name: _image(each, name, size, channels, reading.padding)
    ):
        for image in images:
            number = next(place)
            if image is None:
                broken.append(errors.pop(0))
                continue
            raw.write(np.ascontiguousarray(image).data)
            kept.append(number)
            grey = grey and channels == 3 and bool((image[0] == image[1:]).all())
    _refuse(listing, broken, reading, any_left=bool(kept))
    if channels == 3 and grey and reading.channels is None:
        notes.append("every picture is grey: read with one channel")
    return _Found(
        (channels, *size),
        channels == 3 and grey and reading.channels is None,
        np.array(kept, np.int64),
        tuple(notes),
    )


def _look(listing: Listing, reading: Reading) -> tuple[tuple[int, int], bool, list[str]]:
    """The images' size, whether they may be in colour, and notes: from the pictures' headers."""
    fixed = reading.image_size
    if isinstance(fixed, int):
        fixed = fixed, fixed
    if fixed and max(fixed) > LARGEST_ASKED:
        raise SettingsError(
            f"--image-size: {max(fixed)} is not allowed; expected at most {LARGEST_ASKED}"
        )
    if fixed and reading.channels:
        return fixed, reading.channels == "colour", []
    seen: list[tuple[int, int, bool]] = []
    for headers, _ in _each_chunk(listing, pictures.header):
        seen += [header for header in headers if header is not None]
    if not seen:
        return fixed or (1, 1), False, []
    colour = any(coloured for _, _, coloured in seen)
    if reading.channels:
        colour = reading.channels == "colour"
    if fixed:
        return fixed, colour, []
    sides = np.array([(height, width) for height, width, _ in seen])
    median = np.median(sides, axis=0)
    scale = min(1.0, LARGEST / median.max())
    height, width = (max(1, int(side * scale + 0.5)) for side in median)
    notes = []
    if (sides != (height, width)).any():
        notes.append(
            f"pictures of {_range(sides[:, 0])} x {_range(sides[:, 1])} pixels are read as "
            f"{height} x {width} (their median, at most {LARGEST}); --image-size changes that"
        )
    return (height, width), colour, notes


def _range(sides: np.ndarray) -> str:
    low, high = int(sides.min()), int(sides.max())
    return str(low) if low == high else f"{low}..{high}"


def _image(
    picture: Picture, name: str, size: tuple[int, int], channels: int, padding: str
) -> np.ndarray:
    image = pictures.in_channels(pictures.opened(picture, name), channels)
    return pictures.fitted(image, size, padding)


def _each_chunk(
    listing: Listing, work: Callable[[Picture, str], T]
) -> Iterator[tuple[list[T | None], list[str]]]:
    """The results of `work` on each picture, None if it is broken, and the errors; in order.

    Threads share the work: Pillow decodes without Python's lock.
    """

    def chunk(each: tuple[tuple[Picture, str], ...]) -> tuple[list[T | None], list[str]]:
        results: list[T | None] = []
        errors: list[str] = []
        for picture, name in each:
            try:
                results.append(work(picture, name))
            except SettingsError as error:
                results.append(None)
                errors.append(str(error))
        return results, errors

    workers = max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    pairs = zip(listing.pictures(), listing.names, strict=True)
    running: collections.deque[Future[Any]] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        while part := tuple(itertools.islice(pairs, CHUNK)):
            running.append(pool.submit(chunk, part))
            if len(running) > 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _refuse(listing: Listing, broken: list[str], reading: Reading, *, any_left: bool) -> None:
    """Names the broken pictures, a line each; SettingsError if they may not be left out."""
    if not broken:
        return
    for each in broken[:NAMED]:
        log.warning("broken: %s", each)
    if len(broken) > NAMED:
        log.warning("broken: %d more", len(broken) - NAMED)
    if not any_left:
        raise SettingsError(
            f"--dataset: none of {len(broken)} pictures of {listing.source} can be read: "
            f"{broken[0]}"
        )
    if not reading.skip_broken:
        raise SettingsError(
            f"--dataset: {len(broken)} of {len(listing.names)} pictures of {listing.source} cannot "
            f"be read, the first: {broken[0]}; mend or remove them (a search can leave them out: "
            "--skip-broken)"
        )


def _write(file: IO[bytes], found: _Found, raw: IO[bytes], order: np.ndarray) -> None:
    """The decoded file, with the images in their order."""
    raw.flush()
    source = np.memmap(raw, np.uint8, "r", shape=(len(found.kept), *found.shape))
    place = np.full(int(order.max()) + 1, -1)
    place[found.kept] = np.arange(len(found.kept))
    rows = place[order]
    rows = rows[rows >= 0]
    channels = 1 if found.grey else found.shape[0]
    header = {
        "descr": "|u1",
        "fortran_order": False,
        "shape": (len(rows), channels, *found.shape[1:]),
    }
    np.lib.format.write_array_header_1_0(file, header)
    for start in range(0, len(rows), CHUNK):
        part = source[rows[start : start + CHUNK], :channels]
        file.write(np.ascontiguousarray(part).data)
    np.save(file, found.kept[rows])
    np.save(file, np.frombuffer(json.dumps(found.notes).encode(), np.uint8))
