"""PReLU and its gradients over the columns of a matrix, one pass each."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.kernels import pool, reference_activations
from dptrain.core.kernels.compiled import FAST, kernel
from dptrain.core.kernels.dense import dense, fold, lying_as
from dptrain.core.kernels.memory import address, addresses, array_at

real: Any = None  # each compiled copy has its own

#: Rows that are summed in the element type before they are added in float64.
_BLOCK = 32


@kernel
def _forward(args, share, shares, worker):
    rows, c = args[0], args[1]
    x, out = array_at(args[2], (rows, c), real), array_at(args[3], (rows, c), real)
    weight = array_at(args[4], (c,), real)
    for r in range(share * rows // shares, (share + 1) * rows // shares):
        line, to = x[r], out[r]
        for k in range(c):
            to[k] = line[k] if line[k] > 0 else line[k] * weight[k]


@kernel(fastmath=FAST)
def _backward(args, share, shares, worker):
    rows, c, block = args[0], args[1], args[2]
    x, grad = array_at(args[3], (rows, c), real), array_at(args[4], (rows, c), real)
    out, weight = array_at(args[5], (rows, c), real), array_at(args[6], (c,), real)
    part = array_at(args[7], (shares, c), real)[share]
    total = array_at(args[8], (shares, c), np.float64)[share]
    for k in range(c):
        total[k] = 0
    end = (share + 1) * rows // shares
    for start in range(share * rows // shares, end, block):
        for k in range(c):
            part[k] = 0
        for r in range(start, min(start + block, end)):
            line, g, to = x[r], grad[r], out[r]
            for k in range(c):
                below = real(0) if line[k] > 0 else g[k] * line[k]
                to[k] = g[k] if line[k] > 0 else g[k] * weight[k]
                part[k] += below
        for k in range(c):
            total[k] += part[k]


def _columns(x: np.ndarray, weight: np.ndarray) -> tuple[int, int] | None:
    """The matrix (rows, columns) that x is, a weight for each column; None where it is none."""
    if not dense(x):
        return None
    last = x if x.ndim < 3 else x.transpose(0, *range(2, x.ndim), 1)
    if weight.size > 1 and not last.flags.c_contiguous:
        return None
    rows, c = x.size // weight.size, weight.size
    return rows // fold(rows, c), c * fold(rows, c)


def prelu(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """See `reference_activations.prelu`."""
    sizes = _columns(x, weight)
    if sizes is None or weight.dtype != x.dtype:
        return reference_activations.prelu(x, weight)
    out, factors = np.empty_like(x), np.tile(weight.reshape(-1), sizes[1] // weight.size)
    args = (*sizes, address(x), address(out), address(factors))
    pool.run(_forward.address(x.dtype.type), args, pool.shares(sizes[0], 2 * x.nbytes))
    return out


def prelu_grad(
    grad: np.ndarray, x: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """See `reference_activations.prelu_grad`; the weight's is summed in float64 at the end."""
    sizes = _columns(x, weight)
    if sizes is None or not grad.dtype == x.dtype == weight.dtype or grad.shape != x.shape:
        return reference_activations.prelu_grad(grad, x, weight)
    rows, c = sizes
    out, factors = np.empty_like(x), np.tile(weight.reshape(-1), c // weight.size)
    blocks = pool.blocks(rows, 3 * x.nbytes, 16 * c)
    part, total = np.empty((blocks, c), x.dtype), np.empty((blocks, c))
    grad = lying_as(x, grad)
    places = addresses((x, grad, out, factors, part, total))
    pool.run(_backward.address(x.dtype.type), (rows, c, _BLOCK, *places), blocks)
    sums = total.reshape(-1, weight.size).sum(axis=0)
    return out, sums.astype(x.dtype).reshape(weight.shape)
