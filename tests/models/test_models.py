"""Models: every family builds for every image size, and the dict alone rebuilds the network."""

import itertools
import json
from typing import Any

import pytest
import torch
from torch import nn

from mnist_ray import models
from mnist_ray.errors import SettingsError

GREY = {"in_channels": 1, "image_size": [28, 28], "classes": 10, "mean": [0.1307], "std": [0.3081]}
RGB = {
    "in_channels": 3,
    "image_size": [32, 32],
    "classes": 10,
    "mean": [0.49, 0.48, 0.45],
    "std": [0.25, 0.24, 0.26],
}
SMALL = {"in_channels": 1, "image_size": [8, 8], "classes": 3, "mean": [0.3], "std": [0.4]}
SHAPES = [GREY, RGB, SMALL]

CONVNET = {
    "model": "convnet",
    "blocks": 2,
    "layers_per_block": 2,
    "width": 4,
    "kernel_size": 3,
    "activation": "relu",
    "activation_position": "after_norm",
    "pooling": "max",
    "pool_position": "end",
    "dropout": 0.25,
    "dropout_place": "head",
}
NETWORKS: list[dict[str, Any]] = [
    CONVNET,
    {**CONVNET, "fc": [12, 6], "dropout_place": "layer", "activation_position": "before_norm"},
    {
        "model": "optunanet",
        "filters": [8, 9, 10, 11],
        "kernels": [5, 7, 7, 5],
        "slopes": [0.01] * 4,
        "fc": [20],
        "dropout": 0.5,
    },
    {"model": "vgg", "block_layers": [1, 1, 2], "fc": [16, 16]},
    {"model": "mlp", "units": [9, 8], "dropouts": [0.2, 0.5]},
    {"model": "cnn", "conv_dropout": 0.2, "fc_units": 32, "fc_dropout": 0.1},
]


def images(hp: dict[str, Any], n: int = 5) -> torch.Tensor:
    return torch.rand(n, hp["in_channels"], *hp["image_size"])


def kinds(hp: dict[str, Any]) -> list[str]:
    return [type(module).__name__ for module in models.build(hp).children()]


@pytest.mark.parametrize("shape", SHAPES, ids=["grey", "rgb", "small"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n["model"])
def test_dict_rebuilds_network(network: dict[str, Any], shape: dict[str, Any]) -> None:
    hp = {**network, **shape}
    model = models.build(hp)
    assert model.training
    x = images(hp)
    model(x).sum().backward()  # also moves BatchNorm's statistics away from where they start
    assert all(p.grad is not None for p in model.parameters())
    torch.manual_seed(1)
    again = models.build(json.loads(json.dumps(hp)))
    again.load_state_dict(model.state_dict())
    logits = model.eval()(x)
    assert logits.shape == (5, shape["classes"])
    assert torch.equal(again.eval()(x), logits)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n["model"])
def test_networks_normalise_by_themselves(network: dict[str, Any]) -> None:
    hp = {**network, **GREY}
    model = models.build(hp).eval()
    x = images(hp)
    shifted = models.build({**hp, "mean": [0.0], "std": [1.0]}).eval()
    shifted.load_state_dict(model.state_dict())
    torch.testing.assert_close(shifted((x - 0.1307) / 0.3081), model(x))
    assert not torch.allclose(shifted(x), model(x))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n["model"])
def test_weights_have_the_same_names_without_dropout(network: dict[str, Any]) -> None:
    without = {
        k: ([0.0] * len(v) if isinstance(v, list) else 0)
        if k.endswith(("dropout", "dropouts"))
        else v
        for k, v in network.items()
    }
    weights = models.build({**network, **GREY}).state_dict()
    bare = models.build({**without, **GREY})
    bare.load_state_dict(weights)
    assert list(bare.state_dict()) == list(weights)
    assert not any(isinstance(m, nn.Dropout | nn.Dropout2d) for m in bare.modules())


CHOICES: dict[str, list[Any]] = {
    "kernel_size": [3, 5],
    "activation": ["relu", "leaky_relu", "gelu", "silu", "elu"],
    "activation_position": ["after_norm", "before_norm"],
    "pooling": ["max", "avg", "blur", "conv"],
    "pool_position": ["end", "conv"],  # "first" is "conv" in a block of one layer
    "dropout_place": ["head", "block", "layer", "layer_first", "layer_between"],
}


def test_every_combination_of_convnet_builds_and_learns_something() -> None:
    """Forward and backward of all 800, small: no combination has an operation in place that spoils
    another's gradient.
    """
    x = images(SMALL, 4)
    for values in itertools.product(*CHOICES.values()):
        hp = {**CONVNET, **SMALL, "layers_per_block": 1, **dict(zip(CHOICES, values, strict=True))}
        model = models.build(hp)
        logits = model(x)
        assert logits.shape == (4, 3)
        logits.square().sum().backward()
        assert all(
            p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters()
        ), values


