"""Sums of rows: of all, the gradient of a bias, and by index, that of an embedding."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.kernels import pool, reference
from dptrain.core.kernels.compiled import kernel, whole_registers
from dptrain.core.kernels.memory import address, array_at

real: Any = None  # each compiled copy has its own

#: Columns that a share has at least: some cache lines.
_COLUMNS = 64
#: Elements below which NumPy's own loop is done before a kernel is called.
_WORTH_A_KERNEL = 8192


@kernel
def _add_rows(args, share, shares, worker):
    """Shares divide the columns, so that the rows of equal index are added in order."""
    count, c, out_rows = args[0], args[1], args[2]
    rows, index = array_at(args[3], (count, c), real), array_at(args[4], (count,), np.int64)
    out = array_at(args[5], (out_rows, c), real)
    first, last = share * c // shares, (share + 1) * c // shares
    for r in range(out_rows):
        to = out[r]
        for k in range(first, last):
            to[k] = 0
    for r in range(count):
        line, to = rows[r], out[index[r]]
        for k in range(first, last):
            to[k] += line[k]


@kernel
def _column_sums(args, share, shares, worker):
    """Shares divide the columns; four rows at once, so that the sums are not loaded and stored for each.

    Without `fastmath`: the columns at the end of a share are added in the order of all others.
    """
    whole_registers()
    count, c, size = args[0], args[1], args[4]
    first = share * c // shares
    width = (share + 1) * c // shares - first
    line, start = c * size, args[2] + first * size
    to = array_at(args[3] + first * size, (width,), real)
    for k in range(width):
        to[k] = 0
    fours = count // 4 * 4
    for r in range(0, fours, 4):
        a = array_at(start + r * line, (width,), real)
        b = array_at(start + (r + 1) * line, (width,), real)
        d = array_at(start + (r + 2) * line, (width,), real)
        e = array_at(start + (r + 3) * line, (width,), real)
        for k in range(width):
            to[k] += (a[k] + b[k]) + (d[k] + e[k])
    for r in range(fours, count):
        a = array_at(start + r * line, (width,), real)
        for k in range(width):
            to[k] += a[k]


def column_sums(rows: np.ndarray) -> np.ndarray:
    """See `reference.column_sums`; in pairs of pairs: |error| <= (R / 4 + 2) eps * sum |rows|."""
    if rows.size < _WORTH_A_KERNEL or not rows.flags.c_contiguous:
        return reference.column_sums(rows)
    count, c = rows.shape
    out = np.empty(c, rows.dtype)
    args = (count, c, address(rows), address(out), rows.itemsize)
    shares = min(pool.shares(c, rows.nbytes), max(1, c // _COLUMNS))
    pool.run(_column_sums.address(rows.dtype.type), args, shares)
    return out


def add_rows(
    rows: np.ndarray, index: np.ndarray, size: int, out: np.ndarray | None = None
) -> np.ndarray:
    """See `reference.add_rows`."""
    if rows.ndim != 2 or not rows.size or not (out is None or out.flags.c_contiguous):
        return reference.add_rows(rows, index, size, out)
    rows, index = np.ascontiguousarray(rows), np.ascontiguousarray(index, dtype=np.int64)
    count, c = rows.shape
    out = np.empty((size, c), rows.dtype) if out is None else out
    args = (count, c, size, address(rows), address(index), address(out))
    shares = min(pool.shares(c, rows.nbytes + out.nbytes), max(1, c // _COLUMNS))
    pool.run(_add_rows.address(rows.dtype.type), args, shares)
    return out
