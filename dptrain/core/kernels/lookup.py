"""Sums of rows: of all, the gradient of a bias, and by index, that of an embedding."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from dptrain.core.arrays import is_array
from dptrain.core.kernels import pool, reference
from dptrain.core.kernels.compiled import kernel, whole_registers
from dptrain.core.kernels.memory import address, array_at
from dptrain.core.threads import get_num_threads

real: Any = None  # each compiled copy has its own

#: Columns that a share has at least: some cache lines.
_COLUMNS = 64
#: Elements below which NumPy has added them to their places before a kernel is called.
_WORTH_ADDING = 512
#: Shares that a pass over rows is cut into at most.
_MOST_SHARES = 256
#: Elements below which NumPy's own loop is done before a kernel is called; what a recorded step calls
#: is a kernel for as long as it costs little more, as kernels write where the result is wanted.
_WORTH_A_KERNEL = 512


@kernel
def _add_rows(args, share, shares, worker):
    """Shares divide lines, places and columns, so that the rows of equal index are added in order."""
    lines, count, c, size = args[0], args[1], args[2], args[3]
    by_places, by_columns, itemsize = args[7], args[8], args[9]
    by_lines = shares // (by_places * by_columns)
    index = array_at(args[5], (count,), np.int64)
    column, place = share % by_columns, share // by_columns % by_places
    line = share // (by_columns * by_places)
    first = column * c // by_columns
    width = (column + 1) * c // by_columns - first
    low, high = place * size // by_places, (place + 1) * size // by_places
    single = c == 1
    for n in range(line * lines // by_lines, (line + 1) * lines // by_lines):
        start = args[4] + (n * count * c + first) * itemsize
        there = args[6] + (n * size * c + first) * itemsize
        if single:  # a loop over one number would cost more than the number
            values = array_at(start, (count,), real)
            sums = array_at(there, (size,), real)
            for r in range(count):
                i = index[r]
                if i < 0:
                    i += size
                if low <= i < high:
                    sums[i] += values[r]
            continue
        for r in range(count):
            i = index[r]
            if i < 0:
                i += size
            if low <= i < high:
                row = array_at(start + r * c * itemsize, (width,), real)
                to = array_at(there + i * c * itemsize, (width,), real)
                for k in range(width):
                    to[k] += row[k]


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
    if out is None:
        out = np.zeros((size, rows.shape[1]), rows.dtype)
    else:
        out.fill(0)
    _add(out, index, rows, 1, size)
    return out


def add_at(out: np.ndarray, index: tuple[Any, ...], values: np.ndarray) -> None:
    """See `reference.add_at`."""
    few = values.size < _WORTH_ADDING
    places = None if few else _places(out.shape, index)
    if places is None or values.dtype != out.dtype or not out.flags.c_contiguous:
        reference.add_at(out, index, values)
        return
    start, stop, flat = places
    shape = (*out.shape[:start], *flat.shape, *out.shape[stop:])
    if values.shape != shape:
        values = np.broadcast_to(values, shape)
    if values.size:
        _add(out, flat, values, prod(out.shape[:start]), prod(out.shape[start:stop]))


def _places(shape: tuple[int, ...], index: tuple[Any, ...]) -> tuple[int, int, np.ndarray] | None:
    """Which dimensions an index of arrays side by side is about, and it as one into these as one dimension.

    Returns:
        (first, last + 1, index), or None where something else than arrays and whole dimensions is in it.
    """
    start = 0
    while start < len(index) and isinstance(index[start], slice):
        start += 1
    arrays, whole = index[start:], slice(None)
    if not arrays or not all(is_array(a) and a.dtype.kind == "i" for a in arrays):
        return None
    if any(part != whole for part in index[:start]):
        return None
    sizes = shape[start : len(index)]
    if len(arrays) == 1:
        return start, len(index), arrays[0]
    return start, len(index), np.ravel_multi_index(arrays, sizes, mode="wrap")


def _add(out: np.ndarray, index: np.ndarray, rows: np.ndarray, lines: int, size: int) -> None:
    """out[l, index[r]] += rows[l, r] for arrays of (lines, size, columns) and (lines, R, columns) elements."""
    rows, index = np.ascontiguousarray(rows), np.ascontiguousarray(index, dtype=np.int64)
    count, columns = index.size, rows.size // (lines * index.size)
    args = (lines, count, columns, size, address(rows), address(index), address(out))
    shares = pool.shares(_MOST_SHARES, rows.nbytes + out.nbytes)
    divided = shares, 1, 1
    if lines < shares:  # each share of places looks at the whole index
        wide = columns >= shares * _COLUMNS or columns > size
        most = max(1, columns // _COLUMNS) if wide else min(size, get_num_threads())
        divided = (1, 1, min(shares, most)) if wide else (1, min(shares, most), 1)
    pool.run(_add_rows.address(rows.dtype.type), (*args, *divided[1:], out.itemsize), prod(divided))
