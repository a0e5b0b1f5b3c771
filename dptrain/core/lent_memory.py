"""Tensors over memory that others lend: arrays of NumPy, buffers, arrays of other libraries (DLPack)."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arguments import guarded
from dptrain.core.arrays import namespace_on
from dptrain.core.creation import tensor
from dptrain.core.device import as_device
from dptrain.core.dtypes import as_dtype, from_numpy_dtype, get_default_dtype
from dptrain.core.factory import finish
from dptrain.core.tensor import Tensor, wrap


@guarded
def asarray(
    obj: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    copy: bool | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of `obj`, sharing memory where it is a tensor, an array or a buffer of that dtype.

    Args:
        obj: a tensor, an array, an object with DLPack's or the buffer protocol, a number or sequences.
        dtype: element type; that of the data by default.
        device: where to; only the CPU.
        copy: True never shares, False only shares, None as the data allow.
        requires_grad: whether the result requires gradients.

    Raises:
        ValueError: `copy=False` where a copy is needed.
    """
    source = _alias(obj, dtype)
    if source is None:
        if copy is False:
            raise ValueError("can't alias arbitrary sequence into a tensor")
        return tensor(obj, dtype=dtype, device=device, requires_grad=requires_grad)
    as_device(device)
    result = source if dtype is None else source.to(as_dtype(dtype))
    if copy is False and result is not source:
        raise ValueError(f"can't alias tensor with dtype {source.dtype} into dtype {result.dtype}")
    if copy and result is source:
        result = source.clone()
    if result.requires_grad == requires_grad:
        return result
    return result.detach().requires_grad_(requires_grad)


def _alias(obj: Any, dtype: Any) -> Tensor | None:
    """A tensor over the memory of `obj`, if it lends any."""
    if isinstance(obj, Tensor):
        return obj
    if isinstance(obj, np.ndarray):
        return from_numpy(obj)
    if hasattr(obj, "__dlpack__"):
        return from_dlpack(obj)
    if isinstance(obj, (bytes, bytearray, memoryview)):
        return frombuffer(obj, dtype=get_default_dtype() if dtype is None else dtype)
    return None


@guarded
def frombuffer(
    buffer: Any, *, dtype: Any, count: int = -1, offset: int = 0, requires_grad: bool = False
) -> Tensor:
    """A one-dimensional tensor over the memory of a buffer (bytearray, memoryview, array.array).

    Args:
        buffer: an object with Python's buffer protocol.
        dtype: element type.
        count: number of elements; all by default.
        offset: bytes to skip.
        requires_grad: whether the result requires gradients.

    Raises:
        ValueError: the buffer is too short, or its length fits no number of elements.
        TypeError: no buffer.
    """
    kind = as_dtype(dtype)
    try:
        length = memoryview(buffer).nbytes
    except TypeError:
        raise ValueError("object does not implement Python buffer protocol.") from None
    left = length - offset
    if length <= 0 or count == 0:
        raise ValueError(f"both buffer length ({length}) and count ({count}) must not be 0")
    if not 0 <= offset < length:
        raise ValueError(
            f"offset ({offset} bytes) must be non-negative and no greater than buffer length ({length} bytes) minus 1"
        )
    if count < 0 and left % kind.itemsize:
        raise ValueError(
            f"buffer length ({left} bytes) after offset ({offset} bytes) must be a multiple of element size "
            f"({kind.itemsize})"
        )
    if count > 0 and count * kind.itemsize > left:
        raise ValueError(
            f"requested buffer length ({count} * {kind.itemsize} bytes) after offset ({offset} bytes) must not be "
            f"greater than actual buffer length ({length} bytes)"
        )
    flat = np.frombuffer(buffer, np.uint8)[offset:]
    used = flat[: (count if count > 0 else left // kind.itemsize) * kind.itemsize]
    return finish(used.view(kind.numpy), None, requires_grad)


def from_numpy(ndarray: np.ndarray) -> Tensor:
    """A tensor over the array's own memory: changes on either side are seen on the other.

    Raises:
        TypeError: not an array, or an element type that tensors do not have.
    """
    if not isinstance(ndarray, np.ndarray):
        raise TypeError(f"expected np.ndarray (got {type(ndarray).__name__})")
    from_numpy_dtype(ndarray.dtype)
    return wrap(ndarray)


def from_dlpack(ext_tensor: Any) -> Tensor:
    """A tensor over the memory of another library's array, on the CPU or a GPU (DLPack protocol)."""
    kind, index = ext_tensor.__dlpack_device__()
    if kind == _DLPACK_CUDA:
        return wrap(namespace_on(as_device(f"cuda:{index}")).from_dlpack(ext_tensor))
    return from_numpy(np.from_dlpack(ext_tensor))


#: DLPack's number for CUDA's devices.
_DLPACK_CUDA = 2
