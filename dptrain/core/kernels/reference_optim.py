"""Optimizer updates in plain NumPy, in place over flat arrays: the definition of the compiled ones.

Every function takes one-dimensional arrays of one type and Python numbers; what depends on the step
alone (bias corrections, decayed rates) comes computed. SGD and Adam are in `reference`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def _direction(param: np.ndarray, grad: np.ndarray, weight_decay: Any, maximize: bool) -> Any:
    d = -grad if maximize else grad
    return d + weight_decay * param if weight_decay != 0 else d


def _moments(d: Any, exp_avg: np.ndarray, exp_avg_sq: np.ndarray, beta1: Any, beta2: Any) -> None:
    exp_avg += (d - exp_avg) * (1 - beta1)
    exp_avg_sq *= beta2
    exp_avg_sq += (1 - beta2) * d * d


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
    """One Adamax update; `step_size` is lr / (1 - beta1^t)."""
    d = _direction(param, grad, weight_decay, maximize)
    exp_avg += (d - exp_avg) * (1 - beta1)
    exp_inf *= beta2
    np.maximum(exp_inf, np.abs(d) + eps, out=exp_inf)
    param -= step_size * (exp_avg / exp_inf)


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
    """One NAdam update.

    The parameter is multiplied by `keep` first (decoupled weight decay; 1 otherwise). `grad_size` and
    `step_size` belong to the gradient and to its mean, `correction` is 1 - beta2^t.
    """
    param *= keep
    d = _direction(param, grad, weight_decay, maximize)
    _moments(d, exp_avg, exp_avg_sq, beta1, beta2)
    root = np.sqrt(exp_avg_sq / correction) + eps
    param -= grad_size * (d / root)
    param -= step_size * (exp_avg / root)


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
    """One RAdam update; `keep` as for `nadam`, `step_size` with bias and variance corrections."""
    param *= keep
    d = _direction(param, grad, weight_decay, maximize)
    _moments(d, exp_avg, exp_avg_sq, beta1, beta2)
    update = exp_avg / (np.sqrt(exp_avg_sq) + eps) if rectified else exp_avg
    param -= step_size * update


def adagrad(
    param: np.ndarray,
    grad: np.ndarray,
    total: np.ndarray,
    step_size: Any,
    eps: Any,
    weight_decay: Any,
    maximize: bool,
) -> None:
    """One Adagrad update; `total` is the sum of squares so far, `step_size` the decayed rate."""
    d = _direction(param, grad, weight_decay, maximize)
    total += d * d
    param -= step_size * (d / (np.sqrt(total) + eps))


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
    """One Adadelta update."""
    d = _direction(param, grad, weight_decay, maximize)
    square_avg *= rho
    square_avg += (1 - rho) * d * d
    delta = np.sqrt(acc_delta + eps) / np.sqrt(square_avg + eps) * d
    acc_delta *= rho
    acc_delta += (1 - rho) * delta * delta
    param -= lr * delta


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
    """One RMSprop update; with `grad_avg` the centered form."""
    d = _direction(param, grad, weight_decay, maximize)
    square_avg *= alpha
    square_avg += (1 - alpha) * d * d
    variance = square_avg
    if grad_avg is not None:
        grad_avg += (d - grad_avg) * (1 - alpha)
        variance = square_avg - grad_avg * grad_avg
    update = d / (np.sqrt(variance) + eps)
    if momentum_buffer is not None:
        momentum_buffer *= momentum
        momentum_buffer += update
        update = momentum_buffer
    param -= lr * update


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
    """One Rprop update: the step grows while the sign of the gradient stays, and shrinks where it turns."""
    d = -grad if maximize else grad
    turn = d * prev
    factor = np.where(turn > 0, eta_plus, np.where(turn < 0, eta_minus, turn + 1))  # NaN stays
    step_size *= factor.astype(param.dtype)
    np.minimum(np.maximum(step_size, smallest), largest, out=step_size)
    prev[...] = np.where(turn < 0, 0, d)
    param -= np.sign(prev) * step_size


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
    """One averaged SGD update: rate `eta`, the parameter times `keep`, `mu` its weight in `ax`."""
    d = _direction(param, grad, weight_decay, maximize)
    param *= keep
    param -= eta * d
    if mu == 1:
        ax[...] = param
    else:
        ax += (param - ax) * mu


def muon_direction(
    grad: np.ndarray, buf: np.ndarray, direction: np.ndarray, momentum: Any, nesterov: bool
) -> None:
    """The running mean `buf` of Muon, and in `direction` what is to be orthogonalised."""
    keep = buf.dtype.type(1 - momentum)
    buf += (grad - buf) * keep
    # The mean of gradient and momentum from the heavier end, which is the momentum's.
    direction[...] = buf - (buf - grad) * keep if nesterov else buf


def scaled_step(param: np.ndarray, step: np.ndarray, keep: Any, size: Any) -> None:
    """param * keep - size * step."""
    t = param.dtype.type
    param *= t(keep)
    param -= t(size) * step


def _root_mean_square(values: np.ndarray) -> float:
    wide = values.astype(np.float32) if values.dtype.itemsize == 2 else values
    return float(np.linalg.norm(wide.reshape(-1))) / math.sqrt(values.size)


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
    """One Adafactor update of matrices (batch, m, n).

    `rows` (batch, m, 1) and `columns` (batch, 1, n) are the running means of squares, into which the
    new ones go with weight `fresh`. `rate` is the largest relative step, `keep` the factor of the
    parameter that is left by its decay, `d` the root mean square above which the update is scaled down.
    """
    kind = param.dtype.type
    squares = grad * grad
    rows += (squares.mean(axis=-1, keepdims=True) - rows) * kind(fresh)
    columns += (squares.mean(axis=-2, keepdims=True) - columns) * kind(fresh)
    estimate = rows * columns
    estimate /= np.maximum(rows.mean(axis=-2, keepdims=True), kind(eps1))
    _adafactor_step(param, grad, estimate, rate, keep, eps1, eps2, d, maximize)


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
    """One Adafactor update of a vector, whose means of squares are kept one by one."""
    variance += (grad * grad - variance) * param.dtype.type(fresh)
    _adafactor_step(param, grad, variance, rate, keep, eps1, eps2, d, maximize)


def _adafactor_step(
    param: np.ndarray,
    grad: np.ndarray,
    estimate: np.ndarray,
    rate: Any,
    keep: Any,
    eps1: Any,
    eps2: Any,
    d: Any,
    maximize: bool,
) -> None:
    kind = param.dtype.type
    size = max(eps2, _root_mean_square(param)) * rate
    update = grad / np.sqrt(np.maximum(estimate, kind(eps1 * eps1)))
    size /= max(1.0, _root_mean_square(update) / d)
    param *= kind(keep)
    param -= kind(-size if maximize else size) * update
