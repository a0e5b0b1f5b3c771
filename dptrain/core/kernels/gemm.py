"""Products of matrices on the register tile: any strides, batches, a bias; on the threads of `pool`.

Two drivers compute out = a @ b + bias. `_rows` packs panels of b, and tiles run over the rows of a where
they lie. `_columns` is for few rows: it packs a, whose rows become the columns of out^T = b^T @ a^T, and
turns the result in registers on its way out; b, the larger matrix (a layer's weight), is read in place
and once. Source of the blocking: Goto & van de Geijn, "Anatomy of high-performance matrix
multiplication", 2008.

Rounding: every result is a sum over blocks of at most `_DEPTH` products, each block in one chain, plus
the bias: |error| <= (min(K, _DEPTH) + K / _DEPTH + 2) eps * sum |a b|. Which driver runs, how the tiles
fall and how many threads there are changes no bit of it; a row of the result does not depend on the
other rows. Threads divide rows and columns, never the sum.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np

from dptrain.core.kernels import pool, reference
from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.memory import address, array_at, lines, move, scratch
from dptrain.core.kernels.micro import call_tile, tile
from dptrain.core.kernels.packing import pack, transpose
from dptrain.core.kernels.target import target
from dptrain.core.threads import get_num_threads

real: Any = None  # each compiled copy has its own

#: Products per chain; a panel of so many rows fits in the first cache.
_DEPTH = 256
#: Rows of a that stay in the second cache while the panels of b pass.
_ROWS = 480
#: Rows of out^T that are turned together: a multiple of every number of lanes and of most tiles' rows.
_STRIP = 48
#: Products below which a further thread would wait longer than it works.
_WORTH_THREADS = 400_000
#: Bytes of a that `_columns` packs at most.
_FEW = 1 << 20
#: Products below which, and sides under which, the call of a BLAS library is the shorter way.
_LEAST, _LEAST_SIDE = 1 << 15, 8


@numba.njit(inline="always")
def lines_apart(nbytes):
    """A whole and odd number of cache lines that holds `nbytes`."""
    return (nbytes + 63) // 64 // 2 * 128 + 64


@numba.njit
def tiles(kind, a, a_m, a_k, panel, rows, used, depth, start, start_m, c, c_m):
    """c = start + a @ panel for any number of rows and products, `kind` being `tile_facts`."""
    code, size, lanes, narrow, wide = kind
    most, line = narrow if used <= lanes else wide, 2 * lanes * size
    parts = -(-rows // most)
    for k in range(0, depth, _DEPTH):
        for part in range(parts):
            m = part * rows // parts
            call_tile(
                code,
                (
                    (part + 1) * rows // parts - m, used, start + m * start_m, start_m,
                    a + m * a_m + k * a_k, a_m, 0, 0, a_k, panel + k * line, 0, 0, line,
                    1, 1, min(_DEPTH, depth - k), c + m * c_m, c_m,
                ),
            )  # fmt: skip
        start, start_m = c, c_m


@numba.njit
def _copied(to, a, a_m, a_k, rows, depth, size):
    """A block of a at `to`, in lines that do not fall on each other's place in the cache."""
    if a_m == size:
        line = lines_apart(rows * size)
        for k in range(depth):
            move(to + k * line, a + k * a_k, rows * size)
        return to, size, line
    line = lines_apart(depth * size)
    for m in range(rows):
        move(to + m * line, a + m * a_m, depth * size)
    return to, line, size


