"""Changing the type or place of all values of a module.

Owns: `ModuleConversions`. Must not know: calls, hooks, files.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any, Self

from dptrain.core.arrays import namespace_of
from dptrain.core.creation import empty_like
from dptrain.core.device import device as device_type
from dptrain.core.dtypes import as_dtype
from dptrain.core.dtypes import dtype as dtype_type
from dptrain.core.grad_mode import no_grad
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn.parameter import is_lazy
from dptrain.nn.state import ModuleState


class ModuleConversions(ModuleState):
    """The part of `Module` that converts parameters, their gradients and buffers in place."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Rebind all parameters, their gradients and all buffers to `fn(...)` of themselves."""
        if recurse:
            for module in self.children():
                module._apply(fn)
        with no_grad():
            for param in self._parameters.values():
                if param is not None:
                    held = param.grad
                    param.data = fn(param.data)
                    if held is not None:
                        param.grad = fn(held)
            for name, buffer in self._buffers.items():
                if is_lazy(buffer):
                    buffer.data = fn(buffer.data)  # type: ignore[union-attr]
                elif buffer is not None:
                    self._buffers[name] = fn(buffer)
        return self

    def _apply_to_floats(self, fn: Callable[[Tensor], Tensor]) -> Self:
        return self._apply(lambda t: fn(t) if t.is_floating_point() else t)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Convert parameters and buffers in place: `to(dtype)`, `to(device)`, `to(tensor)`, combined.

        The dtype concerns floating point values only; integer buffers keep theirs. A `memory_format`
        concerns those of 4 and 5 dimensions.

        Raises:
            TypeError: the dtype is no floating point type.
            RuntimeError: there is no such device.
        """
        for wanted in (*args, kwargs.get("dtype")):
            if (isinstance(wanted, dtype_type) or wanted in (float, int)) and not as_dtype(
                wanted
            ).is_floating_point:
                raise TypeError(
                    f"nn.Module.to only accepts floating point dtypes, but got desired dtype={wanted}"
                )
        places = [a.device if isinstance(a, Tensor) else a for a in (*args, kwargs.get("device"))]
        places = [a for a in places if isinstance(a, (str, device_type))]
        formless = {k: v for k, v in kwargs.items() if k != "memory_format"}

        def convert(t: Tensor) -> Tensor:
            if not t.is_floating_point():
                return t.to(*places)
            return t.to(*args, **(kwargs if t.ndim in (4, 5) else formless))

        return self._apply(convert)

    def to_empty(self, *, device: Any, recurse: bool = True) -> Self:
        """Move to a device without the values, which are arbitrary afterwards.

        Args:
            device: the place; None for the present one.
            recurse: also everything below.
        """
        return self._apply(lambda t: empty_like(t, device=device), recurse=recurse)

    def type(self, dst_type: Any) -> Self:
        """Convert all parameters and buffers, integers too, to one type."""
        return self._apply(lambda t: t.type(dst_type))

    def float(self) -> Self:
        """Convert floating point parameters and buffers to float32."""
        return self._apply_to_floats(lambda t: t.float())

    def double(self) -> Self:
        """Convert floating point parameters and buffers to float64."""
        return self._apply_to_floats(lambda t: t.double())

    def half(self) -> Self:
        """Convert floating point parameters and buffers to float16."""
        return self._apply_to_floats(lambda t: t.half())

    def bfloat16(self) -> Self:
        """Convert floating point parameters and buffers to bfloat16."""
        return self._apply_to_floats(lambda t: t.bfloat16())

    def cpu(self) -> Self:
        """Move parameters and buffers to the CPU."""
        return self._apply(lambda t: t.cpu())

    def cuda(self, device: Any = None) -> Self:
        """Move parameters and buffers to a GPU."""
        return self._apply(lambda t: t.cuda(device))

    def share_memory(self) -> Self:
        """Move the values to memory that processes forked from here on see and change.

        Raises:
            RuntimeError: a parameter or buffer has no shape yet.
        """
        if any(is_lazy(t) for t in (*self.parameters(), *self.buffers())):
            raise RuntimeError(
                "Can't share memory on an uninitialized parameter or buffer. Call `forward` to initialize the "
                "parameters before calling `module.share_memory()`"
            )
        return self._apply(_shared)


def _shared(tensor: Tensor) -> Tensor:
    values = tensor._array
    memory = mmap.mmap(-1, max(values.nbytes, 1))  # anonymous and shared with forked processes
    flat = namespace_of(values).frombuffer(memory, values.dtype, values.size)
    copy = flat.reshape(values.shape)
    copy[...] = values
    return wrap(copy)
