"""Attention by scaled dot products, head by head: scores, softmax and the sum of values in one go.

Scores of a block of queries stay in the cache; what is kept for the gradient is one number per query,
the logarithm of the sum of exponentials. A head is the work of one thread, so that their number changes
no bit. Source: Dao et al., "FlashAttention: fast and memory-efficient exact attention with
IO-awareness", 2022 (the recomputation; a row of scores is whole here, so that nothing is rescaled).

Rounding: products as in `gemm`, exp as in `exponential`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from dptrain.core.kernels import pool, reference
from dptrain.core.kernels.compiled import KEEP_NAN, kernel, whole_registers
from dptrain.core.kernels.gemm import tile_facts, times_panels
from dptrain.core.kernels.memory import address, addresses, array_at, lines, scratch, zero
from dptrain.core.kernels.packing import pack_panels
from dptrain.core.kernels.rows import exp_less, exp_row
from dptrain.core.kernels.softmax import dot_of
from dptrain.core.kernels.target import target
from dptrain.core.threads import get_num_threads

real: Any = None  # each compiled copy has its own

#: Queries whose scores are computed together: whole tiles of every kind.
_BLOCK = 48


@kernel(fastmath=KEEP_NAN)
def _forward(args, share, shares, worker):
    whole_registers()
    kind, size, lanes = (args[0], args[1], args[2], args[3], args[4]), args[1], args[2]
    jobs, length, keys, depth, width, causal = (
        args[5], args[6], args[7], args[8], args[9], args[10],
    )  # fmt: skip
    places = array_at(args[11], (jobs, 4), np.int64)
    q_l, q_e, k_s, k_e, v_s, v_e, o_l = (
        args[12], args[13], args[14], args[15], args[16], args[17], args[18],
    )  # fmt: skip
    scale = array_at(args[19], (1,), real)[0]
    lse = array_at(args[20], (jobs, length), real)
    own, line = args[21] + worker * args[22], args[23]
    key_panels, value_panels = own + args[24], own + args[25]
    nothing, scores = own, own + args[26]
    zero(nothing, 2 * lanes * size)
    for job in range(share * jobs // shares, (share + 1) * jobs // shares):
        place = places[job]
        q, k, v = args[27] + place[0], args[28] + place[1], args[29] + place[2]
        o = args[30] + place[3]
        key_step = pack_panels(key_panels, k, k_e, k_s, depth, keys, lanes, size, real)
        value_step = pack_panels(value_panels, v, v_s, v_e, keys, width, lanes, size, real)
        for first in range(0, length, _BLOCK):
            rows = min(_BLOCK, length - first)
            seen = min(keys, first + rows) if causal else keys
            times_panels(
                kind, q + first * q_l, q_l, q_e, key_panels, key_step, rows, seen, depth,
                nothing, 0, scores, line,
            )  # fmt: skip
            for r in range(rows):
                here = scores + r * line
                count = min(keys, first + r + 1) if causal else keys
                top, total = exp_row(here, here, scale, count, real)
                row = array_at(here, (seen,), real)
                factor = real(1) / total
                for n in range(count):
                    row[n] *= factor
                for n in range(count, seen):
                    row[n] = 0
                lse[job, first + r] = top + real(math.log(total))
            times_panels(
                kind, scores, line, size, value_panels, value_step, rows, width, seen,
                nothing, 0, o + first * o_l, o_l,
            )  # fmt: skip


@kernel(fastmath=KEEP_NAN)
def _backward(args, share, shares, worker):
    whole_registers()
    kind, size, lanes = (args[0], args[1], args[2], args[3], args[4]), args[1], args[2]
    jobs, length, keys, depth, width, causal = (
        args[5], args[6], args[7], args[8], args[9], args[10],
    )  # fmt: skip
    places = array_at(args[11], (jobs, 8), np.int64)
    q_l, q_e, k_s, k_e, v_s, v_e, o_l = (
        args[12], args[13], args[14], args[15], args[16], args[17], args[18],
    )  # fmt: skip
    scale = array_at(args[19], (1,), real)[0]
    lse = array_at(args[20], (jobs, length), real)
    own, line = args[21] + worker * args[22], args[23]
    key_panels, value_panels, scores = own + args[24], own + args[25], own + args[26]
    nothing, slopes = own, scores + _BLOCK * line
    query_panels, grad_panels, row_panels = own + args[27], own + args[28], own + args[29]
    g_l, dq_l, dk_s, dv_s = args[30], args[31], args[32], args[33]
    zero(nothing, 2 * lanes * size)
    for job in range(share * jobs // shares, (share + 1) * jobs // shares):
        place = places[job]
        q, k, v = args[34] + place[0], args[35] + place[1], args[36] + place[2]
        o, g, dq = args[37] + place[3], args[38] + place[4], args[39] + place[5]
        dk, dv = args[40] + place[6], args[41] + place[7]
        key_step = pack_panels(key_panels, k, k_e, k_s, depth, keys, lanes, size, real)
        value_step = pack_panels(value_panels, v, v_e, v_s, width, keys, lanes, size, real)
        row_step = pack_panels(row_panels, k, k_s, k_e, keys, depth, lanes, size, real)
        for n in range(keys):
            zero(dk + n * dk_s, depth * size)
            zero(dv + n * dv_s, width * size)
        for first in range(0, length, _BLOCK):
            rows = min(_BLOCK, length - first)
            seen = min(keys, first + rows) if causal else keys
            here = g + first * g_l
            times_panels(
                kind, q + first * q_l, q_l, q_e, key_panels, key_step, rows, seen, depth,
                nothing, 0, scores, line,
            )  # fmt: skip
            times_panels(
                kind, here, g_l, size, value_panels, value_step, rows, seen, width,
                nothing, 0, slopes, line,
            )  # fmt: skip
            for r in range(rows):
                p, d = (
                    array_at(scores + r * line, (seen,), real),
                    array_at(slopes + r * line, (seen,), real),
                )
                count = min(keys, first + r + 1) if causal else keys
                less = dot_of(
                    array_at(here + r * g_l, (width,), real),
                    array_at(o + (first + r) * o_l, (width,), real),
                    width,
                )
                exp_less(
                    scores + r * line, scores + r * line, scale, lse[job, first + r], count, real
                )
                for n in range(count):
                    d[n] = p[n] * (d[n] - less) * scale
                for n in range(count, seen):
                    p[n] = 0
                    d[n] = 0
            times_panels(
                kind, slopes, line, size, row_panels, row_step, rows, depth, seen,
                nothing, 0, dq + first * dq_l, dq_l,
            )  # fmt: skip
            q_step = pack_panels(
                query_panels, q + first * q_l, q_l, q_e, rows, depth, lanes, size, real
            )
            g_step = pack_panels(grad_panels, here, g_l, size, rows, width, lanes, size, real)
            times_panels(
                kind,
                slopes,
                size,
                line,
                query_panels,
                q_step,
                seen,
                depth,
                rows,
                dk,
                dk_s,
                dk,
                dk_s,
            )
            times_panels(
                kind, scores, size, line, grad_panels, g_step, seen, width, rows, dv, dv_s, dv, dv_s
            )


def _fits(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> bool:
    return q.ndim == 4 and q.size > 0 and k.size > 0 and v.size > 0


def _empty_like(x: np.ndarray, width: int, beside: bool = True) -> np.ndarray:
    """(batch, heads, L, width); `beside`: heads lie beside each other in memory, as projections have them."""
    batch, heads, length, _ = x.shape
    if beside:
        return np.empty((batch, length, heads, width), x.dtype).transpose(0, 2, 1, 3)
    return np.empty((batch, heads, length, width), x.dtype)


@lru_cache(256)
def _factor(scale: float, dtype: Any) -> np.ndarray:
    return np.array([scale], dtype)


@lru_cache(1024)
def _places(batch: int, heads: int, *steps: tuple[int, ...]) -> np.ndarray:
    """Bytes to the matrices of all heads, a row for each head, from the strides of the arrays."""
    out = np.empty((batch, heads, len(steps)), np.int64)
    for i, (down, across, *_) in enumerate(steps):
        out[:, :, i] = np.arange(batch)[:, None] * down + np.arange(heads) * across
    return out.reshape(-1, len(steps))


class _Layout:
    """Bytes of the pieces of a worker's scratch.

    Args:
        size: of a number.
        keys: in a row of scores.
    """

    def __init__(self, size: int, keys: int) -> None:
        self._size, self._wide = size, 2 * target().lanes(size)
        self.end = 0
        # Rows of scores do not fall on each other's place in the cache.
        self.line = lines(-(-keys // self._wide) * self._wide * self._size) + 64
        self.take(1, self._wide)  # zeros

    def take(self, rows: int, columns: int) -> int:
        """The next panels, by their number of rows and columns."""
        start = self.end
        self.end += lines(rows * -(-columns // self._wide) * self._wide * self._size)
        return start

    def take_scores(self, count: int) -> int:
        """The next blocks of scores."""
        start = self.end
        self.end += count * _BLOCK * self.line
        return start


@lru_cache(1024)
def _forward_scratch(size: int, depth: int, keys: int, width: int) -> tuple[int, ...]:
    """Bytes of a worker's scratch and of a row of scores, then where the pieces begin."""
    layout = _Layout(size, keys)
    pieces = layout.take(depth, keys), layout.take(keys, width), layout.take_scores(1)
    return layout.end, layout.line, *pieces


