"""Tensors in page-locked memory: `pin_memory`, `is_pinned`, and copies into such memory that nobody waits for.

Owns: those methods, and what factories do with `pin_memory=True`. Must not know: how the memory is come by.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from dptrain.core import cuda
from dptrain.core.arrays import on_gpu
from dptrain.core.layout import strides_of
from dptrain.core.op import Op
from dptrain.core.tensor import Tensor


class PinMemory(Op):
    """The values in page-locked memory, with the strides that they have."""

    name = "pin_memory"

    def forward(self, input: Any) -> Any:
        steps, pinned = strides_of(input), cuda.library().pinned
        if min(steps, default=0) < 0:  # of an array of NumPy's that was turned around
            return pinned.copy(input)
        if any(n > 1 and not step for n, step in zip(input.shape, steps, strict=True)):
            raise RuntimeError(
                "pin_memory: unsupported operation: more than one element of the written-to tensor (shape "
                f"{list(input.shape)}) refers to a single memory location. Please clone() the tensor before "
                "performing the operation."
            )
        made = pinned.empty(input.shape, input.dtype, steps)
        np.copyto(made, input)
        return made

    def backward(self, grad: Any) -> Any:
        return grad


def _pin_memory(self: Tensor, device: Any = None) -> Tensor:
    """The tensor in page-locked memory, which a GPU copies from by itself: itself if it is there, else a copy.

    Args:
        device: deprecated, of no effect.

    Raises:
        RuntimeError: there is no GPU, or the tensor is not in the host's memory.
    """
    _warn_of(device, "pin_memory")
    if _is_pinned(self):
        return self
    if not cuda.device_count():
        raise RuntimeError("pin_memory: cannot access an accelerator device when none is available")
    if type(self._array) is not np.ndarray:
        place = "cuda." if self.is_cuda else ""
        kind = self.type().rpartition(".")[2]
        raise RuntimeError(
            f"cannot pin 'dptrain.{place}{kind}' only dense CPU tensors can be pinned (this one is on "
            f"{self.device})"
        )
    self._settled()
    pinned: Tensor = PinMemory.apply(self)
    return pinned


def _is_pinned(self: Tensor, device: Any = None) -> bool:
    """Whether the values are in page-locked memory.

    Args:
        device: deprecated, of no effect.
    """
    _warn_of(device, "is_pinned")
    return is_pinned(self._array)


def is_pinned(array: Any) -> bool:
    """Whether an array is in page-locked memory."""
    # Before a GPU was used nobody can have asked for such memory.
    host = type(array) is np.ndarray and cuda.is_loaded()
    return host and cuda.library().pinned.contains(array)


def _warn_of(device: Any, name: str) -> None:
    if device is not None:
        warnings.warn(
            f"The argument 'device' of Tensor.{name}() is deprecated. Please do not pass this argument.",
            DeprecationWarning,
            stacklevel=3,
        )


def check_can_pin(op: str) -> None:
    """Refuse `pin_memory=True` of a factory.

    Raises:
        RuntimeError: there is no GPU.
    """
    if not cuda.device_count():
        raise RuntimeError(f"{op}: pin_memory needs a GPU, and there is none")


def pin_in_place(made: Tensor) -> Tensor:
    """A tensor that was just made, a leaf that may require gradients, now in page-locked memory."""
    made.data = made.detach().pin_memory()
    return made


def copy_without_waiting(target: Tensor, source: Tensor) -> bool:
    """Have a GPU copy a tensor's values into another one, between its memory and page-locked memory.

    Returns:
        False, and nothing is done, where that cannot be.
    """
    if source._array.shape != target._array.shape:
        return False
    if on_gpu(target._array) and is_pinned(source._array):
        with cuda.library().on(target.get_device()):
            return cuda.library().pinned.write(target._array, source._array)
    if on_gpu(source._array) and is_pinned(target._array):
        values = source.detach().to(target.dtype)
        with cuda.library().on(values.get_device()):
            return cuda.library().pinned.fill(target._array, values._array)
    return False


Tensor.pin_memory = _pin_memory  # type: ignore[attr-defined]
Tensor.is_pinned = _is_pinned  # type: ignore[attr-defined]
