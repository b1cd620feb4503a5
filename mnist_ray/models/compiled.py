"""What a training on the CPU does between its convolutions, in fewer passes over memory.

`compiled.c` has maximum pooling, and batch normalisation with the activation behind it. It is
compiled for this processor when it is first needed, which takes a second, and kept in the user's
cache. Without a C compiler, on a GPU, and in evaluation, torch's own operators are used; they are
the reference of its tests.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".c")
TYPES = {torch.float32: "float", torch.bfloat16: "bf16"}
ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
}
SLOPE = 0.01  # of LeakyReLU, as in compiled.c
MOST_CHANNELS = 16_384  # some 32 bytes a channel lie on a thread's stack
BLOCK = 256  # rows; as in compiled.c
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
SECONDS = 60.0  # for the compiler
DIGEST = hashlib.sha256().digest_size  # bytes, behind a kept library


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, loaded once a process; None where they cannot be had."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    try:
        loaded = _loaded(compiler)
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("compiled.c: %s", error)
        return None
    pointer, number, real = ctypes.c_void_p, ctypes.c_long, ctypes.c_double
    for kind in TYPES.values():
        signatures: dict[str, list[type]] = {f"max_pool_{kind}": [pointer] * 3 + [number] * 6}
        signatures[f"max_pool_gradient_{kind}"] = [pointer] * 3 + [number] * 6
        signatures[f"mean_pool_{kind}"] = [pointer] * 2 + [number] * 5
        signatures[f"mean_pool_gradient_{kind}"] = [pointer] * 2 + [number] * 5
        for name in ACTIVATIONS.values():
            signatures[f"norm_{name}_{kind}"] = [pointer] * 8 + [number] * 3 + [real] * 2
            signatures[f"norm_{name}_gradient_{kind}"] = [pointer] * 7 + [number] * 3
        for function, types in signatures.items():
            getattr(loaded, function).argtypes = types
            getattr(loaded, function).restype = None
    return loaded


def _loaded(compiler: str) -> ctypes.CDLL:
    """From the user's cache if this source, compiler and processor made it, else compiled."""
    command = [compiler, *FLAGS, str(SOURCE), "-o"]
    about = os.stat(compiler)
    made_by = f"{command} {about.st_size} {about.st_mtime_ns}".encode()
    parts = b"|".join((SOURCE.read_bytes(), made_by, _processor()))
    name = f"compiled-{hashlib.sha256(parts).hexdigest()[:16]}.so"
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mnist_ray", name)
    with contextlib.suppress(OSError):  # none there
        about = kept.stat()
        content, checksum = kept.read_bytes()[:-DIGEST], kept.read_bytes()[-DIGEST:]
        owned = about.st_uid == os.getuid() and not about.st_mode & 0o022
        # A library that is cut off ends the process that loads it.
        if owned and hashlib.sha256(content).digest() == checksum:
            return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory(prefix="mnist_ray-") as folder:
        made = Path(folder, name)
        subprocess.run(
            [*command, str(made), "-lm"], check=True, capture_output=True, timeout=SECONDS
        )
        with contextlib.suppress(OSError):
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            content = made.read_bytes()
            written = kept.with_suffix(f".{os.getpid()}")
            written.write_bytes(content + hashlib.sha256(content).digest())
            written.chmod(0o700)
            written.replace(kept)
        return ctypes.CDLL(str(made))  # stays when its file has gone


