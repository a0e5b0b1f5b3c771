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
from dptrain.core.kernels.micro import call_tile, tile
from dptrain.core.kernels.target import target

real: Any = None  # each compiled copy has its own


@kernel
def _fill_panels(args, share, shares, worker):
    columns, depth, kh, kw, wide = args[0], args[1], args[2], args[3], args[4]
    size = args[5]
    source, by_column, by_depth, by_i, by_j = args[6], args[7], args[8], args[9], args[10]
    out, to_panel, to_tap = args[11], args[12], args[13]
    for column in range(-(-columns // wide) * wide):
        place = out + column // wide * to_panel + column % wide * size
        start = source + column * by_column
        for i in range(kh):
            for j in range(kw):
                to = array_at(place + (i * kw + j) * to_tap, (depth * wide,), real)
                if column >= columns:
                    for c in range(depth):
                        to[c * wide] = 0
                    continue
                here = start + i * by_i + j * by_j
                for c in range(depth):
                    to[c * wide] = array_at(here + c * by_depth, (1,), real)[0]


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


@kernel
def _multiply(args, share, shares, worker):
    tile_code, size, lanes, narrow, wide = args[0], args[1], args[2], args[3], args[4]
    a, rows, depth, b, columns, out, zeros = (
        args[5], args[6], args[7], args[8], args[9], args[10], args[11],
    )  # fmt: skip
    blocks = -(-columns // (2 * lanes))
    for block in range(share * blocks // shares, (share + 1) * blocks // shares):
        first = block * 2 * lanes
        used = min(2 * lanes, columns - first)
        most = narrow if used <= lanes else wide
        parts = -(-rows // most)
        for part in range(parts):
            m = part * rows // parts
            call_tile(
                tile_code,
                (
                    (part + 1) * rows // parts - m, used, zeros, 0,
                    a + m * depth * size, depth * size, 0, 0, size,
                    b + first * size, 0, 0, columns * size,
                    1, 1, depth, out + (m * columns + first) * size, columns * size,
                ),
            )  # fmt: skip


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b of contiguous matrices, b's columns whole vectors, on the threads of `pool`.

    A BLAS library would bring threads of its own, and the two sets would wait for each other's cores.
    """
    (rows, depth), columns = a.shape, b.shape[1]
    kind, size = target(), a.itemsize
    lanes = kind.lanes(size)
    out = np.empty((rows, columns), a.dtype)
    zeros = np.zeros(2 * lanes, a.dtype)
    pool.run(
        _multiply.address(),
        (
            *(tile.address(a.dtype.type), size, lanes, kind.most_rows(1), kind.most_rows(2)),
            *(address(a), rows, depth, address(b), columns, address(out), address(zeros)),
        ),
        pool.shares(-(-columns // (2 * lanes)), out.nbytes),
    )
    return out


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