@pytest.mark.parametrize(
    ("place", "position", "order"),
    [
        ("layer_first", "after_norm", ["Conv2d", "Dropout2d", "BatchNorm2d", "ReLU"]),
        ("layer_between", "after_norm", ["Conv2d", "BatchNorm2d", "Dropout2d", "ReLU"]),
        ("layer", "after_norm", ["Conv2d", "BatchNorm2d", "ReLU", "Dropout2d"]),
        ("layer_first", "before_norm", ["Conv2d", "Dropout2d", "ReLU", "BatchNorm2d"]),
        ("layer_between", "before_norm", ["Conv2d", "ReLU", "Dropout2d", "BatchNorm2d"]),
        ("layer", "before_norm", ["Conv2d", "ReLU", "BatchNorm2d", "Dropout2d"]),
    ],
)
def test_convnet_puts_dropout_where_it_is_told(place: str, position: str, order: list[str]) -> None:
    hp = {
        **CONVNET,
        **GREY,
        "blocks": 1,
        "layers_per_block": 1,
        "dropout_place": place,
        "activation_position": position,
    }
    assert kinds(hp) == ["Normalize", *order, "MaxPool2d", "Flatten", "Linear"]


@pytest.mark.parametrize(
    ("growth", "channels"), [({}, [6, 12, 24]), ({"width_growth": 1}, [6, 6, 6])]
)
def test_convnet_s_channels_grow_from_block_to_block(
    growth: dict[str, float], channels: list[int]
) -> None:
    hp = {**CONVNET, **GREY, "blocks": 3, "layers_per_block": 1, "width": 6, **growth}
    found = [m.out_channels for m in models.build(hp).modules() if isinstance(m, nn.Conv2d)]
    assert found == channels


def test_convnet_s_channels_grow_by_a_fraction_too() -> None:
    hp = {**CONVNET, **GREY, "blocks": 3, "layers_per_block": 1, "width": 5, "width_growth": 1.5}
    found = [m.out_channels for m in models.build(hp).modules() if isinstance(m, nn.Conv2d)]
    assert found == [5, 8, 11]


def test_convnet_pools_after_the_convolution_or_at_the_end() -> None:
    hp = {**CONVNET, **GREY, "blocks": 1, "layers_per_block": 1}
    assert kinds({**hp, "pool_position": "end"})[1:5] == [
        "Conv2d",
        "BatchNorm2d",
        "ReLU",
        "MaxPool2d",
    ]
    assert kinds({**hp, "pool_position": "conv"})[1:5] == [
        "Conv2d",
        "MaxPool2d",
        "BatchNorm2d",
        "ReLU",
    ]
    layer = ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds({**hp, "pool_position": "first", "layers_per_block": 3})[1:11] == [
        "Conv2d",
        "MaxPool2d",
        "BatchNorm2d",
        "ReLU",
        *layer,
        *layer,
    ]
    assert kinds({**hp, "pool_position": "first"}) == kinds({**hp, "pool_position": "conv"})
    assert kinds({**hp, "fc": [7]})[5:] == [
        "Flatten",
        "Dropout",
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Dropout",
        "Linear",
    ]


@pytest.mark.parametrize("size", [(28, 28), (14, 9), (7, 7)])
def test_blur_pooling_reads_at_moved_rows_and_columns_in_training_alone(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(5, 3, *size).to(memory_format=torch.channels_last)
    plain, jittered = models.BlurPool(), models.BlurPool(1)
    expected = plain.eval()(x)
    assert torch.equal(plain.train()(x), expected)
    assert torch.equal(jittered.eval()(x), expected)
    changed = jittered.train()(x)
    assert changed.shape == expected.shape
    assert len({tuple(c) for c in (changed - expected).flatten(1).sign().tolist()}) == 5, (
        "each image has random numbers of its own"
    )
    # What is read is a mean of 3x3 that exists: it is that of some place of the unhalved, filtered
    # map.
    everywhere = nn.functional.avg_pool2d(
        nn.functional.max_pool2d(x, 2, stride=1), 3, stride=1, padding=1, count_include_pad=False
    )
    places = everywhere.flatten(2).unsqueeze(2) - changed.flatten(2).unsqueeze(3)
    assert places.abs().amin(3).max() < 1e-5
    monkeypatch.setattr(
        torch,
        "randint",
        lambda low, high, shape, device: torch.zeros(shape, dtype=torch.int64, device=device),
    )
    torch.testing.assert_close(jittered(x), expected)
    monkeypatch.setattr(
        torch,
        "randint",
        lambda low, high, shape, device: torch.ones(shape, dtype=torch.int64, device=device),
    )
    there = (
        [1 + 2 * i for i in range(expected.shape[2])],
        [1 + 2 * i for i in range(expected.shape[3])],
    )
    rows, columns = (
        [min(i, n - 1) for i in each] for each, n in zip(there, everywhere.shape[2:], strict=True)
    )
    torch.testing.assert_close(jittered(x), everywhere[:, :, rows][:, :, :, columns])


def test_pool_jitter_changes_no_weight_and_trains() -> None:
    hp = {**CONVNET, **SMALL, "pooling": "blur"}
    model, jittered = models.build(hp), models.build({**hp, "pool_jitter": 1})
    jittered.load_state_dict(model.state_dict())
    x = images(SMALL, 4)
    torch.testing.assert_close(jittered.eval()(x), model.eval()(x))
    jittered.train()(x).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in jittered.parameters())


