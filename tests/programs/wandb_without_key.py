"""Asks for W&B in an environment without a key; prints the error."""

from mnist_ray.errors import SettingsError
from mnist_ray.trackers.wandb import WandB

try:
    WandB("project")
except SettingsError as error:
    print(error)
