"""A recurrent layer in one direction over whole sequences, and its gradient: one kernel each.

What the input contributes to the gates comes as one product over all steps, and the gradients of the weights
are such products too; what remains per step is the product with the state, over packed weights that stay in
the second cache, and the gates (`gates`). Shares divide the sequences of a batch, of which none looks at
another, so that threads neither wait for each other nor change a bit.

Rounding: products as in `gemm`, what the input contributes added last; the gates as in `gates`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from dptrain.core.kernels import pool
from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.gates import CELLS, add_row
from dptrain.core.kernels.gemm import tile_facts, times_panels
from dptrain.core.kernels.memory import address, array_at, lines, move, scratch, zero
from dptrain.core.kernels.packing import pack_panels
from dptrain.core.kernels.target import target
from dptrain.core.threads import get_num_threads

real: Any = None  # each compiled copy has its own
forward: Any = None  # likewise: those of a cell
backward: Any = None

#: Products of a step below which a further thread would wait longer than it works, all steps together.
_WORTH_THREADS = 400_000
#: A gate costs about as many products.
_GATE = 50
#: Sequences of a share at least: the weights pass through the cache once for so many.
_LEAST_SEQUENCES = 4


@kernel
def _forward(args, share, shares, worker):
    kind, size, lanes = (args[0], args[1], args[2], args[3], args[4]), args[1], args[2]
    steps, n, hidden, width, blocks, apart = args[5], args[6], args[7], args[8], args[9], args[10]
    table = array_at(args[11], (steps, 4), np.int64)
    gates, kept, h, c, out, full = args[12], args[13], args[14], args[15], args[16], args[17]
    weight, w_row, w_column, bias = args[18], args[19], args[20], args[21]
    projection, p_row, p_column = args[22], args[23], args[24]
    panels = args[25] + worker * args[26]
    joined = (blocks - apart) * hidden
    line, row, h_line = blocks * hidden * size, hidden * size, width * size
    wide = 2 * lanes * size
    nothing, apart_panels, own_panels = panels + args[27], panels + args[28], panels + args[29]
    zero(nothing, wide)
    if weight:
        pack_panels(panels, weight, w_column, w_row, width, joined, lanes, size, real)
        if apart:
            begin = weight + joined * w_row
            pack_panels(apart_panels, begin, w_column, w_row, width, hidden, lanes, size, real)
    if projection:
        pack_panels(own_panels, projection, p_column, p_row, hidden, width, lanes, size, real)
    first, last = share * n // shares, (share + 1) * n // shares
    for s in range(steps):
        rows = min(last, table[s, 0]) - first
        if rows <= 0:
            continue
        at = table[s, 1] + first
        g, state = gates + at * line, h + first * h_line
        if weight:
            times_panels(
                kind, state, h_line, size, panels, width * wide, rows, joined, width,
                g, line, g, line,
            )  # fmt: skip
            if apart:
                k = kept + at * row
                for r in range(rows):
                    if bias:
                        move(k + r * row, bias, row)
                    else:
                        zero(k + r * row, row)
                times_panels(
                    kind, state, h_line, size, apart_panels, width * wide, rows, hidden, width,
                    k, row, k, row,
                )  # fmt: skip
        for r in range(rows):
            to, copy = state + r * h_line, out + (at + r) * h_line
            if projection:
                to = copy = full + (at + r) * row
            held = c + (first + r) * row
            forward((g + r * line, kept + (at + r) * row, to, held, copy), hidden, real)
        if projection:
            times_panels(
                kind, full + at * row, row, size, own_panels, hidden * wide, rows, width, hidden,
                nothing, 0, state, h_line,
            )  # fmt: skip
            move(out + at * h_line, state, rows * h_line)


@kernel
def _backward(args, share, shares, worker):
    kind, size, lanes = (args[0], args[1], args[2], args[3], args[4]), args[1], args[2]
    steps, n, hidden, width, blocks, apart = args[5], args[6], args[7], args[8], args[9], args[10]
    table = array_at(args[11], (steps, 4), np.int64)
    gates, kept, dh, dc, grad, full = args[12], args[13], args[14], args[15], args[16], args[17]
    weight, w_row, w_column, more = args[18], args[19], args[20], args[21]
    projection, p_row, p_column = args[22], args[23], args[24]
    panels = args[25] + worker * args[26]
    states, start, slopes = args[30], args[31], args[32]
    line, row, h_line = blocks * hidden * size, hidden * size, width * size
    wide = 2 * lanes * size
    nothing, own_panels = panels + args[27], panels + args[29]
    zero(nothing, wide)
    if weight:
        pack_panels(panels, weight, w_row, w_column, blocks * hidden, width, lanes, size, real)
    if projection:
        pack_panels(own_panels, projection, p_row, p_column, width, hidden, lanes, size, real)
    first, last = share * n // shares, (share + 1) * n // shares
    for s in range(steps - 1, -1, -1):
        rows = min(last, table[s, 0]) - first
        if rows <= 0:
            continue
        at, back, running = table[s, 1] + first, table[s, 2], table[s, 3]
        state = dh + first * h_line
        if grad:
            for r in range(rows):
                add_row((state + r * h_line, grad + (at + r) * h_line), width, real)
        dy, dy_line = state, h_line
        if projection:
            # The gradient of what is projected; that of the projection stays where `grad` was.
            move(grad + at * h_line, state, rows * h_line)
            dy, dy_line = full + first * row, row
            times_panels(
                kind, state, h_line, size, own_panels, width * wide, rows, hidden, width,
                nothing, 0, dy, row,
            )  # fmt: skip
        for r in range(rows):
            index = first + r
            before = states + (back + index) * row if index < running else start + index * row
            place, here = (at + r) * line, (at + r) * row
            backward(
                (
                    gates + place, kept + here, before, dy + r * dy_line, dc + index * row,
                    slopes + place, more + place,
                ),
                hidden, real,
            )  # fmt: skip
        if weight:
            reached, reached_line = (state, h_line) if apart else (nothing, 0)
            times_panels(
                kind, more + at * line, line, size, panels, blocks * hidden * wide, rows, width,
                blocks * hidden, reached, reached_line, state, h_line,
            )  # fmt: skip


class _Plan(NamedTuple):
    """What follows from sizes alone."""

    facts: tuple[
        int, ...
    ]  # of the tile, then steps, n, hidden, width, blocks, apart, where the table lies
    own: int  # bytes of a worker's scratch
    pieces: tuple[
        int, int, int
    ]  # where in it lie zeros, the panels apart and those of the projection
    shares: int
    total: int  # rows of all steps
    table: (
        np.ndarray
    )  # of each step: sequences, row of the first; of the step before: row, sequences


@lru_cache(512)
def _plan(
    mode: str, sizes: tuple[int, ...], reverse: bool, hidden: int, width: int, products: bool,
    size: int, threads: int,
) -> _Plan:  # fmt: skip
    """Sequences are sorted by falling length: those that run are first; `sizes` says how many do."""
    n, steps, cell = sizes[0], len(sizes), CELLS[mode]
    table = np.zeros((steps, 4), np.int64)
    table[:, 0] = sizes
    table[1:, 1] = np.cumsum(sizes)[:-1]
    table = np.ascontiguousarray(table[::-1]) if reverse else table
    table[1:, 2:] = table[:-1, 1::-1]
    wide = 2 * target().lanes(size)

    def panels(rows: int, columns: int) -> int:
        return lines(-(-columns // wide) * wide * rows * size)

    # For either pass: the gates' columns beside each other, or their rows below each other.
    columns = cell.blocks * hidden if products else 0
    joined = columns - hidden if cell.apart and products else columns
    of_state = max(panels(width, joined), panels(columns, width))
    nothing = of_state + panels(width, columns - joined)
    own_panels = nothing + lines(wide * size)
    projected = max(panels(hidden, width), panels(width, hidden)) if width != hidden else 0
    work = sum(sizes) * hidden * cell.blocks * (width if products else _GATE)
    shares = max(1, min(threads, n // _LEAST_SEQUENCES, work // _WORTH_THREADS))
    real_type = np.dtype(np.float32 if size == 4 else np.float64)
    facts = (steps, n, hidden, width, cell.blocks, int(cell.apart), address(table))
    pieces = nothing, of_state, own_panels
    own = own_panels + projected
    return _Plan((*tile_facts(real_type), *facts), own, pieces, shares, sum(sizes), table)


def _plan_of(
    mode: str, gates: np.ndarray, state: np.ndarray, w_hh: np.ndarray | None, sizes: tuple[int, ...],
    reverse: bool,
) -> _Plan:  # fmt: skip
    hidden, width = gates.shape[1] // CELLS[mode].blocks, state.shape[1]
    return _plan(
        mode, sizes, reverse, hidden, width, w_hh is not None, gates.itemsize, get_num_threads()
    )


def _place(array: np.ndarray | None) -> int:
    return 0 if array is None else address(array)


def _matrix(array: np.ndarray | None) -> tuple[int, ...]:
    """Its address and steps, or zeros for none."""
    return (0, 0, 0) if array is None else (address(array), *array.strides)


def _lent(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else np.ascontiguousarray(array)


def recurrent(
    mode: str,
    gates: np.ndarray,
    kept: np.ndarray | None,
    w_hh: np.ndarray | None,
    bias: np.ndarray | None,
    w_hr: np.ndarray | None,
    start: tuple[np.ndarray, ...],
    sizes: tuple[int, ...],
    reverse: bool,
) -> tuple[np.ndarray, tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """See `reference_recurrent.recurrent`."""
    cell = CELLS[mode]
    hidden, real_type = gates.shape[1] // cell.blocks, gates.dtype.type
    plan = _plan_of(mode, gates, start[0], w_hh, sizes, reverse)
    last = tuple(np.array(part, order="C") for part in start)
    width = last[0].shape[1]
    full = None
    if mode.startswith("RNN"):
        kept, out = gates, gates
    else:
        out = np.empty((plan.total, width), gates.dtype)
        if kept is None:
            kept = np.empty((plan.total, hidden), gates.dtype)
    if w_hr is not None:
        full = np.empty((plan.total, hidden), gates.dtype)
    bias = _lent(bias)
    args = (
        *plan.facts, address(gates), address(kept), address(last[0]), address(last[-1]), address(out),
        _place(full), *_matrix(w_hh), _place(bias), *_matrix(w_hr),
        scratch(plan.own * plan.shares), plan.own, *plan.pieces,
    )  # fmt: skip
    pool.run(_forward.address(real_type, mode, forward=cell.forward), args, plan.shares)
    return out, last, (gates, kept) if full is None else (gates, kept, full)


def recurrent_grad(
    mode: str,
    grad: np.ndarray | None,
    grad_last: tuple[np.ndarray | None, ...],
    out: np.ndarray,
    kept: tuple[np.ndarray, ...],
    w_hh: np.ndarray | None,
    w_hr: np.ndarray | None,
    start: tuple[np.ndarray, ...],
    sizes: tuple[int, ...],
    reverse: bool,
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...], np.ndarray | None]:
    """See `reference_recurrent.recurrent_grad`."""
    cell, gates, held = CELLS[mode], kept[0], kept[1]
    hidden, real_type = gates.shape[1] // cell.blocks, gates.dtype.type
    plan = _plan_of(mode, gates, start[0], w_hh, sizes, reverse)
    of_start = tuple(
        np.zeros(part.shape, part.dtype) if g is None else np.array(g, order="C")
        for part, g in zip(start, grad_last, strict=True)
    )
    slopes = np.empty_like(gates)
    more = np.empty_like(gates) if cell.apart else slopes
    full = None
    if w_hr is None:
        grad = _lent(grad)
    else:
        grad = np.zeros(out.shape, out.dtype) if grad is None else np.array(grad, order="C")
        full = np.empty((len(start[0]), hidden), gates.dtype)
    before = np.ascontiguousarray(start[-1])
    states = out if cell.apart else held
    args = (
        *plan.facts, address(gates), address(held), address(of_start[0]), address(of_start[-1]),
        _place(grad), _place(full), *_matrix(w_hh), address(more), *_matrix(w_hr),
        scratch(plan.own * plan.shares), plan.own, *plan.pieces,
        address(states), address(before), address(slopes),
    )  # fmt: skip
    pool.run(_backward.address(real_type, mode, backward=cell.backward), args, plan.shares)
    return slopes, more, of_start, grad if w_hr is not None else None
