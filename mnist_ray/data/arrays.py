"""Arrays as people have them -> uint8 images and labels, where their meaning is certain.

Also `npz:FILE`, which holds such arrays.
"""

import os
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from mnist_ray.data.listing import ORDER, PART_NAMES, Columns, Listing, fingerprint, listing
from mnist_ray.data.pictures import Picture
from mnist_ray.errors import SettingsError, first_line

KINDS = {
    "x": "images", "image": "images", "images": "images", "img": "images", "imgs": "images",
    "data": "images", "pictures": "images", "arr0": "images",
    "y": "labels", "label": "labels", "labels": "labels", "target": "labels", "targets": "labels",
    "arr1": "labels", "group": "groups", "groups": "groups", "weight": "weights",
    "weights": "weights", "classes": "classes",
}  # fmt: skip
"""Words in the names of an npz file's arrays -> what they hold."""
CHANNELS = (1, 3, 4)  # of pictures; 4: with transparency
CHUNK = 1024  # images that are converted at a time
BRIGHT = 128  # a float image with no value above it is not certainly one of [0, 255]
NEARLY_BLACK = (
    "whole numbers up to 1 are read as values of 0..255, nearly black; True and False are read as "
    "white and black"
)
FOUR_CHANNELS = (
    "four channels are read as red, green, blue and opacity, on white; a function passes four "
    "channels as they are"
)


def as_uint8(images: np.ndarray) -> tuple[np.ndarray, str]:
    """Images of any type as uint8, and a note of how they were read ("" for uint8).

    Floats in [0, 1], and floats or whole numbers in [0, 255], are certain. For whole numbers up to
    1, which may be meant as black and white, the note says so.

    Raises:
        ValueError: The values can mean several things.
    """
    dark = images.dtype.kind in "iu" and images.size and images.max() <= 1
    if images.dtype == np.uint8:
        return images, NEARLY_BLACK if dark else ""
    if images.dtype == bool:
        return images.astype(np.uint8) * np.uint8(255), "images of True and False are read as white"
    if images.dtype.kind not in "iuf" or not images.size:
        raise ValueError(f"images must be uint8, found {images.dtype} {images.shape}")
    low, high = float(images.min()), float(images.max())
    fractions = images.dtype.kind == "f"
    if fractions and low >= 0 and 0 < high <= 1:
        scale, note = 255.0, f"images of {images.dtype} in [0, 1] are scaled to 0..255"
    elif low >= 0 and high <= 255 and (high >= BRIGHT or not fractions):
        note = NEARLY_BLACK if dark else f"images of {images.dtype} are read as values of 0..255"
        scale = 1.0
    else:
        raise ValueError(
            "images must be uint8, or numbers that are certainly of [0, 1] or [0, 255]; "
            f"found {images.dtype} in [{low:g}, {high:g}]"
        )
    result = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK]
        result[start : start + CHUNK] = np.rint(part * scale) if fractions else part
    return result, note


def channels_last(images: np.ndarray) -> np.ndarray:
    """Images [n, H, W] or [n, H, W, C] as a view of images with or without a channel axis.

    Raises:
        ValueError: It is not certain which axis the channels are.
    """
    if 0 in images.shape or images.ndim not in (3, 4):
        raise ValueError(
            f"images must be [n, H, W], [n, H, W, C] or [n, C, H, W], found {images.shape}"
        )
    if images.ndim == 3:
        return images
    first, last = images.shape[1] in CHANNELS, images.shape[3] in CHANNELS
    if first == last:
        raise ValueError(
            f"images of {images.shape}: it is not certain which axis the channels are; "
            "expected 1, 3 or 4 channels in the second or the last place"
        )
    images = images.transpose(0, 2, 3, 1) if first else images
    return images[..., 0] if images.shape[3] == 1 else images


