"""What a network on the CPU does between its convolutions, in fewer passes over memory.

`compiled.c` has pooling, and batch normalisation with the activation behind it. It is
compiled for this processor when first needed, which takes seconds, and kept in the user's
cache. Without a C compiler, on a GPU, and where a network is exported, torch's own operators are
used; they are the reference of its tests.
"""

import contextlib
import contextvars
import ctypes
import functools
import hashlib
import logging
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
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
SLOPE = 0.01  # of LeakyReLU
MOST_CHANNELS = 16_384  # 24 bytes a channel lie on the stack
BLOCK = 256  # rows whose sums are taken together
LANES = 32  # channels whose sums stay in registers
AHEAD = 4096  # bytes: how far ahead memory is asked for
COMPILERS = ("cc", "gcc", "clang")  # tried in turn
DEFINED = (f"-DBLOCK={BLOCK}", f"-DSLOPE={SLOPE}", f"-DLANES={LANES}", f"-DAHEAD={AHEAD}")
# Nobody here asks for floating-point exceptions; with them, gcc leaves GELU to scalars on AVX2.
MATHS = ("-fno-math-errno", "-fno-trapping-math")
FLAGS = ("-O3", "-march=native", *MATHS, "-fopenmp", "-shared", "-fPIC", *DEFINED)
WIDE = "-mprefer-vector-width=512"  # gcc takes half of a register where AMX is; 1.2 x slower
SECONDS = 60.0  # for the compiler
DIGEST = hashlib.sha256().digest_size  # bytes, behind a kept library


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, loaded once a process; None where they cannot be had."""
    loaded = None
    for compiler in filter(None, map(shutil.which, COMPILERS)):
        try:
            loaded = _loaded(compiler)
            break
        except (OSError, subprocess.SubprocessError) as error:
            log.debug("compiled.c with %s: %s", compiler, error)
    if loaded is None:
        return None
    pointer, number, real = ctypes.c_void_p, ctypes.c_long, ctypes.c_double
    for kind in TYPES.values():
        signatures: dict[str, list[type]] = {f"max_pool_{kind}": [pointer] * 3 + [number] * 6}
        signatures[f"max_pool_gradient_{kind}"] = [pointer] * 3 + [number] * 6
        signatures[f"mean_pool_{kind}"] = [pointer] * 2 + [number] * 5
        signatures[f"mean_pool_gradient_{kind}"] = [pointer] * 2 + [number] * 5
        for name in ACTIVATIONS.values():
            signatures[f"norm_{name}_{kind}"] = [pointer] * 8 + [number] * 3 + [real] * 2
            signatures[f"scaled_{name}_{kind}"] = [pointer] * 4 + [number] * 3
            signatures[f"norm_{name}_gradient_{kind}"] = [pointer] * 7 + [number] * 3
        for function, types in signatures.items():
            getattr(loaded, function).argtypes = types
            getattr(loaded, function).restype = None
    return loaded


def _loaded(compiler: str) -> ctypes.CDLL:
    """From the user's cache if this source, compiler and processor made it, else compiled."""
    place = _place(compiler)
    kept = _kept(place) if place is not None else None
    if kept is not None:
        return kept
    with tempfile.TemporaryDirectory(prefix="mnist_ray-", ignore_cleanup_errors=True) as folder:
        made = Path(folder, "compiled.so")
        command = [compiler, *_flags(), str(SOURCE), "-o", str(made), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
        loaded = ctypes.CDLL(str(made))  # stays when its file has gone
        if place is not None:
            with contextlib.suppress(OSError):
                _keep(made.read_bytes(), place)
        return loaded


def _flags() -> tuple[str, ...]:
    return (*FLAGS, WIDE) if torch.cpu.get_capabilities().get("amx_tile") else FLAGS


def _place(compiler: str) -> Path | None:
    """The library's file in the user's cache; None where no home is known."""
    about = os.stat(compiler)
    made_by = f"{compiler} {_flags()} {about.st_size} {about.st_mtime_ns}".encode()
    digest = hashlib.sha256(b"|".join((SOURCE.read_bytes(), made_by, _processor()))).hexdigest()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home, "mnist_ray", f"compiled-{digest[:16]}.so") if os.path.isabs(home) else None


def _kept(place: Path) -> ctypes.CDLL | None:
    """A kept library; None if none is there, others may write it, or it is damaged."""
    try:
        about, content = place.stat(), place.read_bytes()
        owned = about.st_uid == os.getuid() and not about.st_mode & 0o022
        # A library that is cut off would end the process that loads it.
        if owned and hashlib.sha256(content[:-DIGEST]).digest() == content[-DIGEST:]:
            return ctypes.CDLL(str(place))
    except OSError:
        pass
    return None


