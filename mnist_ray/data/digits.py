"""scikit-learn's digits in MNIST's layout: the data set that needs no file and no network."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mnist_ray.data.images import Images, centre_by_mass, digest

TEST_IMAGES = 360  # of 1,797: the fixed test part
MEAN, STD = (0.1578,), (0.2933,)


def read(part: str) -> Images:
    """The `train` or `test` part, images of 28×28 pixels.

    1,797 digits of 8×8 pixels are scaled to 20×20 within 28×28 and centred by mass, as MNIST's
    were: LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document
    Recognition", 1998, section III.A.
    The test part is the same for every seed of a run.
    """
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
    images, labels = images[chosen], labels[chosen]
    sha256 = digest(images, labels)
    return Images("digits", part, images, labels, tuple("0123456789"), MEAN, STD, sha256)
