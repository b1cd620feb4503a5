"""Spaces: the documents' exact ranges, what every suggestion builds and trains, and options as a
person types them.
"""

import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from mnist_ray import models, spaces
from mnist_ray.errors import SettingsError
from mnist_ray.finetune_job.recipe import read_stages
from mnist_ray.settings import SearchSettings, check_search, key_values, parse, read_yaml
from mnist_ray.settings.text import arguments
from mnist_ray.study import samplers
from mnist_ray.study.points import read_points
from mnist_ray.study.suggestions import check_suggests
from mnist_ray.training.trainer import Trainer
from tests.support import ROOT

MNIST = spaces.DataShape(1, (28, 28), 10, (0.1307,), (0.3081,))
CIFAR = spaces.DataShape(3, (32, 32), 10, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
TINY = spaces.DataShape(1, (8, 8), 3, (0.3,), (0.4,))
NARROW: dict[str, dict[str, Any]] = {
    "optunanet": {"width_scale": 0.06},
    "optunanet-depth": {"width_scale": 0.06},
    "convnet": {"min_width": 8, "max_width": 16},
}
NETWORKS = [
    name for name in spaces.SPACES if name not in ("optimizer", "lightgbm")
]  # these two: test_start.py, test_boosting.py
RECIPES = sorted((ROOT / "mnist_ray" / "recipes").glob("s[0-9]-*.yaml"))

optuna.logging.set_verbosity(optuna.logging.WARNING)


def asked(
    name: str, data: spaces.DataShape, n: int = 40, **options: Any
) -> list[tuple[optuna.Trial, dict[str, Any]]]:
    """n random suggestions of a space: the trials and the dicts."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = spaces.find(name)
    return [(trial, space(trial, data, **options)) for trial in (study.ask() for _ in range(n))]


def ranges(
    name: str, data: spaces.DataShape = MNIST, **options: Any
) -> dict[str, optuna.distributions.BaseDistribution]:
    """Everything that a space ever asks for."""
    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for trial, _ in asked(name, data, 60, **options):
        found |= trial.distributions
    return found


def fixed(name: str, data: spaces.DataShape = MNIST, **values: Any) -> dict[str, Any]:
    return spaces.find(name)(optuna.trial.FixedTrial(values), data)


S1 = {
    **{f"layer{i}_conv2d_filter": IntDistribution(128, 256, step=32) for i in range(1, 5)},
    **{f"layer{i}_conv2d_kernel": IntDistribution(5, 7, step=2) for i in range(1, 5)},
    **{f"layer{i}_leakyrelu": FloatDistribution(1e-3, 2e-1, log=True) for i in range(1, 5)},
    "layer6_fc2_neurons": IntDistribution(512, 1024, step=128),
}
S2 = {
    "n_layers_fc": IntDistribution(1, 4),
    **{f"fc_out_{i}": CategoricalDistribution((128, 256, 512, 1024)) for i in range(1, 5)},
}
S5 = {
    "optimizer": CategoricalDistribution(("adam", "sgd")),
    "lr_adam": FloatDistribution(1e-5, 1e-2, log=True),
    "lr_sgd": FloatDistribution(1e-4, 1e-1, log=True),
    "num_conv_blocks": IntDistribution(2, 4),
    "num_conv_layers_per_block": IntDistribution(1, 2),
    "num_fc_layers": IntDistribution(1, 3),
    "fc_hidden_size": CategoricalDistribution((256, 512, 1024)),
}
S7 = {
    "n_layers": IntDistribution(1, 3),
    **{f"n_units_l{i}": IntDistribution(4, 128) for i in range(3)},
    **{f"dropout_l{i}": FloatDistribution(0.2, 0.5) for i in range(3)},
    "optimizer": CategoricalDistribution(("adam", "rmsprop", "sgd")),
    "lr": FloatDistribution(1e-5, 1e-1, log=True),
}
S9 = {
    "conv_dropout": FloatDistribution(0, 0.5, step=0.1),
    "fc_units": IntDistribution(32, 256, step=32),
    "fc_dropout": FloatDistribution(0, 0.3, step=0.1),
    "batch_size": IntDistribution(64, 256, step=64),
    "optimizer": CategoricalDistribution(("adam", "rmsprop", "sgd")),
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
}


@pytest.mark.parametrize(
    ("name", "exact"),
    [("optunanet", S1), ("optunanet-depth", S2), ("vgg", S5), ("mlp", S7), ("cnn", S9)],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_ranges_are_the_documents(name: str, exact: dict[str, Any]) -> None:
    assert ranges(name) == exact
    assert ranges(name, CIFAR) == exact


def test_optunanet_fixed_values() -> None:
    values: dict[str, Any] = {
        f"layer{i}_{k}": v
        for i in range(1, 5)
        for k, v in (("conv2d_filter", 96 + 32 * i), ("conv2d_kernel", 5), ("leakyrelu", i / 100))
    }
    hp = fixed("optunanet", **values, layer6_fc2_neurons=640)
    assert hp["filters"] == [128, 160, 192, 224]
    assert (hp["kernels"], hp["slopes"], hp["fc"], hp["dropout"]) == (
        [5] * 4,
        [0.01, 0.02, 0.03, 0.04],
        [640],
        0.5,
    )
    assert (hp["optimizer"], hp["lr"], hp["batch_size"], hp.get("weight_decay", 0)) == (
        "adam",
        1e-3,
        32,
        0,
    )


def test_optunanet_depth_fixed_values() -> None:
    hp = fixed("optunanet-depth", n_layers_fc=2, fc_out_1=1024, fc_out_2=128)
    assert (hp["filters"], hp["kernels"]) == ([224, 224, 224, 160], [5, 7, 7, 5])
    assert (hp["slopes"], hp["fc"]) == ([0.012, 0.121, 0.033, 0.095], [1024, 128])
    optimizer = Trainer({**hp, "filters": [8] * 4}, epochs=1, seed=0).optimizer
    assert type(optimizer) is torch.optim.Adam
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (
        1e-3,
        (0.8447, 0.9995),
        4.578e-9,
        1.3e-5,
    )
    assert hp["batch_size"] == 32


def test_sgd_is_the_documents() -> None:
    """With momentum 0.9 in S5, plain in S7 and S9, Nesterov's nowhere."""
    vgg = fixed("vgg", TINY, optimizer="sgd", lr_sgd=0.01, num_conv_blocks=2, num_fc_layers=1)
    mlp = fixed("mlp", n_layers=1, n_units_l0=4, dropout_l0=0.2, optimizer="sgd", lr=0.01)
    cnn = fixed(
        "cnn",
        TINY,
        conv_dropout=0.0,
        fc_units=32,
        fc_dropout=0.0,
        batch_size=64,
        optimizer="sgd",
        lr=0.01,
    )
    for hp, momentum in ((vgg, 0.9), (mlp, 0), (cnn, 0)):
        group = Trainer(hp, epochs=1, seed=0).optimizer.param_groups[0]
        assert (group["momentum"], group["nesterov"], group["lr"], group["weight_decay"]) == (
            momentum,
            False,
            0.01,
            0,
        )


def test_vgg_asks_only_for_what_the_network_has() -> None:
    for trial, hp in asked("vgg", MNIST):
        p = trial.params
        assert ("num_conv_layers_per_block" in p) == (p["num_conv_blocks"] > 2)
        assert ("fc_hidden_size" in p) == (p["num_fc_layers"] > 1)
        assert hp["block_layers"] == [
            1,
            1,
            *[p.get("num_conv_layers_per_block")] * (p["num_conv_blocks"] - 2),
        ]
        assert hp["fc"] == [p.get("fc_hidden_size")] * (p["num_fc_layers"] - 1)
        assert hp["lr"] == p["lr_" + p["optimizer"]]


@pytest.mark.parametrize("data", [MNIST, CIFAR, TINY], ids=["mnist", "cifar", "tiny"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_suggestion_is_json_and_builds(name: str, data: spaces.DataShape) -> None:
    for _, hp in asked(name, data, 3 if name == "vgg" else 6, **NARROW.get(name, {})):
        again = json.loads(json.dumps(hp))
        assert again == hp  # no tuple, no other type than JSON's
        assert not any(isinstance(value, dict) for value in hp.values())
        logits = models.build(again).eval()(torch.rand(2, data.in_channels, *data.image_size))
        assert logits.shape == (2, data.classes)


LEAST = {"convnet": 2, "mlp": 1}  # pixels of a side; the others pool twice


@pytest.mark.parametrize("size", [(1, 32), (32, 1), (2, 2), (3, 9), (4, 4)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_small_images_are_refused_or_give_networks(name: str, size: tuple[int, int]) -> None:
    data = spaces.DataShape(1, size, 3, (0.3,), (0.4,))
    if min(size) < LEAST.get(name, 4):
        found = rf"at least {LEAST.get(name, 4)} pixels .* are {size[0]} x {size[1]};"
        with pytest.raises(
            SettingsError, match=f"^--space: '{name}' needs .*{found}.*--space mlp takes any$"
        ):
            check_suggests(lambda trial: spaces.find(name)(trial, data), name)
        return
    for _, hp in asked(name, data, 6, **NARROW.get(name, {})):
        assert models.build(hp)(torch.rand(2, 1, *size)).shape == (2, 3)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_suggestion_trains(name: str) -> None:
    _, hp = asked(name, TINY, 1, **NARROW.get(name, {}))[0]
    trainer = Trainer(hp, epochs=1, seed=0, precision="fp32")
    images = torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8)
    row = trainer.run_epoch(
        images, torch.randint(3, (300,)), torch.arange(256), torch.arange(256, 300)
    )
    assert math.isfinite(row["train_loss"])
    assert math.isfinite(row["val_loss"])
    assert row["lr"] > 0 or hp.get("schedule") in ("one_cycle", "cosine")


def test_the_grid_is_the_340_networks_each_once() -> None:
    space = spaces.find("optunanet-depth")
    study = optuna.create_study(sampler=samplers.make_sampler("grid", 0))
    networks = []
    while not samplers.exhausted(study):
        trial = study.ask()
        networks.append(tuple(space(trial, MNIST, width_scale=0.125)["fc"]))
        study.tell(trial, len(networks))
    assert len(networks) == 4 + 4**2 + 4**3 + 4**4 == 340
    assert len(set(networks)) == 340


# ---- the default space's options


def test_the_default_space_is_not_widened_by_its_options() -> None:
    plain = ranges("convnet")
    assert not {"l1", "fc_layers", "fc_width", "layers_per_block"} & set(plain)
    wide = ranges("convnet", l1=True, max_fc=2, min_layers=1, max_layers=3, max_width=64)
    assert wide["l1"] == FloatDistribution(1e-8, 1e-4, log=True)
    assert wide["fc_layers"] == IntDistribution(0, 2)
    assert wide["layers_per_block"] == IntDistribution(1, 3)
    assert wide["width"] == IntDistribution(16, 64, step=4)
    assert {
        k: v for k, v in wide.items() if k in plain and k not in ("layers_per_block", "width")
    } == {k: v for k, v in plain.items() if k not in ("layers_per_block", "width")}
    assert plain["dropout_place"] == CategoricalDistribution(["head", "block"])
    assert ranges("convnet", layer_dropout=True)["dropout_place"] == CategoricalDistribution(
        ["head", "block", "layer"]
    )


def test_pooling_after_the_first_convolution_is_offered_by_an_option() -> None:
    """Its parameter is a new one: an older study keeps the choices of its own."""
    plain, more = ranges("convnet"), ranges("convnet", pool_first=True)
    assert more == {**plain, "pool_first": CategoricalDistribution([False, True])}
    positions = {hp["pool_position"] for _, hp in asked("convnet", MNIST, pool_first=True)}
    assert positions == {"end", "conv", "first"}
    assert {hp["pool_position"] for _, hp in asked("convnet", MNIST)} == {"end", "conv"}


def test_a_fixed_place_of_the_pooling_is_not_searched() -> None:
    plain, fixed = ranges("convnet"), ranges("convnet", pool_position="first")
    assert fixed == {k: v for k, v in plain.items() if k != "pool_position"}
    found = asked("convnet", MNIST, pool_position="first")
    assert {hp["pool_position"] for _, hp in found} == {"first"}
    with pytest.raises(SettingsError, match="pool_position is 'middle': expected one of end, "):
        ranges("convnet", pool_position="middle")
    with pytest.raises(SettingsError, match="pool_first or pool_position, not both"):
        ranges("convnet", pool_position="end", pool_first=True)


def test_the_growth_of_the_width_is_an_option() -> None:
    assert ranges("convnet", width_growth=1) == ranges("convnet")
    assert {hp["width_growth"] for _, hp in asked("convnet", MNIST, width_growth=1)} == {1}
    with pytest.raises(SettingsError, match="width_growth is 0.5: expected a number of at least 1"):
        ranges("convnet", width_growth=0.5)


def test_a_fixed_number_of_blocks_is_not_searched() -> None:
    plain, fixed = ranges("convnet"), ranges("convnet", blocks=1)
    assert fixed == {k: v for k, v in plain.items() if k != "blocks"}
    assert {hp["blocks"] for _, hp in asked("convnet", MNIST, blocks=1)} == {1}
    for blocks in (0, 4):
        with pytest.raises(SettingsError, match=f"blocks={blocks} is not allowed; expected 1 to 3"):
            ranges("convnet", blocks=blocks)


def test_a_fixed_pooling_is_not_searched() -> None:
    plain, fixed = ranges("convnet"), ranges("convnet", pooling="blur")
    assert fixed == {k: v for k, v in plain.items() if k != "pooling"}
    assert {hp["pooling"] for _, hp in asked("convnet", MNIST, pooling="blur")} == {"blur"}
    with pytest.raises(SettingsError, match="pooling is 'mean': expected one of "):
        ranges("convnet", pooling="mean")


@pytest.mark.parametrize("options", [{}, {"pool_first": True}])
def test_a_study_of_older_code_goes_on(options: dict[str, bool]) -> None:
    """Optuna refuses a parameter whose choices have changed."""
    kept = Path(__file__).parents[1] / "kept_runs" / "finished" / "study.journal"
    older = optuna.load_study(
        study_name="finished",
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(kept))
        ),
    )
    sampler = samplers.make_sampler("tpe", 0, {})
    study = optuna.create_study(sampler=sampler, direction="maximize")
    study.add_trials(older.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)))
    narrow = {"min_width": 4, "max_width": 4, "min_layers": 1, "max_layers": 1, "max_kernel": 3}
    for value in range(12):  # the sampler's own suggestions come after ten
        trial = study.ask()
        hp = spaces.find("convnet")(trial, TINY, **narrow, **options)
        assert hp["pool_position"] in ("end", "conv", "first")
        study.tell(trial, value)