@kernel
def _rows(args, share, shares, worker):
    kind = args[0], args[1], args[2], args[3], args[4]
    size, lanes = args[1], args[2]
    m_all, n_all, k_all = args[5], args[6], args[7]
    a_m, a_k, b_k, b_n, c_m = args[8], args[9], args[10], args[11], args[12]
    parts_m, parts_n, batch = args[13], args[14], args[15]
    own = args[16] + worker * args[17]
    table, bias, bias_step = array_at(args[18], (batch, 3), np.int64), args[19], args[20]
    a_all, b_all, c_all = args[21], args[22], args[23]
    copies, block = args[24], own + min(_DEPTH, k_all) * 2 * lanes * size
    wide, parts = 2 * lanes, parts_m * parts_n
    panels = -(-n_all // wide)
    for job in range(share * batch * parts // shares, (share + 1) * batch * parts // shares):
        entry, part = job // parts, job % parts
        a, b, c = a_all + table[entry, 0], b_all + table[entry, 1], c_all + table[entry, 2]
        part_m, part_n = part // parts_n, part % parts_n
        first, last = part_m * m_all // parts_m, (part_m + 1) * m_all // parts_m
        for k in range(0, k_all, _DEPTH):
            depth = min(_DEPTH, k_all - k)
            for m in range(first, last, _ROWS):
                rows = min(_ROWS, last - m)
                left, left_m, left_k = a + m * a_m + k * a_k, a_m, a_k
                if copies:
                    left, left_m, left_k = _copied(block, left, a_m, a_k, rows, depth, size)
                for panel in range(part_n * panels // parts_n, (part_n + 1) * panels // parts_n):
                    n = panel * wide
                    used = min(wide, n_all - n)
                    pack(own, b + k * b_k + n * b_n, b_k, b_n, depth, used, lanes, size, real)
                    to = c + m * c_m + n * size
                    start, start_m = (bias + n * bias_step, 0) if k == 0 else (to, c_m)
                    tiles(
                        kind, left, left_m, left_k, own, rows, used, depth, start, start_m, to, c_m
                    )


@kernel
def _columns(args, share, shares, worker):
    """With a and b exchanged: m counts the columns of out, n its rows."""
    kind = args[0], args[1], args[2], args[3], args[4]
    size, lanes = args[1], args[2]
    m_all, n_all, k_all = args[5], args[6], args[7]
    a_m, a_k, b_k, b_n, c_n = args[8], args[9], args[10], args[11], args[12]
    parts, batch = args[13], args[15]
    own = args[16] + worker * args[17]
    table, bias, bias_step = array_at(args[18], (batch, 3), np.int64), args[19], args[20]
    a_all, b_all, c_all = args[21], args[22], args[23]
    wide = 2 * lanes
    line, panels = wide * size, -(-n_all // wide)
    strip = own + panels * k_all * line
    nothing = strip + _STRIP * line
    place = array_at(nothing, (wide,), real)
    for n in range(wide):
        place[n] = 0
    strips = -(-m_all // _STRIP)
    packed = -1
    for job in range(share * batch * parts // shares, (share + 1) * batch * parts // shares):
        entry, part = job // parts, job % parts
        a, b, c = a_all + table[entry, 0], b_all + table[entry, 1], c_all + table[entry, 2]
        if entry != packed:
            for panel in range(panels):
                n = panel * wide
                used = min(wide, n_all - n)
                pack(
                    own + panel * k_all * line,
                    b + n * b_n,
                    b_k,
                    b_n,
                    k_all,
                    used,
                    lanes,
                    size,
                    real,
                )
            packed = entry
        for number in range(part * strips // parts, (part + 1) * strips // parts):
            m = number * _STRIP
            rows = min(_STRIP, m_all - m)
            for panel in range(panels):
                n = panel * wide
                used = min(wide, n_all - n)
                tiles(
                    kind, a + m * a_m, a_m, a_k, own + panel * k_all * line, rows, used, k_all,
                    nothing, 0, strip, line,
                )  # fmt: skip
                whole_m, whole_n = rows // lanes * lanes, used // lanes * lanes
                for j in range(0, whole_n, lanes):
                    for i in range(0, whole_m, lanes):
                        more = bias + (m + i) * size if bias_step else 0
                        to = c + (m + i) * size + (n + j) * c_n
                        transpose(strip + i * line + j * size, line, to, c_n, more, real)
                for j in range(used):
                    to = array_at(c + m * size + (n + j) * c_n, (rows,), real)
                    for i in range(whole_m if j < whole_n else 0, rows):
                        value = array_at(strip + i * line + j * size, (1,), real)[0]
                        if bias_step:
                            value += array_at(bias + (m + i) * size, (1,), real)[0]
                        to[i] = value


def tile_facts(dtype: Any) -> tuple[int, int, int, int, int]:
    """What `tiles` has to know: code, item size, lanes, most rows of a narrow and of a wide tile."""
    kind = target()
    size = dtype.itemsize
    return (tile.address(dtype.type), size, kind.lanes(size), kind.most_rows(1), kind.most_rows(2))


class _Plan(NamedTuple):
    """How a product is computed: everything but addresses."""

    function: int
    facts: tuple[int, ...]
    own: int  # bytes of scratch per worker
    workers: int
    table: np.ndarray  # bytes to the matrices of each entry of the batch
    swapped: bool
    copies: bool
    shares: int
    zeros: np.ndarray  # in the place of a bias


def serves(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the product of two matrices, or batches of them, is computed here rather than by BLAS."""
    if a.ndim < 2 or b.ndim < 2 or a.dtype != b.dtype:
        return False
    m, k, n = *a.shape[-2:], b.shape[-1]
    return m * k * n >= _LEAST and min(m, n) >= _LEAST_SIDE and min(a.size, b.size) > 0


def _by_columns(m: int, k: int, n: int, b_k: int, size: int, wide: int) -> bool:
    """Which driver: whether to turn the few rows of a rather than the many columns of b."""
    few = wide <= m <= 128 and m * k * size <= _FEW
    return b_k == size and few and (m < n or n < wide)


def _copies(a_m: int, a_k: int, n: int, size: int, wide: int) -> bool:
    """Whether lines of a are so far apart, and read so often, that a copy of them pays."""
    if n < 8 * wide:
        return False
    return a_k >= 1024 if a_m == size else a_k == size and a_m % 2048 == 0


@lru_cache(4096)
def _plan(
    batch: tuple[int, ...],
    steps: tuple[tuple[int, ...], ...],
    sizes: tuple[int, int, int],
    strides: tuple[int, int, int, int],
    dtype: Any,
    threads: int,
) -> _Plan:
    m, k, n = sizes
    a_m, a_k, b_k, b_n = strides
    size, lanes = dtype.itemsize, target().lanes(dtype.itemsize)
    entries = int(np.prod(batch, dtype=np.int64))
    table = np.zeros((entries, 3), np.int64)
    for column, step in enumerate(steps):
        places = np.zeros(batch, np.int64)
        for axis, (count, by) in enumerate(zip(batch, step, strict=True)):
            shape = [1] * len(batch)
            shape[axis] = count
            places += (np.arange(count) * by).reshape(shape)
        table[:, column] = places.reshape(-1)
    pieces = min(threads, max(1, entries * m * k * n // _WORTH_THREADS))
    wide = 2 * lanes
    swapped = _by_columns(m, k, n, b_k, size, wide)
    per_entry = 1 if entries >= 4 * pieces else pieces
    copies = False
    if swapped:
        m, n, table = n, m, table[:, (1, 0, 2)].copy()
        facts = (m, n, k, b_n, b_k, a_k, a_m, m * size)
        parts = min(per_entry, -(-m // _STRIP)), 1
        own = lines((-(-n // wide) * k + _STRIP + 1) * wide * size)
        code = _columns
    else:
        facts = (m, n, k, a_m, a_k, b_k, b_n, n * size)
        across = min(per_entry, -(-n // wide))
        parts = min(-(-per_entry // across), -(-m // _STRIP)), across
        own = lines(min(k, _DEPTH) * wide * size)
        copies = _copies(a_m, a_k, n, size, wide)
        if copies:
            most_m, most_k = min(m, _ROWS), min(k, _DEPTH)
            own += lines_apart(most_m * size) * most_k + lines_apart(most_k * size) * most_m
        code = _rows
    shares = min(entries * parts[0] * parts[1], 4 * pieces if entries > 1 else 1 << 16)
    return _Plan(
        code.address(dtype.type),
        (*tile_facts(dtype), *facts, *parts, entries),
        own,
        min(shares, threads),
        table,
        swapped,
        copies,
        shares if pieces > 1 else 1,
        np.zeros(wide, dtype),
    )


def multiply(
    a: np.ndarray, b: np.ndarray, bias: np.ndarray | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """a @ b + bias for (..., M, K) and (..., K, N) of one type, the batches broadcast against each other.

    Args:
        a: any strides.
        b: any strides.
        bias: (N,), contiguous.
        out: contiguous, for the result.
    """
    m, k = a.shape[-2:]
    n = b.shape[-1]
    if a.ndim == b.ndim == 2:
        batch: tuple[int, ...] = ()
        steps: tuple[tuple[int, ...], ...] = ((), (), ())
    else:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a = np.broadcast_to(a, (*batch, m, k))
        b = np.broadcast_to(b, (*batch, k, n))
    if out is None:
        out = np.empty((*batch, m, n), a.dtype)
    if batch:
        steps = a.strides[:-2], b.strides[:-2], out.strides[:-2]
    strides = (*a.strides[-2:], *b.strides[-2:])
    plan = _plan(batch, steps, (m, k, n), strides, a.dtype, get_num_threads())
    left, right = (b, a) if plan.swapped else (a, b)
    added = plan.zeros if bias is None else bias
    pool.run(
        plan.function,
        (
            *plan.facts,
            *(scratch(plan.own * plan.workers), plan.own, address(plan.table)),
            *(address(added), 0 if bias is None else a.itemsize),
            *(address(left), address(right), address(out), plan.copies),
        ),
        plan.shares,
    )
    return out


def _as_rows(a: np.ndarray) -> np.ndarray | None:
    """A batch of matrices with all rows below each other, if that needs no copy."""
    if a.ndim == 2:
        return a
    steps = a.strides
    for axis in range(a.ndim - 2):
        if steps[axis] != steps[axis + 1] * a.shape[axis + 1]:
            return None
    return a.reshape(-1, a.shape[-1])


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """See `reference.matmul`; the head of this file states the rounding error."""
    if not serves(a, b) or (out is not None and not out.flags.c_contiguous):
        return reference.matmul(a, b, out)
    rows = _as_rows(a) if b.ndim == 2 and out is None else None
    if rows is None or a.ndim == 2:
        return multiply(a, b, out=out)
    return multiply(rows, b).reshape(*a.shape[:-1], b.shape[1])


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """See `reference.linear`; the head of this file states the rounding error."""
    rows = _as_rows(x) if x.ndim > 1 else None
    if rows is None or not serves(rows, weight.T):
        return reference.linear(x, weight, bias)
    added = None if bias is None else np.ascontiguousarray(bias)
    return multiply(rows, weight.T, added).reshape(*x.shape[:-1], len(weight))
