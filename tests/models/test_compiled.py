"""The compiled layers of training against torch's: equal maxima, gradients rounded once."""

import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_ray.models import compiled, layers
from mnist_ray.training.trainer import Trainer

HP = {
    **{"model": "convnet", "in_channels": 1, "image_size": [8, 8], "classes": 3},
    **{"mean": [0.3], "std": [0.4], "blocks": 2, "layers_per_block": 1, "width": 4},
    **{"kernel_size": 3, "activation": "gelu", "activation_position": "after_norm"},
    **{"pooling": "blur", "pool_position": "end", "dropout": 0.1, "dropout_place": "head"},
    **{"batch_size": 8, "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0},
}
SIZES = [(2, 2), (3, 5), (7, 7), (14, 13)]
CHANNELS = [1, 3, 16, 33, 70]


@pytest.fixture
def library() -> None:
    if compiled.library() is None:
        pytest.skip("no C compiler: torch's own pooling is used")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The compiled functions that are called."""
    names: list[str] = []
    call = compiled._call

    def counted(function: str, *arguments: Any) -> None:
        names.append(function)
        call(function, *arguments)

    monkeypatch.setattr(compiled, "_call", counted)
    return names


@pytest.fixture
def without_a_library() -> Iterator[None]:
    compiled.library.cache_clear()
    yield
    compiled.library.cache_clear()


def nodes(y: Tensor) -> str:
    """The names of the graph's nodes that lead to `y`."""
    seen, left = "", [y.grad_fn]
    while left:
        node = left.pop()
        if node is not None:
            seen += type(node).__name__
            left += [each for each, _ in node.next_functions]
    return seen


def maps(channels: int, size: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Few values, so that many windows hold their largest more than once."""
    drawn = torch.randint(-3, 4, (5, channels, *size), generator=torch.manual_seed(seed))
    x = drawn.to(dtype).contiguous(memory_format=torch.channels_last)
    return x.requires_grad_()


def gradient(x: Tensor, y: Tensor, of_y: Tensor) -> Tensor:
    return torch.autograd.grad(y, x, of_y)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_maxima_and_places_are_torchs(
    channels: int, size: tuple[int, int], stride: int, dtype: torch.dtype, library: None
) -> None:
    x = maps(channels, size, dtype)
    expected, found = F.max_pool2d(x, 2, stride=stride), compiled.max_pool(x, stride)
    assert "_MaxPool" in str(found.grad_fn)
    assert torch.equal(found, expected)
    # Sums of few halves are exact in both types: equal gradients are equal places.
    of_y = torch.randint(-4, 5, expected.shape).to(dtype) / 2
    assert torch.equal(gradient(x, found, of_y), gradient(x, expected, of_y))


@pytest.mark.parametrize("stride", [1, 2])
def test_bf16_gradients_are_the_float32_ones_rounded_once(stride: int, library: None) -> None:
    x = torch.randn(4, 24, 9, 9).bfloat16().contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    exact = x.detach().float().requires_grad_()
    y = F.max_pool2d(exact, 2, stride=stride)
    of_y = torch.randn_like(y).bfloat16()
    expected = gradient(exact, y, of_y.float()).bfloat16()
    assert torch.equal(gradient(x, compiled.max_pool(x, stride), of_y), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinity_pass_as_in_torch(dtype: torch.dtype, library: None) -> None:
    x = maps(16, (8, 8), dtype).detach()
    for i, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        x[:, i::5, i::3, 1::2] = value
    for stride in (1, 2):
        found, expected = compiled.max_pool(x, stride), F.max_pool2d(x, 2, stride=stride)
        assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
        assert torch.equal(found.isnan(), expected.isnan())
    x.requires_grad_()
    of_y = torch.full_like(found, float("nan"))
    assert gradient(x, compiled.max_pool(x, 2), of_y).isnan().any()


def test_every_bfloat16_is_ordered_as_in_torch(library: None) -> None:
    bits = torch.arange(1 << 16).to(torch.int32) - (1 << 15)  # -0 and 0 among them
    values = bits.to(torch.int16).view(torch.bfloat16)
    values = values[~values.isnan()]
    mixed = torch.cat([values[torch.randperm(len(values))], torch.zeros(6), -torch.zeros(250)])
    drawn = mixed[torch.randint(len(mixed), (1, 64, 64, 64))]
    drawn[..., ::3, ::2] = drawn[..., ::3, ::2].sign() * 0  # ties of -0 and 0
    x = drawn.bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    for stride in (1, 2):
        found, expected = compiled.max_pool(x, stride), F.max_pool2d(x, 2, stride=stride)
        assert torch.equal(found, expected)
        ones = torch.ones_like(found)
        assert torch.equal(gradient(x, found, ones), gradient(x, expected, ones))


MEAN_SIZES = [(1, 1), (1, 2), (2, 3), (6, 7), (13, 12), (27, 27)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", MEAN_SIZES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_means_are_torchs_and_their_gradients_exact(
    channels: int, size: tuple[int, int], dtype: torch.dtype, library: None
) -> None:
    x = torch.randn(3, channels, *size).to(dtype).contiguous(memory_format=torch.channels_last)
    exact = x.double().requires_grad_()
    x.requires_grad_()
    y = F.avg_pool2d(exact, 3, stride=2, padding=1, count_include_pad=False)
    found = compiled.mean_pool(x)
    assert "_MeanPool" in nodes(found)
    pooled = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
    assert torch.equal(found, pooled)
    of_y = torch.randn_like(y).to(dtype)
    expected = gradient(exact, y, of_y.double()).to(dtype)
    torch.testing.assert_close(gradient(x, found, of_y), expected)


def test_threads_do_not_change_a_bit(library: None) -> None:
    x = torch.randn(7, 40, 11, 11).bfloat16().contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = compiled.mean_pool(compiled.max_pool(x, 1))
            found.append((y, gradient(x, y, y.detach())))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 5, 6, 6),  # channels first
        torch.randn(2, 5, 6, 6, dtype=torch.float64).to(memory_format=torch.channels_last),
    ],
)
def test_other_maps_go_to_torch(x: Tensor) -> None:
    y = compiled.max_pool(x.requires_grad_(), 2)
    assert "MaxPool2DWithIndices" in str(y.grad_fn)
    assert "AvgPool2D" in str(compiled.mean_pool(x).grad_fn)


def test_too_small_maps_are_refused_by_torch() -> None:
    with pytest.raises(RuntimeError, match="too small"):
        compiled.max_pool(torch.randn(1, 3, 1, 1), 2)


def _none(*_: Any, **__: Any) -> None:
    return None


def _fails(*_: Any, **__: Any) -> Any:
    raise subprocess.CalledProcessError(1, "cc")


@pytest.mark.parametrize(
    ("module", "name", "value"), [("shutil", "which", _none), ("subprocess", "run", _fails)]
)
def test_without_a_compiler_torch_pools(
    module: str,
    name: str,
    value: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_a_library: None,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(getattr(compiled, module), name, value)
    x = maps(4, (6, 6), torch.float32)
    assert "MaxPool2DWithIndices" in str(compiled.max_pool(x, 2).grad_fn)


@pytest.fixture
def cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_a_library: None
) -> Callable[[], bool]:
    """A cache of the test's own; a call loads the library and says whether it was compiled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runs: list[Any] = []
    run = subprocess.run

    def counted(*arguments: Any, **options: Any) -> Any:
        runs.append(arguments)
        return run(*arguments, **options)

    monkeypatch.setattr(subprocess, "run", counted)
    # A tenth of the time.
    quick = tuple("-O0" if flag == "-O3" else flag for flag in compiled.FLAGS)
    monkeypatch.setattr(compiled, "FLAGS", quick)

    def compiles() -> bool:
        compiled.library.cache_clear()
        runs.clear()
        if compiled.library() is None:
            pytest.skip("no C compiler")
        return bool(runs)

    return compiles


def test_it_is_compiled_once_for_all_processes(cache: Callable[[], bool], tmp_path: Path) -> None:
    assert cache()
    assert not cache()
    (kept,) = (tmp_path / "mnist_ray").iterdir()
    assert kept.stat().st_mode & 0o077 == 0


def test_another_processor_compiles_anew(
    cache: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache()
    monkeypatch.setattr(compiled, "_processor", lambda: b"another")
    assert cache()


def test_without_a_home_it_is_compiled_all_the_same(
    cache: Callable[[], bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where no home is known
    monkeypatch.chdir(tmp_path)
    assert cache()
    assert not list(tmp_path.iterdir())


def test_another_compiler_is_tried_when_one_fails(
    cache: Callable[[], bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fails = tmp_path / "cc"
    fails.write_text("#!/bin/sh\nexit 1\n")
    fails.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert cache()


@pytest.mark.parametrize("fault", ["cut off", "of others", "no folder"])
def test_a_kept_library_that_cannot_be_trusted_is_not_loaded(
    fault: str, cache: Callable[[], bool], tmp_path: Path
) -> None:
    assert cache()
    (kept,) = (tmp_path / "mnist_ray").iterdir()
    if fault == "cut off":
        content = kept.read_bytes()
        kept.unlink()  # the one that is loaded keeps its own
        kept.write_bytes(content[:1000])
        kept.chmod(0o700)
    elif fault == "of others":
        kept.chmod(0o777)
    else:
        shutil.rmtree(kept.parent)
        kept.parent.write_text("")
    assert cache()
    x = maps(4, (6, 6), torch.float32)
    assert "_MaxPool" in nodes(compiled.max_pool(x, 2))


@pytest.mark.parametrize("layer", [compiled.MaxPool2d(), layers.BlurPool(), layers.BlurPool(1)])
def test_a_layer_uses_it_in_training_alone(layer: nn.Module, library: None) -> None:
    x = maps(4, (6, 6), torch.float32)
    assert "_MaxPool" in nodes(layer.train()(x))
    assert "_MaxPool" not in nodes(layer.eval()(x))  # an export sees torch's operators


# ---- batch normalisation and activation

ACTIVATIONS = [nn.ReLU(), nn.LeakyReLU(), nn.GELU(), nn.SiLU()]
MAPS = [(2, 1, 1, 1), (3, 5, 2, 3), (4, 16, 5, 5), (5, 33, 16, 16), (2, 70, 1, 7)]


def trained(
    x: Tensor, activation: nn.Module, of_y: Tensor, function: Callable[..., Tensor]
) -> dict[str, Tensor]:
    """Everything that a step reads or writes, by a normalisation that is not a new one's."""
    norm = nn.BatchNorm2d(x.shape[1], dtype=torch.float64 if x.dtype == torch.float64 else None)
    values = torch.linspace(-1.5, 2, x.shape[1])
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.copy_(values)
    x = x.detach().requires_grad_()
    y = function(x, norm, activation)
    y.backward(of_y.to(y.dtype))
    found = {"y": y, "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    found |= {"mean": norm.running_mean, "variance": norm.running_var}
    assert norm.num_batches_tracked == 1
    return {name: tensor.detach() for name, tensor in found.items() if tensor is not None}


def by_torch(x: Tensor, norm: nn.Module, activation: nn.Module) -> Tensor:
    return cast(Tensor, activation(norm(x)))


def drawn(shape: tuple[int, ...], seed: int = 0, shift: float = 0.3, scale: float = 2) -> Tensor:
    x = torch.randn(shape, generator=torch.manual_seed(seed)) * scale + shift
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", MAPS)
def test_a_step_is_that_of_exact_arithmetic(
    shape: tuple[int, ...], activation: nn.Module, library: None
) -> None:
    x, of_y = drawn(shape), drawn(shape, seed=1)
    exact = trained(x.double(), activation, of_y, by_torch)
    found = trained(x, activation, of_y, compiled.norm_activation)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), exact[name], rtol=2e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_in_bf16_it_is_nearer_to_exact_arithmetic_than_torch(
    activation: nn.Module, library: None
) -> None:
    shape = (8, 48, 9, 9)
    x, of_y = drawn(shape).bfloat16(), drawn(shape, seed=1).bfloat16()
    exact = trained(x.double(), activation, of_y, by_torch)
    torchs = trained(x, activation, of_y, by_torch)
    found = trained(x, activation, of_y, compiled.norm_activation)
    for name in ("y", "x"):
        error, allowed = ((each[name] - exact[name]).abs().mean() for each in (found, torchs))
        assert error <= 1.1 * allowed, name
    for name in ("weight", "bias", "mean", "variance"):
        torch.testing.assert_close(found[name].double(), exact[name], rtol=2e-5, atol=1e-4)


def test_a_mean_far_from_zero_does_not_cancel_the_variance(library: None) -> None:
    x = drawn((6, 8, 11, 11), shift=1000, scale=1)
    exact = trained(x.double(), nn.ReLU(), x, by_torch)
    found = trained(x, nn.ReLU(), x, compiled.norm_activation)
    torch.testing.assert_close(found["variance"].double(), exact["variance"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_threads_do_not_change_a_step(activation: nn.Module, library: None) -> None:
    x, of_y = drawn((9, 40, 12, 12)).bfloat16(), drawn((9, 40, 12, 12), seed=1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(trained(x, activation, of_y, compiled.norm_activation))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0][k], other[k]) for other in found for k in other)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_values_and_nan_are_as_in_torch(activation: nn.Module, library: None) -> None:
    values = torch.tensor([-1e4, -90, -10, -3, -0.0, 0.0, 1e-30, 3, 10, 90, 1e4, -200]).view(
        12, 1, 1, 1
    )
    norm = nn.BatchNorm2d(1)
    x = values.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        compiled.norm_activation(x, norm, activation), by_torch(x, norm, activation)
    )
    x = x.clone()
    x[3] = float("nan")
    assert compiled.norm_activation(x, norm, activation).isnan().all()


def test_layers_train_them_in_one_and_evaluate_them_as_torch(library: None) -> None:
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.BatchNorm2d(8), nn.Sigmoid()]
    layers_, plain = compiled.Layers(*parts), nn.Sequential(*parts)
    layers_.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert layers_.state_dict().keys() == plain.state_dict().keys()
    x = drawn((4, 1, 8, 8))
    assert "_NormActivation" in nodes(layers_(x))
    torch.testing.assert_close(layers_(x), plain(x))
    layers_.eval()
    assert "_NormActivation" not in nodes(layers_(x))
    assert torch.equal(layers_(x), plain(x))


@pytest.mark.parametrize("pooling", ["max", "blur"])
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "gelu", "silu"])
def test_an_evaluation_is_torchs(name: str, pooling: str, library: None, called: list[str]) -> None:
    hp = {**HP, "activation": name, "pooling": pooling, "pool_jitter": int(pooling == "blur")}
    trainer = Trainer(hp, epochs=2, seed=0, precision="fp32")
    images, labels = torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8), torch.arange(300) % 3
    trainer.train_epoch(images, labels)
    called.clear()
    found: list[Tensor] = []
    trainer.evaluate(images, labels, torch.arange(300), found)
    assert {f"scaled_{name}", "max_pool"} <= set(called)
    with torch.inference_mode():
        expected = trainer.eval_model()(images.float() / 255)
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=1e-5)


def test_only_an_evaluation_leaves_hooks_out(library: None) -> None:
    layers_ = compiled.Layers(nn.BatchNorm2d(4), nn.ReLU()).eval()
    seen: list[nn.Module] = []
    layers_[0].register_forward_hook(lambda module, *_: seen.append(module))
    with torch.inference_mode():
        layers_(drawn((2, 4, 3, 3)))
    assert len(seen) == 1
    with compiled.evaluating():
        layers_(drawn((2, 4, 3, 3)))
    assert len(seen) == 1


def test_another_slope_is_left_to_torch(library: None) -> None:
    norm, x = nn.BatchNorm2d(4), drawn((2, 4, 3, 3))
    assert compiled.together(norm, nn.LeakyReLU(), x)
    assert not compiled.together(norm, nn.LeakyReLU(0.2), x)


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, momentum=None),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.BatchNorm2d(4).bfloat16(),
        nn.BatchNorm2d(4).double(),
        nn.BatchNorm2d(3),
    ],
)
def test_a_normalisation_of_another_kind_is_left_to_torch(
    norm: nn.BatchNorm2d, library: None
) -> None:
    assert not compiled.together(norm, nn.ReLU(), drawn((2, 4, 3, 3)))