def test_l1_reaches_the_loss() -> None:
    _, hp = asked("convnet", TINY, 1, l1=True)[0]
    images, labels = (
        torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8),
        torch.randint(3, (64,)),
    )
    losses = [
        Trainer({**hp, "l1": l1, "lr": 1e-9}, epochs=1, seed=0, precision="fp32").train_epoch(
            images, labels
        )["train_loss"]
        for l1 in (0.0, 1e-3)
    ]
    weights = sum(p.abs().sum().item() for p in Trainer(hp, epochs=1, seed=0).model.parameters())
    assert losses[1] - losses[0] == pytest.approx(1e-3 * weights, rel=1e-3)


def test_convnet_hidden_linear_layers() -> None:
    found = [hp["fc"] for _, hp in asked("convnet", MNIST, max_fc=2)]
    assert {len(fc) for fc in found} == {0, 1, 2}
    assert all(len(set(fc)) <= 1 for fc in found)


@settings(max_examples=60, deadline=None)
@given(scale=st.floats(1e-3, 2), number=st.integers(0, 10**6))
def test_any_width_scale_scales_all_widths(scale: float, number: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
    trial = study.ask()
    hp = spaces.find("optunanet")(trial, MNIST, width_scale=scale)
    expected = [max(8, round(trial.params[f"layer{i}_conv2d_filter"] * scale)) for i in range(1, 5)]
    assert hp["filters"] == expected
    assert hp["fc"] == [max(8, round(trial.params["layer6_fc2_neurons"] * scale))]
    assert hp["kernels"] == [trial.params[f"layer{i}_conv2d_kernel"] for i in range(1, 5)]


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["optunanet", "optunanet-depth"])
def test_an_impossible_width_scale_is_refused(name: str, scale: float) -> None:
    with pytest.raises(
        SettingsError, match=r"--space-args: width_scale=.* is not allowed; expected more than 0"
    ):
        asked(name, MNIST, 1, width_scale=scale)


