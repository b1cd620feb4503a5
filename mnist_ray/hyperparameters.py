"""The flat dict of hyperparameters: every key that training and this package's networks read.

A search space returns such a dict. It travels with the weights and rebuilds network and training
anywhere, so it holds only values that JSON can hold. Names, defaults and limits stand here alone.
A network of one's own (``module:function``) may read further keys: unknown keys are allowed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mnist_ray.errors import SettingsError, shortened

OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop", "muon")
SCHEDULES = ("constant", "cosine", "one_cycle", "linear", "step")
ACTIVATIONS = ("relu", "leaky_relu", "gelu", "silu", "elu")
POOLINGS = ("max", "avg", "blur", "conv")
DROPOUT_PLACES = ("head", "block", "layer_first", "layer_between", "layer")
ADAMS = ("adam", "adamw")
REQUIRED: Final = object()  # as a default: the dict must have the key
# Most values of a list, and most layers of a block. A file from elsewhere could fill the memory
# with layers: at most 100 × 100 of them are made before their parameters are counted.
LONGEST = 100


@dataclass(frozen=True)
class Hyperparameter:
    """One key of the dict.

    Args:
        name: The key.
        kind: Type of its value, or of each value of a list: int, float, bool or str.
        meaning: One line for people.
        default: Its value if the dict lacks it; REQUIRED if it must be given.
        allowed: The names that a str may have; () allows every str.
        low: The least number allowed.
        high: All numbers allowed are less than this.
        many: Whether the value is a list.
        length_of: Another key, whose list has the same length.
        of: The optimisers that read it; () for all.
    """

    name: str
    kind: type
    meaning: str
    default: Any = REQUIRED
    allowed: tuple[str, ...] = ()
    low: float = 0
    high: float = math.inf
    many: bool = False
    length_of: str = ""
    of: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """The values that are allowed, as a message names them."""
        if self.allowed:
            return f"one of {', '.join(self.allowed)}"
        if self.kind not in (int, float):
            text = {bool: "true or false", str: "a text"}[self.kind]
        else:
            limit = f"at least {self.low}" + (
                f" and less than {self.high}" if self.high < math.inf else ""
            )
            text = f"a{' whole' if self.kind is int else ''} number of {limit}"
        return f"a list, each value {text}" if self.many else text

    def check(self, value: Any, where: str = "hyperparameter") -> Any:
        """The value, NumPy's converted to Python's.

        Raises:
            SettingsError: It is not allowed.
        """
        value = plain(value, f"{where} {self.name}")
        if self.many and isinstance(value, list) and len(value) > LONGEST:
            raise SettingsError(
                f"{where} {self.name} has {len(value)} values: expected at most {LONGEST}"
            )
        if self.many and isinstance(value, list):
            found = [self._converted(item) for item in value]
        else:
            found = [None if self.many else self._converted(value)]
        if None in found:
            raise SettingsError(f"{where} {self.name} is {value!r}: expected {self.expected}")
        return found if self.many else found[0]

    def _converted(self, value: Any) -> Any:
        """None if it is not allowed."""
        if self.kind is str:
            return value if isinstance(value, str) and value in (self.allowed or (value,)) else None
        if self.kind is bool:
            return bool(value) if value in (0, 1) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if not self.low <= value < self.high:  # refuses NaN too
            return None
        if self.kind is float or isinstance(value, int):
            return value
        return int(value) if value.is_integer() else None


def plain(value: Any, where: str) -> Any:
    """A value as JSON holds it: NumPy's scalars and arrays as Python's numbers and lists.

    Raises:
        SettingsError: JSON cannot hold it.
    """
    if hasattr(value, "tolist"):  # of NumPy and torch; neither is imported here
        value = value.tolist()
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple):
        return [plain(item, where) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(item, where) for key, item in value.items()}
    raise SettingsError(
        f"{where} is {value!r}: expected numbers, texts, lists or dicts, as JSON holds them"
    )


_P = Hyperparameter

_AFFINE = (
    _P("degrees", float, "rotation, at most", 10.0, high=360.1),
    _P("scale", float, "change of the size, at most, as a share of it", 0.1, high=1),
    _P("shift", float, "pixels, at most", 2.0),
)
_ELASTIC = (
    _P("alpha", float, "strength in pixels, before the smoothing", 17.0),
    _P("sigma", float, "smoothness in pixels", 4.0, low=0.1),
)
AUGMENTATIONS: dict[str, tuple[Hyperparameter, ...]] = {
    "none": (),
    "crop-flip": (_P("padding", int, "pixels, at most", 4),),
    "shift": (_P("pixels", int, "at most", 2),),
    "affine": _AFFINE,
    "elastic": _ELASTIC,
    "affine-elastic": (*_AFFINE, *_ELASTIC),
}
"""The built-in values of `augment`, each with the options that may follow it."""


class _Augmentation(Hyperparameter):
    """The key `augment`, whose text may have options."""

    @property
    def expected(self) -> str:
        return f"one of {', '.join(AUGMENTATIONS)} or module:function, perhaps with options"

    def check(self, value: Any, where: str = "hyperparameter") -> Any:
        value = super().check(value, where)
        augmentation(value, f"{where} {self.name}")
        return value


def augmentation(text: str, where: str = "hyperparameter augment") -> tuple[str, dict[str, Any]]:
    """A value of `augment` as its name and its options.

    Args:
        text: `NAME`, `NAME:KEY=VALUE,…` or `module:function`, which takes options in the same way.
        where: The option or key that holds it, for the error.

    Returns:
        The name and the options given: numbers of a built-in one, texts of one's own function.

    Raises:
        SettingsError: The name or an option is unknown, or a number is not allowed.

    Example:
        >>> augmentation("affine:degrees=15,shift=3")
        ('affine', {'degrees': 15.0, 'shift': 3.0})
    """
    name, _, rest = text.partition(":")
    if name not in AUGMENTATIONS:
        function, _, rest = rest.partition(":")
        if not (name and function):
            raise SettingsError(
                f"{where}: {text!r} is unknown; expected one of {', '.join(AUGMENTATIONS)} "
                "or module:function"
            )
        name = f"{name}:{function}"
    pairs = dict(part.partition("=")[::2] for part in rest.split(",")) if rest else {}
    if not all(key and value for key, value in pairs.items()):
        raise SettingsError(f"{where}: {text!r} is not of the form {name}:KEY=VALUE,KEY=VALUE")
    if name not in AUGMENTATIONS:
        return name, pairs
    known = {option.name: option for option in AUGMENTATIONS[name]}
    options: dict[str, Any] = {}
    for key, value in pairs.items():
        if key not in known:
            raise SettingsError(
                f"{where}: {name!r} has no option {key!r}; it has {', '.join(known) or 'none'}"
            )
        try:
            number: float | str = float(value)
        except ValueError:
            number = value
        options[key] = known[key].check(number, f"{where}: {name}'s")
    return name, options


def own_function(text: Any) -> str | None:
    """The `module:function` in a value of `augment`; None where a built-in one stands."""
    parts = text.split(":") if isinstance(text, str) else []
    return None if len(parts) < 2 or parts[0] in AUGMENTATIONS else ":".join(parts[:2])


TRAINING_KEYS = (
    _P("batch_size", int, "images a step", low=1),
    _P("optimizer", str, "algorithm", allowed=OPTIMIZERS),
    _P("lr", float, "learning rate; its largest value if a schedule changes it"),
    _P("schedule", str, "how the learning rate changes", "constant", SCHEDULES),
    _P("weight_decay", float, "L2 regularisation, as the optimiser has it", 0.0),
    _P("label_smoothing", float, "share of the label spread over all classes", 0.0, high=1),
    _P("l1", float, "factor of the sum of all absolute weights in the loss", 0.0),
    _P("ema", float, "decay of the exponential average of the weights; 0: none", 0.0, high=1),
    _Augmentation("augment", str, "random changes of the training images", "none"),
    _P("beta1", float, "decay of the mean gradient", 0.9, high=1, of=ADAMS),
    _P("beta2", float, "decay of the mean squared gradient", 0.999, high=1, of=ADAMS),
    _P("eps", float, "added to the denominator", 1e-8, of=ADAMS),
    _P("momentum", float, "of SGD and Muon", 0.9, high=1, of=("sgd", "muon")),
    _P("nesterov", bool, "Nesterov's momentum; None: if momentum is above 0", None, of=("sgd",)),
)
DATA_KEYS = (
    _P("in_channels", int, "channels of an image", low=1),
    _P("image_size", int, "height and width in pixels", low=1, many=True),
    _P("classes", int, "number of classes", low=1),
)
NORMALIZATION_KEYS = (
    _P("mean", float, "mean of pixels in [0, 1], one value a channel", low=-math.inf, many=True),
    _P("std", float, "their standard deviation", low=1e-12, many=True, length_of="mean"),
)
_FC = _P("fc", int, "widths of the hidden linear layers", low=1, many=True)
_DROPOUT = _P("dropout", float, "rate of dropout", high=1)
_POSITION = "of the activation in a layer of convolution and BatchNorm"
_POOL_POSITION = "after the block's last layer, or straight after its last or first convolution"
_PLACE = "before each linear layer, after each block, or in every layer"
NETWORK_KEYS: dict[str, tuple[Hyperparameter, ...]] = {
    "convnet": (
        _P(
            "blocks", int, "blocks of convolutions, each of which ends in a pooling", low=1, high=33
        ),
        _P("layers_per_block", int, "convolutions a block", low=1, high=LONGEST + 1),
        _P("width", int, "channels of the first block", low=1),
        _P("kernel_size", int, "of the first block's convolutions; 3 after it", low=1),
        _P("activation", str, "nonlinearity", allowed=ACTIVATIONS),
        _P("activation_position", str, _POSITION, allowed=("after_norm", "before_norm")),
        _P("pooling", str, "halves height and width", allowed=POOLINGS),
        _P("pool_position", str, _POOL_POSITION, allowed=("end", "conv", "first")),
        _DROPOUT,
        _P("dropout_place", str, _PLACE, allowed=DROPOUT_PLACES),
        _P("fc", int, "widths of the hidden linear layers", (), low=1, many=True),
        _P("pool_jitter", int, "pixels by which blur pooling is shifted in training", 0),
        _P("width_growth", float, "factor of the channels from block to block", 2.0, low=1, high=8),
    ),
    "optunanet": (
        _P("filters", int, "channels of each convolution", low=1, many=True),
        _P("kernels", int, "kernel size of each", low=1, many=True, length_of="filters"),
        _P("slopes", float, "of each LeakyReLU below zero", many=True, length_of="filters"),
        _FC,
        _DROPOUT,
    ),
    "vgg": (
        _P(
            "block_layers",
            int,
            "3x3 convolutions of each block",
            low=1,
            high=LONGEST + 1,
            many=True,
        ),
        _FC,
    ),
    "mlp": (
        _P("units", int, "widths of the hidden layers", low=1, many=True),
        _P("dropouts", float, "rate after each", high=1, many=True, length_of="units"),
    ),
    "cnn": (
        _P("conv_dropout", float, "rate for whole channels, after the convolutions", high=1),
        _P("fc_units", int, "width of the hidden linear layer", low=1),
        _P("fc_dropout", float, "rate after it", high=1),
    ),
    "foreign": (_P("graph", str, "an ONNX file without its large weights, as base64"),),
}
BY_NAME = {key.name: key for keys in (*NETWORK_KEYS.values(), TRAINING_KEYS) for key in keys}
TRAINING = tuple(key.name for key in TRAINING_KEYS)  # all other keys describe the network
OF_ONE_OPTIMIZER = tuple(key.name for key in TRAINING_KEYS if key.of)
LIGHTGBM = "lightgbm"  # no network: its dict has keys of its own


def validate(hp: Mapping[str, Any]) -> dict[str, Any]:
    """The whole dict, checked, with the defaults of training and network filled in.

    Args:
        hp: As a search space returned it or a checkpoint carries it; `model` names the family.

    Raises:
        SettingsError: A key is missing or its value is not allowed: names the key, the value
            found and the values allowed.
    """
    if hp.get("model") == LIGHTGBM:
        return {key: plain(value, f"hyperparameter {key}") for key, value in hp.items()}
    return training(network(hp))


def network(hp: Mapping[str, Any]) -> dict[str, Any]:
    """The dict with the network's keys checked and its defaults filled in.

    Of a network of one's own only DATA_KEYS are checked.
    """
    name = hp.get("model")
    own = isinstance(name, str) and ":" in name
    if not own and name not in tuple(NETWORK_KEYS):
        known = ", ".join(NETWORK_KEYS)
        raise SettingsError(
            f"hyperparameter model is {name!r}: expected one of {known} or module:function"
        )
    return _checked(
        hp, DATA_KEYS if own else (*DATA_KEYS, *NORMALIZATION_KEYS, *NETWORK_KEYS[str(name)])
    )


def training(hp: Mapping[str, Any]) -> dict[str, Any]:
    """The dict with the keys of training checked and its defaults filled in.

    Keys of other optimisers than the dict's own are left as they are.
    """
    optimizer = hp.get("optimizer")
    result = _checked(hp, [key for key in TRAINING_KEYS if not key.of or optimizer in key.of])
    if optimizer == "sgd" and result["nesterov"] is None:
        result["nesterov"] = result["momentum"] > 0
    return result


def misfit(hp: Mapping[str, Any], shape: Sequence[int], classes: int) -> str:
    """Why a file's network is not for a data set; "" if it is.

    Args:
        hp: As the file has them, not checked yet.
        shape: Of the data set's images: C, H, W.
        classes: How many the data set has.
    """
    values = (shape[0], list(shape[1:]), classes)
    for key, value in zip(DATA_KEYS, values, strict=True):
        found = hp.get(key.name)
        if found != value:
            found = shortened(str(found), 40)
            return f"its network has {key.name} {found}, but the data set has {value}"
    return ""


def _checked(hp: Mapping[str, Any], keys: Iterable[Hyperparameter]) -> dict[str, Any]:
    result = {key: plain(value, f"hyperparameter {key}") for key, value in hp.items()}
    for key in keys:
        if key.name not in result and key.default is REQUIRED:
            raise SettingsError(f"hyperparameter {key.name} is missing: expected {key.expected}")
        value = result.get(key.name, key.default)
        result[key.name] = None if value is key.default is None else key.check(value)
        if key.length_of and len(result[key.name]) != len(result[key.length_of]):
            raise SettingsError(
                f"hyperparameter {key.name} has {len(result[key.name])} values: "
                f"expected {len(result[key.length_of])}, as many as {key.length_of}"
            )
    return result
