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

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from dptrain.core.kernels import blas, few_rows, pool, reference
from dptrain.core.kernels.compiled import call, kernel
from dptrain.core.kernels.deferred import njit
from dptrain.core.kernels.memory import address, array_at, lines, move, scratch
from dptrain.core.kernels.micro import tile
from dptrain.core.kernels.packing import pack, transpose
from dptrain.core.kernels.target import target
from dptrain.core.threads import get_num_threads

real: Any = None  # each compiled copy has its own

Shape = tuple[int, ...]

#: Products per chain; a panel of so many rows fits in the first cache.
_DEPTH = 256
#: Rows that the first cache holds while panels pass, and rows of out^T that are turned together: a
#: multiple of every number of lanes and of most tiles' rows.
_STRIP = 48
#: Bytes of packed panels, which stay in the second cache.
_PANELS = 1 << 19
#: Elements of b from which fewer rows than fill two vectors pay, too: to pack it would take longer than to multiply.
_LARGE = 1 << 18
#: Products below which a further thread would wait longer than it works.
_WORTH_THREADS = 400_000
#: Bytes of a that `_columns` packs at most.
_FEW = 1 << 20
#: Products below which, and sides under which, the call of a BLAS library is the shorter way.
_LEAST, _LEAST_SIDE = 1 << 15, 8
#: A single product per result takes NumPy, which asks no library then, as long as so many.
_LONE = 16


@njit(inline="always")
def lines_apart(nbytes):
    """A whole and odd number of cache lines that holds `nbytes`."""
    return (nbytes + 63) // 64 // 2 * 128 + 64


@njit
def tiles(kind, a, a_m, a_k, panel, rows, used, depth, start, start_m, c, c_m):
    """c = start + a @ panel for any number of rows and products, `kind` being `tile_facts`."""
    code, size, lanes, narrow, wide = kind
    most, line = narrow if used <= lanes else wide, 2 * lanes * size
    for k in range(0, depth, _DEPTH):
        m = 0
        while m < rows:
            # The first tile waits for the panel, so it is a large one, but what it leaves is no sliver.
            here = left = rows - m
            if left > most:
                here = most if left - most >= most // 3 else (left + 1) // 2
            call(
                code,
                (
                    here, used, start + m * start_m, start_m,
                    a + m * a_m + k * a_k, a_m, 0, 0, a_k, panel + k * line, 0, 0, line,
                    1, 1, min(_DEPTH, depth - k), c + m * c_m, c_m,
                ),
            )  # fmt: skip
            m += here
        start, start_m = c, c_m


