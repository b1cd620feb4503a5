"""A run whose chain was trained for real, and its page."""

import optuna
import pytest
import torch

from mnist_ray import data, report
from mnist_ray.finetune_job.chain import run_chain
from mnist_ray.finetune_job.recipe import ChainTask, Recipe, Stage
from mnist_ray.report.read import read_run
from mnist_ray.run.publication import Manifest
from mnist_ray.storage import RunStorage
from mnist_ray.training.trainer import Trainer
from tests.support.report_runs import write_run


@pytest.fixture(autouse=True)
def calm() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunStorage:
    """A run on digits whose chain was trained for real, but briefly: it gives wrong answers."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    storage = write_run(tmp_path_factory.mktemp("runs") / "first")
    winner = read_run(storage).best
    assert winner is not None
    train, test = data.load("digits", "train"), data.load("digits", "test")
    split = data.Split(train, *data.split(train.labels, val_images=215, seed=0), "class")
    hp = {
        "model": "convnet",
        "in_channels": 1,
        "image_size": [28, 28],
        "classes": 10,
        "mean": list(train.mean),
        "std": list(train.std),
        "blocks": 2,
        "layers_per_block": 1,
        "width": 4,
        "kernel_size": 5,
        "activation": "relu",
        "activation_position": "after_norm",
        "pooling": "max",
        "pool_position": "end",
        "dropout": 0.1 + 0.2,
        "dropout_place": "head",
        "batch_size": 64,
        "optimizer": "sgd",
        "lr": 0.02,
    }
    trainer = Trainer(hp, epochs=1, seed=0)
    storage.write_bytes(
        "best/model.safetensors", trainer.weights_bytes({"number": winner["number"], "row": winner})
    )
    stages = tuple(
        Stage(epochs, 64, lr, 0.0, "sgd", seed=1) for epochs, lr in ((2, 0.02), (1, 0.005))
    )
    recipe = Recipe("short", "best", "train", stages)
    task = ChainTask(
        uri=storage.uri,
        run="first",
        dataset="digits",
        recipe=recipe,
        committee=1,
        onnx=None,
        network=None,
        precision="fp32",
    )
    *_, manifest = run_chain(task, split, test)
    assert isinstance(manifest, Manifest)
    return storage


@pytest.fixture(scope="session")
def page(finished: RunStorage) -> str:
    return report.build([finished])
