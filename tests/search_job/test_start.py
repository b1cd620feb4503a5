"""--onnx: the network that a search starts from, the space `optimizer`, and what is refused before
anything starts.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from mnist_ray import data, hyperparameters, models, spaces
from mnist_ray.errors import SettingsError
from mnist_ray.export.session import Session
from mnist_ray.export.write import export
from mnist_ray.run.about import About, now
from mnist_ray.run.checkpoint import unpack
from mnist_ray.run.layout import START
from mnist_ray.run.publication import read_verified
from mnist_ray.search_job.plan import prepare
from mnist_ray.search_job.start import Start, read_start
from mnist_ray.settings import SearchSettings, resolved
from mnist_ray.storage import RunStorage
from mnist_ray.training.trainer import Trainer
from tests.support.runs import finish, search

DIGITS = spaces.DataShape(1, (28, 28), 10, (0.1578,), (0.2933,))
HP = {
    "model": "convnet",
    **DIGITS.hyperparameters(),
    "blocks": 2,
    "layers_per_block": 1,
    "width": 8,
    "kernel_size": 3,
    "activation": "gelu",
    "activation_position": "before_norm",
    "pooling": "avg",
    "pool_position": "end",
    "dropout": 0.1,
    "dropout_place": "head",
    "batch_size": 64,
    "optimizer": "sgd",
    "lr": 0.05,
    "schedule": "one_cycle",
    "momentum": 0.8,
    "ema": 0.9,
    "label_smoothing": 0.1,
    "l1": 1e-6,
    "augment": "shift",
}
SCRIPTS = {
    "a": {
        "batch_size": CategoricalDistribution((32, 64, 128, 256)),
        "lr": FloatDistribution(1e-6, 1e-3, log=True),
        "beta1": FloatDistribution(0.1, 0.99),
        "beta2": FloatDistribution(0.999, 0.999999),
        "eps": FloatDistribution(1e-10, 1e-6, log=True),
        "weight_decay": FloatDistribution(1e-8, 1e-1, log=True),
    },
    "b": {
        "batch_size": IntDistribution(32, 256),
        "lr": FloatDistribution(1e-5, 1e-2, log=True),
        "beta1": FloatDistribution(0.1, 0.99),
        "beta2": FloatDistribution(0.999, 0.999999),
        "eps": FloatDistribution(1e-10, 1e-6),
        "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network trained for an epoch, as an ONNX file."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    part = data.load("digits", "train")
    trainer = Trainer(HP, epochs=1, seed=0, precision="fp32")
    trainer.train_epoch(torch.tensor(part.images), torch.tensor(part.labels))
    path = tmp_path_factory.mktemp("start") / "model.onnx"
    path.write_bytes(export(trainer.eval_model(), HP, {"dataset": "digits"}))
    return path


def settings(model: Path | None, space: str = "optimizer") -> SearchSettings:
    return SearchSettings(space=space, onnx=str(model) if model else None, dataset="digits")


def read(given: SearchSettings, storage: RunStorage, resumed: About | None) -> Start | None:
    return read_start(given, spaces.find(given.space), storage, resumed)


def previous(sha256: str, storage: RunStorage) -> About:
    """A run that began with the file of that SHA-256."""
    images = {"name": "digits", "sha256": "0" * 64, "train": 1, "val": 1, "classes": ["0"]}
    facts = {
        "name": "s4",
        "state": "interrupted",
        "settings": resolved(settings(None)),
        "data": images,
    }
    return About.of(storage, {**facts, "start": now(), "onnx_sha256": sha256})


@pytest.mark.parametrize("script", ["a", "b"])
def test_ranges_are_the_documents(model: Path, tmp_path: Path, script: str) -> None:
    start = read(settings(model), RunStorage(str(tmp_path)), None)
    assert start is not None
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    hp = spaces.find("optimizer")(trial, DIGITS, start=start.hyperparameters, script=script)
    assert trial.distributions == SCRIPTS[script]
    # The network is the file's, how it is trained is not.
    network = {k: v for k, v in HP.items() if k not in hyperparameters.TRAINING}
    assert {k: hp[k] for k in network} == network
    assert set(hp) == {*network, *SCRIPTS[script], "optimizer"}
    group = Trainer(hp, epochs=1, seed=0).optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (
        hp["lr"],
        (hp["beta1"], hp["beta2"]),
        hp["eps"],
    )


def test_the_first_step_begins_with_the_files_predictions(model: Path, tmp_path: Path) -> None:
    start = read(settings(model), RunStorage(str(tmp_path)), None)
    assert start is not None
    trial = optuna.create_study().ask()
    hp = spaces.find("optimizer")(trial, DIGITS, start=start.hyperparameters)
    weights = {name: torch.from_numpy(array) for name, array in start.weights.items()}
    trainer = Trainer(hp, epochs=1, seed=7, precision="fp32", weights=weights)
    images = data.load("digits", "test").images
    session = Session(model.read_bytes(), "model")
    with torch.inference_mode():
        logits = trainer.eval_model()(torch.from_numpy(images).float() / 255).numpy()
    assert np.abs(session.logits(images) - logits).max() < 1e-4
    assert (session.logits(images).argmax(1) == logits.argmax(1)).all()


def test_a_resume_reads_the_copy_and_checks_it(model: Path, tmp_path: Path) -> None:
    storage, content = RunStorage(str(tmp_path)), model.read_bytes()
    resumed = previous(hashlib.sha256(content).hexdigest(), storage)
    storage.write_bytes(START, content)
    gone = settings(Path("/does/not/exist.onnx"))
    start = read(gone, storage, resumed)
    assert start is not None
    assert start.hyperparameters == HP
    storage.write_bytes(START, content[:-1] + b"x")
    with pytest.raises(
        SettingsError,
        match=r"--resume: .*start\.onnx is not the file that the run began with \(SHA-256 differs\)",  # noqa: E501
    ):
        read(gone, storage, resumed)
    # Killed before the copy was made: the file itself, if it is still the same.
    storage.delete(START)
    assert read(settings(model), storage, resumed) is not None
    with pytest.raises(SettingsError, match="SHA-256 differs"):
        read(settings(model), storage, previous("0", storage))


def test_what_is_refused(model: Path, tmp_path: Path) -> None:
    storage = RunStorage(str(tmp_path / "run"))
    half = tmp_path / "half.onnx"
    half.write_bytes(model.read_bytes()[:3000])
    for given, space, message in (
        (None, "optimizer", "--onnx: space 'optimizer' trains a trained network further"),
        (
            model,
            "mlp",
            "--onnx: space 'mlp' begins with random weights; expected --space optimizer",
        ),
        (tmp_path / "none.onnx", "optimizer", "--onnx: .*no model lies there"),
        (half, "optimizer", "--onnx: .*half.onnx is not an ONNX model or is damaged"),
    ):
        with pytest.raises(SettingsError, match=message) as caught:
            read(settings(given, space), storage, None)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            dataclasses.replace(DIGITS, classes=3),
            r"--onnx: its network has classes 10, but the data set has 3",
        ),
        (
            dataclasses.replace(DIGITS, image_size=(32, 32)),
            r"image_size \[28, 28\], but the data set has \[32, 32\]",
        ),
    ],
)
def test_a_network_for_other_images_is_refused(shape: spaces.DataShape, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        spaces.find("optimizer")(optuna.create_study().ask(), shape, start=HP)


def test_the_script_is_a_or_b() -> None:
    with pytest.raises(
        SettingsError, match="--space-args: script='c' is not allowed; expected a or b"
    ):
        spaces.find("optimizer")(optuna.create_study().ask(), DIGITS, start=HP, script="c")
    # The start is --onnx's to give.
    with pytest.raises(SettingsError, match="no option 'start'; it has script, normalize"):
        spaces.options(spaces.find("optimizer"), "optimizer", {"start": "x"})


def test_ours_normalise_by_themselves() -> None:
    with pytest.raises(
        SettingsError,
        match="--space-args: normalize=true is for ONNX files that are not of mnist_ray",
    ):
        spaces.find("optimizer")(optuna.create_study().ask(), DIGITS, start=HP, normalize=True)


def test_training_keys_are_all_that_a_network_does_not_need() -> None:
    torch.manual_seed(0)
    whole = models.build(HP).state_dict()
    torch.manual_seed(0)
    bare = models.build(
        {k: v for k, v in HP.items() if k not in hyperparameters.TRAINING}
    ).state_dict()
    assert all(torch.equal(whole[name], bare[name]) for name in whole)


@pytest.mark.slow
def test_from_a_model_to_a_better_one(
    ray_head: dict[str, str], model: Path, tmp_path: Path
) -> None:
    """The search from a file that is gone afterwards, its resume, and the fine-tuning, which begins
    with the search's best.
    """
    shutil.copy(model, tmp_path / "mine.onnx")
    common = ["--storage", str(tmp_path), "--name", "s4"]
    arguments = [
        "--space",
        "optimizer",
        "--space-args",
        "script=b",
        "--onnx",
        str(tmp_path / "mine.onnx"),
        "--dataset",
        "digits",
    ]
    code, output = finish(
        search(ray_head, *arguments, "--trials", "2", "--max-epochs", "2", "--no-finetune", *common)
    )
    assert code == 0, output
    run = json.loads((tmp_path / "s4" / "run.json").read_text())
    assert run["onnx_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert (tmp_path / "s4" / START).read_bytes() == model.read_bytes()
    os.remove(tmp_path / "mine.onnx")
    stage = (
        "{epochs: 1, batch_size: trial, lr: trial, weight_decay: trial, optimizer: trial, seed: 1}"
    )
    (tmp_path / "stages.yaml").write_text(f"stages:\n  - {stage}\n")
    more = ["--resume", "--trials", "3", "--finetune", "--stages", str(tmp_path / "stages.yaml")]
    code, output = finish(search(ray_head, *common, *more))
    assert code == 0, output
    manifest, _ = read_verified(RunStorage(str(tmp_path / "s4")))
    story = unpack((tmp_path / "s4" / "best" / "model.safetensors").read_bytes(), "best")[1]
    assert manifest["lineage"][0] == {
        **manifest["lineage"][0],
        "step": "search",
        "trial": story["number"],
    }
    assert manifest["lineage"][1]["lr"] == story["hyperparameters"]["lr"]
    assert manifest["test_accuracy"] > 0.8


def test_a_space_of_ones_own_gets_the_start_anew_each_time(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_start.py").write_text(
        "def space(trial, data, start):\n"
        "    trial.suggest_float('lr', 0.01, 0.1)\n"
        "    start['image_size'].append(1)\n"
        "    sides = start['image_size']\n"
        "    return start | {'image_size': sides[:2], 'n': len(sides)}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    given = dataclasses.replace(settings(model, "own_start:space"), storage=str(tmp_path))
    plan = prepare(given)
    trial = optuna.create_study().ask
    assert [plan.space(trial())["n"] for _ in range(2)] == [3, 3]
