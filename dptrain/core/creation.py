"""Making tensors: from data, filled, like another one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from dptrain.core.arguments import guarded
from dptrain.core.arrays import to_host
from dptrain.core.capturing import recorder
from dptrain.core.dtypes import (
    FROM_NUMPY,
    as_dtype,
    dtype,
    float64,
    from_numpy_dtype,
    get_default_dtype,
    held,
    promote_types,
    result_dtype,
)
from dptrain.core.factory import factory, finish, numpy_type, sizes_of
from dptrain.core.layout import contiguous_format, empty_in, preserve_format
from dptrain.core.pinning import check_can_pin, pin_in_place
from dptrain.core.tensor import Tensor
from dptrain.core.typed import check_tensor

#: Python's own numbers.
_NUMBERS = frozenset([bool, int, float])


def _holds_tensors(data: Any) -> bool:
    return isinstance(data, (list, tuple)) and any(
        isinstance(d, Tensor) or _holds_tensors(d) for d in data
    )


def _holds_float64(data: Any) -> bool:
    """Whether one of the elements is an array, a scalar of NumPy or a tensor of that type."""
    if not isinstance(data, (list, tuple)):
        return getattr(data, "dtype", None) in (np.float64, float64)
    return not _NUMBERS.issuperset(map(type, data)) and any(map(_holds_float64, data))


def _plain(data: Any) -> Any:
    if isinstance(data, Tensor):
        return to_host(data._array)
    return [_plain(d) for d in data] if isinstance(data, (list, tuple)) else data


def _common_type(data: Any) -> dtype:
    """The type of nested data with tensors in it: each has its own, a Python float the default one."""
    if isinstance(data, (list, tuple)):
        return reduce(promote_types, map(_common_type, data)) if data else get_default_dtype()
    return data.dtype if isinstance(data, Tensor) else result_dtype([data])


def from_data(data: Any, kind: dtype | None) -> np.ndarray:
    """A new array from Python data: floats become the default dtype, as in PyTorch."""
    if isinstance(data, (Tensor, np.ndarray, np.generic)):
        source = to_host(data._array) if isinstance(data, Tensor) else np.asarray(data)
        return source.astype((kind or from_numpy_dtype(source.dtype)).numpy)
    tensors = _holds_tensors(data)
    try:
        array = np.array(_plain(data) if tensors else data)
    except ValueError:
        raise ValueError("tensor: the nested sequences are of unequal lengths") from None
    if array.dtype.kind == "c":
        raise TypeError(
            "tensor: complex numbers are not supported; split them into real and imaginary parts"
        )
    if array.dtype not in FROM_NUMPY:
        # PyTorch fails to infer a type from objects; given one, it fails to convert them.
        raise (RuntimeError if array.dtype == object and kind is None else TypeError)(
            f"tensor: cannot make a tensor from {type(data).__name__} holding {array.dtype} values"
        )
    if kind is None and tensors:
        kind = _common_type(data)
    elif kind is None:
        of_floats = array.dtype == np.float64 and not _holds_float64(data)
        kind = get_default_dtype() if of_floats or not array.size else FROM_NUMPY[array.dtype]
    if (
        kind.category == 1
        and array.dtype.kind in "iuf"
        and array.dtype != kind.numpy
        and array.size
    ):
        for bound in (array.min(), array.max()):
            held("tensor", bound.item(), kind.numpy)
        array = array.astype(np.int64)
    return array.astype(kind.numpy, copy=False)


@guarded
def tensor(
    data: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
) -> Tensor:
    """A new tensor with a copy of `data` (numbers, nested sequences, arrays, tensors).

    Python floats become the default dtype, ints int64, bools bool; arrays keep their type. With `pin_memory` it is in
    page-locked memory, for copies to a GPU.

    Raises:
        TypeError: complex numbers or text.
        ValueError: ragged sequences.
        RuntimeError: other objects, and integers that should require gradients.
    """
    if device is None and isinstance(data, Tensor):
        device = data.device
    if pin_memory:
        check_can_pin("tensor")
    made = finish(
        from_data(data, None if dtype is None else as_dtype(dtype)), device, requires_grad
    )
    return pin_in_place(made) if pin_memory else made


@guarded
def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """A tensor of `data`, sharing memory where data is a tensor or an array of that dtype."""
    kind = None if dtype is None else as_dtype(dtype)
    if isinstance(data, Tensor):
        return data.to(data.dtype if kind is None else kind).to(
            data.device if device is None else device
        )
    if isinstance(data, np.ndarray):
        return finish(
            data.astype((kind or from_numpy_dtype(data.dtype)).numpy, copy=False), device, False
        )
    return finish(from_data(data, kind), device, False)


@factory
def zeros(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of the given sizes, filled with 0."""
    return finish(np.zeros(sizes_of(size, "zeros"), numpy_type(dtype)), device, requires_grad)


