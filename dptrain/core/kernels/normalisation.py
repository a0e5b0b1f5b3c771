"""Normalisation of the columns (batch norm) or of the rows (layer norm) of a matrix.

Statistics of columns: mean and sum of squared deviations of blocks of rows that fit in the cache, each
in two passes, merged in float64. Source of the merge: Chan, Golub & LeVeque, "Algorithms for computing
the sample variance", 1983. Narrow matrices are folded: (R, C) is seen as (R / f, f C), so that a row
fills the vectors, and the f parts are merged as blocks are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.kernels import pool
from dptrain.core.kernels.compiled import FAST, kernel
from dptrain.core.kernels.memory import address, array_at

real: Any = None  # each compiled copy has its own

_BLOCK = 32
_WIDE = 256  # columns of a folded row


@kernel(fastmath=FAST)
def _moments(args, share, shares, worker):
    rows, c, block = args[0], args[1], args[2]
    x = array_at(args[3], (rows, c), real)
    short = array_at(args[4], (shares, 2, c), real)[share]
    total = array_at(args[5], (shares, 2, c), np.float64)[share]
    mean, squares = total[0], total[1]
    part, part_squares = short[0], short[1]
    for k in range(c):
        mean[k] = 0
        squares[k] = 0
    first = share * rows // shares
    seen = 0
    for start in range(first, (share + 1) * rows // shares, block):
        stop = min(start + block, (share + 1) * rows // shares)
        count = stop - start
        for k in range(c):
            part[k] = 0
            part_squares[k] = 0
        for r in range(start, stop):
            line = x[r]
            for k in range(c):
                part[k] += line[k]
        for k in range(c):
            part[k] /= real(count)
        for r in range(start, stop):
            line = x[r]
            for k in range(c):
                d = line[k] - part[k]
                part_squares[k] += d * d
        weight = count / (seen + count)
        for k in range(c):
            d = part[k] - mean[k]
            mean[k] += d * weight
            squares[k] += part_squares[k] + d * d * (seen * weight)
        seen += count


@kernel
def _apply(args, share, shares, worker):
    """out = (x - mean) * scale + shift, column by column."""
    rows, c = args[0], args[1]
    x, out = array_at(args[2], (rows, c), real), array_at(args[3], (rows, c), real)
    vectors = array_at(args[4], (3, c), real)
    mean, scale, shift = vectors[0], vectors[1], vectors[2]
    for r in range(share * rows // shares, (share + 1) * rows // shares):
        line, to = x[r], out[r]
        for k in range(c):
            to[k] = (line[k] - mean[k]) * scale[k] + shift[k]


@kernel(fastmath=FAST)
def _sums(args, share, shares, worker):
    """Sums of the gradient, and of the gradient times the centred input."""
    rows, c, block = args[0], args[1], args[2]
    x, grad = array_at(args[3], (rows, c), real), array_at(args[4], (rows, c), real)
    mean = array_at(args[5], (c,), real)
    short = array_at(args[6], (shares, 2, c), real)[share]
    total = array_at(args[7], (shares, 2, c), np.float64)[share]
    sums, products = total[0], total[1]
    part, part_products = short[0], short[1]
    for k in range(c):
        sums[k] = 0
        products[k] = 0
    for start in range(share * rows // shares, (share + 1) * rows // shares, block):
        for k in range(c):
            part[k] = 0
            part_products[k] = 0
        for r in range(start, min(start + block, (share + 1) * rows // shares)):
            line, g = x[r], grad[r]
            for k in range(c):
                part[k] += g[k]
                part_products[k] += g[k] * (line[k] - mean[k])
        for k in range(c):
            sums[k] += part[k]
            products[k] += part_products[k]


@kernel
def _input_grad(args, share, shares, worker):
    """out = grad * a + (x - mean) * b + d, column by column."""
    rows, c = args[0], args[1]
    x, grad = array_at(args[2], (rows, c), real), array_at(args[3], (rows, c), real)
    out = array_at(args[4], (rows, c), real)
    vectors = array_at(args[5], (4, c), real)
    mean, a, b, d = vectors[0], vectors[1], vectors[2], vectors[3]
    for r in range(share * rows // shares, (share + 1) * rows // shares):
        line, g, to = x[r], grad[r], out[r]
        for k in range(c):
            to[k] = g[k] * a[k] + (line[k] - mean[k]) * b[k] + d[k]


@kernel(fastmath=FAST)
def _rows(args, share, shares, worker):
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


def _fold(rows: int, columns: int) -> int:
    """How many rows to see as one."""
    fold = 1
    while fold * columns * 2 <= _WIDE and rows % (fold * 2) == 0:
        fold *= 2
    return fold


def _tiled(fold: int, dtype: Any, *vectors: Any) -> np.ndarray:
    """Vectors over the columns, as rows over the folded columns."""
    return np.ascontiguousarray(np.tile(np.stack(vectors).astype(dtype), (1, fold)))


def batch_norm(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """See `reference.batch_norm`."""
    rows, c = x.shape
    fold = _fold(rows, c)
    r, wide = rows // fold, fold * c
    shares = pool.even_shares(r, x.nbytes)
    short, total = np.empty((shares, 2, wide), x.dtype), np.empty((shares, 2, wide))
    args = (r, wide, _BLOCK, address(x), address(short), address(total))
    pool.run(_moments.address(x.dtype.type), args, shares)
    edges = np.arange(shares + 1) * r // shares
    counts = np.repeat(np.diff(edges), fold)[:, None]
    means = total[:, 0].reshape(shares * fold, c)
    mean = (counts * means).sum(axis=0) / rows
    spread = total[:, 1].reshape(shares * fold, c).sum(axis=0)
    var = (spread + (counts * (means - mean) ** 2).sum(axis=0)) / rows
    rstd = 1 / np.sqrt(var + eps)
    scale = rstd if weight is None else rstd * weight
    vectors = _tiled(fold, x.dtype, mean, scale, np.zeros(c) if bias is None else bias)
    out = np.empty_like(x)
    places = (r, wide, address(x), address(out), address(vectors))
    pool.run(_apply.address(x.dtype.type), places, pool.shares(r, x.nbytes))
    return out, *(v.astype(x.dtype) for v in (mean, var, rstd))


def batch_norm_grad(
    grad: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See `reference.batch_norm_grad`."""
    rows, c = x.shape
    fold = _fold(rows, c)
    r, wide = rows // fold, fold * c
    shares = pool.even_shares(r, x.nbytes)
    short, total = np.empty((shares, 2, wide), x.dtype), np.empty((shares, 2, wide))
    tiled = _tiled(fold, x.dtype, mean)
    args = (r, wide, _BLOCK, *(address(a) for a in (x, grad, tiled, short, total)))
    pool.run(_sums.address(x.dtype.type), args, shares)
    sums, products = total.reshape(shares, 2, fold, c).sum(axis=(0, 2))
    d_weight, rstd = products * rstd, rstd.astype(np.float64)
    scale = rstd if weight is None else rstd * weight
    vectors = _tiled(
        fold, x.dtype, mean, scale, -scale * rstd * d_weight / rows, -scale * sums / rows
    )
    out = np.empty_like(x)
    places = (r, wide, address(x), address(grad), address(out), address(vectors))
    pool.run(_input_grad.address(x.dtype.type), places, pool.shares(r, x.nbytes))
    return out, d_weight.astype(x.dtype), sums.astype(x.dtype)


