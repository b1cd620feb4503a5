"""A data set by its name: one of the built-in ones, or a function of a person's own."""

from mnist_ray.data import torchvision_files
from mnist_ray.data.images import PARTS, Images, from_function
from mnist_ray.errors import SettingsError
from mnist_ray.settings import text

DATASETS = (*torchvision_files.SOURCES, "digits")


def load(name: str, part: str, data_dir: str | None = None, *, download: bool = True) -> Images:
    """Read one part of a data set.

    Args:
        name: one of `DATASETS`, or `module:attribute` of a function `(part, data_dir) -> Images`.
        part: `train` or `test`.
        data_dir: torchvision's root; None takes MNIST_RAY_DATA, else `~/.cache/mnist_ray`.
        download: fetch missing files through torchvision.

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
    own = text.load(name, "--dataset", DATASETS)
    if not callable(own):
        raise SettingsError(
            f"--dataset: {name} is of type {type(own).__name__}, "
            "expected a function (part, data_dir)"
        )
    return from_function(own, name, part, data_dir)


def default_val_images(name: str, data_dir: str | None = None) -> int:
    """Images to hold out for validation when nothing is said.

    5,000 for the four large sets, 15 % of the training part of `digits`, a tenth of a data set of
    one's own (which is loaded for it), at least one image a class.
    """
    if name in DATASETS:
        return 215 if name == "digits" else 5000
    own = load(name, "train", data_dir)
    return max(len(own.labels) // 10, len(own.classes))
