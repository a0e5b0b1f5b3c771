"""How the elements of arrays lie in memory: without gaps, and in the same order."""

from __future__ import annotations

from typing import Any

import numpy as np


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
