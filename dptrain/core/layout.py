"""How the elements of a tensor lie in memory: memory formats, strides, density.

Owns: `memory_format` and `layout` values, the arrays that follow them. Must not know: tensors.

Source of the rules: PyTorch's documentation, "torch.memory_format" and "Channels last".
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from dptrain.core.arrays import HOST_TYPES, namespace_of


class _Named:
    """A value that is only its name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"dptrain.{self.name}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _by_name, (self.name,)


class memory_format(_Named):
    """The order of the dimensions in memory, as `dptrain.channels_last`."""

    __slots__ = ()


class layout(_Named):
    """How values are stored; there is one, `dptrain.strided`."""

    __slots__ = ()


strided = layout("strided")
contiguous_format = memory_format("contiguous_format")
channels_last = memory_format("channels_last")
channels_last_3d = memory_format("channels_last_3d")
preserve_format = memory_format("preserve_format")

_VALUES = (strided, contiguous_format, channels_last, channels_last_3d, preserve_format)
_RANK = {channels_last: 4, channels_last_3d: 5}


def _by_name(name: str) -> _Named:
    return next(v for v in _VALUES if v.name == name)


def _check_format(op: str, value: Any) -> None:
    if not isinstance(value, memory_format):
        raise TypeError(
            f"{op}(): argument 'memory_format' must be dptrain.memory_format, not {type(value).__name__}"
        )


def _order(shape: tuple[int, ...], wanted: memory_format) -> tuple[int, ...]:
    """The dimensions from the slowest to the fastest in memory."""
    rank = _RANK.get(wanted)
    if rank is None:
        return tuple(range(len(shape)))
    if len(shape) != rank:
        raise RuntimeError(f"required rank {rank} tensor to use {wanted.name} format")
    return (0, *range(2, rank), 1)


def lies_in(array: np.ndarray, wanted: memory_format) -> bool:
    """Whether the elements lie in that order without gaps (another number of dimensions: no)."""
    _check_format("is_contiguous", wanted)
    if wanted is preserve_format:
        raise RuntimeError("is_contiguous: preserve_format is no order of its own")
    if wanted in _RANK and array.ndim != _RANK[wanted]:
        return False
    return bool(array.transpose(_order(array.shape, wanted)).flags.c_contiguous)


def suggested(array: np.ndarray) -> memory_format:
    """The format that the strides look like, whether or not there are gaps; row-major where in doubt."""
    for wanted, rank in _RANK.items():
        if array.ndim == rank and _looks_channels_last(array, wanted):
            return wanted
    return contiguous_format


def _looks_channels_last(array: np.ndarray, wanted: memory_format) -> bool:
    steps, least = array.strides, 0
    if not steps[1] or not array.size:
        return False
    for d in reversed(_order(array.shape, wanted)):
        if steps[d] < least or (d == 0 and least == steps[1]):
            return False
        least = steps[d] * max(array.shape[d], 1)
    return True


def is_dense(array: np.ndarray) -> bool:
    """Whether the elements fill one block of memory, each of them once, in some order."""
    expected = array.itemsize
    for step, size in sorted(
        (s, n) for s, n in zip(array.strides, array.shape, strict=True) if n != 1
    ):
        if step != expected:
            return False
        expected *= size
    return True


def _kept_order(array: np.ndarray) -> list[int]:
    """The order of the dimensions in memory; those that are expanded stay where they are."""
    return list(_order_of(array.shape, array.strides))


@lru_cache(maxsize=1024)  # asked of every image that an operation gives
def _order_of(shape: tuple[int, ...], steps: tuple[int, ...]) -> tuple[int, ...]:
    order: list[int] = []
    for dim in range(len(shape)):
        at = len(order)
        for i in range(len(order) - 1, -1, -1):
            other = order[i]
            if not steps[dim] or not steps[other]:
                continue
            if steps[other] < steps[dim] or (
                steps[other] == steps[dim] and shape[other] < shape[dim]
            ):
                at = i
            else:
                break
        order.insert(at, dim)
    return tuple(order)


def order_of(array: np.ndarray) -> tuple[int, ...]:
    """The dimensions in the order in which they lie in memory, gaps or not."""
    return _order_of(array.shape, array.strides)


def empty_in(
    array: np.ndarray, wanted: memory_format, kind: np.dtype[Any] | None = None
) -> np.ndarray:
    """An uninitialised array of the same shape in that memory format."""
    _check_format("empty_like", wanted)
    kind = array.dtype if kind is None else kind
    if wanted is not preserve_format:
        order = list(_order(array.shape, wanted))
    elif array.flags.c_contiguous:
        order = list(range(array.ndim))
    elif is_dense(array):
        order = sorted(range(array.ndim), key=lambda d: (-array.strides[d], -array.shape[d]))
    else:
        order = _kept_order(array)
    shape = [array.shape[d] for d in order]
    return (
        namespace_of(array).empty(shape, kind).transpose(tuple(int(d) for d in np.argsort(order)))
    )


def copy_in(
    array: np.ndarray, wanted: memory_format, kind: np.dtype[Any] | None = None
) -> np.ndarray:
    """A copy in that memory format."""
    if wanted is contiguous_format and type(array) in HOST_TYPES:
        return array.astype(array.dtype if kind is None else kind, order="C")
    out = empty_in(array, wanted, kind)
    np.copyto(out, array, casting="unsafe")
    return out


def row_major(size: Any) -> tuple[int, ...]:
    """The strides, in elements, of a tensor of that size in row-major order without gaps."""
    steps = [1]
    for n in reversed(tuple(size)[1:]):
        steps.append(steps[-1] * max(n, 1))
    return tuple(reversed(steps))[: len(tuple(size))]


def strides_of(array: Any) -> tuple[int, ...]:
    """The strides of a tensor over that array, in elements.

    NumPy has zeros where an array is empty, and for a dimension that an index of None made; a tensor has
    what row-major order has there, and steps over all that the next dimension holds.
    """
    if not array.size:
        return row_major(array.shape)
    steps, next_step = [], 1
    for n, step in zip(reversed(array.shape), reversed(array.strides), strict=True):
        steps.append(step // array.itemsize if step or n > 1 else next_step)
        next_step = steps[-1] * n
    return tuple(reversed(steps))
