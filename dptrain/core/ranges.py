"""More ways to make tensors: triangles of indices, by strides, like another tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from dptrain.core.arguments import guarded
from dptrain.core.arrays import namespace_on
from dptrain.core.creation import empty, empty_like, from_data, full, ones, zeros
from dptrain.core.device import as_device
from dptrain.core.dtypes import as_dtype, get_default_dtype, int64
from dptrain.core.factory import factory, finish, numpy_type, sizes_of
from dptrain.core.layout import preserve_format
from dptrain.core.random import Generator
from dptrain.core.random_tensors import randint
from dptrain.core.tensor import Tensor, wrap


def _triangle(op: str, row: int, col: int, dtype: Any, device: Any, find: Any) -> Tensor:
    if row < 0 or col < 0:
        which, size = ("row", row) if row < 0 else ("col", col)
        raise RuntimeError(f"{op}: {which} must be non-negative, got {size}")
    kind = int64 if dtype is None else as_dtype(dtype)
    return finish(np.stack(find()).astype(kind.numpy), device, False)


@factory
def tril_indices(
    row: int, col: int, offset: int = 0, *, dtype: Any = None, device: Any = None
) -> Tensor:
    """Rows and columns of the lower triangle of a row x col matrix, as a 2 x N tensor."""
    return _triangle(
        "tril_indices", row, col, dtype, device, lambda: np.tril_indices(row, offset, col)
    )


@factory
def triu_indices(
    row: int, col: int, offset: int = 0, *, dtype: Any = None, device: Any = None
) -> Tensor:
    """Rows and columns of the upper triangle of a row x col matrix, as a 2 x N tensor."""
    return _triangle(
        "triu_indices", row, col, dtype, device, lambda: np.triu_indices(row, offset, col)
    )


@factory
def scalar_tensor(
    s: float, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A 0-dimensional tensor of the default dtype (unless given)."""
    kind = get_default_dtype() if dtype is None else as_dtype(dtype)
    return finish(from_data(s, kind), device, requires_grad)


@partial(factory, kinds={"high": "int!"})
def randint_like(
    input: Tensor,
    low: int,
    high: int | None = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    memory_format: Any = preserve_format,
) -> Tensor:
    """Integers drawn from [low, high) ([0, low) with one bound), in the shape and dtype of `input`."""
    if high is None:
        low, high = 0, low
    kind = input.dtype if dtype is None else as_dtype(dtype)
    place = input.device if device is None else device
    drawn = randint(low, high, input._array.shape, generator=generator, dtype=kind, device=place)
    result = empty_like(input, dtype=kind, device=place, memory_format=memory_format).copy_(drawn)
    return result.requires_grad_() if requires_grad else result


@factory
def empty_strided(
    size: Sequence[int],
    stride: Sequence[int],
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Uninitialised, with the given sizes and strides (in elements)."""
    shape, steps = sizes_of((size,), "empty_strided"), tuple(stride)
    if len(shape) != len(steps):
        raise RuntimeError(
            f"empty_strided: dimensionality of sizes ({len(shape)}) must match dimensionality of strides ({len(steps)})"
        )
    if any(s < 0 for s in steps):
        raise RuntimeError(f"empty_strided: negative strides are not supported: {list(steps)}")
    kind = numpy_type(dtype)
    count = 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
    xp = namespace_on(as_device(device))
    nbytes = tuple(s * kind.itemsize for s in steps)
    array = xp.lib.stride_tricks.as_strided(xp.empty(count, kind), shape, nbytes)
    return wrap(array).requires_grad_(requires_grad)


@factory
def empty_permuted(
    size: Sequence[int],
    physical_layout: Sequence[int],
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Uninitialised, dense, with the dimensions in memory in the order `physical_layout`.

    Raises:
        RuntimeError: `physical_layout` is no permutation of the dimensions.
    """
    shape, order = sizes_of((size,), "empty_permuted"), tuple(physical_layout)
    if sorted(order) != list(range(len(shape))):
        raise RuntimeError(
            f"empty_permuted: physical_layout {list(order)} is no permutation of the {len(shape)} dimensions"
        )
    array = np.empty([shape[d] for d in order], numpy_type(dtype)).transpose(np.argsort(order))
    return finish(array, device, requires_grad)


@partial(factory, kinds={"end": "Number!"})
def range_(
    start: float = 0,
    end: float | None = None,
    step: float = 1,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """start, start + step, ... up to `end`, which is included; the default dtype unless given.

    Raises:
        RuntimeError: a step of 0, or one that leads away from `end`.
    """
    if end is None:
        start, end = 0, start
    if step == 0 or not 0 <= (end - start) * step < math.inf:
        raise RuntimeError(
            f"range: step must lead from start to end, got start={start}, end={end}, step={step}"
        )
    count = int((end - start) / step) + 1
    values = start + step * np.arange(count, dtype=np.float64)
    return finish(values.astype(numpy_type(dtype)), device, requires_grad)


def _new(make: Any) -> Any:
    def method(
        self: Tensor,
        *size: Any,
        dtype: Any = None,
        device: Any = None,
        requires_grad: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        sizes = kwargs.pop("size", None)
        shape = size if sizes is None else (sizes,)
        kind = self.dtype if dtype is None else dtype
        place = self.device if device is None else device
        return make(*shape, dtype=kind, device=place, requires_grad=requires_grad, **kwargs)

    method.__name__ = f"new_{make.__name__}"
    method.__doc__ = (
        f"As `dptrain.{make.__name__}`, with this tensor's dtype and device unless given."
    )
    return method


def _new_empty_strided(
    self: Tensor,
    size: Any,
    stride: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    **kwargs: Any,
) -> Tensor:
    """As `dptrain.empty_strided`, with this tensor's dtype and device unless given."""
    kind = self.dtype if dtype is None else dtype
    place = self.device if device is None else device
    return empty_strided(
        size, stride, dtype=kind, device=place, requires_grad=requires_grad, **kwargs
    )


def _new_full(
    self: Tensor,
    size: Any,
    fill_value: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    **kwargs: Any,
) -> Tensor:
    """One value everywhere, with this tensor's dtype and device unless given."""
    kind = self.dtype if dtype is None else dtype
    place = self.device if device is None else device
    return full(size, fill_value, dtype=kind, device=place, requires_grad=requires_grad, **kwargs)


def _new_tensor(
    self: Tensor,
    data: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """A copy of `data`, with this tensor's dtype and device unless given."""
    kind = self.dtype if dtype is None else as_dtype(dtype)
    place = self.device if device is None else device
    return finish(from_data(data, kind), place, requires_grad)


for _make in (zeros, ones, empty):
    setattr(Tensor, f"new_{_make.__name__}", guarded(_new(_make)))
Tensor.new_empty_strided = guarded(_new_empty_strided)  # type: ignore[attr-defined]
Tensor.new_full = guarded(_new_full)  # type: ignore[attr-defined]
Tensor.new_tensor = guarded(_new_tensor, data="")  # type: ignore[attr-defined]
