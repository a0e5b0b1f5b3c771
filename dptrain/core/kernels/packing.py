"""Blocks of matrices copied into the order in which the register tile reads them.

Owns: the transposition of a square of vectors in registers, and the panel that is made with it.
A panel holds, for two vectors of columns, all rows one behind the other; missing columns are zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.kernels.deferred import intrinsic, ir, njit, types
from dptrain.core.kernels.memory import array_at
from dptrain.core.kernels.micro import Emitter
from dptrain.core.kernels.target import target

#: Rows to fetch ahead of a copy: they lie too far apart for the processor to guess the next.
_AHEAD = 8


def _emitter(builder: Any, real: Any) -> Emitter:
    scalar = np.float32 if real.dtype == types.float32 else np.float64
    return Emitter(builder, scalar, target().width)


def _transposed(emitter: Emitter, rows: list[Any]) -> list[Any]:
    """The columns of a square of vectors.

    Read row by row the square is one sequence; a perfect shuffle of it moves the last bit of a place to
    the front, and after as many of them as a row number has bits, row and column have changed places.
    """
    lanes, builder = emitter.lanes, emitter.builder
    half, kind = lanes // 2, ir.VectorType(ir.IntType(32), lanes)
    low, high = (
        ir.Constant(kind, [n for k in range(first, first + half) for n in (k, lanes + k)])
        for first in (0, half)
    )
    for _ in range(lanes.bit_length() - 1):
        rows = [
            builder.shuffle_vector(rows[i], rows[i + half], mask)
            for i in range(half)
            for mask in (low, high)
        ]
    return rows


@intrinsic
def transpose(
    typing_context: Any, source: Any, step: Any, to: Any, to_step: Any, add: Any, real: Any
) -> Any:
    """Write the columns of a square of vectors as rows, the vector at `add` added to each.

    Args are addresses and the bytes from row to row; `add` may be 0: nothing is added.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emitter = _emitter(builder, signature.args[5])
        start, line, place, to_line, addend = values[:5]
        rows = []
        for _ in range(emitter.lanes):
            rows.append(emitter.load(start))
            start = builder.add(start, line)
        columns = _transposed(emitter, rows)
        none = builder.icmp_signed("==", addend, ir.IntType(64)(0))
        before = builder.block
        with builder.if_then(builder.not_(none)):
            loaded = emitter.load(addend)
            inside = builder.block
        more = builder.phi(emitter.vector)
        # -0 changes no number, not even -0.
        more.add_incoming(emitter.constant(-0.0), before)
        more.add_incoming(loaded, inside)
        for column in columns:
            emitter.store(builder.fadd(column, more), place)
            place = builder.add(place, to_line)
        return context.get_dummy_value()

    return types.void(source, step, to, to_step, add, real), generate


@intrinsic
def _copy_pair(typing_context: Any, source: Any, to: Any, ahead: Any, real: Any) -> Any:
    """Copy two vectors, and fetch those at `ahead`."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emitter = _emitter(builder, signature.args[3])
        for offset in (0, emitter.width):
            emitter.prefetch(emitter.at(values[2], offset), write=False)
            emitter.store(
                emitter.load(emitter.at(values[0], offset)), emitter.at(values[1], offset)
            )
        return context.get_dummy_value()

    return types.void(source, to, ahead, real), generate


@njit
def pack(to, b, by_row, by_column, rows, columns, lanes, size, real):
    """Make the panel at `to` of the matrix at `b`: `rows` rows of at most two vectors of columns."""
    wide = 2 * lanes
    line = wide * size
    if by_column == size and columns == wide:
        for k in range(rows):
            here = b + k * by_row
            _copy_pair(here, to + k * line, here + _AHEAD * by_row, real)
        return
    whole_rows = whole_columns = 0
    if by_row == size:
        whole_rows, whole_columns = rows // lanes * lanes, columns // lanes * lanes
        for n in range(0, whole_columns, lanes):
            for k in range(0, whole_rows, lanes):
                here = b + n * by_column + k * size
                transpose(here, by_column, to + k * line + n * size, line, 0, real)
    for k in range(rows):
        first = whole_columns if k < whole_rows else 0
        if first == wide:
            continue
        place = array_at(to + k * line, (wide,), real)
        for n in range(first, columns):
            place[n] = array_at(b + k * by_row + n * by_column, (1,), real)[0]
        for n in range(columns, wide):
            place[n] = 0


@njit
def pack_panels(to, b, by_row, by_column, rows, columns, lanes, size, real):
    """All panels of a matrix behind each other; gives the bytes of one."""
    wide = 2 * lanes
    step = rows * wide * size
    for panel in range(-(-columns // wide)):
        n = panel * wide
        here = b + n * by_column
        used = min(wide, columns - n)
        pack(to + panel * step, here, by_row, by_column, rows, used, lanes, size, real)
    return step
