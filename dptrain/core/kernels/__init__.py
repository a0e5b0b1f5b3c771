"""The hot kernels behind one small interface, with a plain NumPy twin.

Owns: which provider serves a call. The choice is a pure function of the element type and of what is
installed (and `DPTRAIN_KERNELS`), never of a timing, so that all ranks choose alike.

A provider is a module with the functions of `reference` (or `reference_optim`); the compiled ones
(`native`, `native_optim`, numba; on GPUs `cuda` and `cuda.updates`) are imported on first use.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

from dptrain.core import arrays
from dptrain.core.arrays import HOST_TYPES, functions_beside, on_gpu
from dptrain.core.capturing import recorders
from dptrain.core.conv_algo import get_conv_algo
from dptrain.core.kernels import reference, reference_optim
from dptrain.core.settings import settings
from dptrain.core.threads import get_num_threads

_NATIVE_TYPES = (np.float32, np.float64)


@cache
def _native(name: str = "native") -> ModuleType | None:
    wanted = settings().kernels
    if wanted == "numpy" or (wanted == "auto" and find_spec("numba") is None):
        return None
    return import_module(f"dptrain.core.kernels.{name}")


@cache
def _kernels(dtype: Any) -> ModuleType:
    if dtype.type in _NATIVE_TYPES:
        return _native() or reference
    return reference


@cache
def _optim_kernels(dtype: Any) -> ModuleType:
    if dtype.type in _NATIVE_TYPES:
        return _native("native_optim") or reference_optim
    return reference_optim


@cache
def _cuda(name: str) -> ModuleType:
    return import_module(f"dptrain.core.kernels.{name}")


def _on_gpu(array: Any, name: str) -> Any:
    """A provider, whose functions run with the array's GPU as the current one; the only one always is."""
    return functions_beside(array, _cuda(name)) if arrays.several_gpus else _cuda(name)


class _WhileRecording:
    """A provider's functions where other arguments may be arrays of a recording, this thread's or another's."""

    def __init__(self, provider: ModuleType) -> None:
        self._provider = provider

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            for a in (*args, *kwargs.values()):
                if type(a) in HOST_TYPES and type(a) is not np.ndarray:
                    return getattr(functions_beside(a, self._provider), name)(*args, **kwargs)
            return getattr(self._provider, name)(*args, **kwargs)

        return call


def kernels_for(array: Any) -> Any:
    """The provider that serves arrays of the element type and device of this one."""
    if type(array) is np.ndarray:
        provider = _kernels(array.dtype)
        return _WhileRecording(provider) if recorders else provider
    if on_gpu(array):
        return _on_gpu(array, "cuda")
    return functions_beside(array, _kernels(array.dtype))


def optim_kernels_for(array: Any) -> Any:
    """Likewise for the optimizer updates of `reference_optim`."""
    if type(array) is np.ndarray:
        provider = _optim_kernels(array.dtype)
        return _WhileRecording(provider) if recorders else provider
    if on_gpu(array):
        return _on_gpu(array, "cuda.updates")
    return functions_beside(array, _optim_kernels(array.dtype))


#: Elements of a sum that is worth a second thread, and of one that is worth another order of its terms.
_LARGE, _WORTH_ORDER = 1 << 15, 1 << 12


def total(a: Any, b: Any) -> Any:
    """a + b for arrays of one device, or Tensors. NumPy would add large ones on one thread."""
    if type(a) is np.ndarray is type(b) and a.size < _WORTH_ORDER:
        return a + b
    a, b = in_one_order(a, b)
    large = type(a) in HOST_TYPES and type(b) in HOST_TYPES and a.size >= _LARGE
    if on_gpu(a) or (large and get_num_threads() > 1):
        return kernels_for(a).add(a, b)
    return a + b


def in_one_order(a: Any, b: Any) -> tuple[Any, Any]:
    """Two operands; large ones of which one has the channels last and the other first, both in row-major order.

    NumPy would go through one of them with large steps.
    """
    if type(a) is np.ndarray and a.size < _WORTH_ORDER:
        return a, b
    hosted = type(a) in HOST_TYPES and type(b) in HOST_TYPES
    if not hosted or a.strides == b.strides or a.size < _WORTH_ORDER or a.shape != b.shape:
        return a, b
    return kernels_for(a).row_major(a), kernels_for(b).row_major(b)


@cache
def prepare_sums() -> None:
    """Make `add_into_both` ready, for whoever is going to reduce gradients.

    Compiling is nothing for a communication thread: other ranks would wait for it, and who only communicates
    needs no compiler at all.
    """
    module = _native("sums")
    if module is not None:
        module.prepare()
        _sums.append(module.add_into_both)


_sums: list[Any] = []


def add_into_both(dtype: Any) -> Any:
    """`sums.add_into_both`; None where it does not serve an element type, or is not ready."""
    return _sums[0] if _sums and dtype.type in _NATIVE_TYPES else None


def pool_functions() -> tuple[Any, Any, int]:
    """How kernels whose arguments lie packed in memory are run: `pool.serial_batch()`, `pool.run_packed`, threads."""
    pool = import_module("dptrain.core.kernels.pool")
    return pool.serial_batch(), pool.run_packed, get_num_threads()


def fingerprint() -> str:
    """Names the provider; equal on all ranks whose results can be equal bit for bit."""
    native = _native()
    return "numpy" if native is None else native.describe()


def describe() -> str:
    """For people: the vector unit that kernels are made for, their tiles, the choice of algorithms."""
    if _native() is None:
        return "windows times weights in NumPy"
    target = import_module("dptrain.core.kernels.target").target()
    lanes, rows = target.lanes(4), target.most_rows(2)
    return f"{target.name}, {lanes} lanes of float32, tiles of {rows} x {2 * lanes}; conv_algo {get_conv_algo()}"