def layer_norm(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See `reference.layer_norm`."""
    rows, c = x.shape
    out, facts = np.empty_like(x), np.empty((2, rows), x.dtype)
    affine = np.empty((2, c), x.dtype)
    affine[0] = 1 if weight is None else weight.reshape(-1)
    affine[1] = 0 if bias is None else bias.reshape(-1)
    arrays = (x, out, facts[0], facts[1], affine[0], affine[1], np.array([eps], x.dtype))
    args = (rows, c, *(address(a) for a in arrays))
    pool.run(_rows.address(x.dtype.type), args, pool.shares(rows, x.nbytes))
    return out, facts[0], facts[1]


def layer_norm_grad(
    grad: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See `reference.layer_norm_grad`."""
    rows, c = x.shape
    out = np.empty_like(x)
    factor = np.empty(c, x.dtype)
    factor[:] = 1 if weight is None else weight.reshape(-1)
    shares = pool.even_shares(rows, x.nbytes)
    sums = np.empty((shares, 2, c), x.dtype)
    args = (rows, c, *(address(a) for a in (x, grad, out, mean, rstd, factor, sums)))
    pool.run(_rows_grad.address(x.dtype.type), args, shares)
    d_weight, d_bias = sums[0] if shares == 1 else sums.sum(axis=0)
    return out, d_weight, d_bias