@njit
def times_panels(kind, a, a_m, a_k, panels, step, rows, columns, depth, start, start_m, c, c_m):
    """c = start + a @ all panels; a start of rows that do not differ (`start_m` 0) is a panel wide."""
    wide, size = 2 * kind[2], kind[1]
    for panel in range(-(-columns // wide)):
        n = panel * wide
        tiles(
            kind, a, a_m, a_k, panels + panel * step, rows, min(wide, columns - n), depth,
            start + (n * size if start_m else 0), start_m, c + n * size, c_m,
        )  # fmt: skip


@njit
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
    table, copies, most = array_at(args[17], (batch, 3), np.int64), args[18], args[19]
    own = args[20] + worker * args[16]
    bias, bias_step = args[21], args[22]
    a_all, b_all, c_all = args[23], args[24], args[25]
    wide, parts = 2 * lanes, parts_m * parts_n
    step = min(_DEPTH, k_all) * wide * size  # bytes of a panel
    block, panels = own + most * step, -(-n_all // wide)
    for job in range(share * batch * parts // shares, (share + 1) * batch * parts // shares):
        entry, part = job // parts, job % parts
        a, b, c = a_all + table[entry, 0], b_all + table[entry, 1], c_all + table[entry, 2]
        part_m, part_n = part // parts_n, part % parts_n
        first, last = part_m * m_all // parts_m, (part_m + 1) * m_all // parts_m
        end = (part_n + 1) * panels // parts_n
        for k in range(0, k_all, _DEPTH):
            depth = min(_DEPTH, k_all - k)
            for begin in range(part_n * panels // parts_n, end, most):
                stop = min(begin + most, end)
                for panel in range(begin, stop):
                    n = panel * wide
                    used, here = min(wide, n_all - n), b + k * b_k + n * b_n
                    place = own + (panel - begin) * step
                    pack(place, here, b_k, b_n, depth, used, lanes, size, real)
                for m in range(first, last, _STRIP):
                    rows = min(_STRIP, last - m)
                    left, left_m, left_k = a + m * a_m + k * a_k, a_m, a_k
                    if copies:
                        left, left_m, left_k = _copied(block, left, a_m, a_k, rows, depth, size)
                    for panel in range(begin, stop):
                        n = panel * wide
                        to = c + m * c_m + n * size
                        start, start_m = (bias + n * bias_step, 0) if k == 0 else (to, c_m)
                        tiles(
                            kind, left, left_m, left_k, own + (panel - begin) * step, rows,
                            min(wide, n_all - n), depth, start, start_m, to, c_m,
                        )  # fmt: skip


@kernel
def _columns(args, share, shares, worker):
    """With a and b exchanged: m counts the columns of out, n its rows."""
    kind = args[0], args[1], args[2], args[3], args[4]
    size, lanes = args[1], args[2]
    m_all, n_all, k_all = args[5], args[6], args[7]
    a_m, a_k, b_k, b_n, c_n = args[8], args[9], args[10], args[11], args[12]
    parts, batch = args[13], args[15]
    table = array_at(args[17], (batch, 3), np.int64)
    own = args[20] + worker * args[16]
    bias, bias_step = args[21], args[22]
    a_all, b_all, c_all = args[23], args[24], args[25]
    wide = 2 * lanes
    line, panels = wide * size, -(-n_all // wide)
    strip = own + panels * k_all * line
    nothing = strip + _STRIP * line
    place = array_at(nothing, (wide,), real)
    for n in range(wide):
        place[n] = 0
    lines_all = -(-m_all // lanes)
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
        end = min(m_all, (part + 1) * lines_all // parts * lanes)
        for m in range(part * lines_all // parts * lanes, end, _STRIP):
            rows = min(_STRIP, end - m)
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

    shape: tuple[int, ...]  # of the result
    function: int
    #: The first arguments: facts of tile and operands, bytes of scratch per worker, where the table lies, whether to
    #: copy lines of a, how many panels to keep.
    constants: tuple[int, ...]
    scratch: int  # bytes for all workers
    swapped: bool
    shares: int
    table: np.ndarray  # bytes to the matrices of each entry of the batch
    zeros: np.ndarray  # in the place of a bias


def _by_columns(m: int, k: int, n: int, b_k: int, size: int, wide: int) -> bool:
    """Which driver: whether to turn the few rows of a rather than the many columns of b."""
    least = wide if k * n < _LARGE else wide // 4
    few = least <= m <= 128 and m * k * size <= _FEW
    return b_k == size and few and (m < n or n < wide)


def _copies(a_m: int, a_k: int, n: int, size: int, wide: int) -> bool:
    """Whether lines of a are so far apart, and read so often, that a copy of them pays."""
    if a_m == size:
        return n >= 3 * wide and n // wide * a_k >= 8192
    return n >= 8 * wide and a_k == size and a_m % 2048 == 0


def _table(batch: Shape, *operands: tuple[Shape, Shape]) -> np.ndarray:
    """Bytes to each entry of a batch, a column for each operand: its shape and strides, which broadcast."""
    out = np.zeros((*batch, len(operands)), np.int64)
    for column, (shape, strides) in enumerate(operands):
        for axis, (count, step) in enumerate(zip(shape[-3::-1], strides[-3::-1], strict=True)):
            if count > 1:
                out[..., column] += (np.arange(count) * step).reshape(-1, *[1] * axis)
    return out.reshape(-1, len(operands))


@lru_cache(4096)
def _plan(
    a_shape: Shape, a_strides: Shape, b_shape: Shape, b_strides: Shape, size: int, threads: int
) -> _Plan | None:
    """The plan of a product; None where a BLAS library is the shorter way."""
    (m, k), n = a_shape[-2:], b_shape[-1]
    batch = np.broadcast_shapes(a_shape[:-2], b_shape[:-2])
    entries = math.prod(batch)
    if m * n * (k if k > 1 else _LONE) < _LEAST or min(m, n) < _LEAST_SIDE or not entries:
        return None
    shape, real_type = (*batch, m, n), np.float32 if size == 4 else np.float64
    wide = 2 * target().lanes(size)
    whole = tuple(size * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    (a_m, a_k), (b_k, b_n) = a_strides[-2:], b_strides[-2:]
    sides = [(a_shape, a_strides), (b_shape, b_strides)]
    pieces = min(threads, max(1, entries * m * k * n // _WORTH_THREADS))
    per_entry = 1 if entries >= 4 * pieces else pieces
    swapped = _by_columns(m, k, n, b_k, size, wide)
    most = 0
    copies = not swapped and _copies(a_m, a_k, n, size, wide)
    if swapped:
        code = _columns
        sides.reverse()
        facts = (n, m, k, b_n, b_k, a_k, a_m, n * size)
        parts = min(per_entry, -(-n // (wide // 2))), 1
        own = lines((-(-m // wide) * k + _STRIP + 1) * wide * size)
    else:
        code = _rows
        facts = (m, n, k, a_m, a_k, b_k, b_n, n * size)
        # Twice as many panels' worth as threads, of which the first to be ready take more.
        across = min(per_entry if copies or per_entry == 1 else 2 * per_entry, -(-n // wide))
        parts = min(-(-per_entry // across), -(-m // _STRIP)), across
        deep = min(k, _DEPTH)
        most = min(-(-n // wide), _PANELS // (deep * wide * size))
        own = most * deep * wide * size
        if copies:
            own += lines_apart(_STRIP * size) * deep + lines_apart(deep * size) * _STRIP
        own = lines(own)
    jobs = entries * parts[0] * parts[1]
    table = _table(batch, *sides, (shape, whole))
    operands = (*tile_facts(np.dtype(real_type)), *facts, *parts, entries)
    return _Plan(
        shape,
        code.address(real_type),
        (*operands, own, address(table), int(copies), most),
        own * min(jobs, threads),
        swapped,
        min(jobs, 4 * pieces) if pieces > 1 else 1,
        table,
        np.zeros(wide, real_type),
    )


def _multiply(
    plan: _Plan, a: np.ndarray, b: np.ndarray, bias: np.ndarray | None, out: np.ndarray | None
) -> np.ndarray:
    if out is None:
        out = np.empty(plan.shape, a.dtype)
    left, right = (b, a) if plan.swapped else (a, b)
    added, step = (plan.zeros, 0) if bias is None else (bias, a.itemsize)
    places = address(left), address(right), address(out)
    args = (*plan.constants, scratch(plan.scratch), address(added), step, *places)
    pool.run(plan.function, args, plan.shares)
    return out


def _as_rows(a: np.ndarray) -> np.ndarray | None:
    """A batch of matrices with all rows below each other, if that needs no copy."""
    if a.ndim == 2:
        return a
    steps = a.strides
    for axis in range(a.ndim - 2):
        if steps[axis] != steps[axis + 1] * a.shape[axis + 1]:
            return None
    return a.reshape(math.prod(a.shape[:-1]), a.shape[-1])


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """See `reference.matmul`; the head of this file states the rounding error."""
    fits = a.ndim > 1 < b.ndim and a.dtype is b.dtype
    if not fits or (out is not None and not out.flags.c_contiguous):
        return reference.matmul(a, b, out)
    rows = _as_rows(a) if a.ndim > b.ndim == 2 else None
    left = a if rows is None else rows
    plan = _plan(left.shape, left.strides, b.shape, b.strides, a.itemsize, get_num_threads())
    if plan is None:
        return blas.alone(a, b, out) if a.ndim == b.ndim == 2 else reference.matmul(a, b, out)
    product = _multiply(plan, left, b, None, out)
    return product if rows is None else product.reshape(*a.shape[:-1], b.shape[1])


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """See `reference.linear`; the head of this file states the rounding error."""
    rows = _as_rows(x) if x.ndim > 1 and x.dtype is weight.dtype else None
    if rows is None:
        return reference.linear(x, weight, bias)
    turned = weight.T
    plan = _plan(
        rows.shape, rows.strides, turned.shape, turned.strides, x.itemsize, get_num_threads()
    )
    if plan is None:
        if bias is None or x.ndim > 2:
            return reference.linear(x, weight, bias)
        if few_rows.turns(x, weight):
            return np.add(blas.alone(weight, x.T).T, bias, order="C")
        out = blas.alone(x, turned)
        out += bias
        return out
    added = bias if bias is None or bias.flags.c_contiguous else np.ascontiguousarray(bias)
    out = _multiply(plan, rows, turned, added, None)
    return out if rows is x else out.reshape(*x.shape[:-1], len(weight))