def flat_labels(labels: np.ndarray) -> np.ndarray:
    """Labels [n], [n, 1] or one-hot [n, classes] as [n].

    Raises:
        ValueError: They have another shape.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "iufb":
        one_hot = np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()
        if one_hot:
            return np.asarray(labels.argmax(1))
    if labels.ndim != 1:
        raise ValueError(f"labels must be [n] or one-hot [n, classes], found {labels.shape}")
    return labels


# ---- npz:FILE


def read_npz(source: str, path: str) -> Listing:
    """The arrays of an npz file: `x_train, y_train, x_test, y_test` and names like these."""
    try:
        if not os.path.isfile(path):
            raise ValueError("no such file")
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no archive of arrays")
        with np.load(path, allow_pickle=False) as file:
            named, notes = _by_part(source, file.files)
            parts = {part: _part(source, file, names) for part, names in named.items()}
            classes = None
            if "classes" in file.files:
                classes = np.atleast_1d(file["classes"]).tolist()
    except SettingsError:
        raise
    except Exception as error:  # zipfile raises RuntimeError, NumPy MemoryError, and others
        said = getattr(error, "strerror", None) or first_line(error)
        raise SettingsError(f"--dataset: {source} cannot be read as npz: {said}") from error
    columns = Columns([], [])
    columns.names = [
        f"{part or 'image'} {i}"
        for part, found in parts.items()
        for i in range(len(found["images"]))
    ]
    columns.labels = np.concatenate([found["labels"] for found in parts.values()])
    columns.classes = classes
    if "" not in parts:
        columns.parts = [part for part, found in parts.items() for _ in found["images"]]
    for kind, otherwise in (("groups", "none"), ("weights", 1)):
        if any(kind in found for found in parts.values()):
            each = [f.get(kind, np.full(len(f["labels"]), otherwise)) for f in parts.values()]
            setattr(columns, kind, np.concatenate(each))
    notes += [note for found in parts.values() for note in found["notes"] if note]
    images = [found["images"] for found in parts.values()]

    def pictures() -> Iterator[Picture]:
        for each in images:
            yield from each

    return listing(source, columns, pictures, fingerprint([path]), dict.fromkeys(notes))


def _by_part(source: str, names: list[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Part ("" where the names do not say) -> kind -> the array's name; parts in their order.

    Also notes of the arrays that are left out.
    """
    found: dict[str, dict[str, str]] = {}
    for name in names:
        words = re.findall(r"[a-z]+\d?", name.lower().replace("arr_", "arr"))
        parts = [PART_NAMES[word] for word in words if word in PART_NAMES]
        kinds = [KINDS[word] for word in words if word in KINDS]
        if len(kinds) == 1 and len(parts) <= 1 and kinds != ["classes"]:
            found.setdefault("".join(parts), {})[kinds[0]] = name
    whole = {part: each for part, each in found.items() if {"images", "labels"} <= set(each)}
    if "train" not in whole and set(whole) != {""}:
        raise SettingsError(
            f"--dataset: {source} holds {', '.join(names) or 'nothing'}; expected x_train, y_train "
            "and perhaps x_val, y_val, x_test, y_test, groups_train"
        )
    if "train" in whole:
        whole.pop("", None)
    rest = {part: each for part, each in found.items() if part not in whole}
    for part in {"", "train"} & set(rest):  # the only part need not be named twice
        _add_to_part(source, whole, rest[part])
    order = [part for part in ("", *ORDER) if part in whole]
    return {part: whole[part] for part in order}, [
        _left_out(each) for each in rest.values() if each
    ]


def _add_to_part(source: str, whole: dict[str, dict[str, str]], arrays: dict[str, str]) -> None:
    """Moves groups and weights whose names tell no part, or the only one, to that part.

    Raises:
        SettingsError: There are several parts.
    """
    if "images" in arrays and "labels" in arrays:  # they may be of these
        return
    target = whole["train"] if "train" in whole else whole[""]
    for kind in ("groups", "weights"):
        if kind not in arrays or kind in target:
            continue
        if len(whole) > 1:
            raise SettingsError(
                f"--dataset: {source}: {arrays[kind]} may be of {' or '.join(whole)}; expected "
                f"{kind}_train, as the names of the other arrays have their part"
            )
        target[kind] = arrays.pop(kind)


def _left_out(arrays: dict[str, str]) -> str:
    """A note of arrays of one part that are no images with labels."""
    one, lacks = len(arrays) == 1, [kind for kind in ("images", "labels") if kind not in arrays]
    why = "others name the training part"
    if lacks:
        why = f"{'it has' if one else 'they have'} no {lacks[0]}"
    return f"{', '.join(arrays.values())} {'is' if one else 'are'} left out: {why}"


def _part(source: str, file: Any, names: dict[str, str]) -> dict[str, Any]:
    arrays = {kind: file[name] for kind, name in names.items()}
    try:
        images, note = as_uint8(arrays["images"])
        arrays["images"], arrays["notes"] = channels_last(images), [note]
        if arrays["images"].shape[3:] == (4,):
            arrays["notes"].append(FOUR_CHANNELS)
        arrays["labels"] = flat_labels(arrays["labels"])
    except ValueError as error:
        raise SettingsError(f"--dataset: {source}, {names['images']}: {error}") from error
    n = len(arrays["images"])
    for kind in ("labels", "groups", "weights"):
        found = arrays.get(kind)
        if found is not None and found.shape != (n,):
            has = f"{len(found)} {kind}" if found.ndim == 1 else f"the shape {list(found.shape)}"
            raise SettingsError(
                f"--dataset: {source}: {names['images']} has {n} images, {names[kind]} {has}; "
                "expected one value an image"
            )
    return arrays
