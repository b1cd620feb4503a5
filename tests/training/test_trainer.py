"""Training: resumption to the bit, the average, evaluation, and that it learns."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from mnist_ray.errors import SettingsError
from mnist_ray.run import checkpoint
from mnist_ray.training.trainer import Trainer, epoch_seed, layout_of, load_network
from tests.support import PROGRAMS
from tests.support.networks import TRAINED as HP

Quarters = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def quarters() -> Quarters:
    """Images whose bright quarter is their class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (400,), generator=generator)
    images = torch.randint(0, 120, (400, 1, 12, 12), generator=generator, dtype=torch.uint8)
    for i, label in enumerate(labels.tolist()):
        y, x = 6 * (label // 2), 6 * (label % 2)
        images[i, :, y : y + 6, x : x + 6] += 100
    return images, labels


TRAIN, VAL = torch.arange(300), torch.arange(300, 400)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_learns(quarters: Quarters, optimizer: str, precision: str) -> None:
    hp = {**HP, "optimizer": optimizer, "lr": 0.1 if optimizer == "sgd" else 0.005}
    trainer = Trainer(hp, epochs=4, seed=0, precision=precision)
    for _ in range(4):
        row = trainer.run_epoch(*quarters, TRAIN, VAL)
    assert row["val_accuracy"] > 0.9
    assert row["epoch"] == 4
    assert row["images_per_second"] > 0


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop", "muon"])
def test_goes_on_to_the_bit(quarters: Quarters, optimizer: str) -> None:
    hp = {**HP, "optimizer": optimizer, "lr": 0.01}
    undisturbed = Trainer(hp, epochs=3, seed=5, precision="bf16")
    for _ in range(3):
        undisturbed.run_epoch(*quarters, TRAIN, VAL)
    first = Trainer(hp, epochs=3, seed=5, precision="bf16")
    first.run_epoch(*quarters, TRAIN, VAL)
    second = Trainer(hp, epochs=3, seed=5, precision="bf16")
    assert second.load_state(first.state_bytes({"note": 1}), "x")["note"] == 1
    assert second.rows == first.rows
    for _ in range(2):
        second.run_epoch(*quarters, TRAIN, VAL)
    assert second.weights_bytes({}) == undisturbed.weights_bytes({})


def test_the_seed_decides(quarters: Quarters) -> None:
    def weights(seed: int) -> bytes:
        trainer = Trainer(HP, epochs=1, seed=seed)
        trainer.train_epoch(*quarters, TRAIN)
        return trainer.weights_bytes({})

    assert weights(1) == weights(1)
    assert weights(1) != weights(2)


def test_the_average_is_what_is_evaluated_and_kept(quarters: Quarters) -> None:
    trainer = Trainer(HP, epochs=2, seed=0)
    trainer.run_epoch(*quarters, TRAIN, VAL)
    network, story = load_network(trainer.weights_bytes({"a": 1}), "x")
    assert story["hyperparameters"] == HP
    images = quarters[0][VAL].float() / 255
    with torch.inference_mode():
        # Layouts differ in memory, so sums are taken in another order.
        assert torch.allclose(network(images), trainer.eval_model()(images), atol=1e-4)
        assert not torch.allclose(network(images), trainer.model.eval()(images), atol=1e-2)


def test_a_file_does_not_choose_what_code_runs(tmp_path) -> None:  # type: ignore[no-untyped-def]
    hostile = {"touch": 0, str(tmp_path / "executed"): 0, "model": "subprocess:Popen"}
    data = checkpoint.pack({}, {"hyperparameters": hostile})
    with pytest.raises(SettingsError, match="--network"):
        load_network(data, "best/model.safetensors")
    assert not (tmp_path / "executed").exists()


def deepening(hp: dict[str, Any]) -> nn.Module:
    """A network of a person's own, which changes its dict."""
    sizes = hp["layers"]
    sizes.insert(0, hp.pop("in_channels") * 12 * 12)
    sizes.append(hp["classes"])
    pairs = itertools.pairwise(sizes)
    return nn.Sequential(nn.Flatten(), *(nn.Linear(a, b) for a, b in pairs))


def test_ones_own_network_may_change_its_dict(quarters: Quarters) -> None:
    """The dict is built from again, and written to files."""
    hp = {**HP, "model": f"{__name__}:deepening", "layers": [8], "ema": 0.9}
    trainer = Trainer(hp, epochs=1, seed=0)
    trainer.run_epoch(*quarters, TRAIN, VAL)
    assert trainer.hp["layers"] == hp["layers"] == [8]
    assert trainer.hp["in_channels"] == 1
    network, metadata = load_network(trainer.weights_bytes({}), "best", str(hp["model"]))
    assert len(network) == 3  # type: ignore[arg-type]
    assert metadata["hyperparameters"]["layers"] == [8]


def test_without_an_average_the_weights_are_the_networks(quarters: Quarters) -> None:
    trainer = Trainer({**HP, "ema": 0}, epochs=1, seed=0)
    trainer.train_epoch(*quarters)
    assert all(torch.equal(v, trainer.model.state_dict()[k]) for k, v in trainer.weights().items())


@pytest.mark.parametrize(
    ("network", "layout"),
    [
        ("Flattened", torch.channels_last),
        ("OldExample", torch.contiguous_format),
        ("TrainedByView", torch.contiguous_format),
        ("Conv3d", torch.contiguous_format),
        ("Failing", torch.contiguous_format),
    ],
)
def test_ones_own_network_has_the_quickest_layout_that_it_takes(
    network: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PROGRAMS))
    hp = {**HP, "model": f"odd_networks:{network}", "image_size": (28, 28), "classes": 10}
    state = torch.random.get_rng_state()
    assert layout_of(hp) == layout
    assert torch.equal(torch.random.get_rng_state(), state)


