"""The default space: a convolutional network and how it is trained.

Searched are blocks, layers, width and kernel size; activation, pooling and dropout, each with its
place; and the training. The ranges are wide enough for a search to matter, and leave out values
that cannot win at this image size. The options `max_fc`, `l1`, `layer_dropout` and `pool_first` are
off by default: a wider space costs trials.
"""

from typing import Any

import optuna

from mnist_ray.errors import SettingsError
from mnist_ray.hyperparameters import BY_NAME
from mnist_ray.spaces import DataShape


def convnet(  # noqa: PLR0913 (each is an option that people name)
    trial: optuna.Trial,
    data: DataShape,
    min_width: int = 16,
    max_width: int = 32,
    min_layers: int = 2,
    max_layers: int = 2,
    max_kernel: int = 5,
    max_fc: int = 0,
    l1: bool = False,
    layer_dropout: bool = False,
    pool_first: bool = False,
    pool_position: str | None = None,
    pooling: str | None = None,
    width_growth: float = 2,
    blocks: int | None = None,
) -> dict[str, Any]:
    """Hyperparameters of the family `convnet` and of its training.

    Args:
        trial: Optuna's.
        data: The data set's shape.
        min_width: Fewest channels of the first block.
        max_width: Most channels of the first block, from `min_width` in steps of 4.
        min_layers: Fewest convolutions a block.
        max_layers: Most convolutions a block.
        max_kernel: Largest kernel of the first block's convolutions, 3 or 5.
        max_fc: Most hidden linear layers.
        l1: Whether to search L1 regularisation too (`weight_decay` is L2).
        layer_dropout: Whether dropout may also be in every layer (benchmarks/dropout_norm.py).
        pool_first: Whether the pooling may also come after a block's first convolution.
        pool_position: `end`, `conv` or `first`: the pooling's place, which is then not searched.
        pooling: `blur` or `max`: the pooling, which is then not searched.
        width_growth: Factor of the channels from block to block, at least 1 and less than 8.
        blocks: Blocks of convolutions, from 1 to 3, which are then not searched.

    Raises:
        SettingsError: An option is too small, too large or none of those allowed, the position is
            fixed and searched, or the images are too small to be pooled.
    """
    data.check_side(2, "convnet")
    _at_least(min_width=(min_width, 1), max_width=(max_width, min_width), max_fc=(max_fc, 0))
    choose = trial.suggest_categorical
    optimizer = choose("optimizer", ["sgd", "adamw"])
    hp: dict[str, Any] = {"model": "convnet", **data.hyperparameters()}
    hp["blocks"] = _blocks(trial, data, blocks)
    hp["layers_per_block"] = _layers(trial, min_layers, max_layers)
    hp["width"] = trial.suggest_int("width", min_width, max_width, step=4)
    hp["width_growth"] = BY_NAME["width_growth"].check(width_growth, "--space-args:")
    hp["kernel_size"] = _kernel(trial, max_kernel)
    hp["activation"] = choose("activation", ["relu", "leaky_relu", "gelu", "silu"])
    hp["activation_position"] = choose("activation_position", ["after_norm", "before_norm"])
    hp |= _pooling(trial, pool_first, pool_position, pooling)
    # Never none: the few epochs of a trial do not need it, the many of the stages after it do.
    hp["dropout"] = trial.suggest_float("dropout", 0.1, 0.5, step=0.05)
    hp["dropout_place"] = choose("dropout_place", ["head", "block", *["layer"] * layer_dropout])
    hp |= _training(trial, optimizer)
    hp |= _hidden(trial, max_fc)
    hp |= {"l1": trial.suggest_float("l1", 1e-8, 1e-4, log=True)} if l1 else {}
    return hp


def _kernel(trial: optuna.Trial, largest: int) -> int:
    if largest not in (3, 5):
        raise SettingsError(f"--space-args: max_kernel={largest} is not allowed; expected 3 or 5")
    return 3 if largest == 3 else trial.suggest_categorical("kernel_size", [3, 5])


def _blocks(trial: optuna.Trial, data: DataShape, fixed: int | None) -> int:
    most = max(1, min(3, data.most_halvings() - 1))  # three halvings take 28x28 to 3x3
    if fixed is None:
        return trial.suggest_int("blocks", min(2, most), most)
    if not 1 <= fixed <= most:
        raise SettingsError(
            f"--space-args: blocks={fixed} is not allowed; expected 1 to {most} for these images"
        )
    return fixed


def _layers(trial: optuna.Trial, least: int, most: int) -> int:
    _at_least(min_layers=(least, 1), max_layers=(most, least))
    return trial.suggest_int("layers_per_block", least, most) if least < most else least


def _hidden(trial: optuna.Trial, most: int) -> dict[str, Any]:
    if not most:
        return {}
    layers = trial.suggest_int("fc_layers", 0, most)
    width = trial.suggest_categorical("fc_width", [64, 128, 256]) if layers else 0
    return {"fc": [width] * layers}


def _pooling(
    trial: optuna.Trial, first: bool, position: str | None, pooling: str | None
) -> dict[str, Any]:
    choose = trial.suggest_categorical
    if pooling is not None:
        pooling = BY_NAME["pooling"].check(pooling, "--space-args:")
    found = {"pooling": pooling or choose("pooling", ["blur", "max"])}
    if position is not None:
        if first:
            raise SettingsError("--space-args: give pool_first or pool_position, not both")
        position = BY_NAME["pool_position"].check(position, "--space-args:")
        return {**found, "pool_position": position}
    # A parameter of its own: Optuna refuses other choices for one that older studies have.
    if first and choose("pool_first", [False, True]):
        return {**found, "pool_position": "first"}
    return {**found, "pool_position": choose("pool_position", ["end", "conv"])}


def _at_least(**options: tuple[int, int]) -> None:
    for option, (value, least) in options.items():
        if value < least:
            raise SettingsError(
                f"--space-args: {option}={value} is too small; expected at least {least}"
            )


def _training(trial: optuna.Trial, optimizer: str) -> dict[str, Any]:
    # A good learning rate depends on the optimiser by two orders of magnitude, so each optimiser
    # has a parameter of its own.
    low, high = (1e-2, 3e-1) if optimizer == "sgd" else (3e-4, 1e-2)
    return {
        "batch_size": trial.suggest_categorical("batch_size", [64, 128, 256]),
        "optimizer": optimizer,
        "lr": trial.suggest_float(f"lr_{optimizer}", low, high, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-5, 1e-2, log=True),
        "label_smoothing": trial.suggest_float("label_smoothing", 0.0, 0.15, step=0.05),
        "schedule": trial.suggest_categorical("schedule", ["one_cycle", "cosine"]),
        "ema": 0.998,
    }
