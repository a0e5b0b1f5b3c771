"""Normalisation of the columns (batch norm) or of the rows (layer norm) of a matrix.

Statistics of columns: mean and sum of squared deviations of blocks of rows that fit in the cache, each
in two passes, merged in float64. Source of the merge: Chan, Golub & LeVeque, "Algorithms for computing
the sample variance", 1983. Narrow matrices are folded: (R, C) is seen as (R / f, f C), so that a row
fills the vectors, and the f parts are merged as blocks are. The number of threads changes no bit (`pool.blocks`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from dptrain.core.kernels import pool
from dptrain.core.kernels.column_passes import (
    BLOCK,
    apply,
    input_gradient,
    moments,
    sums_of_gradients,
)
from dptrain.core.kernels.compiled import FAST, kernel, whole_registers
from dptrain.core.kernels.dense import fold as fold_of
from dptrain.core.kernels.memory import address, addresses, array_at

real: Any = None  # each compiled copy has its own


@kernel
def _statistics(args, share, shares, worker):
    """The moments of all shares and folds merged; mean, variance and 1/std, and what `apply` needs."""
    rows, c, fold, parts = args[0], args[1], args[2], args[3]
    total = array_at(args[4], (parts, 2, fold, c), np.float64)
    weight, bias = args[5], args[6]
    eps = array_at(args[7], (1,), np.float64)[0]
    facts = array_at(args[8], (3, c), real)
    vectors = array_at(args[9], (3, fold, c), real)
    lines = rows // fold
    for k in range(c):
        mean = 0.0
        for p in range(parts):
            count = (p + 1) * lines // parts - p * lines // parts
            for f in range(fold):
                mean += total[p, 0, f, k] * count
        mean /= rows
        squares = 0.0
        for p in range(parts):
            count = (p + 1) * lines // parts - p * lines // parts
            for f in range(fold):
                d = total[p, 0, f, k] - mean
                squares += total[p, 1, f, k] + count * (d * d)
        var = squares / rows
        scale = 1 / np.sqrt(var + eps)
        facts[0, k] = mean
        facts[1, k] = var
        facts[2, k] = scale
        if weight:
            scale *= array_at(weight, (c,), real)[k]
        shift = array_at(bias, (c,), real)[k] if bias else real(0)
        for f in range(fold):
            vectors[0, f, k] = mean
            vectors[1, f, k] = scale
            vectors[2, f, k] = shift


@kernel
def _factors(args, share, shares, worker):
    """The gradients of weight and bias, and what `input_gradient` needs."""
    rows, c, fold, parts = args[0], args[1], args[2], args[3]
    total = array_at(args[4], (parts, 2, fold, c), np.float64)
    weight, rstd = args[5], array_at(args[6], (c,), real)
    facts = array_at(args[7], (2, c), real)
    vectors = array_at(args[8], (3, fold, c), real)
    for k in range(c):
        sums, products = 0.0, 0.0
        for p in range(parts):
            for f in range(fold):
                sums += total[p, 0, f, k]
                products += total[p, 1, f, k]
        inverse = np.float64(rstd[k])
        scale = inverse * array_at(weight, (c,), real)[k] if weight else inverse
        facts[0, k] = products * inverse
        facts[1, k] = sums
        for f in range(fold):
            vectors[0, f, k] = scale
            vectors[1, f, k] = -scale * inverse * (products * inverse) / rows
            vectors[2, f, k] = -scale * sums / rows


@kernel(fastmath=FAST)
def _rows(args, share, shares, worker):
    whole_registers()
    rows, c = args[0], args[1]
    x, out = array_at(args[2], (rows, c), real), array_at(args[3], (rows, c), real)
    mean, rstd = array_at(args[4], (rows,), real), array_at(args[5], (rows,), real)
    weight, bias = array_at(args[6], (c,), real), array_at(args[7], (c,), real)
    eps = array_at(args[8], (1,), real)[0]
    for r in range(share * rows // shares, (share + 1) * rows // shares):
        line, to = x[r], out[r]
        total = real(0)
        for k in range(c):
            total += line[k]
        m = total / real(c)
        total = real(0)
        for k in range(c):
            total += (line[k] - m) * (line[k] - m)
        s = real(1) / np.sqrt(total / real(c) + eps)
        mean[r], rstd[r] = m, s
        for k in range(c):
            to[k] = (line[k] - m) * s * weight[k] + bias[k]


@kernel(fastmath=FAST)
def _rows_grad(args, share, shares, worker):
    whole_registers()
    rows, c = args[0], args[1]
    x, grad = array_at(args[2], (rows, c), real), array_at(args[3], (rows, c), real)
    out = array_at(args[4], (rows, c), real)
    mean, rstd = array_at(args[5], (rows,), real), array_at(args[6], (rows,), real)
    weight = array_at(args[7], (c,), real)
    sums = array_at(args[8], (shares, 2, c), real)[share]
    d_weight, d_bias = sums[0], sums[1]
    for k in range(c):
        d_weight[k] = 0
        d_bias[k] = 0
    for r in range(share * rows // shares, (share + 1) * rows // shares):
        line, g, to = x[r], grad[r], out[r]
        m, s = mean[r], rstd[r]
        total, products = real(0), real(0)
        for k in range(c):
            normal, d = (line[k] - m) * s, g[k] * weight[k]
            total += d
            products += d * normal
            d_weight[k] += g[k] * normal
            d_bias[k] += g[k]
        total /= real(c)
        products /= real(c)
        for k in range(c):
            to[k] = s * (g[k] * weight[k] - total - (line[k] - m) * s * products)


def batch_statistics(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """See `reference.batch_statistics`; the vectors are tiled over the folded columns."""
    rows, c = x.shape
    fold = fold_of(rows, c)
    r, wide = rows // fold, fold * c
    blocks = pool.blocks(r, x.nbytes, 16 * wide)
    short, total = np.empty((blocks, 2, wide), x.dtype), np.empty((blocks, 2, wide))
    args = (r, wide, BLOCK, address(x), address(short), address(total))
    pool.run(moments.address(x.dtype.type), args, blocks)
    facts, vectors = np.empty((3, c), x.dtype), np.empty((3, wide), x.dtype)
    affine = [None if v is None else np.ascontiguousarray(v) for v in (weight, bias)]
    exact = _constant(eps, 1, np.float64)
    args = (
        *(rows, c, fold, blocks, address(total)),
        *(0 if v is None else address(v) for v in affine),
        *(address(exact), address(facts), address(vectors)),
    )
    pool.run(_statistics.address(x.dtype.type), args, 1)
    return facts[0], facts[1], facts[2], vectors


def batch_vectors(
    x: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
) -> np.ndarray:
    """See `reference.batch_vectors`; tiled over the folded columns."""
    fold, c = fold_of(*x.shape), x.shape[1]
    vectors = np.empty((3, fold, c), x.dtype)
    vectors[0], vectors[1] = mean, rstd if weight is None else rstd * weight
    vectors[2] = 0 if bias is None else bias
    return vectors.reshape(3, fold * c)


def normalise(
    x: np.ndarray,
    vectors: np.ndarray,
    out: np.ndarray,
    cut: bool = False,
    more: np.ndarray | None = None,
) -> None:
    """See `reference.normalise`."""
    wide = vectors.shape[1]
    rows = x.size // wide
    added = 0 if more is None else address(more)
    args = (rows, wide, address(x), address(out), address(vectors), cut, added, 0)
    pool.run(apply.address(x.dtype.type), args, pool.shares(rows, x.nbytes))


def batch_norm(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """See `reference.batch_norm`."""
    mean, var, rstd, vectors = batch_statistics(x, weight, bias, eps)
    out = np.empty_like(x)
    normalise(x, vectors, out)
    return out, mean, var, rstd


def batch_norm_grad(
    grad: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    cut: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See `reference.batch_norm_grad`."""
    (total_rows, c), real = x.shape, x.dtype.type
    fold = fold_of(total_rows, c)
    rows, wide = total_rows // fold, fold * c
    forward = cut
    if forward is None:
        forward = np.empty((3, wide), x.dtype)
        forward.reshape(3, fold, c)[0] = mean  # the others are not looked at
    blocks = pool.blocks(rows, x.nbytes, 16 * wide)
    short, total = np.empty((blocks, 2, wide), x.dtype), np.empty((blocks, 2, wide))
    places = addresses((x, grad, forward, short, total))
    pool.run(
        sums_of_gradients.address(real), (rows, wide, BLOCK, *places, cut is not None, 0), blocks
    )
    facts, vectors = np.empty((2, c), x.dtype), np.empty((3, wide), x.dtype)
    factor = None if weight is None else np.ascontiguousarray(weight)
    args = (
        *(total_rows, c, fold, blocks, address(total)),
        *(0 if factor is None else address(factor), address(rstd)),
        *(address(facts), address(vectors)),
    )
    pool.run(_factors.address(real), args, 1)
    out = np.empty_like(x)
    places = addresses((x, grad, out, forward, vectors))
    shares = pool.shares(rows, x.nbytes)
    pool.run(input_gradient.address(real), (rows, wide, *places, cut is not None, 0), shares)
    return out, facts[0], facts[1]


