"""scikit-learn's digits in MNIST's layout: the data set that needs no file and no network."""

import numpy as np

TEST_IMAGES = 360  # of 1,797: the fixed test part
MEAN, STD = (0.1578,), (0.2933,)


def read(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[n, 1, 28, 28]` and labels int64 `[n]` of `train` or `test`.

    1,797 digits of 8×8 pixels are scaled to 20×20 within 28×28 and centred by mass, as MNIST's
    were: LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document
    Recognition", 1998, section III.A.
    The test part is the same for every seed of a run.
    """
    from PIL import Image  # noqa: PLC0415 (seconds at start)
    from sklearn.datasets import load_digits  # noqa: PLC0415 (seconds at start)
    from sklearn.model_selection import train_test_split  # noqa: PLC0415 (seconds at start)

    bunch = load_digits()
    small = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    # Pillow scales bytes in whole numbers, so that the digest is the same on every machine.
    scaled = np.stack(
        [
            np.asarray(Image.fromarray(one).resize((20, 20), Image.Resampling.BICUBIC))
            for one in small
        ]
    )
    images, labels = centre_by_mass(scaled)[:, None], bunch.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=0
    )
    chosen = np.sort(train if part == "train" else test)
    return images[chosen], labels[chosen]


def centre_by_mass(images: np.ndarray, size: int = 28) -> np.ndarray:
    """Place images on black squares, their centre of mass at pixel (size / 2, size / 2).

    They move by whole pixels and stay inside, as MNIST's did: its centres of mass lie within 0.52
    pixels of (14, 14).

    Args:
        images: uint8 `[n, h, w]`, bright on black, `h` and `w` at most `size`.
        size: height and width of the result, in pixels.

    Returns:
        uint8 `[n, size, size]`.
    """
    n, h, w = images.shape
    rows, columns = np.arange(h), np.arange(w)
    mass = np.maximum(images.sum((1, 2), dtype=np.int64), 1)
    y = images.sum(2, dtype=np.int64) @ rows / mass
    x = images.sum(1, dtype=np.int64) @ columns / mass
    top = np.clip(np.rint(size / 2 - y), 0, size - h).astype(int)
    left = np.clip(np.rint(size / 2 - x), 0, size - w).astype(int)
    placed = np.zeros((n, size, size), np.uint8)
    index = np.arange(n)[:, None, None]
    placed[index, top[:, None, None] + rows[:, None], left[:, None, None] + columns] = images
    return placed
