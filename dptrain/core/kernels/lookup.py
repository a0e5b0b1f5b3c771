"""Sums of rows by index: the gradient of an embedding."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.kernels import pool, reference
from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.memory import address, array_at

real: Any = None  # each compiled copy has its own

#: Columns that a share has at least: some cache lines.
_COLUMNS = 64


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


def add_rows(rows: np.ndarray, index: np.ndarray, size: int) -> np.ndarray:
    """See `reference.add_rows`."""
    if rows.ndim != 2 or not rows.size:
        return reference.add_rows(rows, index, size)
    rows, index = np.ascontiguousarray(rows), np.ascontiguousarray(index, dtype=np.int64)
    count, c = rows.shape
    out = np.empty((size, c), rows.dtype)
    args = (count, c, size, address(rows), address(index), address(out))
    shares = min(pool.shares(c, rows.nbytes + out.nbytes), max(1, c // _COLUMNS))
    pool.run(_add_rows.address(rows.dtype.type), args, shares)
    return out
