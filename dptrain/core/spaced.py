"""Evenly spaced numbers: `arange`, `linspace`, `logspace`, with PyTorch's bounds and roundings."""

from __future__ import annotations

import math
from operator import index
from typing import Any

import numpy as np

from dptrain.core.dtypes import held, int64
from dptrain.core.factory import factory, finish, numpy_type
from dptrain.core.tensor import Tensor


def _number(value: Any, op: str) -> Any:
    if not isinstance(value, Tensor):
        if isinstance(value, (int, float, np.integer, np.floating)):
            return value
        raise TypeError(f"{op}(): expected a number, got {type(value).__name__}")
    if value.ndim:
        raise RuntimeError(
            f"{op} only supports 0-dimensional start and end tensors, but got one with {value.ndim} dimension(s)"
        )
    return value.item()


@factory
def arange(
    start: float,
    end: float | None = None,
    step: float = 1,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """start, start + step, ... below `end`: int64 for integers, else the default dtype.

    Raises:
        RuntimeError: a step of 0 or away from the end, or bounds that are not finite.
        NotImplementedError: booleans.
    """
    if end is None:
        start, end = 0, start
    whole = type(start) is type(end) is type(step) is int  # nearly every call
    if not whole:
        start, end, step = (_number(v, "arange") for v in (start, end, step))
        whole = all(isinstance(v, (int, np.integer)) for v in (start, end, step))
    if dtype is None and whole:
        dtype = int64
    kind = numpy_type(dtype)
    if kind == np.bool_:
        raise NotImplementedError("arange: not implemented for dptrain.bool")
    if not (math.isfinite(start) and math.isfinite(end)):
        raise RuntimeError(f"arange: unsupported range: {start} -> {end}")
    low, high, stride = start, end, step
    if kind.kind in "iu":
        start, step = int(start), int(step)
        if kind.itemsize == 8:  # the other integer types count their elements before cutting
            low, high, stride = start, int(end), step
    if stride == 0:
        raise RuntimeError("arange: step must be nonzero")
    if (high - low) * stride < 0:
        raise RuntimeError(
            f"arange: upper bound and lower bound inconsistent with step sign ({start}, {end}, {step})"
        )
    if isinstance(low, int) and isinstance(high, int) and isinstance(stride, int):
        count = -((low - high) // stride)  # exact, where a quotient of floats is not
    else:
        count = math.ceil((high - low) / stride)
    values: Any = np.arange(count)
    if not (type(start) is type(step) is int and (start, step) == (0, 1)):
        values = start + values * step
    return finish(values.astype(kind, copy=False), device, requires_grad)


def _line(op: str, start: Any, end: Any, steps: Any, kind: np.dtype[Any]) -> np.ndarray:
    """`steps` numbers from start to end, not yet rounded to `kind`.

    The first half counts up from the start and the second down from the end, so that both are hit
    exactly; integers and their step are cut before.
    """
    start, end = _number(start, op), _number(end, op)
    try:
        steps = index(steps)
    except TypeError:
        raise TypeError(f"{op}(): steps must be int, not {type(steps).__name__}") from None
    if steps < 0:
        raise RuntimeError(f"{op}: number of steps must be non-negative, got {steps}")
    work: Any = np.float64 if kind.kind in "iu" else kind.type
    a, b = (work(int(v) if kind.kind in "iu" else v) for v in (start, end))
    if steps < 2:
        return np.full(steps, a)
    step = work((b - a) / work(steps - 1))
    wide: Any = np.float32 if kind.itemsize == 2 and kind.kind not in "iu" else work
    places = np.arange(steps)
    up = wide(a) + wide(step) * places.astype(wide)
    down = wide(b) - wide(step) * (steps - 1 - places).astype(wide)
    return np.where(places < steps // 2, up, down)


@factory
def linspace(
    start: Tensor | float,
    end: Tensor | float,
    steps: int,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """`steps` evenly spaced values from start to end, both included.

    Raises:
        RuntimeError: a negative number of steps, or bounds with dimensions.
    """
    kind = numpy_type(dtype)
    for bound in (start, end):
        if not isinstance(bound, Tensor):
            held("linspace", bound, kind)
    return finish(_line("linspace", start, end, steps, kind).astype(kind), device, requires_grad)


@factory
def logspace(
    start: Tensor | float,
    end: Tensor | float,
    steps: int,
    base: float = 10.0,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """`steps` values from base^start to base^end, evenly spaced on a logarithmic scale.

    Raises:
        RuntimeError: a negative number of steps, or bounds with dimensions.
    """
    kind = numpy_type(dtype)
    line = _line("logspace", start, end, steps, kind).astype(np.float64)
    with np.errstate(all="ignore"):  # a negative base has no real power between integers: nan
        values = np.float64(base) ** line
    return finish(values.astype(kind), device, requires_grad)