@pytest.mark.parametrize(
    "options",
    [{"min_width": 64}, {"min_width": 0}, {"min_layers": 0}, {"max_layers": 1}, {"max_fc": -1}],
    ids=str,
)
def test_impossible_convnet_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(
        SettingsError, match=r"--space-args: \w+=-?\d+ is too small; expected at least \d+"
    ):
        asked("convnet", MNIST, 1, **options)


@pytest.mark.parametrize("kernel", [1, 4, 9])
def test_a_kernel_that_is_not_searched_is_refused(kernel: int) -> None:
    message = f"--space-args: max_kernel={kernel} is not allowed; expected 3 or 5"
    with pytest.raises(SettingsError, match=message):
        asked("convnet", MNIST, 1, max_kernel=kernel)


# ---- options as text


@settings(max_examples=60, deadline=None)
@given(width=st.integers(-(10**9), 10**9), l1=st.booleans(), scale=st.floats(allow_nan=False))
def test_options_come_back_as_they_were_typed(width: int, l1: bool, scale: float) -> None:
    space = spaces.find("convnet")
    assert spaces.options(space, "convnet", {"max_width": str(width), "l1": str(l1)}) == {
        "max_width": width,
        "l1": l1,
    }
    assert spaces.options(spaces.find("optunanet"), "optunanet", {"width_scale": repr(scale)}) == {
        "width_scale": scale
    }


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=12))
def test_any_text_is_converted_or_refused_in_one_line(text: str) -> None:
    for key in ("max_width", "l1", text):
        try:
            value = spaces.options(spaces.find("convnet"), "convnet", {key: text})[key]
        except SettingsError as error:
            assert "--space-args" in str(error)
            assert len(str(error).splitlines()) == 1
        else:
            assert type(value) is (bool if key == "l1" else int)