@factory
def ones(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of the given sizes, filled with 1."""
    return finish(np.ones(sizes_of(size, "ones"), numpy_type(dtype)), device, requires_grad)


@factory
def empty(
    *size: Any,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    memory_format: Any = contiguous_format,
) -> Tensor:
    """A tensor of the given sizes with whatever values the memory holds."""
    array = np.empty(sizes_of(size, "empty"), numpy_type(dtype))
    if recorder() is not None:
        array.fill(0)  # two recordings of one call are compared
    if memory_format is preserve_format:
        raise RuntimeError("empty: preserve_format needs a tensor to be like; use empty_like")
    if memory_format is not contiguous_format:
        array = empty_in(array, memory_format)
    return finish(array, device, requires_grad)


@factory
def full(
    size: Sequence[int],
    fill_value: float,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of the given sizes, filled with one value (whose type decides the dtype)."""
    value = fill_value.item() if isinstance(fill_value, (Tensor, np.generic)) else fill_value
    if dtype is not None:
        kind = as_dtype(dtype).numpy
    elif type(value) is float:
        kind = get_default_dtype().numpy
    else:
        kind = from_data(value, None).dtype
    shape = sizes_of((size,), "full")
    return finish(np.full(shape, held("full", value, kind), kind), device, requires_grad)


@factory
def eye(
    n: int,
    m: int | None = None,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """The n x m matrix with ones on its diagonal."""
    for name, size in (("n", n), ("m", n if m is None else m)):
        if not isinstance(size, (int, np.integer)):
            raise TypeError(f"eye(): argument {name!r} must be int, not {type(size).__name__}")
        if size < 0:
            raise RuntimeError(f"eye: {name} must be greater or equal to 0, got {size}")
    return finish(np.eye(n, m, dtype=numpy_type(dtype)), device, requires_grad)


def like(
    make: Any, input: Tensor, dtype: Any, device: Any, requires_grad: bool, memory_format: Any
) -> Tensor:
    if not isinstance(input, Tensor):
        check_tensor(f"{make.__name__}_like", input)
    make = getattr(make, "__wrapped__", make)  # what it is given here is of the right kinds
    kind = input.dtype if dtype is None else as_dtype(dtype)
    place = input.device if device is None else device
    if memory_format is contiguous_format or (
        memory_format is preserve_format and input.is_contiguous()
    ):
        return make(input._array.shape, dtype=kind, device=place, requires_grad=requires_grad)
    array = empty_in(input._array, memory_format, kind.numpy)
    if make.__name__ != "empty":
        np.copyto(array, make(array.shape, dtype=kind, device=input.device)._array)
    return finish(array, place, requires_grad)


@factory
def zeros_like(
    input: Tensor,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    memory_format: Any = preserve_format,
) -> Tensor:
    """Zeros with the shape and dtype of `input`."""
    return like(zeros, input, dtype, device, requires_grad, memory_format)


@factory
def ones_like(
    input: Tensor,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    memory_format: Any = preserve_format,
) -> Tensor:
    """Ones with the shape and dtype of `input`."""
    return like(ones, input, dtype, device, requires_grad, memory_format)


@factory
def empty_like(
    input: Tensor,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    memory_format: Any = preserve_format,
) -> Tensor:
    """Uninitialised, with the shape and dtype of `input`."""
    return like(empty, input, dtype, device, requires_grad, memory_format)


@factory
def full_like(
    input: Tensor,
    fill_value: float,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    memory_format: Any = preserve_format,
) -> Tensor:
    """One value everywhere, with the shape and dtype of `input`."""

    def make(size: Any, **options: Any) -> Tensor:
        return full(size, fill_value, **options)

    make.__name__ = "full"
    return like(make, input, dtype, device, requires_grad, memory_format)


def is_tensor(obj: Any) -> bool:
    """Whether `obj` is a Tensor."""
    return isinstance(obj, Tensor)