def test_optunanet_is_the_documents_network() -> None:
    """Order of the layers, and the size: FC 7840 -> 1024 -> 10 behind convolutions of 224, 224, 224
    and 160 filters.
    """
    hp = {
        "model": "optunanet",
        **GREY,
        "filters": [224, 224, 224, 160],
        "kernels": [5, 7, 7, 5],
        "fc": [1024],
        "dropout": 0.5,
    }
    slopes = hp["slopes"] = [
        0.012921133981887153,
        0.12110839449567463,
        0.03359161678276241,
        0.09512672917154825,
    ]
    layer = ["Conv2d", "LeakyReLU", "BatchNorm2d"]
    pooled = ["Conv2d", "LeakyReLU", "MaxPool2d", "BatchNorm2d"]
    head = ["Flatten", "Linear", "LeakyReLU", "Dropout", "Linear"]
    model = models.build(hp)
    assert [type(m).__name__ for m in model.children()] == [
        "Normalize",
        *layer,
        *pooled,
        *layer,
        *pooled,
        *head,
    ]
    convolutions = [m for m in model.children() if isinstance(m, nn.Conv2d)]
    assert [(m.out_channels, m.kernel_size[0]) for m in convolutions] == [
        (224, 5),
        (224, 7),
        (224, 7),
        (160, 5),
    ]
    assert [m.negative_slope for m in model.children() if isinstance(m, nn.LeakyReLU)] == [
        *slopes,
        0.01,
    ]
    linear = [m for m in model.children() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(7840, 1024), (1024, 10)]
    assert [m.p for m in model.children() if isinstance(m, nn.Dropout)] == [0.5]


def test_vgg_doubles_to_512_without_bias() -> None:
    convolutions = [
        m
        for m in models.build(
            {"model": "vgg", **GREY, "block_layers": [1, 1, 2, 2], "fc": [1024]}
        ).children()
        if isinstance(m, nn.Conv2d)
    ]
    assert [m.out_channels for m in convolutions] == [64, 128, 256, 256, 512, 512]
    assert all(m.bias is None and m.kernel_size == (3, 3) for m in convolutions)


def test_mlp_has_each_layers_own_dropout() -> None:
    model = models.build({"model": "mlp", **GREY, "units": [9, 8], "dropouts": [0.2, 0.5]})
    assert [
        (m.in_features, m.out_features) for m in model.children() if isinstance(m, nn.Linear)
    ] == [(784, 9), (9, 8), (8, 10)]
    assert [m.p for m in model.children() if isinstance(m, nn.Dropout)] == [0.2, 0.5]


def own_network(hp: models.Hyperparameters) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, hp["classes"]))


def test_ones_own_network_by_its_path() -> None:
    assert models.n_parameters(models.build({**GREY, "model": f"{__name__}:own_network"})) == 7850


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": "resnet"},
            (
                "model: 'resnet' is unknown; expected one of convnet, optunanet, vgg, mlp, cnn, "
                "foreign or"
            ),
        ),
        ({"model": "no_such_module:f"}, "model: 'no_such_module:f' cannot be imported"),
        ({"model": f"{__name__}:nothing"}, "cannot be imported"),
        ({"model": None}, "model: 'None' is unknown"),
        (
            {"activation": "tanhh"},
            "hyperparameter activation is 'tanhh': expected one of relu, leaky_relu",
        ),
        (
            {"pooling": "min"},
            "hyperparameter pooling is 'min': expected one of max, avg, blur, conv",
        ),
        ({"dropout_place": "roof"}, "hyperparameter dropout_place is 'roof'"),
        ({"pool_position": "start"}, "hyperparameter pool_position is 'start'"),
        ({"activation_position": "never"}, "hyperparameter activation_position is 'never'"),
    ],
)
def test_a_wrong_dict_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        models.build({**CONVNET, **GREY, **change})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(
        SettingsError,
        match="hyperparameter width is missing: expected a whole number of at least 1",
    ):
        models.build({k: v for k, v in {**CONVNET, **GREY}.items() if k != "width"})
