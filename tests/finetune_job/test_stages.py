"""The training of the stages: a stopped chain ends with the weights of one that was not."""

import dataclasses
from pathlib import Path

import pytest
import torch

from mnist_ray import models
from mnist_ray.errors import WorkError
from mnist_ray.finetune_job.recipe import Recipe, Stage
from mnist_ray.finetune_job.stages import TrainingData as Data
from mnist_ray.finetune_job.stages import train_stages
from mnist_ray.run import checkpoint, layout
from mnist_ray.storage import RunStorage

HP = {
    "model": "convnet",
    "in_channels": 1,
    "image_size": [8, 8],
    "classes": 2,
    "mean": [0.5],
    "std": [0.5],
    "blocks": 1,
    "layers_per_block": 1,
    "width": 4,
    "kernel_size": 3,
    "activation": "relu",
    "activation_position": "after_norm",
    "pooling": "max",
    "pool_position": "end",
    "dropout": 0.1,
    "dropout_place": "head",
    "batch_size": 8,
    "optimizer": "adam",
    "lr": 0.01,
}
STAGES = (
    Stage(
        epochs=2,
        batch_size=8,
        lr=0.05,
        weight_decay=1e-4,
        optimizer="sgd",
        seed=1,
        schedule="cosine",
        ema=0.9,
    ),
    Stage(epochs=1, batch_size=16, lr=0.01, weight_decay=0, optimizer="adam", seed=2, dropout=0),
    Stage(epochs=2, batch_size=16, lr=0.001, weight_decay=0, optimizer="rmsprop", seed=3),
)
RECIPE = Recipe("test", "best", "train", STAGES)


@pytest.fixture
def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (120, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = (images.float().mean((1, 2, 3)) > 127).long()
    return Data(images, labels, torch.arange(90), torch.arange(90, 120))


@pytest.fixture
def start() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return models.build(HP).state_dict()


def run(
    folder: Path,
    data: Data,
    start: dict | None,
    recipe: Recipe = RECIPE,
    lines: int | None = None,
    hp: dict = HP,
) -> list[str]:
    """The chain's lines; stopped before the line after `lines`, as a kill would."""
    seen = []
    for line in train_stages(recipe, hp, start, RunStorage(str(folder)), data, "fp32"):
        seen.append(line)
        if lines is not None and len(seen) == lines:
            break
    return seen


def files(folder: Path) -> dict[str, bytes]:
    storage = RunStorage(str(folder))
    return {
        name: storage.read_bytes(name) for name in storage.list() if name.endswith(".safetensors")
    }


def test_each_stage_leaves_its_model_and_curve(tmp_path: Path, data: Data, start: dict) -> None:
    lines = run(tmp_path, data, start)
    assert len(lines) == 5
    assert "val_accuracy" in lines[0]
    names = RunStorage(str(tmp_path)).list()
    assert sorted(names) == [
        f"{layout.stage_folder(n)}/{f}"
        for n in (1, 2, 3)
        for f in ("curve.parquet", "model.safetensors")
    ]


@pytest.mark.parametrize("stopped_after", [1, 2, 3, 4])
def test_a_stopped_chain_ends_with_the_same_bytes(
    tmp_path: Path, data: Data, start: dict, stopped_after: int
) -> None:
    run(tmp_path / "whole", data, start)
    run(tmp_path / "cut", data, start, lines=stopped_after)
    again = run(tmp_path / "cut", data, start)
    assert len([line for line in again if "epoch " in line and "/" in line]) == 5 - stopped_after
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_one_cycle_of_few_steps_is_cooler(tmp_path: Path, data: Data, start: dict) -> None:
    cycle = dataclasses.replace(STAGES[0], schedule="one_cycle")
    lines = run(tmp_path, data, start, Recipe("test", "best", "train", (cycle,)))
    assert lines[0] == (
        "stage 1: 24 steps are few for a learning rate of 0.05: it is lowered to 0.02"
    )
    whole = files(tmp_path)
    found = checkpoint.unpack(whole["finetune/stage-1/model.safetensors"], "it")[1]
    assert found["hyperparameters"]["lr"] == pytest.approx(0.02)
    long = dataclasses.replace(cycle, epochs=50)
    gentle = dataclasses.replace(cycle, lr=0.02)
    for recipe in (long, gentle, dataclasses.replace(cycle, optimizer="adam")):
        first = run(tmp_path / "b", data, start, Recipe("test", "best", "train", (recipe,)), 1)
        assert "epoch 1/" in first[0]
    cut = Recipe("test", "best", "train", (cycle,))
    run(tmp_path / "cut", data, start, cut, lines=2)
    again = run(tmp_path / "cut", data, start, cut)
    assert not any("lowered" in line for line in again)
    assert files(tmp_path / "cut") == whole


def test_a_stage_that_diverges_is_begun_again_slower(
    tmp_path: Path, data: Data, start: dict
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


def test_what_is_done_is_not_done_again(tmp_path: Path, data: Data, start: dict) -> None:
    run(tmp_path, data, start)
    assert run(tmp_path, data, start) == [f"stage {n}: done already" for n in (1, 2, 3)]


def test_another_stage_or_start_is_done_anew(tmp_path: Path, data: Data, start: dict) -> None:
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


@pytest.mark.parametrize("other", [{"width": 8}, {"betas": [0.8, 0.9]}])
def test_another_network_from_random_weights_is_trained_anew(
    tmp_path: Path, data: Data, other: dict
) -> None:
    """As when a search is resumed with more trials, and another trial wins."""
    gentle = dataclasses.replace(STAGES[1], epochs=2)
    recipe = Recipe("test", "random", "train", (gentle,))
    run(tmp_path, data, None, recipe)
    run(tmp_path / "cut", data, None, recipe, lines=1)
    for folder in (tmp_path, tmp_path / "cut"):
        assert run(folder, data, None, recipe, hp=HP | other)[0].startswith("stage 0 epoch 1/2 ")
        assert run(folder, data, None, recipe, hp=HP | other) == ["stage 0: done already"]


def test_all_images_leave_no_validation_figure(tmp_path: Path, data: Data, start: dict) -> None:
    lines = run(tmp_path, data, start, Recipe("test", "best", "all", STAGES[:1]))
    assert not any("val_" in line for line in lines)


def test_a_start_that_is_bad_itself_is_trained_on_at_the_lowest_rate(
    tmp_path: Path, data: Data, start: dict
) -> None:
    """As after a search on a few pictures: no rate makes its first epoch's loss look well."""
    bad = {k: v * 12 if k.endswith("weight") and v.ndim == 2 else v for k, v in start.items()}
    stage = dataclasses.replace(STAGES[0], epochs=2, lr=0.01, schedule="constant", ema=0.0)
    lines = run(tmp_path, data, bad, Recipe("test", "best", "train", (stage,)))
    assert lines[-1].startswith("stage 1 epoch 2/2 ")