@lru_cache(256)
def _constant(value: float, size: int, dtype: Any) -> np.ndarray:
    return np.full(size, value, dtype)


def _vector(given: np.ndarray | None, otherwise: int, x: np.ndarray) -> np.ndarray:
    """A factor or summand for each column of x."""
    if given is None:
        return _constant(otherwise, x.shape[1], x.dtype)
    if given.dtype is x.dtype and given.ndim == 1 and given.flags.c_contiguous:
        return given
    return np.ascontiguousarray(given, dtype=x.dtype).reshape(-1)


def layer_norm(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See `reference.layer_norm`."""
    rows, c = x.shape
    out, facts = np.empty_like(x), np.empty((2, rows), x.dtype)
    mean, rstd = facts
    factor, shift = _vector(weight, 1, x), _vector(bias, 0, x)
    arrays = (x, out, mean, rstd, factor, shift, _constant(eps, 1, x.dtype))
    args = (rows, c, *addresses(arrays))
    pool.run(_rows.address(x.dtype.type), args, pool.shares(rows, x.nbytes))
    return out, mean, rstd


def layer_norm_grad(
    grad: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See `reference.layer_norm_grad`."""
    rows, c = x.shape
    out, factor = np.empty_like(x), _vector(weight, 1, x)
    blocks = pool.blocks(rows, x.nbytes, 2 * c * x.itemsize)
    sums = np.empty((blocks, 2, c), x.dtype)
    args = (rows, c, *addresses((x, grad, out, mean, rstd, factor, sums)))
    pool.run(_rows_grad.address(x.dtype.type), args, blocks)
    d_weight, d_bias = sums[0] if blocks == 1 else sums.sum(axis=0)
    return out, d_weight, d_bias
