"""Making tensors of random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from dptrain.core.arrays import as_array
from dptrain.core.creation import like
from dptrain.core.dtypes import FROM_NUMPY, as_dtype, int64
from dptrain.core.factory import factory, finish, numpy_type, sizes_of
from dptrain.core.layout import preserve_format
from dptrain.core.random import Generator, check_range, default_generator
from dptrain.core.tensor import Tensor


def _floating(op: str, given: Any) -> Any:
    kind = numpy_type(given)
    if kind.kind in "biu":
        raise NotImplementedError(
            f"{op}: not implemented for {FROM_NUMPY[kind]}; expected floating point"
        )
    return kind


@factory
def rand(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Uniform draws from [0, 1)."""
    kind = _floating("rand", dtype)
    values = (generator or default_generator()).stream().random(sizes_of(size, "rand"))
    # Rounding to fewer digits may reach 1, which the half-open range excludes.
    return finish(
        as_array(np.minimum(values.astype(kind), _below_one(kind))), device, requires_grad
    )


@cache
def _below_one(kind: np.dtype[Any]) -> Any:
    return np.nextafter(kind.type(1), kind.type(0)) if kind.itemsize > 2 else kind.type(0.99)


@factory
def randn(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Draws from the standard normal distribution."""
    kind = _floating("randn", dtype)
    values = (generator or default_generator()).stream().standard_normal(sizes_of(size, "randn"))
    return finish(as_array(values).astype(kind), device, requires_grad)


@partial(factory, kinds={"low": "int!", "high": "int | tuple of ints!", "size": "tuple of ints!"})
def randint(
    low: int | None = None,
    high: int | Sequence[int] | None = None,
    size: Sequence[int] | None = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
) -> Tensor:
    """Integers drawn uniformly from [low, high): `randint(high, size)` or `randint(low, high, size)`."""
    if isinstance(high, (tuple, list)) and size is None:
        high, size = None, high
    if high is None:
        low, high = None, low
    low = 0 if low is None else low
    if size is None or not isinstance(high, int):
        raise TypeError(
            f"randint(): expected (high, size) or (low, high, size), got {low}, {high}, {size}"
        )
    if high <= low:
        raise RuntimeError(
            f"randint: random_ expects 'from' to be less than 'to', but got from={low} >= to={high}"
        )
    kind = (int64 if dtype is None else as_dtype(dtype)).numpy
    check_range("randint", low, high, kind)
    values = (
        (generator or default_generator())
        .stream()
        .integers(low, high, sizes_of((size,), "randint"))
    )
    return finish(values.astype(kind), device, False)


@factory
def randperm(
    n: int, *, generator: Generator | None = None, dtype: Any = None, device: Any = None
) -> Tensor:
    """A random permutation of 0 .. n-1.

    Raises:
        RuntimeError: `n` is negative.
    """
    if n < 0:
        raise RuntimeError(f"randperm: n must be non-negative, got {n}")
    values = (generator or default_generator()).stream().permutation(n)
    return finish(values.astype((int64 if dtype is None else as_dtype(dtype)).numpy), device, False)


@factory
def rand_like(
    input: Tensor,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    memory_format: Any = preserve_format,
) -> Tensor:
    """Uniform draws with the shape and dtype of `input`."""
    return like(rand, input, dtype, device, requires_grad, memory_format)


@factory
def randn_like(
    input: Tensor,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    memory_format: Any = preserve_format,
) -> Tensor:
    """Normal draws with the shape and dtype of `input`."""
    return like(randn, input, dtype, device, requires_grad, memory_format)