def _processor() -> bytes:
    """What `-march=native` depends on: machines that share a home may differ."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
        named = (b"model name", b"flags", b"Features", b"CPU part")
        return b"|".join(sorted({line for line in lines if line.startswith(named)}))
    return platform.processor().encode()


def fits(x: Tensor) -> bool:
    """Whether the compiled functions take these maps: floats on the CPU with channels last."""
    return (
        x.device.type == "cpu"
        and x.dtype in TYPES
        and x.dim() == 4
        and 0 < x.shape[1] <= MOST_CHANNELS
        and x.is_contiguous(memory_format=torch.channels_last)
        and library() is not None
    )


def _call(function: str, kind: torch.dtype, *arguments: Tensor | float) -> None:
    call = getattr(library(), f"{function}_{TYPES[kind]}")
    call(*(each.data_ptr() if isinstance(each, Tensor) else each for each in arguments))


def _maps(shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=kind, memory_format=torch.channels_last)


# ---- maximum pooling


def max_pool(x: Tensor, stride: int) -> Tensor:
    """`F.max_pool2d(x, 2, stride)` for training.

    Args:
        x: Float [batch, C, H, W].
        stride: 1 or 2.

    Returns:
        [batch, C, (H - 2) // stride + 1, (W - 2) // stride + 1], equal to torch's. Gradients are
        summed in float32 and rounded once, where torch rounds each sum.
    """
    if min(x.shape[2:]) < 2 or not fits(x):
        return F.max_pool2d(x, 2, stride=stride)
    return _MaxPool.apply(x, stride)  # type: ignore[no-any-return]


class MaxPool2d(nn.MaxPool2d):
    """Windows of 2 x 2, side by side."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, input: Tensor) -> Tensor:
        """Float [batch, C, H, W] -> [batch, C, H // 2, W // 2]."""
        return max_pool(input, 2) if self.training else super().forward(input)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> Tensor:
        n, channels, height, width = x.shape
        pooled = (n, channels, (height - 2) // stride + 1, (width - 2) // stride + 1)
        y, place = _maps(pooled, x.dtype), _maps(pooled, torch.uint8)
        ctx.shape, ctx.sizes = x.shape, (n, height, width, channels, stride)
        _call("max_pool", x.dtype, x, y, place, *ctx.sizes, torch.get_num_threads())
        ctx.save_for_backward(place)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        result = _maps(ctx.shape, gradient.dtype)
        operands = (gradient, place, result)
        _call("max_pool_gradient", result.dtype, *operands, *ctx.sizes, torch.get_num_threads())
        return result, None


def mean_pool(x: Tensor) -> Tensor:
    """The mean of 3 x 3 places with stride 2, for training; places beyond the edge do not count.

    Args:
        x: Float [batch, C, H, W].

    Returns:
        [batch, C, (H + 1) // 2, (W + 1) // 2]. Sums are taken in float32.
    """
    if not fits(x):
        return F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
    return _MeanPool.apply(x)  # type: ignore[no-any-return]


class _MeanPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        n, channels, height, width = ctx.shape = x.shape
        y = _maps((n, channels, (height + 1) // 2, (width + 1) // 2), x.dtype)
        _call("mean_pool", x.dtype, x, y, n, height, width, channels, torch.get_num_threads())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        n, channels, height, width = ctx.shape
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        result = _maps(ctx.shape, gradient.dtype)
        numbers = (n, height, width, channels, torch.get_num_threads())
        _call("mean_pool_gradient", result.dtype, gradient, result, *numbers)
        return result


# ---- batch normalisation and activation


class Layers(nn.Sequential):
    """nn.Sequential that trains a batch normalisation and the activation behind it in one."""

    def forward(self, input: Tensor) -> Tensor:
        """What the modules make of `input`, one after the other."""
        modules = list(self)
        while modules:
            module = modules.pop(0)
            if (
                isinstance(module, nn.BatchNorm2d)
                and modules
                and together(module, modules[0], input)
            ):
                input = norm_activation(input, module, modules.pop(0))
            else:
                input = module(input)
        return input


def together(norm: nn.BatchNorm2d, activation: nn.Module, x: Tensor) -> bool:
    """Whether `norm_activation` takes these two modules and maps."""
    return (
        type(norm) is nn.BatchNorm2d
        and norm.training
        and type(activation) in ACTIVATIONS
        and getattr(activation, "negative_slope", SLOPE) == SLOPE
        and x.numel() > x.shape[1]  # torch refuses a single value a channel
        and fits(x)
    )


def norm_activation(x: Tensor, norm: nn.BatchNorm2d, activation: nn.Module) -> Tensor:
    """activation(norm(x)) in training, with the running statistics of `norm` brought up to date.

    Args:
        x: Float [batch, C, H, W].
        norm: With weights, running statistics and a momentum, as nn.BatchNorm2d(C) has them.
        activation: One of ACTIVATIONS; GELU with the error function, LeakyReLU with SLOPE.

    Returns:
        Of the shape and type of `x`; rounded once, where torch rounds the normalised maps too.
    """
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    statistics = (norm.running_mean, norm.running_var)
    name = ACTIVATIONS[type(activation)]
    return _NormActivation.apply(  # type: ignore[no-any-return]
        x, norm.weight, norm.bias, statistics, name, (norm.eps, norm.momentum)
    )


class _NormActivation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        statistics: tuple[Tensor, Tensor],
        name: str,
        constants: tuple[float, float],
    ) -> Tensor:
        channels = x.shape[1]
        rows = x.numel() // channels
        y, kept = torch.empty_like(x), torch.empty(4, channels)
        partial = torch.empty((rows + BLOCK - 1) // BLOCK, 2, channels)
        ctx.name, ctx.sizes = name, (rows, channels)
        numbers = (rows, channels, torch.get_num_threads(), *constants)
        _call(f"norm_{name}", x.dtype, x, y, weight, bias, *statistics, kept, partial, *numbers)
        ctx.save_for_backward(x, kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, kept = ctx.saved_tensors
        rows, channels = ctx.sizes
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        result = torch.empty_like(x)
        of_weight, of_bias = torch.empty(2, channels)
        partial = torch.empty((rows + BLOCK - 1) // BLOCK, 2, channels)
        operands = (gradient, x, kept, result, of_weight, of_bias, partial)
        numbers = (rows, channels, torch.get_num_threads())
        _call(f"norm_{ctx.name}_gradient", x.dtype, *operands, *numbers)
        return result, of_weight, of_bias, None, None, None
