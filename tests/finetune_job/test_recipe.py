"""A recipe: what its file may say, and what a stage makes of a network's hyperparameters."""

from pathlib import Path

import pytest

from mnist_ray.errors import SettingsError
from mnist_ray.finetune_job.recipe import Recipe, Stage, read_stages
from mnist_ray.settings import RECIPES

HP = {"model": "convnet", "dropout": 0.1, "batch_size": 8, "optimizer": "adam", "lr": 0.01}


def test_the_seed_recipe_is_the_documents_table() -> None:
    recipe = read_stages("seed")
    assert (recipe.start, recipe.train_on) == ("random", "all")
    assert [number for number, _ in recipe.numbered()] == [0, 1, 2, 3]
    table = [
        (s.epochs, s.batch_size, s.lr, s.weight_decay, s.seed, s.optimizer, s.schedule)
        for s in recipe.stages
    ]
    assert table == [
        (10, 64, 1e-3, 1e-4, 10, "adam", "constant"),
        (10, 128, 1e-4, 0, 10, "adam", "constant"),
        (2, 128, 1e-5, 1e-3, 10, "adam", "constant"),
        (1, 256, 5e-7, 1e-5, 0, "adam", "constant"),
    ]
    assert [s.dropout for s in recipe.stages] == [None, 0, 0, 0]


TRIAL = {
    **HP,
    "optimizer": "adam",
    "lr": 0.01,
    "weight_decay": 1e-3,
    "beta1": 0.5,
    "beta2": 0.9999,
    "eps": 1e-9,
    "l1": 1e-6,
    "augment": "shift",
}


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop", "muon"])
def test_a_stage_inherits_only_from_its_own_optimizer(optimizer: str) -> None:
    hp = Stage(1, 8, 0.1, 0, optimizer, 1).hyperparameters(TRIAL)
    betas = {key: hp[key] for key in ("beta1", "beta2", "eps") if key in hp}
    assert betas == ({"beta1": 0.5, "beta2": 0.9999, "eps": 1e-9} if optimizer == "adam" else {})
    assert (hp["optimizer"], hp["lr"], hp["l1"]) == (optimizer, 0.1, 0)
    sgd = {**HP, "optimizer": "sgd", "momentum": 0.0, "nesterov": False}
    hp = Stage(1, 8, 0.1, 0, optimizer, 1).hyperparameters(sgd)
    assert ("momentum" in hp, "nesterov" in hp) == (
        (True, True) if optimizer == "sgd" else (False, False)
    )


def test_a_stage_may_keep_the_trials_values(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "stages:\n  - {epochs: 1, batch_size: trial, lr: trial, weight_decay: trial, "
        "optimizer: trial, seed: 1}\n"
    )
    recipe = read_stages(str(file))
    kept = recipe.stages[0].hyperparameters(TRIAL)
    assert {key: value for key, value in kept.items() if TRIAL.get(key) != value} == {
        "l1": 0.0,
        "schedule": "constant",
        "label_smoothing": 0.0,
        "ema": 0.0,
    }
    resolved = recipe.resolved(TRIAL).stages[0]
    assert (
        resolved.batch_size,
        resolved.lr,
        resolved.weight_decay,
        resolved.optimizer,
        resolved.augment,
    ) == (
        8,
        0.01,
        1e-3,
        "adam",
        "shift",
    )
    assert resolved.hyperparameters(TRIAL) == kept
    plain = recipe.resolved(HP).stages[0]
    assert (plain.weight_decay, plain.augment, plain.dropout) == (0, "none", None)


def test_a_stage_says_how_it_augments(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD.replace("seed: 1", "seed: 1, augment: elastic, schedule: step"))
    stage = read_stages(str(file)).stages[0]
    assert stage.hyperparameters(TRIAL)["augment"] == "elastic"
    strong = "affine:degrees=15,shift=3"
    file.write_text(GOOD.replace("seed: 1", f"seed: 1, augment: '{strong}'"))
    assert read_stages(str(file)).stages[0].augment == strong
    assert stage.schedule == "step"
    assert Stage(1, 8, 0.1, 0, "sgd", 1).hyperparameters(TRIAL)["augment"] == "shift"
    assert Stage(1, 8, 0.1, 0, "sgd", 1, augment="none").hyperparameters(TRIAL)["augment"] == "none"