@lru_cache(1024)
def _backward_scratch(size: int, depth: int, keys: int, width: int) -> tuple[int, ...]:
    """Likewise for the gradient."""
    layout = _Layout(size, keys)
    pieces = layout.take(depth, keys), layout.take(width, keys), layout.take_scores(2)
    more = layout.take(_BLOCK, depth), layout.take(_BLOCK, width), layout.take(keys, depth)
    return layout.end, layout.line, *pieces, *more


@lru_cache(1024)
def _plan(
    dtype: Any,
    shape: tuple[int, ...],
    size: tuple[int, ...],
    causal: bool,
    steps: tuple[tuple[int, ...], ...],
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The places of matrices, and the arguments that all kernels begin with.

    Args:
        dtype: of all arrays.
        shape: that of q.
        size: (keys, width).
        causal: as given.
        steps: strides of the arrays; of q, k and v first.
    """
    (batch, heads, length, depth), (keys, width) = shape, size
    places = _places(batch, heads, *steps)
    sizes = (batch * heads, length, keys, depth, width, int(causal))
    inner = (step for own in steps[:3] for step in own[2:])
    return places, (*tile_facts(dtype), *sizes, address(places), *inner)


def _run(function: Any, args: tuple[int, ...], q: np.ndarray, keys: int) -> None:
    jobs = q.shape[0] * q.shape[1]
    work = jobs * q.shape[2] * q.shape[3] * keys
    shares = jobs if work > 200_000 and get_num_threads() > 1 else 1
    pool.run(function.address(q.dtype.type), args, shares)


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, causal: bool
) -> tuple[np.ndarray, Any]:
    """See `reference.attention`."""
    if not _fits(q, k, v):
        return reference.attention(q, k, v, scale, causal)
    (batch, heads, length, depth), (keys, width) = q.shape, v.shape[2:]
    out = _empty_like(q, width, beside=q.strides[1] < q.strides[2])
    lse = np.empty((batch, heads, length), q.dtype)
    steps = q.strides, k.strides, v.strides, out.strides
    _, common = _plan(q.dtype, q.shape, (keys, width), causal, steps)
    factor = _factor(scale, q.dtype)
    own, *pieces = _forward_scratch(q.itemsize, depth, keys, width)
    memory = scratch(own * min(get_num_threads(), batch * heads))
    args = (
        *common, out.strides[2], address(factor), address(lse), memory, own, *pieces,
        *addresses((q, k, v, out)),
    )  # fmt: skip
    _run(_forward, args, q, keys)
    return out, lse


def attention_grad(
    grad: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    kept: Any,
    scale: float,
    causal: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See `reference.attention_grad`."""
    if not _fits(q, k, v):
        return reference.attention_grad(grad, q, k, v, out, kept, scale, causal)
    (batch, heads, _, depth), (keys, width) = q.shape, v.shape[2:]
    if grad.strides[3] != grad.itemsize:
        grad = np.ascontiguousarray(grad)
    grads = _empty_like(q, depth), _empty_like(k, depth), _empty_like(v, width)
    arrays = q, k, v, out, grad, *grads
    steps = tuple(a.strides for a in arrays)
    _, common = _plan(q.dtype, q.shape, (keys, width), causal, steps)
    factor = _factor(scale, q.dtype)
    own, *pieces = _backward_scratch(q.itemsize, depth, keys, width)
    memory = scratch(own * min(get_num_threads(), batch * heads))
    args = (
        *common, out.strides[2],
        address(factor), address(kept), memory, own, *pieces,
        grad.strides[2], *(g.strides[2] for g in grads), *addresses(arrays),
    )  # fmt: skip
    _run(_backward, args, q, keys)
    return grads
