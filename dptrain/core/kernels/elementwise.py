"""Elementwise passes that NumPy would make in several, over arrays of one layout."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.kernels import pool, reference
from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.dense import alike, dense, lying_as
from dptrain.core.kernels.memory import address, addresses, array_at

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


@kernel
def _clip(args, share, shares, worker):
    size = (share + 1) * args[0] // shares - share * args[0] // shares
    start = share * args[0] // shares
    first = start * args[1]  # bytes
    x, to = array_at(args[2] + first, (size,), real), array_at(args[3] + first, (size,), real)
    inside = array_at(args[4] + start, (size,), np.uint8)
    ends = array_at(args[5], (2,), real)
    low, high = ends[0], ends[1]
    for k in range(size):
        y = low if x[k] < low else x[k]
        to[k] = high if y > high else y  # what is no number stays
        inside[k] = (x[k] > low) & (x[k] < high)


@kernel
def _pass_where(args, share, shares, worker):
    size = (share + 1) * args[0] // shares - share * args[0] // shares
    start = share * args[0] // shares
    first = start * args[1]  # bytes
    grad, to = array_at(args[2] + first, (size,), real), array_at(args[3] + first, (size,), real)
    passes = array_at(args[4] + start, (size,), np.uint8)
    scale = array_at(args[5], (1,), real)[0]
    for k in range(size):
        to[k] = grad[k] * scale if passes[k] else real(0)


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
    if x.size < _WORTH_A_KERNEL:
        return reference.relu(x)
    if not dense(x):
        x = x.copy("K")
    out = np.empty_like(x)
    args = (x.size, x.itemsize, address(x), address(out))
    pool.run(_relu.address(x.dtype.type), args, pool.shares(x.size, 2 * x.nbytes))
    return out


def relu_grad(grad: np.ndarray, out: np.ndarray) -> np.ndarray:
    """See `reference.relu_grad`."""
    if grad.dtype != out.dtype or grad.shape != out.shape or not (out.ndim and dense(out)):
        return reference.relu_grad(grad, out)
    if out.size < _WORTH_A_KERNEL and grad.flags.c_contiguous and out.flags.c_contiguous:
        return reference.relu_grad(grad, out)
    grad, result = lying_as(out, grad), np.empty_like(out)
    args = (grad.size, grad.itemsize, address(out), address(grad), address(result))
    pool.run(_relu_grad.address(grad.dtype.type), args, pool.shares(grad.size, 2 * grad.nbytes))
    return result


def clip(x: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """See `reference.clip`."""
    if x.size < _WORTH_A_KERNEL or not dense(x):
        return reference.clip(x, low, high)
    out, inside = np.empty_like(x), np.empty_like(x, np.bool_)
    ends = np.array([low, high], x.dtype)
    args = (x.size, x.itemsize, *addresses((x, out, inside, ends)))
    pool.run(_clip.address(x.dtype.type), args, pool.shares(x.size, 2 * x.nbytes))
    return out, inside


def pass_where(grad: np.ndarray, passes: np.ndarray, scale: float = 1) -> np.ndarray:
    """See `reference.pass_where`."""
    if grad.size < _WORTH_A_KERNEL or grad.shape != passes.shape or not dense(passes):
        return reference.pass_where(grad, passes, scale)
    out = np.empty_like(passes, grad.dtype)
    grad, factor = lying_as(out, grad), np.array([scale], grad.dtype)
    args = (grad.size, grad.itemsize, *addresses((grad, out, passes, factor)))
    pool.run(_pass_where.address(grad.dtype.type), args, pool.shares(grad.size, 2 * grad.nbytes))
    return out
