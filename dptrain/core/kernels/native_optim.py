"""Optimizer updates compiled by numba: one pass over memory each, same results as `reference_optim`.

What `native` says of its kernels holds here. Scalars take the arrays' type before the loop, so that it
computes in it as NumPy does; optional arrays come as another one and a flag, so that each kernel is
compiled once per type.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.kernels.native import _jit

__all__ = [
    "adadelta",
    "adafactor_matrix",
    "adafactor_vector",
    "adagrad",
    "adamax",
    "asgd",
    "muon_direction",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
    "scaled_step",
]


@_jit
def _adamax(p, g, m, u, step_size, keep1, beta2, eps, decay, maximize):
    for i in range(p.size):
        d = -g[i] if maximize else g[i]
        d = d + decay * p[i] if decay != 0 else d  # 0 * inf is not 0
        m[i] = m[i] + (d - m[i]) * keep1
        u[i] = np.maximum(u[i] * beta2, np.abs(d) + eps)
        p[i] = p[i] - step_size * (m[i] / u[i])


def adamax(
    param: np.ndarray,
    grad: np.ndarray,
    exp_avg: np.ndarray,
    exp_inf: np.ndarray,
    step_size: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    weight_decay: Any,
    maximize: bool,
) -> None:
    """See `reference_optim.adamax`."""
    t = param.dtype.type
    scalars = t(step_size), t(1 - beta1), t(beta2), t(eps), t(weight_decay)
    _adamax(param, grad, exp_avg, exp_inf, *scalars, maximize)


@_jit
def _nadam(
    p, g, m, v, keep1, beta2, keep2, eps, decay, keep, grad_size, step_size, correction, maximize
):
    for i in range(p.size):
        x = p[i] * keep
        d = -g[i] if maximize else g[i]
        d = d + decay * x if decay != 0 else d
        m[i] = m[i] + (d - m[i]) * keep1
        v[i] = v[i] * beta2 + keep2 * d * d
        root = np.sqrt(v[i] / correction) + eps
        x = x - grad_size * (d / root)
        p[i] = x - step_size * (m[i] / root)


def nadam(
    param: np.ndarray,
    grad: np.ndarray,
    exp_avg: np.ndarray,
    exp_avg_sq: np.ndarray,
    beta1: Any,
    beta2: Any,
    eps: Any,
    weight_decay: Any,
    keep: Any,
    grad_size: Any,
    step_size: Any,
    correction: Any,
    maximize: bool,
) -> None:
    """See `reference_optim.nadam`."""
    t = param.dtype.type
    moments = t(1 - beta1), t(beta2), t(1 - beta2), t(eps), t(weight_decay)
    scalars = t(keep), t(grad_size), t(step_size), t(correction)
    _nadam(param, grad, exp_avg, exp_avg_sq, *moments, *scalars, maximize)


@_jit
def _radam(p, g, m, v, keep1, beta2, keep2, eps, decay, keep, step_size, rectified, maximize):
    for i in range(p.size):
        x = p[i] * keep
        d = -g[i] if maximize else g[i]
        d = d + decay * x if decay != 0 else d
        m[i] = m[i] + (d - m[i]) * keep1
        v[i] = v[i] * beta2 + keep2 * d * d
        update = m[i] / (np.sqrt(v[i]) + eps) if rectified else m[i]
        p[i] = x - step_size * update


def radam(
    param: np.ndarray,
    grad: np.ndarray,
    exp_avg: np.ndarray,
    exp_avg_sq: np.ndarray,
    beta1: Any,
    beta2: Any,
    eps: Any,
    weight_decay: Any,
    keep: Any,
    step_size: Any,
    rectified: bool,
    maximize: bool,
) -> None:
    """See `reference_optim.radam`."""
    t = param.dtype.type
    scalars = t(1 - beta1), t(beta2), t(1 - beta2), t(eps), t(weight_decay), t(keep), t(step_size)
    _radam(param, grad, exp_avg, exp_avg_sq, *scalars, rectified, maximize)


@_jit
def _adagrad(p, g, total, step_size, eps, decay, maximize):
    for i in range(p.size):
        d = -g[i] if maximize else g[i]
        d = d + decay * p[i] if decay != 0 else d
        total[i] = total[i] + d * d
        p[i] = p[i] - step_size * (d / (np.sqrt(total[i]) + eps))


def adagrad(
    param: np.ndarray,
    grad: np.ndarray,
    total: np.ndarray,
    step_size: Any,
    eps: Any,
    weight_decay: Any,
    maximize: bool,
) -> None:
    """See `reference_optim.adagrad`."""
    t = param.dtype.type
    _adagrad(param, grad, total, t(step_size), t(eps), t(weight_decay), maximize)


@_jit
def _adadelta(p, g, v, acc, lr, rho, keep, eps, decay, maximize):
    for i in range(p.size):
        d = -g[i] if maximize else g[i]
        d = d + decay * p[i] if decay != 0 else d
        v[i] = v[i] * rho + keep * d * d
        delta = np.sqrt(acc[i] + eps) / np.sqrt(v[i] + eps) * d
        acc[i] = acc[i] * rho + keep * delta * delta
        p[i] = p[i] - lr * delta


def adadelta(
    param: np.ndarray,
    grad: np.ndarray,
    square_avg: np.ndarray,
    acc_delta: np.ndarray,
    lr: Any,
    rho: Any,
    eps: Any,
    weight_decay: Any,
    maximize: bool,
) -> None:
    """See `reference_optim.adadelta`."""
    t = param.dtype.type
    scalars = t(lr), t(rho), t(1 - rho), t(eps), t(weight_decay)
    _adadelta(param, grad, square_avg, acc_delta, *scalars, maximize)


@_jit
def _rmsprop(
    p, g, v, buf, mean, lr, alpha, keep, eps, decay, momentum, with_buf, centered, maximize
):
    for i in range(p.size):
        d = -g[i] if maximize else g[i]
        d = d + decay * p[i] if decay != 0 else d
        s = v[i] * alpha + keep * d * d
        v[i] = s
        if centered:
            mean[i] = mean[i] + (d - mean[i]) * keep
            s = s - mean[i] * mean[i]
        update = d / (np.sqrt(s) + eps)
        if with_buf:
            buf[i] = buf[i] * momentum + update
            update = buf[i]
        p[i] = p[i] - lr * update


def rmsprop(
    param: np.ndarray,
    grad: np.ndarray,
    square_avg: np.ndarray,
    momentum_buffer: np.ndarray | None,
    grad_avg: np.ndarray | None,
    lr: Any,
    alpha: Any,
    eps: Any,
    weight_decay: Any,
    momentum: Any,
    maximize: bool,
) -> None:
    """See `reference_optim.rmsprop`."""
    t = param.dtype.type
    buf = square_avg if momentum_buffer is None else momentum_buffer
    mean = square_avg if grad_avg is None else grad_avg
    scalars = t(lr), t(alpha), t(1 - alpha), t(eps), t(weight_decay), t(momentum)
    flags = momentum_buffer is not None, grad_avg is not None, maximize
    _rmsprop(param, grad, square_avg, buf, mean, *scalars, *flags)


@_jit
def _rprop(p, g, prev, sizes, eta_minus, eta_plus, smallest, largest, maximize):
    zero = sizes.dtype.type(0)
    for i in range(p.size):
        d = -g[i] if maximize else g[i]
        turn = d * prev[i]
        size = sizes[i]
        if turn > 0:
            size = size * eta_plus
        elif turn < 0:
            size = size * eta_minus
            d = zero
        elif turn != 0:  # NaN stays
            size = turn
        size = np.minimum(np.maximum(size, smallest), largest)
        sizes[i] = size
        prev[i] = d
        p[i] = p[i] - np.sign(d) * size


def rprop(
    param: np.ndarray,
    grad: np.ndarray,
    prev: np.ndarray,
    step_size: np.ndarray,
    eta_minus: Any,
    eta_plus: Any,
    smallest: Any,
    largest: Any,
    maximize: bool,
) -> None:
    """See `reference_optim.rprop`."""
    t = param.dtype.type
    scalars = t(eta_minus), t(eta_plus), t(smallest), t(largest)
    _rprop(param, grad, prev, step_size, *scalars, maximize)


@_jit
def _asgd(p, g, ax, eta, keep, mu, decay, maximize):
    for i in range(p.size):
        d = -g[i] if maximize else g[i]
        d = d + decay * p[i] if decay != 0 else d
        x = p[i] * keep - eta * d
        p[i] = x
        ax[i] = x if mu == 1 else ax[i] + (x - ax[i]) * mu


def asgd(
    param: np.ndarray,
    grad: np.ndarray,
    ax: np.ndarray,
    eta: Any,
    keep: Any,
    mu: Any,
    weight_decay: Any,
    maximize: bool,
) -> None:
    """See `reference_optim.asgd`."""
    t = param.dtype.type
    _asgd(param, grad, ax, t(eta), t(keep), t(mu), t(weight_decay), maximize)


@_jit
def _muon_direction(g, buf, out, keep, nesterov):
    for i in range(g.size):
        m = buf[i] + (g[i] - buf[i]) * keep
        buf[i] = m
        out[i] = m - (m - g[i]) * keep if nesterov else m


def muon_direction(
    grad: np.ndarray, buf: np.ndarray, direction: np.ndarray, momentum: Any, nesterov: bool
) -> None:
    """See `reference_optim.muon_direction`."""
    _muon_direction(grad, buf, direction, buf.dtype.type(1 - momentum), nesterov)


@_jit
def _scaled_step(p, step, keep, size):
    for i in range(p.size):
        p[i] = p[i] * keep - size * step[i]


def scaled_step(param: np.ndarray, step: np.ndarray, keep: Any, size: Any) -> None:
    """See `reference_optim.scaled_step`."""
    t = param.dtype.type
    _scaled_step(param, step, t(keep), t(size))


# Adafactor needs sums before it can take a step. They are kept by column (a loop that the compiler can
# spread over a vector register), in the type of the arrays, and are added up in float64 at the end.


@_jit
def _adafactor_matrix(p, g, rows, columns, work, rate, keep, fresh, eps1, floor, eps2, d, maximize):
    batch, m, n = p.shape
    total = 0.0
    for b in range(batch):
        work[:] = 0
        for i in range(m):
            row = 0.0
            for j in range(n):
                square = g[b, i, j] * g[b, i, j]
                row += square
                work[0, j] = work[0, j] + square
                work[1, j] = work[1, j] + p[b, i, j] * p[b, i, j]
            rows[b, i, 0] = rows[b, i, 0] + (p.dtype.type(row / n) - rows[b, i, 0]) * fresh
        for j in range(n):
            columns[b, 0, j] = columns[b, 0, j] + (work[0, j] / m - columns[b, 0, j]) * fresh
            total += work[1, j]
    size = max(eps2, np.sqrt(total / p.size)) * rate
    total = 0.0
    for b in range(batch):
        work[:] = 0
        mean = rows[b].sum() / m
        mean = np.maximum(mean, eps1)
        for i in range(m):
            for j in range(n):
                estimate = np.maximum(rows[b, i, 0] * columns[b, 0, j] / mean, floor)
                work[0, j] = work[0, j] + g[b, i, j] * g[b, i, j] / estimate
        for j in range(n):
            total += work[0, j]
    size = size / max(1.0, np.sqrt(total / p.size) / d)
    step = p.dtype.type(-size if maximize else size)
    for b in range(batch):
        mean = np.maximum(rows[b].sum() / m, eps1)
        for i in range(m):
            for j in range(n):
                estimate = np.maximum(rows[b, i, 0] * columns[b, 0, j] / mean, floor)
                p[b, i, j] = p[b, i, j] * keep - step * (g[b, i, j] / np.sqrt(estimate))


def adafactor_matrix(
    param: np.ndarray,
    grad: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    rate: Any,
    keep: Any,
    fresh: Any,
    eps1: Any,
    eps2: Any,
    d: Any,
    maximize: bool,
) -> None:
    """See `reference_optim.adafactor_matrix`."""
    t = param.dtype.type
    work = np.empty((2, param.shape[-1]), param.dtype)
    scalars = float(rate), t(keep), t(fresh), t(eps1), t(eps1 * eps1), float(eps2), float(d)
    _adafactor_matrix(param, grad, rows, columns, work, *scalars, maximize)


@_jit
def _adafactor_vector(p, g, v, rate, keep, fresh, floor, eps2, d, maximize):
    squares = updates = 0.0
    for i in range(p.size):
        squares += p[i] * p[i]
        v[i] = v[i] + (g[i] * g[i] - v[i]) * fresh
        updates += g[i] * g[i] / np.maximum(v[i], floor)
    size = max(eps2, np.sqrt(squares / p.size)) * rate
    size = size / max(1.0, np.sqrt(updates / p.size) / d)
    step = p.dtype.type(-size if maximize else size)
    for i in range(p.size):
        p[i] = p[i] * keep - step * (g[i] / np.sqrt(np.maximum(v[i], floor)))


def adafactor_vector(
    param: np.ndarray,
    grad: np.ndarray,
    variance: np.ndarray,
    rate: Any,
    keep: Any,
    fresh: Any,
    eps1: Any,
    eps2: Any,
    d: Any,
    maximize: bool,
) -> None:
    """See `reference_optim.adafactor_vector`."""
    t = param.dtype.type
    scalars = float(rate), t(keep), t(fresh), t(eps1 * eps1), float(eps2), float(d)
    _adafactor_vector(param, grad, variance, *scalars, maximize)
