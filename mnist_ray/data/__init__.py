"""Data sets as plain arrays: uint8 images, int64 labels, groups (writers), and one split by seed.

`mnist`, `fashion-mnist`, `kmnist` and `cifar10` lie in torchvision's folders under one root
(`--data-dir`); `digits` is inside scikit-learn. A data set of one's own is a folder, an npz file or
a table (`stored`), or a function that returns `Images`.
"""

from mnist_ray.data.decoding import Reading
from mnist_ray.data.images import PARTS, Images, by_names, centre_by_mass, digest
from mnist_ray.data.leaks import check_test_part
from mnist_ray.data.pictures import MAX_PIXELS, PADDINGS, read_picture
from mnist_ray.data.sources import DATASETS, default_val_images, load
from mnist_ray.data.splitting import Split, check_repeats, load_split, split

__all__ = [
    "DATASETS",
    "MAX_PIXELS",
    "PADDINGS",
    "PARTS",
    "Images",
    "Reading",
    "Split",
    "by_names",
    "centre_by_mass",
    "check_repeats",
    "check_test_part",
    "default_val_images",
    "digest",
    "load",
    "load_split",
    "read_picture",
    "split",
]