def _keep(content: bytes, place: Path) -> None:
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    written = place.with_suffix(f".{os.getpid()}")
    written.write_bytes(content + hashlib.sha256(content).digest())
    written.chmod(0o700)
    written.replace(place)


def _processor() -> bytes:
    """What `-march=native` depends on: machines that share a home may differ."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
        named = (b"model name", b"flags", b"features", b"Features", b"CPU part", b"isa", b"uarch")
        return b"|".join(sorted({line for line in lines if line.startswith(named)}))
    return platform.processor().encode()


def fits(x: Tensor) -> bool:
    """Whether the compiled functions take these maps: floats on the CPU with channels last."""
    return (
        x.device.type == "cpu"
        and x.dtype in TYPES
        and x.dim() == 4
        and x.numel() > 0
        and x.shape[1] <= MOST_CHANNELS
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and library() is not None
    )


_evaluating = contextvars.ContextVar("evaluating", default=False)


@contextlib.contextmanager
def evaluating() -> Iterator[None]:
    """Networks in evaluation mode use compiled.c too, without gradients and without hooks."""
    token = _evaluating.set(True)
    try:
        with torch.inference_mode():
            yield
    finally:
        _evaluating.reset(token)


def wanted(module: nn.Module) -> bool:
    """Whether a module trains, or answers in `evaluating`: else torch's operators are used."""
    return module.training or _evaluating.get()


def _call(function: str, kind: torch.dtype, *arguments: Tensor | float) -> None:
    call = getattr(library(), f"{function}_{TYPES[kind]}")
    call(*(each.data_ptr() if isinstance(each, Tensor) else each for each in arguments))


def _maps(shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=kind, device="cpu", memory_format=torch.channels_last)


def _floats(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


# ---- pooling


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
        return max_pool(input, 2) if wanted(self) else super().forward(input)


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
    """nn.Sequential with a batch normalisation and the activation behind it in one.

    Hooks of these two modules are not called then.
    """

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
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return (
        type(norm) is nn.BatchNorm2d
        and wanted(norm)
        and norm.momentum is not None
        and type(activation) in ACTIVATIONS
        and getattr(activation, "negative_slope", SLOPE) == SLOPE
        and getattr(activation, "approximate", "none") == "none"
        and fits(x)
        and x.numel() > x.shape[1]  # torch refuses a single value a channel
        and all(map(functools.partial(_a_float_a_channel, x.shape[1]), tensors))
    )


def _a_float_a_channel(channels: int, tensor: Tensor | None) -> bool:
    """Whether compiled.c can read it: it knows the place of the first number only."""
    return (
        tensor is not None
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.is_contiguous()
        and tensor.shape == (channels,)
    )


def norm_activation(x: Tensor, norm: nn.BatchNorm2d, activation: nn.Module) -> Tensor:
    """activation(norm(x)). In training it brings the running statistics of `norm` up to date.

    Args:
        x: Float [batch, C, H, W].
        norm: With weights, running statistics and a momentum, as nn.BatchNorm2d(C) has them.
        activation: One of ACTIVATIONS; GELU with the error function, LeakyReLU with SLOPE.

    Returns:
        Of the shape and type of `x`; rounded once, where torch rounds the normalised maps too.
    """
    name = ACTIVATIONS[type(activation)]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if norm.training:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        statistics = (norm.running_mean, norm.running_var)
        return _NormActivation.apply(  # type: ignore[no-any-return]
            x, norm.weight, norm.bias, statistics, name, (norm.eps, norm.momentum)
        )
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    summand = norm.bias - norm.running_mean * factor
    y = torch.empty_like(x)
    sizes = (x.numel() // x.shape[1], x.shape[1], torch.get_num_threads())
    _call(f"scaled_{name}", x.dtype, x, y, factor, summand, *sizes)
    return y


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
        y, kept = torch.empty_like(x), _floats(4, channels)
        partial = _floats(math.ceil(rows / BLOCK), 2, channels)
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
        of_weight, of_bias = _floats(2, channels)
        partial = _floats(math.ceil(rows / BLOCK), 2, channels)
        operands = (gradient, x, kept, result, of_weight, of_bias, partial)
        numbers = (rows, channels, torch.get_num_threads())
        _call(f"norm_{ctx.name}_gradient", x.dtype, *operands, *numbers)
        return result, of_weight, of_bias, None, None, None
