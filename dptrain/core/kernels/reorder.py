"""Images from channels first to channels last, and back: many matrices are turned."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dptrain.core.kernels import pool, reference
from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.memory import address, array_at
from dptrain.core.kernels.packing import transpose
from dptrain.core.kernels.target import target

real: Any = None  # each compiled copy has its own

#: Pixels that are reordered at a time: with few channels they stay in the first cache.
_BLOCK = 128


@kernel
def _to_last(args, share, shares, worker):
    images, c, pixels, block = args[0], args[1], args[2], args[3]
    x = array_at(args[4], (images, c, pixels), real)
    out = array_at(args[5], (images, pixels * c), real)
    for n in range(share * images // shares, (share + 1) * images // shares):
        to = out[n]
        for start in range(0, pixels, block):
            count = min(block, pixels - start)
            for k in range(c):
                line, first = x[n, k], np.uint64(start * c + k)
                for p in range(count):
                    to[first + np.uint64(p * c)] = line[start + p]


@kernel
def _turn(args, share, shares, worker):
    """Each matrix (rows, columns), rows contiguous, as (columns, rows): squares of vectors, of which the last overlap."""
    matrices, rows, columns, lanes, size = args[0], args[1], args[2], args[3], args[4]
    source, step, line, to = args[5], args[6], args[7], args[8]
    bands = -(-rows // lanes)
    for job in range(share * matrices * bands // shares, (share + 1) * matrices * bands // shares):
        n, row = job // bands, min(job % bands * lanes, rows - lanes)
        start = source + n * step + row * line
        place = to + (n * rows * columns + row) * size
        for block in range(-(-columns // lanes)):
            column = min(block * lanes, columns - lanes)
            transpose(
                start + column * size, line, place + column * rows * size, rows * size, 0, real
            )


class _Matrices(NamedTuple):
    """What `_turn` has to know of its argument."""

    number: int
    rows: int
    columns: int
    step: int  # bytes from matrix to matrix
    line: int  # bytes from row to row


def _turned(x: np.ndarray, found: _Matrices, out: np.ndarray) -> np.ndarray:
    lanes = target().lanes(x.itemsize)
    args = (
        found.number,
        found.rows,
        found.columns,
        lanes,
        x.itemsize,
        address(x),
        found.step,
        found.line,
        address(out),
    )
    shares = pool.shares(found.number * -(-found.rows // lanes), 2 * out.nbytes)
    pool.run(_turn.address(x.dtype.type), args, shares)
    return out


def _matrices(x: np.ndarray, channels: int, first: int, last: int) -> _Matrices | None:
    """The matrices of an image: of its channels and its pixels, which are dimensions `first` to `last`; rows first."""
    shape, strides, lanes = x.shape, x.strides, target().lanes(x.itemsize)
    pixels, step = 1, strides[last - 1]
    for axis in range(last - 1, first - 1, -1):
        if strides[axis] != step * pixels:
            return None
        pixels *= shape[axis]
    c, by_channel = shape[channels], strides[channels]
    if min(c, pixels) < lanes or min(*strides, step) < x.itemsize:
        return None
    if step == x.itemsize:
        return _Matrices(shape[0], c, pixels, strides[0], by_channel)
    if by_channel == x.itemsize:
        return _Matrices(shape[0], pixels, c, strides[0], step)
    return None


def channels_last(x: np.ndarray) -> np.ndarray:
    """See `reference.channels_last`."""
    found = _matrices(x, 1, 2, x.ndim) if x.ndim > 2 and x.size else None
    if found is not None and found.rows == x.shape[1]:
        n, c, *sizes = x.shape
        return _turned(x, found, np.empty((n, *sizes, c), x.dtype))
    if not x.size or not x.flags.c_contiguous or x.shape[1] >= target().lanes(x.itemsize):
        return reference.channels_last(x)
    n, c, *sizes = x.shape
    out = np.empty((n, *sizes, c), x.dtype)
    args = (n, c, x.size // (n * c), _BLOCK, address(x), address(out))
    pool.run(_to_last.address(x.dtype.type), args, pool.shares(n, 2 * x.nbytes))
    return out


def row_major(x: np.ndarray) -> np.ndarray:
    """See `reference.row_major`."""
    found = _matrices(x, 1, 2, x.ndim) if x.ndim > 2 and x.size else None
    if found is None or found.columns != x.shape[1] or found.line == x.itemsize:
        return reference.row_major(x)
    return _turned(x, found, np.empty(x.shape, x.dtype))
