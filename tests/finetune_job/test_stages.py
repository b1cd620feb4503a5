"""The stages: what a recipe file may say, and that a stopped chain ends with the weights of one that was not."""

import dataclasses
from pathlib import Path

import pytest
import torch

from mnist_ray import models
from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.finetune_job import stages
from mnist_ray.finetune_job.stages import Recipe, Stage, read_stages, stage_folder, train_stages
from mnist_ray.run import checkpoint
from mnist_ray.settings import RECIPES
from mnist_ray.storage import RunStorage

HP = {
    "model": "convnet", "in_channels": 1, "image_size": [8, 8], "classes": 2, "mean": [0.5], "std": [0.5],
    "blocks": 1, "layers_per_block": 1, "width": 4, "kernel_size": 3, "activation": "relu", "activation_position": "after_norm",
    "pooling": "max", "pool_position": "end", "dropout": 0.1, "dropout_place": "head", "batch_size": 8, "optimizer": "adam", "lr": 0.01,
}  # fmt: skip
STAGES = (
    Stage(
        epochs=2,
        batch_size=8,
        lr=0.05,
        weight_decay=1e-4,
        optimizer="sgd",
        seed=1,
        schedule="one_cycle",
        ema=0.9,
    ),
    Stage(epochs=1, batch_size=16, lr=0.01, weight_decay=0, optimizer="adam", seed=2, dropout=0),
    Stage(epochs=2, batch_size=16, lr=0.001, weight_decay=0, optimizer="rmsprop", seed=3),
)
RECIPE = Recipe("test", "best", "train", STAGES)


