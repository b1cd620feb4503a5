"""A data set of one's own, whose arrays lie in the folder that OWN_IMAGES names."""

import os
from pathlib import Path

import numpy as np

from mnist_ray.data import Images


def images(part: str, data_dir: str | None) -> Images:
    """As --dataset takes it."""
    arrays = np.load(Path(os.environ["OWN_IMAGES"], "function.npz"))
    pixels = arrays["x_train"].astype(float).reshape(-1, 3) / 255
    names = tuple(sorted({str(name) for name in arrays["y_train"]}))
    return Images(
        "own",
        part,
        arrays[f"x_{part}"].transpose(0, 3, 1, 2),
        arrays[f"i_{part}"],
        names,
        tuple(pixels.mean(0).tolist()),
        tuple(pixels.std(0).tolist()),
    )
