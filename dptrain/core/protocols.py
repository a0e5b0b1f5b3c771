"""What a tensor is to Python and NumPy: conversions, lengths, iteration, text.

Owns: `ArrayProtocols`, a base class of `Tensor`. Must not know: derivatives beyond the flag that
forbids handing values out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dptrain.core import dtypes, printing
from dptrain.core.arrays import on_gpu, to_host
from dptrain.core.device import host_device
from dptrain.core.transfers import report


class ArrayProtocols:
    """The methods of `Tensor` through which its values leave it, and Python's special methods."""

    _array: np.ndarray
    _settled: Any

    if TYPE_CHECKING:  # of Tensor

        @property
        def requires_grad(self) -> bool: ...
        @property
        def device(self) -> Any: ...
        @property
        def dtype(self) -> dtypes.dtype: ...
        @property
        def shape(self) -> tuple[int, ...]: ...
        def detach(self) -> Self: ...
        def __getitem__(self, index: Any) -> Any: ...
        def to(self, *args: Any, **kwargs: Any) -> Self: ...

    # ---- leaving the tensor world ----------------------------------------------------------------

    def numpy(self, *, force: bool = False) -> np.ndarray:
        """The values as a NumPy array that shares memory.

        Raises:
            RuntimeError: the tensor requires gradients (and `force` is not given).
            TypeError: it lives on another device than the host's first (likewise).
        """
        if self.requires_grad and not force:
            raise RuntimeError(
                "can't call numpy() on Tensor that requires grad; use tensor.detach().numpy() instead"
            )
        if isinstance(self._array, np.ndarray):
            return self._settled()
        if not force and self.device != host_device(0):
            raise TypeError(
                f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
                "host memory first."
            )
        return to_host(self._settled())

    def _looked_at(self) -> Any:
        """The array, at whose values the host is going to look."""
        if on_gpu(self._array):
            report("read", self._array)
        return self._array

    def item(self) -> Any:
        """The value of a one-element tensor as a Python number."""
        if self._array.size != 1:
            raise RuntimeError(
                f"a Tensor with {self._array.size} elements (shape {list(self.shape)}) cannot be converted to Scalar"
            )
        value = self._looked_at().item()
        return float(value) if self.dtype.is_floating_point else value

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers."""
        values = (
            self._array if self.dtype is not dtypes.bfloat16 else self._array.astype(np.float32)
        )
        self._looked_at()
        return values.tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._lender().__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self._lender().__dlpack_device__()

    def _lender(self) -> Any:
        """The array that lends its memory to other libraries."""
        if not hasattr(self._array, "__dlpack__"):
            raise BufferError(
                f"can't lend the memory of a tensor on {self.device} through DLPack; use Tensor.cpu() to copy it first"
            )
        return self._settled()

    def cpu(self) -> Self:
        """The tensor in host memory, on the first CPU device (itself when it is there)."""
        return self.to(host_device(0))

    def cuda(self, device: Any = None, non_blocking: bool = False) -> Self:
        """The tensor on a GPU."""
        return self.to("cuda" if device is None else device, non_blocking=non_blocking)

    # ---- Python's protocols ----------------------------------------------------------------------

    def __len__(self) -> int:
        if self._array.ndim == 0:
            raise TypeError("len() of a 0-d tensor")
        return len(self._array)

    def __iter__(self) -> Iterator[Any]:
        if self._array.ndim == 0:
            raise TypeError("iteration over a 0-d tensor")
        parts: Iterator[Any] = iter(self.unbind(0))  # type: ignore[attr-defined]
        return parts

    def __bool__(self) -> bool:
        if self._array.size != 1:
            raise RuntimeError(
                f"Boolean value of Tensor with {'no' if self._array.size == 0 else 'more than one'} value is ambiguous"
            )
        return bool(self._looked_at())

    def __float__(self) -> float:
        return float(self._single())

    def __int__(self) -> int:
        return int(self._single())

    def _single(self) -> Any:
        if self._array.size != 1:  # `item` raises RuntimeError, these ValueError, as in PyTorch
            raise ValueError(
                f"only one element tensors can be converted to Python scalars, got shape {list(self.shape)}"
            )
        return self.item()

    def __index__(self) -> int:
        if self.dtype.is_floating_point or self._array.size != 1:
            raise TypeError("only integer tensors of a single element can be converted to an index")
        return int(self._looked_at().item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self._array.ndim == 0 else object.__format__(self, spec)

    def __hash__(self) -> int:
        return id(self)

    def __contains__(self, value: Any) -> bool:
        return bool((self._array == getattr(value, "_array", value)).any())

    def __repr__(self, *, tensor_contents: str | None = None) -> str:
        return printing.format_tensor(self, contents=tensor_contents)
