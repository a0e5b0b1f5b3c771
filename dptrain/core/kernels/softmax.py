"""Softmax, its logarithm and cross entropy over the rows of a matrix, and their gradients: one pass each.

Rows are independent, so that the number of threads changes no bit. Rounding: the largest element is
exact, exp that of `exponential`, sums are taken in the order of vector lanes: |error| <= (C + 4) eps of
the largest possible value, 1 for probabilities; for logarithms eps times (C + |value|).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dptrain.core.kernels import pool, reference
from dptrain.core.kernels.compiled import FAST, KEEP_NAN, kernel, whole_registers
from dptrain.core.kernels.deferred import njit
from dptrain.core.kernels.memory import addresses, array_at
from dptrain.core.kernels.rows import exp_less, exp_row

real: Any = None  # each compiled copy has its own


@njit(fastmath=FAST)
def sum_of(line, count):
    """Their sum."""
    whole_registers()
    total = line[0] * 0
    for k in range(count):
        total += line[k]
    return total


@njit(fastmath=FAST)
def dot_of(a, b, count):
    """The sum of the products of two rows."""
    whole_registers()
    total = a[0] * 0
    for k in range(count):
        total += a[k] * b[k]
    return total


@kernel(fastmath=KEEP_NAN)
def _softmax(args, share, shares, worker):
    whole_registers()
    rows, c = args[0], args[1]
    out = array_at(args[3], (rows, c), real)
    for r in range(share * rows // shares, (share + 1) * rows // shares):
        place = r * c * out.itemsize
        _, total = exp_row(args[3] + place, args[2] + place, real(1), c, real)
        to, scale = out[r], real(1) / total
        for k in range(c):
            to[k] *= scale


@kernel(fastmath=KEEP_NAN)
def _softmax_grad(args, share, shares, worker):
    whole_registers()
    rows, c = args[0], args[1]
    grad, out = array_at(args[2], (rows, c), real), array_at(args[3], (rows, c), real)
    result = array_at(args[4], (rows, c), real)
    for r in range(share * rows // shares, (share + 1) * rows // shares):
        g, y, to = grad[r], out[r], result[r]
        total = dot_of(g, y, c)
        for k in range(c):
            to[k] = (g[k] - total) * y[k]


@kernel(fastmath=KEEP_NAN)
def _log_softmax(args, share, shares, worker):
    whole_registers()
    rows, c = args[0], args[1]
    x, out = array_at(args[2], (rows, c), real), array_at(args[3], (rows, c), real)
    for r in range(share * rows // shares, (share + 1) * rows // shares):
        place = r * c * out.itemsize
        top, total = exp_row(args[3] + place, args[2] + place, real(1), c, real)
        line, to, rest = x[r], out[r], real(math.log(total))
        for k in range(c):
            to[k] = line[k] - top - rest


@kernel(fastmath=KEEP_NAN)
def _log_softmax_grad(args, share, shares, worker):
    whole_registers()
    rows, c = args[0], args[1]
    grad, result = array_at(args[2], (rows, c), real), array_at(args[4], (rows, c), real)
    for r in range(share * rows // shares, (share + 1) * rows // shares):
        g, to = grad[r], result[r]
        total = sum_of(g, c)
        place = r * c * result.itemsize
        exp_less(args[4] + place, args[3] + place, real(1), real(0), c, real)
        for k in range(c):
            to[k] = g[k] - to[k] * total


@kernel(fastmath=KEEP_NAN)
def _cross_entropy(args, share, shares, worker):
    whole_registers()
    rows, c = args[0], args[1]
    x, p = array_at(args[2], (rows, c), real), array_at(args[3], (rows, c), real)
    target, loss = array_at(args[4], (rows,), np.int64), array_at(args[5], (rows,), real)
    for r in range(share * rows // shares, (share + 1) * rows // shares):
        place = r * c * p.itemsize
        top, total = exp_row(args[3] + place, args[2] + place, real(1), c, real)
        line, to, scale = x[r], p[r], real(1) / total
        for k in range(c):
            to[k] *= scale
        loss[r] = real(math.log(total)) - (line[target[r]] - top)


@kernel(fastmath=KEEP_NAN)
def _cross_entropy_grad(args, share, shares, worker):
    whole_registers()
    rows, c = args[0], args[1]
    p, out = array_at(args[2], (rows, c), real), array_at(args[5], (rows, c), real)
    target = array_at(args[3], (rows,), np.int64)
    factor = array_at(args[4], (1,), real)[0] * array_at(args[6], (1,), real)[0]
    for r in range(share * rows // shares, (share + 1) * rows // shares):
        line, to = p[r], out[r]
        for k in range(c):
            to[k] = line[k] * factor
        to[target[r]] -= factor


def _run(function: Any, *arrays: np.ndarray) -> None:
    """Over matrices of one shape and type, then further arrays; the first says how many rows there are."""
    x = arrays[0]
    code = function.address(x.dtype.type)
    # An exponential costs as much as moving some tens of bytes.
    args = (*x.shape, *addresses(arrays))
    pool.run(code, args, pool.shares(len(x), 4 * x.nbytes))


def _row_by_row(function: Any, x: np.ndarray) -> np.ndarray:
    x = np.ascontiguousarray(x)
    out = np.empty(x.shape, x.dtype)
    if x.size:
        _run(function, x, out)
    return out


def softmax(x: np.ndarray) -> np.ndarray:
    """See `reference.softmax`."""
    return _row_by_row(_softmax, x)


def softmax_grad(grad: np.ndarray, out: np.ndarray) -> np.ndarray:
    """See `reference.softmax_grad`."""
    return _grad(_softmax_grad, grad, out)


def log_softmax(x: np.ndarray) -> np.ndarray:
    """See `reference.log_softmax`."""
    return _row_by_row(_log_softmax, x)


def log_softmax_grad(grad: np.ndarray, out: np.ndarray) -> np.ndarray:
    """See `reference.log_softmax_grad`."""
    return _grad(_log_softmax_grad, grad, out)


def _grad(function: Any, grad: np.ndarray, out: np.ndarray) -> np.ndarray:
    grad = np.ascontiguousarray(grad, dtype=out.dtype)
    result = np.empty(grad.shape, grad.dtype)
    if grad.size:
        _run(function, grad, np.ascontiguousarray(out), result)
    return result


def cross_entropy(logits: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See `reference.cross_entropy`."""
    if not logits.size:
        return reference.cross_entropy(logits, target)
    logits = np.ascontiguousarray(logits)
    p, loss = np.empty(logits.shape, logits.dtype), np.empty(len(logits), logits.dtype)
    _run(_cross_entropy, logits, p, np.ascontiguousarray(target, dtype=np.int64), loss)
    return loss, p


def cross_entropy_grad(
    grad: np.ndarray, logits: np.ndarray, kept: np.ndarray, target: np.ndarray, scale: float
) -> np.ndarray:
    """See `reference.cross_entropy_grad`."""
    p = kept
    if grad.dtype != p.dtype or not (p.size and p.flags.c_contiguous):
        return reference.cross_entropy_grad(grad, logits, p, target, scale)
    out, held = np.empty(p.shape, p.dtype), np.array([scale], p.dtype)
    classes = np.ascontiguousarray(target, dtype=np.int64)
    # A gradient that was scaled is a number of NumPy's: an address needs an array that stays.
    _run(_cross_entropy_grad, p, classes, np.asarray(grad), out, held)
    return out
