"""A data set by its name: a built-in one, a source of one's own, or a function of one's own."""

import numpy as np

from mnist_ray.data import stored, torchvision_files
from mnist_ray.data.decoding import Reading
from mnist_ray.data.images import PARTS, Images, from_function
from mnist_ray.errors import SettingsError
from mnist_ray.settings import text

DATASETS = (*torchvision_files.SOURCES, "digits")
NAMES = (*DATASETS, *(f"{kind}:…" for kind in text.STORED))


def load(
    name: str,
    part: str,
    data_dir: str | None = None,
    *,
    download: bool = True,
    reading: Reading | None = None,
    trained_on: str | None = None,
    own: bool = False,
) -> Images:
    """Read one part of a data set.

    Args:
        name: one of `DATASETS`, `folder:PATH`, `npz:FILE`, `csv:FILE`, `parquet:PATH`, `hf:NAME`,
            or `module:attribute` of a function `(part, data_dir) -> Images`.
        part: `train` or `test`.
        data_dir: torchvision's root; None takes MNIST_RAY_DATA, else `~/.cache/mnist_ray`.
        download: fetch missing files through torchvision.
        reading: how a folder, file or table of one's own is read.
        trained_on: SHA-256 of the training images of a model that is to be judged, "" if it is not
            known. A folder, file or table of other images counts as a whole if it has no test part.
        own: whether that model was made with a data set of this name: the log warns of others.

    Raises:
        SettingsError: unknown name, files missing and out of reach, truncated or altered files.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {PARTS}, not {part!r}")
    if name == "digits":
        from mnist_ray.data import digits  # noqa: PLC0415 (seconds at start)

        return digits.read(part)
    if name in DATASETS:
        return torchvision_files.read(name, part, data_dir, download=download)
    if text.is_stored(name):
        return stored.read(name, part, reading or Reading(), trained_on, own=own)
    own = text.load(name, "--dataset", NAMES)
    if not callable(own):
        raise SettingsError(
            f"--dataset: {name} is of type {type(own).__name__}, "
            "expected a function (part, data_dir)"
        )
    return from_function(own, name, part, data_dir)


def default_val_images(part: Images) -> int:
    """Images of a training part to hold out for validation when nothing is said.

    5,000 of the four large sets, 15 % of `digits`, a tenth of a data set of one's own, at least
    one image a class.
    """
    if part.name in DATASETS:
        return 215 if part.name == "digits" else 5000
    return max(len(part.labels) // 10, len(np.unique(part.labels)))
