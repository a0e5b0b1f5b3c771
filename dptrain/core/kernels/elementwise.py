"""Elementwise passes that NumPy would make in several, over arrays of one layout."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.kernels import pool, reference
from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.dense import alike, dense
from dptrain.core.kernels.memory import address, array_at

real: Any = None  # each compiled copy has its own


@kernel
def _relu_grad(args, share, shares, worker):
    size = (share + 1) * args[0] // shares - share * args[0] // shares
    first = share * args[0] // shares * args[1]  # bytes
    out = array_at(args[2] + first, (size,), real)
    grad = array_at(args[3] + first, (size,), real)
    to = array_at(args[4] + first, (size,), real)
    for k in range(size):
        to[k] = real(0) if out[k] <= 0 else grad[k]


@kernel
def _relu(args, share, shares, worker):
    size = (share + 1) * args[0] // shares - share * args[0] // shares
    first = share * args[0] // shares * args[1]  # bytes
    x, to = array_at(args[2] + first, (size,), real), array_at(args[3] + first, (size,), real)
    for k in range(size):
        to[k] = real(0) if x[k] <= 0 else x[k]  # what is no number stays


@kernel
def _add(args, share, shares, worker):
    size = (share + 1) * args[0] // shares - share * args[0] // shares
    first = share * args[0] // shares * args[1]  # bytes
    a, b = array_at(args[2] + first, (size,), real), array_at(args[3] + first, (size,), real)
    to = array_at(args[4] + first, (size,), real)
    for k in range(size):
        to[k] = a[k] + b[k]


#: Elements below which NumPy's own loop is done before a kernel is called.
_WORTH_A_KERNEL = 4096


def add(x: np.ndarray, y: np.ndarray, alpha: float = 1) -> np.ndarray:
    """See `reference.add`."""
    shares = pool.shares(x.size, 3 * x.nbytes)
    if shares < 2 or alpha != 1 or x.dtype is not y.dtype or not alike(x, y):
        return reference.add(x, y, alpha)  # NumPy is as fast on one thread
    out = np.empty_like(x)
    args = (x.size, x.itemsize, address(x), address(y), address(out))
    pool.run(_add.address(x.dtype.type), args, shares)
    return out


def relu(x: np.ndarray) -> np.ndarray:
    """See `reference.relu`."""
    if x.size < _WORTH_A_KERNEL or not dense(x):
        return reference.relu(x)
    out = np.empty_like(x)
    args = (x.size, x.itemsize, address(x), address(out))
    pool.run(_relu.address(x.dtype.type), args, pool.shares(x.size, 2 * x.nbytes))
    return out


def relu_grad(grad: np.ndarray, out: np.ndarray) -> np.ndarray:
    """See `reference.relu_grad`."""
    if grad.dtype != out.dtype or grad.shape != out.shape or not (out.ndim and dense(out)):
        return reference.relu_grad(grad, out)
    if grad.strides != out.strides:
        # The layout of the forward pass is that of the convolutions before; they shall find it again.
        grad, given = np.empty_like(out), grad
        grad[...] = given
    result = np.empty_like(grad)
    args = (grad.size, grad.itemsize, address(out), address(grad), address(result))
    pool.run(_relu_grad.address(grad.dtype.type), args, pool.shares(grad.size, 2 * grad.nbytes))
    return result
