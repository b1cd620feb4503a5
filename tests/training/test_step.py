"""A step as a CUDA graph trains as the step itself does. Most of it needs a GPU."""

import functools
import gc
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from mnist_ray import hyperparameters
from mnist_ray.training import step as step_module
from mnist_ray.training.augment import AUGMENTATIONS
from mnist_ray.training.trainer import Trainer
from tests.support import ROOT
from tests.support.networks import TRAINED as HP

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
OPTIMIZERS = ["sgd", "adam", "adamw", "rmsprop", "muon"]


def images(device: str) -> tuple[Tensor, Tensor]:
    """Images whose bright half is their class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (256,), generator=generator)
    pixels = torch.randint(0, 120, (256, 1, 12, 12), generator=generator, dtype=torch.uint8)
    for i, label in enumerate(labels.tolist()):
        pixels[i, :, 6 * label : 6 * label + 6] += 100
    return pixels.to(device), labels.to(device)


def trainer_of(graphs: bool = True, device: str = "cuda", **change: Any) -> Trainer:
    """Three epochs of a small network."""
    made = Trainer({**HP, "lr": 0.01, **change}, epochs=3, seed=5, device=device)
    made.step.graphs &= graphs
    return made


def test_no_graphs_on_a_cpu() -> None:
    assert not trainer_of(device="cpu").step.graphs


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
def test_a_trainer_that_is_dropped_frees_its_memory_at_once(device: str) -> None:
    """Not at some later garbage collection: the next trial's network comes at once."""
    trainer = trainer_of(device=device, optimizer="muon", ema=0.9)
    trainer.train_epoch(*images(device))
    model = weakref.ref(trainer.model)
    gc.disable()
    try:
        del trainer
        assert model() is None
    finally:
        gc.enable()


OWN_AUGMENTATION = "tests.training.test_step:never_called"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"augment": "affine:degrees=5"}, True),
        ({"augment": OWN_AUGMENTATION}, False),
        ({"model": "mine:network"}, False),
        ({"model": "foreign"}, False),  # onnx2torch's operators wait for the GPU
    ],
    ids=str,
)
def test_which_steps_a_graph_may_hold(change: dict[str, str], expected: bool) -> None:
    training = hyperparameters.training({**HP, **change})
    assert step_module.repeatable(training) == expected


@on_gpu
def test_no_graphs_of_a_persons_own_code() -> None:
    assert trainer_of(augment="affine:degrees=5").step.graphs
    assert not trainer_of(augment=OWN_AUGMENTATION).step.graphs


def never_called(batch: Tensor) -> Tensor:
    """A person's own augmentation."""
    raise AssertionError


@on_gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_graph_trains_as_the_step_does(optimizer: str) -> None:
    plain = functools.partial(trainer_of, optimizer=optimizer, dropout=0, pool_jitter=0)
    data, with_graphs, without = images("cuda"), plain(), plain(graphs=False)
    for _ in range(3):
        row, other = with_graphs.train_epoch(*data), without.train_epoch(*data)
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=0.02)
    assert row["train_accuracy"] > 0.9
    assert with_graphs.step._captured is not None


@on_gpu
@pytest.mark.parametrize(
    ("optimizer", "augment"),
    [
        *((optimizer, "affine") for optimizer in OPTIMIZERS),
        *(("sgd", augment) for augment in AUGMENTATIONS if augment != "affine"),
    ],
)
def test_goes_on_as_if_uninterrupted(optimizer: str, augment: str) -> None:
    random = functools.partial(trainer_of, optimizer=optimizer, dropout=0.2, augment=augment)
    data, undisturbed, first, second = images("cuda"), *(random(ema=0.9) for _ in range(3))
    for _ in range(3):
        undisturbed.train_epoch(*data)
    first.train_epoch(*data)
    second.load_state(first.state_bytes({}), "x")
    for _ in range(2):
        second.train_epoch(*data)
    for name, tensor in undisturbed.weights().items():
        torch.testing.assert_close(second.weights()[name], tensor, rtol=0.02, atol=0.005)


@on_gpu
def test_the_capture_changes_nothing() -> None:
    trainer = trainer_of(optimizer="muon", dropout=0.2)
    data = images("cuda")
    trainer.train_epoch(*data)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    momenta = [t.clone() for t in step_module._tensors(trainer.optimizer)]
    trainer.step.forget()
    trainer.step.of(*data, None, 64, trainer.precision)
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    for now, then in zip(step_module._tensors(trainer.optimizer), momenta, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0)


@on_gpu
def test_each_replay_draws_anew() -> None:
    trainer = trainer_of(optimizer="sgd", dropout=0.5, augment="affine")
    backward = trainer.step.of(*images("cuda"), None, 64, "bf16")
    chosen = torch.arange(64, device="cuda")
    losses = set()
    for _ in range(4):
        losses.add(backward(chosen)[0].item())
    assert len(losses) == 4
    again = []
    for _ in range(2):
        torch.manual_seed(3)
        again.append(backward(chosen)[0].item())
    assert again[0] == pytest.approx(again[1], rel=1e-3)


@on_gpu
def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(step_module.SWITCH, "0")
    assert not trainer_of().step.graphs


@on_gpu
def test_what_cannot_be_captured_says_so() -> None:
    """In a process of its own: the failed capture leaves CUDA's random numbers unusable."""
    program = (
        "from tests.training.test_step import *\n"
        "trainer = trainer_of(optimizer='sgd')\n"
        "trainer.step.change = lambda batch: batch + int(batch.sum().item() * 0)\n"
        "trainer.train_epoch(*images('cuda'))\n"
    )
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert "CaptureError: a step cannot be captured as a CUDA graph" in out.stderr
    assert f"{step_module.SWITCH}=0" in out.stderr
