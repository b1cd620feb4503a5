"""Schedules and the refusal of unknown optimisers."""

import pytest

from mnist_ray.errors import SettingsError
from mnist_ray.training.optimizers import SCHEDULES, one_cycle
from mnist_ray.training.trainer import Trainer
from tests.support.networks import TRAINED as HP


@pytest.mark.parametrize("name", ["cosine", "one_cycle", "linear"])
def test_schedules_end_at_zero_and_never_exceed_one(name: str) -> None:
    values = [SCHEDULES[name](i / 1000) for i in range(1001)]
    assert values[-1] == pytest.approx(0, abs=1e-9)
    assert max(values) == pytest.approx(1)
    assert min(values) >= -1e-12


def test_one_cycle_warms_up_for_a_quarter() -> None:
    assert one_cycle(0) == pytest.approx(1 / 25)
    assert one_cycle(0.25) == pytest.approx(1)


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(SettingsError, match="optimizer is 'adamax': expected one of adam, adamw"):
        Trainer({**HP, "optimizer": "adamax"}, epochs=1, seed=0)
