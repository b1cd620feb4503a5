"""The schema of the flat dict: what it refuses, what it fills in, and that training and networks
have its names.
"""

import json
from typing import Any

import numpy as np
import optuna
import pytest

from mnist_ray import hyperparameters, models, spaces
from mnist_ray.errors import SettingsError
from mnist_ray.models import families, layers
from mnist_ray.training import augment, optimizers, trainer

HP: dict[str, Any] = {
    "model": "mlp",
    "in_channels": 1,
    "image_size": [8, 8],
    "classes": 3,
    "mean": [0.5],
    "std": [0.5],
    "units": [4],
    "dropouts": [0.1],
    "batch_size": 8,
    "optimizer": "adam",
    "lr": 1e-3,
}


def test_the_defaults_of_training_are_filled_in() -> None:
    hp = hyperparameters.validate(HP)
    assert {key: value for key, value in hp.items() if key not in HP} == {
        "schedule": "constant",
        "weight_decay": 0.0,
        "label_smoothing": 0.0,
        "l1": 0.0,
        "ema": 0.0,
        "augment": "none",
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
    }


@pytest.mark.parametrize(("momentum", "nesterov"), [(None, True), (0.5, True), (0, False)])
def test_nesterovs_momentum_follows_the_momentum(momentum: float | None, nesterov: bool) -> None:
    given = {} if momentum is None else {"momentum": momentum}
    assert hyperparameters.training({**HP, "optimizer": "sgd", **given})["nesterov"] is nesterov
    assert not hyperparameters.training({**HP, "optimizer": "sgd", "nesterov": False})["nesterov"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "lion"}, "optimizer is 'lion': expected one of adam, adamw, sgd, rmsprop"),
        ({"lr": None}, "lr is None: expected a number of at least 0"),
        ({"lr": "0.1"}, "lr is '0.1': expected a number"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": True}, "lr is True"),
        ({"batch_size": 0}, "batch_size is 0: expected a whole number of at least 1"),
        ({"batch_size": 8.5}, "batch_size is 8.5"),
        ({"schedule": "warm"}, "schedule is 'warm': expected one of constant, cosine"),
        ({"augment": "mirror"}, "augment: 'mirror' is unknown; expected one of none, crop-flip"),
        ({"augment": 3}, "augment is 3: expected one of none, crop-flip"),
        ({"augment": "affine:degrees"}, "augment: 'affine:degrees' is not of the form affine:KEY="),
        ({"augment": "affine:speed=3"}, "augment: 'affine' has no option 'speed'; it has degrees"),
        ({"augment": "affine:scale=1"}, "augment: affine's scale is 1.0: expected a number"),
        ({"augment": "shift:pixels=1.5"}, "augment: shift's pixels is 1.5: expected a whole"),
        ({"augment": "elastic:sigma=0"}, "augment: elastic's sigma is 0.0: expected a number of"),
        ({"augment": "affine:degrees=nan"}, "augment: affine's degrees is nan"),
        ({"augment": "affine:degrees=x"}, "augment: affine's degrees is 'x'"),
        ({"augment": ":f"}, "augment: ':f' is unknown"),
        ({"beta1": 1.0}, "beta1 is 1.0: expected a number of at least 0 and less than 1"),
        ({"units": 4}, "units is 4: expected a list, each value a whole number of at least 1"),
        ({"dropouts": [0.1, 0.2]}, "dropouts has 2 values: expected 1, as many as units"),
        ({"std": [0.0]}, "std is [0.0]"),
        ({"model": "resnet"}, "model is 'resnet': expected one of convnet, optunanet"),
        ({"model": None}, "model is None"),
        ({"extra": object}, "extra is <class 'object'>: expected numbers, texts, lists or dicts"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        hyperparameters.validate({**HP, **change})
    assert f"hyperparameter {message}" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_augmentation_has_options() -> None:
    found = hyperparameters.augmentation("affine:degrees=15,shift=3")
    assert found == ("affine", {"degrees": 15.0, "shift": 3.0})
    assert hyperparameters.augmentation("shift") == ("shift", {})
    assert hyperparameters.augmentation("mine:f:a=1,b=x") == ("mine:f", {"a": "1", "b": "x"})
    assert hyperparameters.own_function("mine:f:a=1") == "mine:f"
    assert hyperparameters.own_function("affine:degrees=1") is None


@pytest.mark.parametrize("key", ["lr", "optimizer", "batch_size", "units", "classes"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(SettingsError, match=f"hyperparameter {key} is missing: expected "):
        hyperparameters.validate({k: v for k, v in HP.items() if k != key})


def test_what_another_optimizer_reads_is_not_judged() -> None:
    assert hyperparameters.validate({**HP, "momentum": "none"})["momentum"] == "none"


def test_a_network_of_ones_own_may_read_any_key() -> None:
    own = {**HP, "model": "mine:net", "depth": [{"of": "any"}], "units": "many"}
    del own["mean"]
    assert hyperparameters.validate(own)["depth"] == [{"of": "any"}]


def test_numpys_values_become_pythons() -> None:
    given = {
        "lr": np.float32(0.5),
        "batch_size": np.int64(8),
        "mean": np.array([0.5]),
        "classes": 3.0,
        "image_size": (8, 8),
        "optimizer": np.str_("adam"),
        "extra": {"a": np.bool_(True)},
    }
    hp = hyperparameters.validate({**HP, **given})
    assert json.loads(json.dumps(hp)) == hp
    assert (hp["lr"], hp["batch_size"], hp["mean"], hp["extra"]) == (0.5, 8, [0.5], {"a": True})
    assert type(hp["classes"]) is int


def test_training_takes_numpys_values_and_keeps_pythons() -> None:
    hp = {**HP, "lr": np.float64(0.5), "mean": np.array([0.5], np.float32)}
    made = trainer.Trainer(hp, epochs=1, seed=0)
    assert json.loads(json.dumps(made.hp)) == {**HP, "lr": 0.5}


def test_training_and_networks_have_the_schemas_names() -> None:
    assert tuple(optimizers.SCHEDULES) == hyperparameters.SCHEDULES
    assert ["none", *augment.AUGMENTATIONS] == list(hyperparameters.AUGMENTATIONS)
    assert tuple(models.FAMILIES) == tuple(hyperparameters.NETWORK_KEYS)
    assert tuple(layers.ACTIVATIONS) == hyperparameters.ACTIVATIONS
    assert tuple(layers.POOLINGS) == hyperparameters.POOLINGS
    assert set(families.LAYER_DROPOUT) == set(hyperparameters.DROPOUT_PLACES)
    for name in hyperparameters.OPTIMIZERS:
        trainer.Trainer({**HP, "optimizer": name}, epochs=1, seed=0)


@pytest.mark.parametrize("name", [name for name in spaces.SPACES if name != "optimizer"])
def test_every_space_gives_what_the_schema_allows(name: str) -> None:
    data = spaces.DataShape(1, (28, 28), 10, (0.1307,), (0.3081,))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(20):
        hp = spaces.find(name)(study.ask(), data)
        assert hyperparameters.validate(hp).items() >= hp.items()
