"""A data set of one's own: drawn circles, squares and triangles, which need no download.

python jobs/search.py --dataset examples.shapes:shapes --trials 10 --max-epochs 4
"""

import numpy as np
from PIL import Image, ImageDraw

from mnist_ray import Images

CLASSES = ("circle", "square", "triangle")
SIZE = 28
MEAN, STD = (0.21,), (0.35,)  # of the training pixels in [0, 1], one value a channel


def shapes(part: str, data_dir: str) -> Images:
    """One part of the data set.

    Args:
        part: "train" or "test".
        data_dir: The folder of --data-dir; not needed here.
    """
    n, seed = (3000, 0) if part == "train" else (600, 1)
    random = np.random.default_rng(seed)
    labels = np.arange(n) % len(CLASSES)
    images = np.stack([drawn(CLASSES[label], random) for label in labels])
    return Images("shapes", part, images[:, None], labels.astype(np.int64), CLASSES, MEAN, STD)


def drawn(shape: str, random: np.random.Generator) -> np.ndarray:
    """One shape, bright on dark, at a random place and size, with noise: uint8 [SIZE, SIZE]."""
    picture = Image.new("L", (SIZE, SIZE))
    draw = ImageDraw.Draw(picture)
    radius, angle = int(random.integers(5, 11)), int(random.integers(0, 90))
    x, y = random.integers(radius, SIZE - radius, 2).tolist()
    sides = {"square": 4, "triangle": 3}
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    else:
        draw.regular_polygon((x, y, radius), sides[shape], angle, fill=255)
    noise = random.normal(0, 30, (SIZE, SIZE))
    return np.clip(np.array(picture) + noise, 0, 255).astype(np.uint8)
