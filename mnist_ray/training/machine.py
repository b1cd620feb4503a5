"""The process that trains: threads, memory, arithmetic, and torch without its compiler.

torch.optim imports torch._dynamo, to tell it that nothing there is to be compiled: 101 MB, and
1.5 s on a busy machine, for each worker. `leave_out_the_compiler` prevents that.
"""

import ctypes
import importlib
import os
import platform
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

COMPILER = "torch._dynamo"


class _Absent(types.ModuleType):
    """Stands in for the compiler: any name but the two that torch.optim calls loads it."""

    @staticmethod
    def disable(
        fn: Callable[..., Any], recursive: bool = True, **options: Any
    ) -> Callable[..., Any]:
        return fn

    @staticmethod
    def graph_break(msg: str = "") -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        return getattr(importlib.import_module(COMPILER), name)


def leave_out_the_compiler() -> None:
    """Leaves torch's compiler unloaded until something, as the ONNX exporter, needs it."""
    if COMPILER not in sys.modules:
        sys.modules[COMPILER] = torch._dynamo = _Absent(COMPILER)


def use_threads(cpus: float) -> None:
    """Uses as many threads as CPUs are assigned: more of them only take the cores of other trials.

    The process also keeps the memory that it has freed. glibc gives each large block back to the
    system, which then clears its pages anew for every layer of every step (10 to 20 % of the
    training time; see mallopt(3)).
    """
    torch.set_num_threads(max(1, min(int(cpus), os.cpu_count() or 1)))
    if platform.libc_ver()[0] == "glibc":
        libc, trim_threshold, mmap_max = ctypes.CDLL(None), -1, -4
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)


def best_precision(device: torch.device) -> str:
    """Returns "bf16" if the device has instructions for bfloat16, else "fp32".

    The device is asked, not timed: other work on the machine must not change a seed's result. A
    CPU without such instructions emulates bfloat16 and is slower with it; with them it multiplies
    matrices about twice as fast.
    """
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        has = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    else:
        has = False
    return "bf16" if has else "fp32"
