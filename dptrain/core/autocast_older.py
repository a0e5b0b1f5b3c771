"""The older forms of autocast's names, one set per device type, each with a warning as in PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

from dptrain.core import autocast as present
from dptrain.core.autocast_function import custom_bwd, custom_fwd
from dptrain.core.dtypes import bfloat16, dtype, float16


def _older(name: str, instead: str, function: Callable[..., Any], *first: Any) -> Any:
    def run(*args: Any) -> Any:
        warnings.warn(
            f"dptrain.{name} is deprecated. Please use dptrain.{instead} instead.",
            DeprecationWarning,
            stacklevel=2,
        )
        return function(*first, *args)

    run.__name__ = run.__qualname__ = name.partition("(")[0]
    run.__doc__ = f"The older form of `{instead}`."
    return run


is_autocast_cpu_enabled = _older(
    "is_autocast_cpu_enabled()", "is_autocast_enabled('cpu')", present.is_autocast_enabled, "cpu"
)
set_autocast_cpu_enabled = _older(
    "set_autocast_cpu_enabled(enabled)",
    "set_autocast_enabled('cpu', enabled)",
    present.set_autocast_enabled,
    "cpu",
)
get_autocast_cpu_dtype = _older(
    "get_autocast_cpu_dtype()", "get_autocast_dtype('cpu')", present.get_autocast_dtype, "cpu"
)
set_autocast_cpu_dtype = _older(
    "set_autocast_cpu_dtype(dtype)",
    "set_autocast_dtype('cpu', dtype)",
    present.set_autocast_dtype,
    "cpu",
)
get_autocast_gpu_dtype = _older(
    "get_autocast_gpu_dtype()", "get_autocast_dtype('cuda')", present.get_autocast_dtype, "cuda"
)
set_autocast_gpu_dtype = _older(
    "set_autocast_gpu_dtype(dtype)",
    "set_autocast_dtype('cuda', dtype)",
    present.set_autocast_dtype,
    "cuda",
)


class _OlderAutocast(present.autocast):
    """`autocast` of one device type.

    Args:
        enabled, dtype, cache_enabled: see `autocast`; another order, and always a dtype.
    """

    _place: ClassVar[str]
    _usual: ClassVar[dtype]

    def __init__(
        self, enabled: bool = True, dtype: dtype | None = None, cache_enabled: bool = True
    ) -> None:
        warnings.warn(
            f"`dptrain.{self._place}.amp.autocast(args...)` is deprecated. "
            f"Please use `dptrain.amp.autocast('{self._place}', args...)` instead.",
            FutureWarning,
            stacklevel=2,
        )
        super().__init__(self._place, dtype or self._usual, enabled, cache_enabled)


class CpuAutocast(_OlderAutocast):
    """`dptrain.cpu.amp.autocast`."""

    _place, _usual = "cpu", bfloat16


class CudaAutocast(_OlderAutocast):
    """`dptrain.cuda.amp.autocast`."""

    _place, _usual = "cuda", float16


def _for_cuda(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(
            f"`dptrain.cuda.amp.{name}(args...)` is deprecated. "
            f"Please use `dptrain.amp.{name}(args..., device_type='cuda')` instead.",
            FutureWarning,
            stacklevel=2,
        )
        return function(*args, device_type="cuda", **kwargs)

    run.__name__ = run.__qualname__ = name
    run.__doc__ = f"`dptrain.amp.{name}` with device_type='cuda'."
    return run


cuda_custom_fwd = _for_cuda("custom_fwd", custom_fwd)
cuda_custom_bwd = _for_cuda("custom_bwd", custom_bwd)
