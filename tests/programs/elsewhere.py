"""A person's script with a network of its own module, called from another folder: elsewhere.py
FOLDER.
"""

import sys

import paced

import mnist_ray as mr

run = mr.search(
    dataset="digits",
    train_images=200,
    val_images=100,
    trials=1,
    max_epochs=1,
    space=paced.space,
    stages="fast",
    calibrate="none",
    storage=sys.argv[1],
    name="a",
)
print(run.state)
