"""A stored file chooses built-in names only; every door that reads one refuses the rest."""

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest

from mnist_ray import cli
from mnist_ray.errors import SettingsError
from mnist_ray.export.write import export
from mnist_ray.finetune_job.job import finetune
from mnist_ray.run.about import About, now
from mnist_ray.settings import EvaluateSettings, FinetuneSettings, SearchSettings, resolved, trust
from mnist_ray.storage import RunStorage
from mnist_ray.training.trainer import Trainer

CODE = ["shutil:rmtree", "os:system", "antigravity:x", "a.b.c:d", ":", "x:"]
PLACES = ["http://h/x", "s3://b/x", "${SECRET}", "../x.yaml", "/etc/passwd", "sqlite:///x", "a b"]
NAMES = [
    "mnist",
    "convnet",
    "tpe",
    "successive-halving",
    "default",
    "jobs/recipes/s1-optunanet.yaml",
]


@pytest.mark.parametrize("value", CODE)
@pytest.mark.parametrize("key", trust.CODE)
def test_code_is_a_persons_choice(key: str, value: str) -> None:
    with pytest.raises(
        SettingsError, match=rf"^--{key.replace('_', '-')}: FILE .* give it yourself"
    ):
        trust.check({key: value}, (), "FILE")
    trust.check({key: value}, {key}, "FILE")


@pytest.mark.parametrize("value", PLACES)
@pytest.mark.parametrize("key", trust.PLACES)
def test_a_place_is_a_persons_choice(key: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"^--{key.replace('_', '-')}: FILE names"):
        trust.check({key: value}, (), "FILE")
    assert trust.flags({key: value}) == [f"--{key.replace('_', '-')}", value]


@pytest.mark.parametrize("value", NAMES)
def test_built_in_names_are_believed(value: str) -> None:
    trust.check(dict.fromkeys(set(trust.CODE) | {"stages", "study"}, value), (), "FILE")


def test_a_file_of_a_recipe_s_name_is_a_persons_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lie in the shared run itself, and its stages may name code."""
    monkeypatch.chdir(tmp_path)
    recipes = tmp_path / "runs" / "shared" / "jobs" / "recipes"
    recipes.mkdir(parents=True)
    stage = "{epochs: 1, batch_size: 8, lr: 0.1, weight_decay: 0, optimizer: sgd, seed: 1"
    for file in (recipes / "evil.yaml", tmp_path / "default"):
        file.write_text(f"stages: [{stage}, augment: 'evil:f'}}]\n")
        value = str(file.relative_to(tmp_path))
        with pytest.raises(SettingsError, match=f"^--stages: FILE names '{value}'"):
            trust.check({"stages": value}, (), "FILE")
    trust.check({"stages": "small"}, (), "FILE")


@pytest.mark.parametrize("key", ["onnx", "warm_start", "class_weights", "wandb"])
def test_a_plain_word_may_be_a_file_or_a_project(key: str) -> None:
    with pytest.raises(SettingsError, match="FILE names 'word'"):
        trust.check({key: "word"}, (), "FILE")
    trust.check({"class_weights": "balanced", "study": "memory"}, (), "FILE")


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Modules in the working directory that note down when they are imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("import builtins\nbuiltins.evil_ran = True\ndef f(*a): ...\n")
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    return ["evil:f"]


def ran() -> bool:
    return hasattr(builtins, "evil_ran")


def test_no_command_runs_what_an_onnx_file_names(tmp_path: Path, watched: list[str]) -> None:
    hp: dict[str, Any] = {
        "model": "mlp",
        "units": [4],
        "dropouts": [0.1],
        "in_channels": 1,
        "image_size": [28, 28],
        "classes": 10,
        "mean": [0.1],
        "std": [0.3],
        "optimizer": "adam",
        "lr": 0.1,
        "batch_size": 8,
    }
    model = Trainer(hp, epochs=1, seed=0, precision="fp32").eval_model()
    for name in watched:
        path = tmp_path / "model.onnx"
        path.write_bytes(export(model, hp, {"dataset": name}))
        with pytest.raises(SettingsError, match="^--dataset: .*give it yourself"):
            cli.evaluate(EvaluateSettings(str(path)))
        with pytest.raises(SettingsError, match="^--dataset: .*give it yourself"):
            finetune(FinetuneSettings(onnx=str(path), storage=str(tmp_path / "runs"), name="a"))
    assert not ran()
    assert not (tmp_path / "runs").exists()


def test_no_fine_tuning_runs_what_a_run_json_names(tmp_path: Path, watched: list[str]) -> None:
    storage = RunStorage(str(tmp_path / "run"))
    data = {"name": "digits", "sha256": "0" * 64, "train": 3, "val": 2, "classes": ["0", "1"]}
    for key, value in (("dataset", watched[0]), ("stages", "/etc/passwd")):
        settings = {**resolved(SearchSettings(dataset="digits")), key: value}
        facts = {"name": "a", "state": "searched", "settings": settings, "data": data}
        About.of(storage, {**facts, "start": now()})
        storage.write_json("run.json", {**facts, "start": now()})
        with pytest.raises(SettingsError, match=f"^--{key}: .*give it yourself"):
            finetune(FinetuneSettings(run=storage.uri))
    assert not ran()


def test_an_augmentation_that_a_file_names_is_a_persons_choice() -> None:
    hp = {"augment": "evil:f:strength=3"}
    for given in (None, "shift", "other:f"):
        with pytest.raises(SettingsError, match="^FILE augments by 'evil:f'; .* --augment evil:f$"):
            trust.check_augmentation(hp, "FILE", given)
    trust.check_augmentation(hp, "FILE", "evil:f:strength=9")
    for built_in in ({}, {"augment": "none"}, {"augment": "affine:degrees=3"}):
        trust.check_augmentation(built_in, "FILE", None)
    trust.check({"augment": "affine:degrees=3"}, (), "FILE")


@pytest.mark.parametrize("value", ["folder:/photos", "npz:/a.npz", "csv:/a.csv", "hf:/saved"])
def test_images_in_files_are_data_where_their_digest_agrees(value: str) -> None:
    trust.check({"dataset": value}, (), "FILE")
    assert trust.flags({"dataset": value}) == []
    trust.same_data("a" * 64, "a" * 64, "FILE", value)
    for expected in ("b" * 64, None):
        with pytest.raises(
            SettingsError, match=r"^--dataset: .* not those that FILE was made with"
        ):
            trust.same_data("a" * 64, expected, "FILE", value)


@pytest.mark.parametrize("value", ["hf:someone/pictures", "folders:/x", "csv"])
def test_other_names_with_a_colon_are_code_or_a_host(value: str) -> None:
    assert trust.is_data(value) is False
