"""Schedules and the refusal of unknown optimisers."""

import pytest
import torch

from mnist_ray.errors import SettingsError
from mnist_ray.training.optimizers import SCHEDULES, Muon, one_cycle, orthogonal
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


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (64, 4, 3, 3), (32, 1, 3, 3)])
def test_an_orthogonal_kernel_has_equal_singular_values(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(shape).to(memory_format=torch.channels_last)
    found = torch.linalg.svdvals(orthogonal(kernel).flatten(1))
    rows, columns = shape[0], shape[1] * shape[2] * shape[3]
    found /= max(1, rows / columns) ** 0.5
    assert 0.6 < found.min() < found.max() < 1.3
    # It points as the kernel does.
    assert (orthogonal(kernel) * kernel).sum() > 0.5 * kernel.norm() * orthogonal(kernel).norm()


def test_muon_moves_kernels_orthogonally_and_the_rest_as_sgd_does() -> None:
    torch.manual_seed(0)
    kernel, bias = (torch.nn.Parameter(torch.randn(shape)) for shape in ((8, 4, 3, 3), (8,)))
    other = torch.nn.Parameter(bias.detach().clone())
    muon = Muon([kernel, bias], lr=0.1, momentum=0.9, weight_decay=0.01)
    sgd = torch.optim.SGD([other], lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    for _ in range(3):
        before, kernel.grad = kernel.detach().clone(), torch.randn(kernel.shape)
        bias.grad = torch.randn(8)
        other.grad = bias.grad.clone()
        muon.orthogonalize()
        muon.step()
        sgd.step()
        step = torch.linalg.svdvals((before * (1 - 0.1 * 0.01) - kernel.detach()).flatten(1))
        assert 0.05 < step.min() < step.max() < 0.14
    torch.testing.assert_close(bias, other)
