"""Weights of convolutions as the kernels read them, and sums of gradients as weights.

A panel holds, for two vectors of columns, all rows of a matrix one behind the other; columns that do not
exist are zeros. Rows are (kernel row, kernel column, channel).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from dptrain.core.kernels import pool
from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.memory import address, array_at
from dptrain.core.kernels.target import target

real: Any = None  # each compiled copy has its own


@kernel
def _fill_panels(args, share, shares, worker):
    columns, depth, kh, kw, wide = args[0], args[1], args[2], args[3], args[4]
    size = args[5]
    source, by_column, by_depth, by_i, by_j = args[6], args[7], args[8], args[9], args[10]
    out, to_panel, to_tap = args[11], args[12], args[13]
    for panel in range(-(-columns // wide)):
        start = source + panel * wide * by_column
        used = min(wide, columns - panel * wide)
        for c in range(depth):
            for i in range(kh):
                for j in range(kw):
                    to = array_at(
                        out + panel * to_panel + (i * kw + j) * to_tap + c * wide * size,
                        (wide,),
                        real,
                    )
                    here = start + c * by_depth + i * by_i + j * by_j
                    # The taps of a filter lie together: all columns stay in the cache meanwhile.
                    for k in range(used):
                        to[k] = array_at(here + k * by_column, (1,), real)[0]
                    for k in range(used, wide):
                        to[k] = 0


#: Columns and channels that are reordered at a time: what is read and what is written stay in the first cache.
_COLUMNS, _CHANNELS = 16, 16


@kernel
def _collect(args, share, shares, worker):
    """out[o, c, tap] = sum over parts of sums[part, tap, c, o]; the row behind them is that of a bias."""
    o, c, taps, line, parts, step = args[0], args[1], args[2], args[3], args[4], args[5]
    sums = array_at(args[6], (parts, step), real)
    out = array_at(args[7], (o, c, taps), real)
    if args[8] and share == 0:
        bias = array_at(args[8], (o,), real)
        for k in range(o):
            total = sums[0, taps * c * line + k]
            for part in range(1, parts):
                total += sums[part, taps * c * line + k]
            bias[k] = total
    blocks = -(-o // _COLUMNS)
    for block in range(share * blocks // shares, (share + 1) * blocks // shares):
        first, last = block * _COLUMNS, min(o, (block + 1) * _COLUMNS)
        for start in range(0, c, _CHANNELS):
            for tap in range(taps):
                for depth in range(start, min(c, start + _CHANNELS)):
                    place = (tap * c + depth) * line
                    for k in range(first, last):
                        total = sums[0, place + k]
                        for part in range(1, parts):
                            total += sums[part, place + k]
                        out[k, depth, tap] = total


class _Panels(NamedTuple):
    """How a weight becomes panels: everything but addresses."""

    sizes: tuple[
        int, ...
    ]  # columns, depth, kernel rows and columns, width of a panel, bytes of an element
    start: int  # bytes to the first element
    strides: tuple[int, ...]
    shape: tuple[int, ...]  # of the result
    steps: tuple[int, int]  # bytes from panel to panel, and from tap to tap


@lru_cache(1024)
def _panels(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    size: int,
    transposed: bool,
    flip: tuple[bool, bool],
    taps_first: bool,
) -> _Panels:
    order = (1, 0, 2, 3) if transposed else (0, 1, 2, 3)
    columns, depth, kh, kw = (shape[d] for d in order)
    by_column, by_depth, by_i, by_j = (strides[d] for d in order)
    start = 0
    if flip[0]:
        start, by_i = start + (kh - 1) * by_i, -by_i
    if flip[1]:
        start, by_j = start + (kw - 1) * by_j, -by_j
    wide = 2 * target().lanes(size)
    count, block = -(-columns // wide), depth * wide * size
    return _Panels(
        (columns, depth, kh, kw, wide, size),
        start,
        (by_column, by_depth, by_i, by_j),
        (*((kh * kw, count) if taps_first else (count, kh * kw)), depth, wide),
        (block, count * block) if taps_first else (kh * kw * block, block),
    )


def panels(
    weight: np.ndarray,
    transposed: bool = False,
    flip: tuple[bool, bool] = (False, False),
    taps_first: bool = False,
) -> np.ndarray:
    """(O, C, kh, kw) as panels of O columns and kh * kw * C rows.

    Args:
        weight: any strides.
        transposed: C columns and kh * kw * O rows.
        flip: whether to reverse the kernel's rows and columns.
        taps_first: (kh * kw, panels, C, columns) instead of (panels, kh * kw, C, columns).
    """
    plan = _panels(weight.shape, weight.strides, weight.itemsize, transposed, flip, taps_first)
    out = np.empty(plan.shape, weight.dtype)
    places = address(weight) + plan.start, *plan.strides, address(out), *plan.steps
    pool.run(_fill_panels.address(weight.dtype.type), (*plan.sizes, *places), 1)
    return out


def started(zeros: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """What sums start from: the bias, and zeros behind it; `zeros` itself where there is none."""
    if bias is None:
        return zeros
    start = zeros.copy()
    start[: len(bias)] = bias
    return start


def collected(
    sums: np.ndarray, taps: int, depth: int, out: np.ndarray, bias: np.ndarray | None = None
) -> None:
    """Add up the parts of sums (parts, rows, columns).

    Args:
        sums: of taps * depth rows, and of one more if there is a bias.
        taps, depth: as said.
        out: contiguous (O, C, kh, kw), of the first rows.
        bias: contiguous (O,), of the last row.
    """
    parts, rows, line = sums.shape
    places = address(sums), address(out), 0 if bias is None else address(bias)
    args = (len(out), depth, taps, line, parts, rows * line, *places)
    shares = pool.shares(-(-len(out) // _COLUMNS), parts * out.nbytes + out.nbytes)
    pool.run(_collect.address(out.dtype.type), args, shares)
