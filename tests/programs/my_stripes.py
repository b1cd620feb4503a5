"""Data sets of a person's own, right and wrong; tests copy this module into a folder."""

import numpy as np

from mnist_ray.data import Images


def stripes(part, data_dir):
    n = 40 if part == "train" else 8
    labels = np.arange(n) % 4
    images = np.zeros((n, 2, 5, 6), np.uint8)
    images[np.arange(n), :, labels] = 255
    return Images("", part, images, labels, ("a", "b", "c", "d"), (0.2, 0.2), (0.4, 0.4))


def broken(**change):
    def make(part, data_dir):
        import dataclasses

        return dataclasses.replace(stripes(part, data_dir), **change)

    return make


floats = broken(images=np.zeros((40, 2, 5, 6)))
flat = broken(images=np.zeros((40, 28), np.uint8))
no_height = broken(images=np.zeros((40, 2, 0, 6), np.uint8))
fractions = broken(labels=np.zeros(40))
short = broken(labels=np.zeros(39, np.int64))
range_ = broken(labels=np.full(40, 4))
negative = broken(labels=np.full(40, -1))
mean = broken(mean=(0.2,))
std = broken(std=(0.4, 0.0))
std_nan = broken(std=(0.4, float("nan")))
mean_inf = broken(mean=(0.4, float("inf")))
mean_text = broken(mean=("a", "b"))
escape = broken(classes=("a", "b", "c", "\x1b[2J"))
nameless = broken(classes=())
twice = broken(classes=("a", "b", "a", "d"))
group = broken(groups=np.zeros(39, np.int64))
number = 7


def crash(part, data_dir):
    return np.load("/nowhere/at/all.npy")


def convertible(part, data_dir):
    """What people have at hand: NumPy's own types, names of groups, the channels last."""
    import dataclasses

    base = stripes(part, data_dir)
    return dataclasses.replace(
        base,
        images=np.ascontiguousarray(base.images.transpose(0, 2, 3, 1)),
        labels=base.labels.astype(np.uint8),
        classes=np.unique(["a", "b", "c", "d"]),
        mean=np.array([0.2, 0.2], np.float32),
        std=np.array([0.4, 0.4], np.float32),
        groups=np.array(["anna", "bert"])[np.arange(len(base.labels)) // 5 % 2],
    )


def grey(part, data_dir):
    import torch

    images = torch.zeros(40, 5, 6, dtype=torch.uint8)
    return Images("", part, images, torch.arange(40) % 2, [0, 1], 0.1, np.float32(0.3))


def shuffled(part, data_dir):
    """Other images each time: nobody has seeded its random numbers."""
    import dataclasses

    base, order = stripes(part, data_dir), np.random.default_rng().permutation(40)
    if part == "test":
        return base
    return dataclasses.replace(base, images=base.images[order], labels=base.labels[order])


def regrouped(part, data_dir):
    """The same images in groups that are numbered anew each time."""
    import dataclasses

    base = stripes(part, data_dir)
    groups = np.random.default_rng().integers(0, 9, len(base.labels))
    return dataclasses.replace(base, groups=groups)


def reweighted(part, data_dir):
    import dataclasses

    base = stripes(part, data_dir)
    return dataclasses.replace(base, weights=np.random.default_rng().random(len(base.labels)))


def other(part, data_dir):
    return [1, 2]
