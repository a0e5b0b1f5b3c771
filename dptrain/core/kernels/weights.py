"""Weights of convolutions as the kernels read them, and sums of gradients as weights.

A panel holds, for two vectors of columns, all rows of a matrix one behind the other; columns that do not
exist are zeros. Rows are (kernel row, kernel column, channel).
"""

from __future__ import annotations

from typing import Any

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


@kernel
def _collect(args, share, shares, worker):
    """out[o, c, tap] = sum over parts of sums[part, tap, c, o]."""
    o, c, taps, line, parts, step = args[0], args[1], args[2], args[3], args[4], args[5]
    sums = array_at(args[6], (parts, step), real)
    out = array_at(args[7], (o, c, taps), real)
    for tap in range(taps):
        for depth in range(c):
            place = (tap * c + depth) * line
            for k in range(o):
                total = sums[0, place + k]
                for part in range(1, parts):
                    total += sums[part, place + k]
                out[k, depth, tap] = total


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
    if transposed:
        weight = weight.transpose(1, 0, 2, 3)
    weight = weight[:, :, :: -1 if flip[0] else 1, :: -1 if flip[1] else 1]
    columns, depth, kh, kw = weight.shape
    size = weight.itemsize
    wide = 2 * target().lanes(size)
    count = -(-columns // wide)
    shape = (kh * kw, count) if taps_first else (count, kh * kw)
    out = np.empty((*shape, depth, wide), weight.dtype)
    tap, panel = out.strides[:2] if taps_first else out.strides[1::-1]
    pool.run(
        _fill_panels.address(weight.dtype.type),
        (
            *(columns, depth, kh, kw, wide, size),
            *(address(weight), *weight.strides),
            *(address(out), panel, tap),
        ),
        1,
    )
    return out


def collected(sums: np.ndarray, taps: int, depth: int, out: np.ndarray) -> None:
    """Write sums (parts, at least taps * depth, columns) into a contiguous (O, C, kh, kw)."""
    parts, rows, line = sums.shape
    args = (len(out), depth, taps, line, parts, rows * line, address(sums), address(out))
    pool.run(_collect.address(out.dtype.type), args, 1)