def test_messages_name_the_flag_and_what_is_allowed() -> None:
    space = spaces.find("convnet")
    with pytest.raises(
        SettingsError,
        match=(
            "--space-args: space 'convnet' has no option 'depth'; it has min_width, max_width, "
            "min_layers"
        ),
    ):
        spaces.options(space, "convnet", {"depth": "3"})
    with pytest.raises(
        SettingsError,
        match="--space-args: max_width='wide' is not allowed; expected a value of type int",
    ):
        spaces.options(space, "convnet", {"max_width": "wide"})
    with pytest.raises(SettingsError, match="l1='maybe' is not allowed; expected true or false"):
        spaces.options(space, "convnet", {"l1": "maybe"})
    with pytest.raises(SettingsError, match="space 'mlp' has no option 'a'; it has none"):
        spaces.options(spaces.find("mlp"), "mlp", {"a": "1"})
    with pytest.raises(
        SettingsError,
        match=r"--space: 'resnet' is unknown; expected one of convnet, .* or module:attribute",
    ):
        spaces.find("resnet")
    with pytest.raises(SettingsError, match="--space: 'no_such_module:space' cannot be imported"):
        spaces.find("no_such_module:space")


def own_space(
    trial: optuna.Trial, data: spaces.DataShape, depth: Any = 2, rate: "float | None" = None
) -> dict[str, Any]:  # type: ignore[no-untyped-def]
    return {
        "model": "mlp",
        **data.hyperparameters(),
        "units": [trial.suggest_int("u", 1, 5)] * depth,
        "dropouts": [rate] * depth,
    }