@pytest.fixture
def data() -> list[torch.Tensor]:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (120, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = (images.float().mean((1, 2, 3)) > 127).long()
    return [images, labels, torch.arange(90), torch.arange(90, 120)]


@pytest.fixture
def start() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return models.build(HP).state_dict()


def run(
    folder: Path,
    data: list[torch.Tensor],
    start: dict,
    recipe: Recipe = RECIPE,
    lines: int | None = None,
) -> list[str]:
    """The chain's lines; stopped before the line after `lines`, as a kill would."""
    seen = []
    for line in train_stages(recipe, HP, start, RunStorage(str(folder)), data, "fp32"):
        seen.append(line)
        if lines is not None and len(seen) == lines:
            break
    return seen


def files(folder: Path) -> dict[str, bytes]:
    storage = RunStorage(str(folder))
    return {
        name: storage.read_bytes(name) for name in storage.list() if name.endswith(".safetensors")
    }


def test_each_stage_leaves_its_model_and_curve(tmp_path: Path, data: list, start: dict) -> None:
    lines = run(tmp_path, data, start)
    assert len(lines) == 5
    assert "val_accuracy" in lines[0]
    names = RunStorage(str(tmp_path)).list()
    assert sorted(names) == [
        f"{stage_folder(n)}/{f}" for n in (1, 2, 3) for f in ("curve.parquet", "model.safetensors")
    ]


@pytest.mark.parametrize("stopped_after", [1, 2, 3, 4])
def test_a_stopped_chain_ends_with_the_same_bytes(
    tmp_path: Path, data: list, start: dict, stopped_after: int
) -> None:
    run(tmp_path / "whole", data, start)
    run(tmp_path / "cut", data, start, lines=stopped_after)
    again = run(tmp_path / "cut", data, start)
    assert len([line for line in again if "epoch " in line and "/" in line]) == 5 - stopped_after
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_stage_that_diverges_is_begun_again_slower(
    tmp_path: Path, data: list, start: dict
) -> None:
    wild = dataclasses.replace(STAGES[0], epochs=3, lr=1e4, schedule="constant", ema=0.0)
    recipe = Recipe("test", "best", "train", (wild,))
    with pytest.raises(
        WorkError, match=r"--stages: stage 1 diverges, even with a learning rate of 1\.2e\+02"
    ):
        run(tmp_path / "never", data, start, recipe)
    wild = dataclasses.replace(wild, lr=9.0)
    recipe = Recipe("test", "best", "train", (wild,))
    lines = run(tmp_path / "whole", data, start, recipe)
    assert "stage 1 diverged in epoch" in lines[0]
    assert lines[-1].startswith("stage 1 epoch 3/3 ")
    assert "nan" not in lines[-1].partition("val_loss")[0]
    story = checkpoint.unpack(
        files(tmp_path / "whole")["finetune/stage-1/model.safetensors"], "it"
    )[1]
    assert story["hyperparameters"]["lr"] < wild.lr
    run(
        tmp_path / "stopped", data, start, recipe, lines=len(lines) - 1
    )  # stopped after it was begun again
    assert any("going on" in line for line in run(tmp_path / "stopped", data, start, recipe))
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def test_what_is_done_is_not_done_again(tmp_path: Path, data: list, start: dict) -> None:
    run(tmp_path, data, start)
    assert run(tmp_path, data, start) == [f"stage {n}: done already" for n in (1, 2, 3)]


def test_another_stage_or_start_is_done_anew(tmp_path: Path, data: list, start: dict) -> None:
    run(tmp_path, data, start)
    other = Recipe("test", "best", "train", (STAGES[0], STAGES[2], STAGES[1]))
    lines = run(tmp_path, data, start, other)
    assert lines[0] == "stage 1: done already"
    assert not any("done" in line for line in lines[1:])
    moved = {
        name: tensor + 0.01 if tensor.is_floating_point() else tensor
        for name, tensor in start.items()
    }
    assert "done" not in run(tmp_path, data, moved)[0]


def test_all_images_leave_no_validation_figure(tmp_path: Path, data: list, start: dict) -> None:
    lines = run(tmp_path, data, start, Recipe("test", "best", "all", STAGES[:1]))
    assert not any("val_" in line for line in lines)


def test_the_seed_recipe_is_the_documents_table() -> None:
    recipe = read_stages("seed")
    assert (recipe.start, recipe.train_on, recipe.first_number) == ("random", "all", 0)
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


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
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
        "stages:\n  - {epochs: 1, batch_size: trial, lr: trial, weight_decay: trial, optimizer: trial, seed: 1}\n"
    )
    recipe = read_stages(str(file))
    kept = recipe.stages[0].hyperparameters(TRIAL)
    assert {key: value for key, value in kept.items() if TRIAL.get(key) != value} == {
        "l1": 0.0, "schedule": "constant", "label_smoothing": 0.0, "ema": 0.0,
    }  # fmt: skip
    told = recipe.told(TRIAL).stages[0]
    assert (told.batch_size, told.lr, told.weight_decay, told.optimizer, told.augment) == (
        8,
        0.01,
        1e-3,
        "adam",
        "shift",
    )
    assert told.hyperparameters(TRIAL) == kept
    plain = recipe.told(HP).stages[0]
    assert (plain.weight_decay, plain.augment, plain.dropout) == (0, "none", None)


def test_a_stage_says_how_it_augments(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD.replace("seed: 1", "seed: 1, augment: elastic, schedule: step"))
    stage = read_stages(str(file)).stages[0]
    assert stage.hyperparameters(TRIAL)["augment"] == "elastic"
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


@pytest.mark.parametrize("name", ["s1", "s2", "s4", "augmented", "record"])
def test_the_shipped_files_are_read(name: str) -> None:
    assert read_stages(str(RECIPES / f"stages-{name}.yaml")).stages


def test_the_default_recipe_has_three_stages() -> None:
    recipe = read_stages("default")
    assert (len(recipe.stages), recipe.first_number) == (3, 1)


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
        (GOOD.replace("seed: 1", "seed: 1, pool_jitter: 0.5"), "pool_jitter"),
        (GOOD.replace("seed: 1", "seed: 1, pool_jitter: -1"), "pool_jitter"),
        (GOOD.replace("epochs: 1", "epochs: trial"), "epochs"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "stages.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_stages(str(file))
    assert str(file) in str(caught.value)
    assert named in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(SettingsError, match="--stages: 'other'"):
        read_stages("other")


def test_a_good_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD)
    assert read_stages(str(file)) == Recipe(
        "mine", "best", "all", (stages.Stage(1, 8, 0.1, 0, "sgd", 1),)
    )
