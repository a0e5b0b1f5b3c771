"""Counts, histograms and searches in sorted sequences: results without derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import as_array, namespace_of
from dptrain.core.dtypes import scalar_dtype
from dptrain.core.export import export
from dptrain.core.ops.order import _Counting
from dptrain.core.ops.reduce import _axes
from dptrain.core.tensor import Tensor, wrap


def _bincount(input: Any, weights: Any = None, minlength: int = 0) -> Any:
    """How often each value 0, 1, ... occurs in a vector of non-negative integers, or weight sums."""
    array = input._array
    if array.dtype.kind not in "iu":
        raise RuntimeError(f"bincount: not implemented for {array.dtype}; expected integers")
    if minlength < 0:
        raise RuntimeError(f"bincount: minlength should be >= 0, got {minlength}")
    if array.ndim != 1 or (array.size and array.min() < 0):
        raise RuntimeError(
            f"bincount only supports 1-d non-negative integral inputs; got shape {list(array.shape)}"
            + (f" with the value {int(array.min())}" if array.size else "")
        )
    if weights is not None and weights._array.shape != array.shape:
        raise RuntimeError(
            f"bincount: weights should be 1-d and have the same length as input, got {list(weights.shape)} and "
            f"{list(array.shape)}"
        )
    given = None if weights is None else weights._array
    out = np.bincount(array, given, minlength)
    if given is None:
        return wrap(out.astype(np.int64))
    return wrap(out.astype(given.dtype if given.dtype == np.float32 else np.float64))


def _histc(input: Any, bins: int = 100, min: float = 0, max: float = 0) -> Any:
    """How many elements lie in each of `bins` equal intervals of [min, max] (0, 0: the input's range)."""
    array = input._array
    if array.dtype.kind in "biu":
        raise RuntimeError(f"histc: not implemented for {array.dtype}; convert with .float()")
    if bins <= 0:
        raise RuntimeError(f"histc: bins must be > 0, but got {bins}")
    if min > max:
        raise RuntimeError(f"histc: max ({max}) must be larger than min ({min})")
    low, high = float(min), float(max)
    if low == high and array.size:
        low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise RuntimeError(f"histc: range of [{low}, {high}] is not finite")
    if low == high:
        low, high = low - 1, high + 1
    inside = array[(array >= low) & (array <= high)].astype(np.float64)
    places = np.minimum((inside - low) * bins / (high - low), bins - 1).astype(np.int64)
    return wrap(np.bincount(places, minlength=bins).astype(array.dtype))


def _count_nonzero(input: Any, dim: Any = None) -> Any:
    """How many elements are not zero, over everything or over the dimensions `dim`."""
    axes = _axes(dim, input.ndim, "count_nonzero")
    return wrap(as_array((input._array != 0).sum(axis=axes, dtype=np.int64)))


def _searchsorted(
    sorted_sequence: Any,
    input: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
) -> Any:
    """Where values would go into (each row of) a sorted sequence so that it stays sorted.

    Before equal elements, or behind them with `right` (side="right").
    """
    if side not in (None, "left", "right"):
        raise RuntimeError(f"searchsorted(): side can only be 'left' or 'right' but got {side}")
    if right and side == "left":
        raise RuntimeError("searchsorted(): side and right can't be set to opposites")
    line = sorted_sequence._array
    xp = namespace_of(line)
    given = (
        input._array if isinstance(input, Tensor) else xp.asarray(input, scalar_dtype(input).numpy)
    )
    if sorter is not None:
        if sorter.dtype.name != "int64":
            raise RuntimeError(
                f"searchsorted(): sorter must be a tensor of int64, got {sorter.dtype}"
            )
        if sorter._array.shape != line.shape:
            raise RuntimeError(
                f"searchsorted(): boundary and sorter must have the same size, but got {list(line.shape)} and "
                f"{list(sorter.shape)}"
            )
        line = np.take_along_axis(line, sorter._array, axis=-1)
    if line.ndim == 0:
        raise RuntimeError(
            "searchsorted(): boundaries tensor should have positive dimension, but got 0"
        )
    where: Any = "right" if right or side == "right" else "left"
    if line.ndim == 1:
        found = np.searchsorted(line, given, where)
    else:
        if line.shape[:-1] != given.shape[:-1]:
            raise RuntimeError(
                "searchsorted(): boundaries tensor should be 1 dimension or the first N-1 dimensions of boundaries "
                f"tensor and input value tensor must match, but we got {list(line.shape)} and {list(given.shape)}"
            )
        found = xp.zeros(given.shape, np.int64)
        for place in np.ndindex(*line.shape[:-1]):
            found[place] = np.searchsorted(line[place], given[place], where)
    return wrap(as_array(found).astype(np.int32 if out_int32 else np.int64))


def _bucketize(input: Any, boundaries: Any, *, out_int32: bool = False, right: bool = False) -> Any:
    """The interval between sorted boundaries in which each value lies; a number is a value too."""
    if boundaries.ndim != 1:
        raise RuntimeError(
            f"bucketize(): boundaries tensor must be 1 dimension, but got dim({boundaries.ndim})"
        )
    return _searchsorted(boundaries, input, out_int32=out_int32, right=right)


export("bincount", methods=("bincount",), function=_bincount)(_Counting)
export("histc", methods=("histc",), function=_histc)(_Counting)
export("count_nonzero", methods=("count_nonzero",), function=_count_nonzero)(_Counting)
export("searchsorted", function=_searchsorted)(_Counting)
export("bucketize", function=_bucketize, tensors=0)(_Counting)