def test_ones_own_space_by_its_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "space_in_working_directory.py").write_text(
        "def space(trial, data):\n    return {'x': trial.suggest_int('x', 1, 1)}\n"
    )
    monkeypatch.chdir(tmp_path)
    found = spaces.find("space_in_working_directory:space")
    assert found(optuna.trial.FixedTrial({"x": 1}), MNIST) == {"x": 1}
    own = spaces.find(f"{__name__}:own_space")
    options = arguments(own, {"depth": "3", "rate": "0.5"}, "--space-args", "space")
    assert options == {"depth": 3, "rate": 0.5}
    models.build(own(optuna.trial.FixedTrial({"u": 4}), MNIST, **options))


# ---- recipes


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_name_what_exists(path: Path) -> None:
    recipe = read_yaml(str(path))
    space = spaces.find(recipe["space"])
    spaces.options(space, recipe["space"], recipe.get("space_args", {}))
    samplers.make_sampler(
        recipe["sampler"], 0, {k: str(v) for k, v in recipe.get("sampler_args", {}).items()}
    )
    read_stages(recipe.get("stages", "default"))
    header = path.read_text().split("\nspace:")[0]
    assert f"# Command: python jobs/search.py --config {path.stem}" in header
    assert "# Result: see docs/original-experiments.md" in header
    assert f"`C {path.stem}" in (ROOT / "docs" / "original-experiments.md").read_text()


