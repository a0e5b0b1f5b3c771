"""Elementwise passes that NumPy would make in several, over arrays of one layout."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from dptrain.core.kernels import pool, reference
from dptrain.core.kernels.compiled import KEEP_NAN, kernel
from dptrain.core.kernels.exponential import exp32
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


@numba.njit(inline="always")
def _normal_cdf(x):
    """The distribution function of the standard normal distribution, float32, to 1e-7.

    Chebyshev fits of ours: erf(t) / t in t^2 below 0.95, log(erfc(t)) in t up to 4, where erfc ends.
    """
    f = np.float32
    t = abs(x) * f(0.7071067811865476)
    s = t * t
    p = f(7.88249711e-05)
    p = p * s + f(-0.000801885499)
    p = p * s + f(0.00518931194)
    p = p * s + f(-0.0268543288)
    p = p * s + f(0.112835975)
    p = p * s + f(-0.376126269)
    p = p * s + f(1.12837917)
    inner = f(0.5) - f(0.5) * (p * t)
    u = min(t, f(4))
    q = f(1.61024045e-06)
    q = q * u + f(-4.55127736e-05)
    q = q * u + f(0.000592092764)
    q = q * u + f(-0.00473695065)
    q = q * u + f(0.0263551209)
    q = q * u + f(-0.1099608)
    q = q * u + f(-0.631956241)
    q = q * u + f(-1.1301551)
    q = q * u + f(0.000300268846)
    outer = f(0.5) * exp32(q) if t <= f(4) else f(0)
    below = inner if t < f(0.95) else outer
    below = below if x == x else x
    return below if x < 0 else f(1) - below


@kernel(fastmath=KEEP_NAN)
def _gelu(args, share, shares, worker):
    size = (share + 1) * args[0] // shares - share * args[0] // shares
    first = share * args[0] // shares * 4
    x = array_at(args[1] + first, (size,), np.float32)
    to = array_at(args[2] + first, (size,), np.float32)
    for k in range(size):
        to[k] = x[k] * _normal_cdf(x[k])


@kernel(fastmath=KEEP_NAN)
def _gelu_grad(args, share, shares, worker):
    size = (share + 1) * args[0] // shares - share * args[0] // shares
    first = share * args[0] // shares * 4
    x = array_at(args[1] + first, (size,), np.float32)
    grad = array_at(args[2] + first, (size,), np.float32)
    to = array_at(args[3] + first, (size,), np.float32)
    for k in range(size):
        v = x[k]
        density = np.float32(0.3989422804014327) * exp32(np.float32(-0.5) * v * v)
        to[k] = grad[k] * (_normal_cdf(v) + v * density)


def _dense(array: np.ndarray) -> bool:
    """Whether the elements lie without gaps or repetition, in whichever order."""
    if array.flags.c_contiguous:
        return array.size > 0
    steps = zip(array.shape, array.strides, strict=True)
    span = sum((n - 1) * s for n, s in steps) + array.itemsize
    return array.size > 0 and min(array.strides, default=1) > 0 and span == array.nbytes


def _alike(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the elements of both lie in the same order, without gaps."""
    return first.strides == second.strides and first.shape == second.shape and _dense(first)


#: Elements below which NumPy's own loop is done before a kernel is called.
_WORTH_A_KERNEL = 4096


def relu(x: np.ndarray) -> np.ndarray:
    """See `reference.relu`."""
    if x.size < _WORTH_A_KERNEL or not _dense(x):
        return reference.relu(x)
    out = np.empty_like(x)
    args = (x.size, x.itemsize, address(x), address(out))
    pool.run(_relu.address(x.dtype.type), args, pool.shares(x.size, 2 * x.nbytes))
    return out


def relu_grad(grad: np.ndarray, out: np.ndarray) -> np.ndarray:
    """See `reference.relu_grad`."""
    if grad.dtype != out.dtype or grad.shape != out.shape or not _dense(out):
        return reference.relu_grad(grad, out)
    if grad.strides != out.strides:
        # The layout of the forward pass is that of the convolutions before; they shall find it again.
        grad, given = np.empty_like(out), grad
        grad[...] = given
    result = np.empty_like(grad)
    args = (grad.size, grad.itemsize, address(out), address(grad), address(result))
    pool.run(_relu_grad.address(grad.dtype.type), args, pool.shares(grad.size, 2 * grad.nbytes))
    return result


def gelu(x: np.ndarray) -> np.ndarray:
    """See `reference.gelu`; float32 to 1e-7 of the input."""
    if x.dtype != np.float32 or not _dense(x):
        return reference.gelu(x)
    out = np.empty_like(x)
    args = (x.size, address(x), address(out))
    pool.run(_gelu.address(), args, pool.shares(x.size, 8 * x.nbytes))
    return out


def gelu_grad(grad: np.ndarray, x: np.ndarray) -> np.ndarray:
    """See `reference.gelu_grad`."""
    if x.dtype != np.float32 or grad.dtype != x.dtype or not _alike(grad, x):
        return reference.gelu_grad(grad, x)
    out = np.empty_like(x)
    args = (x.size, address(x), address(grad), address(out))
    pool.run(_gelu_grad.address(), args, pool.shares(x.size, 8 * x.nbytes))
    return out
