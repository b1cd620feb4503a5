"""torch without its compiler, in processes that only train.

torch.optim imports torch._dynamo, to tell it that nothing there is to be compiled: 101 MB, and 1.5 s on a busy machine, for each worker.
"""

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

COMPILER = "torch._dynamo"


class _Absent(types.ModuleType):
    """In the compiler's place while nothing was compiled: what torch.optim asks of it does nothing, whatever else is asked loads it."""

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
    """Until it is used: torch.compile, the ONNX exporter and whatever else needs it get the real one."""
    if COMPILER not in sys.modules:
        sys.modules[COMPILER] = torch._dynamo = _Absent(COMPILER)