def test_ones_own_network_learns_the_same_in_either_layout(
    quarters: Quarters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PROGRAMS))
    hp = {**HP, "model": "odd_networks:Flattened", "image_size": (28, 28), "classes": 10}
    images, labels = torch.nn.functional.pad(quarters[0], (8,) * 4), quarters[1]
    losses = []
    for layout in (torch.channels_last, torch.contiguous_format):
        monkeypatch.setattr(f"{Trainer.__module__}.layout_of", lambda _, found=layout: found)
        row = Trainer(hp, epochs=1, seed=0, precision="fp32").run_epoch(images, labels, TRAIN, VAL)
        losses.append((row["train_loss"], row["val_loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("ema", [0, 0.9])
def test_tied_weights_are_kept_and_stay_tied(
    quarters: Quarters, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    monkeypatch.syspath_prepend(str(PROGRAMS))
    images, labels = torch.nn.functional.pad(quarters[0], (8,) * 4), quarters[1]
    odd = {"model": "odd_networks:Tied", "image_size": (28, 28), "classes": 10, "ema": ema}
    first, second = (Trainer({**HP, **odd}, epochs=2, seed=0, precision="fp32") for _ in range(2))
    first.run_epoch(images, labels, TRAIN, VAL)
    second.load_state(first.state_bytes({}), "x")
    for trainer in (first, second):
        trainer.run_epoch(images, labels, TRAIN, VAL)
        model: Any = trainer.model
        assert model.one.weight is model.two.weight
    assert second.weights_bytes({}) == first.weights_bytes({})
    network: Any = load_network(first.weights_bytes({}), "x", own="odd_networks:Tied")[0]
    average: Any = first.eval_model()
    assert network.one.weight is network.two.weight
    assert torch.equal(network.one.weight, average.one.weight)


def test_l1_shrinks_the_weights(quarters: Quarters) -> None:
    def size(l1: float) -> float:
        trainer = Trainer({**HP, "l1": l1, "ema": 0}, epochs=2, seed=0)
        for _ in range(2):
            trainer.train_epoch(*quarters, TRAIN)
        return sum(p.abs().sum().item() for p in trainer.model.parameters())

    assert size(1e-2) < 0.8 * size(0.0)


def test_evaluation_counts_every_image_once(quarters: Quarters) -> None:
    trainer = Trainer(HP, epochs=1, seed=0, precision="fp32")
    index = torch.arange(4)
    images, labels = quarters
    with torch.inference_mode():
        logits = trainer.eval_model()(images[:4].float() / 255)
    loss, accuracy = trainer.evaluate(images, labels, index)
    assert loss == pytest.approx(
        torch.nn.functional.cross_entropy(logits, labels[:4]).item(), rel=1e-4
    )
    assert accuracy == (logits.argmax(1) == labels[:4]).float().mean().item()


def test_neighbouring_seeds_and_epochs_differ() -> None:
    seeds = {epoch_seed(seed, epoch) for seed in range(20) for epoch in range(20)}
    assert len(seeds) == 400
    assert all(0 <= s < 2**63 for s in seeds)


def test_a_diverging_network_shows_it(quarters: Quarters) -> None:
    trainer = Trainer({**HP, "lr": 1e30, "schedule": "constant"}, epochs=1, seed=0)
    row = trainer.run_epoch(*quarters, TRAIN, VAL)
    assert not math.isfinite(row["train_loss"]) or not math.isfinite(row["val_loss"])