def test_a_stage_says_how_its_pooling_is_jittered(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD.replace("seed: 1", "seed: 1, pool_jitter: 1"))
    assert read_stages(str(file)).stages[0].hyperparameters(TRIAL)["pool_jitter"] == 1
    assert "pool_jitter" not in Stage(1, 8, 0.1, 0, "sgd", 1).hyperparameters(TRIAL)
    assert (
        Stage(1, 8, 0.1, 0, "sgd", 1, pool_jitter=0).hyperparameters({**TRIAL, "pool_jitter": 1})[
            "pool_jitter"
        ]
        == 0
    )


@pytest.mark.parametrize("name", ["s1", "s2", "s4", "augmented", "mixed", "record"])
def test_the_shipped_files_are_read(name: str) -> None:
    assert read_stages(str(RECIPES / f"stages-{name}.yaml")).stages


def test_the_default_recipe_has_three_stages() -> None:
    recipe = read_stages("default")
    assert [number for number, _ in recipe.numbered()] == [1, 2, 3]
    seeds = [stage.seed for stage in recipe.stages]
    assert [stage.seed for _, stage in recipe.numbered(3)] == [seed + 2000 for seed in seeds]


GOOD = (
    "stages:\n  - {epochs: 1, batch_size: 8, lr: 0.1, weight_decay: 0, optimizer: sgd, seed: 1}\n"
)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (GOOD.replace("epochs", "epoch"), "'epoch'"),
        (GOOD.replace("sgd", "lion"), "optimizer"),
        (GOOD.replace("epochs: 1", "epochs: 0"), "epochs"),
        (GOOD.replace("lr: 0.1", "lr: fast"), "lr"),
        (GOOD.replace(", seed: 1", ""), "'seed'"),
        (GOOD + "begin: best\n", "'begin'"),
        (GOOD + "start: middle\n", "start"),
        ("stages: []\n", "stages"),
        ("stages: [1]\n", "stage 1"),
        (GOOD.replace("seed: 1", "seed: 1, dropout: 1.5"), "dropout"),
        (GOOD.replace("seed: 1", "seed: 1, augment: mixup"), "augment"),
        (GOOD.replace("seed: 1", "seed: 1, augment: 'affine:speed=1'"), "has no option 'speed'"),
        (GOOD.replace("seed: 1", "seed: 1, pool_jitter: 0.5"), "pool_jitter"),
        (GOOD.replace("seed: 1", "seed: 1, pool_jitter: -1"), "pool_jitter"),
        (GOOD.replace("epochs: 1", "epochs: trial"), "epochs"),
        (GOOD + "members: 2\n", "members"),
        (GOOD + "members: [affine]\n", "member 1"),
        (GOOD + "members: [{}, {seed: 3}]\n", "member 2: unknown key 'seed'"),
        (GOOD + "members: [{augment: mixup}]\n", "augment"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "stages.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_stages(str(file))
    assert str(file) in str(caught.value)
    assert named in str(caught.value)


def test_members_differ_in_turn(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD + "members: [{}, {augment: affine, lr: trial}]\n")
    recipe = read_stages(str(file))
    stages = [recipe.numbered(member)[0][1] for member in (1, 2, 3, 4)]
    assert [stage.augment for stage in stages] == [None, "affine", None, "affine"]
    assert [stage.lr for stage in stages] == [0.1, None, 0.1, None]
    assert [stage.seed for stage in stages] == [1, 1001, 2001, 3001]
    resolved = recipe.resolved(TRIAL)
    assert resolved.numbered(2)[0][1].lr == TRIAL["lr"]
    assert resolved.of_member(2) == {"augment": "affine", "lr": TRIAL["lr"]}


def test_a_missing_file_is_named() -> None:
    with pytest.raises(SettingsError, match="--stages: 'other'"):
        read_stages("other")


def test_a_good_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD)
    assert read_stages(str(file)) == Recipe("mine", "best", "all", (Stage(1, 8, 0.1, 0, "sgd", 1),))