@pytest.mark.parametrize("name", ["augmented", "default", "demo", "mixed", "record"])
def test_our_recipes_are_settings_that_work(name: str) -> None:
    recipe = parse(SearchSettings, ["--config", f"jobs/recipes/{name}.yaml"])
    check_search(recipe)
    space = spaces.find(recipe.space)
    hp = space(
        optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask(),
        data=MNIST,
        **spaces.options(space, recipe.space, key_values(recipe.space_args, "--space-args")),
    )
    for stage in read_stages(recipe.stages).stages:
        models.build(stage.hyperparameters(hp))


def test_recipes_are_the_documents_experiments() -> None:
    found = {path.stem: yaml.safe_load(path.read_text()) for path in RECIPES}
    assert {k: (v["space"], v["trials"], v["max_epochs"]) for k, v in found.items()} == {
        "s1-optunanet": ("optunanet", 1001, 10),
        "s2-depth": ("optunanet-depth", 340, 10),
        "s3-chain": ("optunanet", 1, 1),
        "s4-optimizer": ("optimizer", 501, 10),
        "s5-vgg": ("vgg", 30, 6),
        "s7-mlp": ("mlp", 100, 10),
        "s9-cnn": ("cnn", 20, 10),
    }
    points = RECIPES[0].parent / "points" / "s3-optunanet.yaml"
    [winner] = read_points(str(points), lambda trial: spaces.find("optunanet")(trial, data=MNIST))
    assert [winner[f"layer{i}_conv2d_filter"] for i in range(1, 5)] == [224, 224, 224, 160]
    assert found["s3-chain"]["stages"] == "seed"
    assert (found["s7-mlp"]["train_images"], found["s7-mlp"]["val_images"]) == (3840, 1280)
    assert found["s1-optunanet"]["sampler_args"] == {"n_startup_trials": 50}
    assert found["s2-depth"]["sampler"] == "grid"
    assert (found["s4-optimizer"]["scheduler"], found["s4-optimizer"]["sampler_args"]) == (
        "hyperband",
        {"n_startup_trials": 50},
    )


def test_only_another_trainable_gives_no_networks() -> None:
    assert [name for name in spaces.SPACES if not spaces.of_networks(spaces.find(name))] == [
        "lightgbm"
    ]
    assert [name for name in spaces.SPACES if spaces.starts_from_onnx(spaces.find(name))] == [
        "optimizer"
    ]


@pytest.mark.parametrize("name", ["os:system", "shutil:rmtree", "os:sep", "builtins:dict"])
def test_what_takes_no_trial_is_refused_before_it_is_called(name: str) -> None:
    with pytest.raises(SettingsError, match=f"--space: '{name}' is no space"):
        spaces.find(name)