def test_another_gelu_is_left_to_torch(library: None) -> None:
    assert not compiled.together(nn.BatchNorm2d(4), nn.GELU("tanh"), drawn((2, 4, 3, 3)))


def test_torchs_defaults_of_type_and_device_change_nothing(library: None) -> None:
    x, of_y = drawn((4, 8, 5, 5)), drawn((4, 8, 5, 5), seed=1)
    expected = trained(x, nn.ReLU(), of_y, compiled.norm_activation)
    norm = nn.BatchNorm2d(8)
    torch.set_default_dtype(torch.float64)
    try:
        y = compiled.norm_activation(x.requires_grad_(), norm, nn.ReLU())
        y.backward(of_y)
    finally:
        torch.set_default_dtype(torch.float32)
    assert norm.bias.grad is not None
    assert norm.bias.grad.abs().max() < 1e4
    assert expected["y"].dtype == y.dtype


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_sees_torchs_operators(library: None) -> None:
    network = compiled.Layers(nn.BatchNorm2d(8), nn.ReLU(), compiled.MaxPool2d())
    traced = torch.jit.trace(network, drawn((2, 8, 4, 4)), check_trace=False)
    assert "max_pool2d" in str(traced.inlined_graph)


def test_a_single_value_a_channel_is_refused_by_torch(library: None) -> None:
    network = compiled.Layers(nn.BatchNorm2d(3), nn.ReLU())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(torch.ones(1, 3, 1, 1))


def test_a_training_uses_both(library: None, called: list[str]) -> None:
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)
    row = Trainer(HP, epochs=1, seed=0).train_epoch(images, torch.arange(16) % 3)
    assert math.isfinite(row["train_loss"])
    forward = {"max_pool", "mean_pool", "norm_gelu"}
    assert set(called) == forward | {f"{name}_gradient" for name in forward}
