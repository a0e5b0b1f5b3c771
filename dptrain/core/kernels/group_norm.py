"""Normalisation of groups of the channels of each image: group norm, and instance norm with a channel a group.

Images lie with the channels last. The passes are those of batch norm, an image a share; what differs is how
the moments of its columns are merged. Narrow images are folded as there.
"""

from __future__ import annotations

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
from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.dense import fold as fold_of
from dptrain.core.kernels.memory import address, addresses, array_at

real: Any = None  # each compiled copy has its own


@kernel
def _statistics(args, share, shares, worker):
    """Mean, variance and 1/std of each group from the moments of its columns, and what `apply` needs."""
    n, lines, fold, groups, depth = args[0], args[1], args[2], args[3], args[4]
    c = groups * depth
    total = array_at(args[5], (n, 2, fold, c), np.float64)
    weight, bias = args[6], args[7]
    eps = array_at(args[8], (1,), np.float64)[0]
    facts = array_at(args[9], (3, n, groups), real)
    vectors = array_at(args[10], (n, 3, fold, c), real)
    for image in range(share * n // shares, (share + 1) * n // shares):
        means, squares = total[image, 0], total[image, 1]
        for g in range(groups):
            mean, spread = 0.0, 0.0
            for f in range(fold):
                for k in range(g * depth, (g + 1) * depth):
                    mean += means[f, k]
            mean /= fold * depth
            for f in range(fold):
                for k in range(g * depth, (g + 1) * depth):
                    d = means[f, k] - mean
                    spread += squares[f, k] + lines * (d * d)
            var = spread / (lines * fold * depth)
            rstd = 1 / np.sqrt(var + eps)
            facts[0, image, g] = mean
            facts[1, image, g] = var
            facts[2, image, g] = rstd
            for k in range(g * depth, (g + 1) * depth):
                scale = rstd * array_at(weight, (c,), real)[k] if weight else rstd
                shift = array_at(bias, (c,), real)[k] if bias else real(0)
                for f in range(fold):
                    vectors[image, 0, f, k] = mean
                    vectors[image, 1, f, k] = scale
                    vectors[image, 2, f, k] = shift


@kernel
def _factors(args, share, shares, worker):
    """What an image adds to the gradients of weight and bias, and what `input_gradient` needs."""
    n, lines, fold, groups, depth = args[0], args[1], args[2], args[3], args[4]
    c = groups * depth
    total = array_at(args[5], (n, 2, fold, c), np.float64)
    weight, rstds = args[6], array_at(args[7], (n, groups), real)
    vectors = array_at(args[8], (n, 3, fold, c), real)
    for image in range(share * n // shares, (share + 1) * n // shares):
        sums, products = total[image, 0], total[image, 1]
        for g in range(groups):
            rstd = np.float64(rstds[image, g])
            all_sums, all_products = 0.0, 0.0
            for k in range(g * depth, (g + 1) * depth):
                for f in range(1, fold):
                    sums[0, k] += sums[f, k]
                    products[0, k] += products[f, k]
                products[0, k] *= rstd
                factor = np.float64(array_at(weight, (c,), real)[k]) if weight else 1.0
                all_sums += factor * sums[0, k]
                all_products += factor * products[0, k]
            count = lines * fold * depth
            for k in range(g * depth, (g + 1) * depth):
                scale = rstd * array_at(weight, (c,), real)[k] if weight else rstd
                for f in range(fold):
                    vectors[image, 0, f, k] = scale
                    vectors[image, 1, f, k] = -rstd * rstd * all_products / count
                    vectors[image, 2, f, k] = -rstd * all_sums / count


def _contiguous(weight: np.ndarray | None) -> np.ndarray | None:
    return None if weight is None else np.ascontiguousarray(weight)


def _place(array: np.ndarray | None) -> int:
    return 0 if array is None else address(array)


def group_norm(
    x: np.ndarray, groups: int, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """See `reference.group_norm`."""
    n, pixels, c = x.shape
    fold, real = fold_of(pixels, c), x.dtype.type
    lines, wide = pixels // fold, fold * c
    short, total = np.empty((n, 2, wide), x.dtype), np.empty((n, 2, wide))
    places = addresses((x, short, total))
    pool.run(moments.address(real), (n * lines, wide, BLOCK, *places), n)
    facts, vectors = np.empty((3, n, groups), x.dtype), np.empty((n, 3, wide), x.dtype)
    exact, affine = np.full(1, eps), [_contiguous(v) for v in (weight, bias)]
    args = (
        *(n, lines, fold, groups, c // groups, address(total), *map(_place, affine)),
        *(address(exact), address(facts), address(vectors)),
    )
    pool.run(_statistics.address(real), args, 1)
    out = np.empty_like(x)
    places = addresses((x, out, vectors))
    step = 3 * wide * x.itemsize
    pool.run(apply.address(real), (n * lines, wide, *places, 0, 0, step), n)
    return out, facts[0], facts[1], facts[2]


def group_norm_grad(
    grad: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See `reference.group_norm_grad`."""
    n, pixels, c = x.shape
    groups, fold, real = mean.shape[1], fold_of(pixels, c), x.dtype.type
    lines, wide = pixels // fold, fold * c
    step = 3 * wide * x.itemsize
    means = np.empty((n, 3, fold, groups, c // groups), x.dtype)
    means[:, 0] = mean[:, None, :, None]  # the others are not looked at
    short, total = np.empty((n, 2, wide), x.dtype), np.empty((n, 2, fold, c))
    places = addresses((x, grad, means, short, total))
    pool.run(sums_of_gradients.address(real), (n * lines, wide, BLOCK, *places, 0, step), n)
    vectors, factor = np.empty((n, 3, wide), x.dtype), _contiguous(weight)
    args = (
        *(n, lines, fold, groups, c // groups, address(total), _place(factor)),
        *(address(rstd), address(vectors)),
    )
    pool.run(_factors.address(real), args, 1)
    out = np.empty_like(x)
    places = addresses((x, grad, out, means, vectors))
    pool.run(input_gradient.address(real), (n * lines, wide, *places, 0, step), n)
    sums = total[:, :, 0].sum(axis=0).astype(x.dtype)
    return out, sums[1], sums[0]
