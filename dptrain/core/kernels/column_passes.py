"""Passes over the columns of a matrix that all norms of columns are made of.

A share takes some of the rows; its vectors (a number for each column) may be its own, so many bytes behind
those of the share before it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.kernels.compiled import FAST, kernel
from dptrain.core.kernels.deferred import njit
from dptrain.core.kernels.memory import array_at

real: Any = None  # each compiled copy has its own

#: Rows that are summed in the element type before they are merged in float64.
BLOCK = 32


@kernel(fastmath=FAST)
def moments(args, share, shares, worker):
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


@njit
def _normal(x, mean, scale, shift):
    """Not inlined by numba but by LLVM, so that the rounding is the same in kernels that may fuse products."""
    return (x - mean) * scale + shift


@kernel
def apply(args, share, shares, worker):
    """out = (x - mean) * scale + shift, column by column; then `more` is added, or max(out, 0) taken."""
    rows, c = args[0], args[1]
    x, out = array_at(args[2], (rows, c), real), array_at(args[3], (rows, c), real)
    vectors = array_at(args[4] + share * args[7], (3, c), real)
    cut, more = args[5], array_at(args[6], (rows, c), real)
    mean, scale, shift = vectors[0], vectors[1], vectors[2]
    for r in range(share * rows // shares, (share + 1) * rows // shares):
        line, to = x[r], out[r]
        if cut:
            for k in range(c):
                y = _normal(line[k], mean[k], scale[k], shift[k])
                to[k] = real(0) if y <= 0 else y  # what is no number stays
        elif args[6]:
            other = more[r]
            for k in range(c):
                to[k] = _normal(line[k], mean[k], scale[k], shift[k]) + other[k]
        else:
            for k in range(c):
                to[k] = _normal(line[k], mean[k], scale[k], shift[k])


@kernel(fastmath=FAST)
def sums_of_gradients(args, share, shares, worker):
    """Sums of the gradient, and of the gradient times the centred input.

    With `cut` the gradient is that of max(out, 0), which passes where `apply` gave more than 0.
    """
    rows, c, block = args[0], args[1], args[2]
    x, grad = array_at(args[3], (rows, c), real), array_at(args[4], (rows, c), real)
    vectors = array_at(args[5] + share * args[9], (3, c), real)
    mean, scale, shift = vectors[0], vectors[1], vectors[2]
    short = array_at(args[6], (shares, 2, c), real)[share]
    total = array_at(args[7], (shares, 2, c), np.float64)[share]
    cut = args[8]
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
            if cut:
                for k in range(c):
                    y = _normal(line[k], mean[k], scale[k], shift[k])
                    d = real(0) if y <= 0 else g[k]
                    part[k] += d
                    part_products[k] += d * (line[k] - mean[k])
            else:
                for k in range(c):
                    part[k] += g[k]
                    part_products[k] += g[k] * (line[k] - mean[k])
        for k in range(c):
            sums[k] += part[k]
            products[k] += part_products[k]


@kernel
def input_gradient(args, share, shares, worker):
    """out = grad * a + (x - mean) * b + d, column by column; `cut` as in `sums_of_gradients`."""
    rows, c = args[0], args[1]
    x, grad = array_at(args[2], (rows, c), real), array_at(args[3], (rows, c), real)
    out = array_at(args[4], (rows, c), real)
    forward = array_at(args[5] + share * args[8], (3, c), real)
    vectors = array_at(args[6] + share * args[8], (3, c), real)
    mean, scale, shift = forward[0], forward[1], forward[2]
    a, b, d = vectors[0], vectors[1], vectors[2]
    cut = args[7]
    for r in range(share * rows // shares, (share + 1) * rows // shares):
        line, g, to = x[r], grad[r], out[r]
        if cut:
            for k in range(c):
                y = _normal(line[k], mean[k], scale[k], shift[k])
                passed = real(0) if y <= 0 else g[k]
                to[k] = passed * a[k] + (line[k] - mean[k]) * b[k] + d[k]
        else:
            for k in range(c):
                to[k] = g[k] * a[k] + (line[k] - mean[k]) * b[k] + d[k]
