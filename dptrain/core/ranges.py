"""More ways to make tensors: triangles of indices, by strides, like another tensor."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.creation import (
    _finish,
    _from_data,
    _kind,
    _shape,
    empty,
    full,
    ones,
    randint,
    zeros,
)
from dptrain.core.dtypes import as_dtype, get_default_dtype, int64
from dptrain.core.random import Generator
from dptrain.core.tensor import Tensor


def _triangle(op: str, row: int, col: int, dtype: Any, device: Any, find: Any) -> Tensor:
    if row < 0 or col < 0:
        which, size = ("row", row) if row < 0 else ("col", col)
        raise RuntimeError(f"{op}: {which} must be non-negative, got {size}")
    kind = int64 if dtype is None else as_dtype(dtype)
    return _finish(np.stack(find()).astype(kind.numpy), device, False)


def tril_indices(
    row: int, col: int, offset: int = 0, *, dtype: Any = None, device: Any = None
) -> Tensor:
    """Rows and columns of the lower triangle of a row x col matrix, as a 2 x N tensor."""
    return _triangle(
        "tril_indices", row, col, dtype, device, lambda: np.tril_indices(row, offset, col)
    )


def triu_indices(
    row: int, col: int, offset: int = 0, *, dtype: Any = None, device: Any = None
) -> Tensor:
    """Rows and columns of the upper triangle of a row x col matrix, as a 2 x N tensor."""
    return _triangle(
        "triu_indices", row, col, dtype, device, lambda: np.triu_indices(row, offset, col)
    )


def scalar_tensor(
    s: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A 0-dimensional tensor of the default dtype (unless given)."""
    kind = get_default_dtype() if dtype is None else as_dtype(dtype)
    return _finish(_from_data(s, kind), device, requires_grad)


def randint_like(
    input: Tensor,
    low: int,
    high: int | None = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Integers drawn from [low, high) ([0, low) with one bound), in the shape and dtype of `input`."""
    if high is None:
        low, high = 0, low
    kind = input.dtype if dtype is None else as_dtype(dtype)
    drawn = randint(low, high, input._array.shape, generator=generator, dtype=kind, device=device)
    return drawn.requires_grad_() if requires_grad else drawn


def empty_strided(
    size: Any, stride: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """Uninitialised, with the given sizes and strides (in elements)."""
    shape, steps = _shape((size,), "empty_strided"), tuple(stride)
    if len(shape) != len(steps):
        raise RuntimeError(
            f"empty_strided: dimensionality of sizes ({len(shape)}) must match dimensionality of strides ({len(steps)})"
        )
    if any(s < 0 for s in steps):
        raise RuntimeError(f"empty_strided: negative strides are not supported: {list(steps)}")
    kind = _kind(dtype)
    count = 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
    memory = np.empty(count, kind)
    nbytes = tuple(s * kind.itemsize for s in steps)
    return _finish(np.lib.stride_tricks.as_strided(memory, shape, nbytes), device, requires_grad)


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
        return make(*shape, dtype=kind, device=device, requires_grad=requires_grad)

    method.__name__ = f"new_{make.__name__}"
    method.__doc__ = f"As `dptrain.{make.__name__}`, with the dtype of this tensor unless given."
    return method


def _new_full(
    self: Tensor,
    size: Any,
    fill_value: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """One value everywhere, with the dtype of this tensor unless given."""
    kind = self.dtype if dtype is None else dtype
    return full(size, fill_value, dtype=kind, device=device, requires_grad=requires_grad)


def _new_tensor(
    self: Tensor,
    data: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """A copy of `data`, with the dtype of this tensor unless given."""
    kind = self.dtype if dtype is None else as_dtype(dtype)
    return _finish(_from_data(data, kind), device, requires_grad)


for _make in (zeros, ones, empty):
    setattr(Tensor, f"new_{_make.__name__}", _new(_make))
Tensor.new_full = _new_full  # type: ignore[attr-defined]
Tensor.new_tensor = _new_tensor  # type: ignore[attr-defined]
