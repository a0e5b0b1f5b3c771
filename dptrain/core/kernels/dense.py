"""How the elements of arrays lie in memory: without gaps, and in the same order."""

from __future__ import annotations

from typing import Any

import numpy as np

_WIDE = 256  # columns of a folded row


def dense(array: Any) -> bool:
    """Whether the elements lie without gaps or repetition, in whichever order."""
    if isinstance(array, np.generic):  # a number of NumPy's lies nowhere
        return False
    if array.flags.c_contiguous:
        return bool(array.size)
    steps = zip(array.shape, array.strides, strict=True)
    span = sum((n - 1) * s for n, s in steps) + array.itemsize
    return array.size > 0 and min(array.strides, default=1) > 0 and span == array.nbytes


def alike(first: Any, second: Any) -> bool:
    """Whether the elements of both lie in the same order, without gaps."""
    same: bool = first.strides == second.strides and first.shape == second.shape
    return same and dense(first) and not isinstance(second, np.generic)


def lying_as(kept: np.ndarray, grad: np.ndarray) -> np.ndarray:
    """A gradient in the order of what the forward pass kept, which is dense and of its shape and type.

    That order is the one of the convolutions around; those before shall find it again.
    """
    if grad.strides == kept.strides and not isinstance(grad, np.generic):
        return grad
    out = np.empty_like(kept)
    out[...] = grad
    return out


def fold(rows: int, columns: int) -> int:
    """How many rows of a narrow matrix to see as one: a row fills the vectors then."""
    seen = 1
    while seen * columns * 2 <= _WIDE and rows % (seen * 2) == 0:
        seen *= 2
    return seen
