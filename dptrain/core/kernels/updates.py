"""Updates of SGD and Adam: one pass over memory, every operation rounded as in the NumPy twin.

The elements are independent, so that the number of threads changes no bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.kernels import pool, reference
from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.memory import addresses, array_at

real: Any = None  # each compiled copy has its own


@kernel
def _sgd(args, share, shares, worker):
    first = share * args[0] // shares
    size = (share + 1) * args[0] // shares - first
    skip = first * args[1]  # bytes
    param, grad = array_at(args[2] + skip, (size,), real), array_at(args[3] + skip, (size,), real)
    buf = array_at(args[4] + skip, (size,), real)
    scalars = array_at(args[5], (4,), real)
    lr, momentum, keep, weight_decay = scalars[0], scalars[1], scalars[2], scalars[3]
    with_buf, nesterov, maximize, start = args[6], args[7], args[8], args[9]
    for i in range(size):
        d = -grad[i] if maximize else grad[i]
        if weight_decay != 0:
            d = d + weight_decay * param[i]
        if with_buf:
            if start:
                b = d
            else:
                b = buf[i] * momentum
                b = b + keep * d
            buf[i] = b
            d = d + momentum * b if nesterov else b
        param[i] = param[i] - lr * d


@kernel
def _adam(args, share, shares, worker):
    first = share * args[0] // shares
    size = (share + 1) * args[0] // shares - first
    skip = first * args[1]  # bytes
    param, grad = array_at(args[2] + skip, (size,), real), array_at(args[3] + skip, (size,), real)
    m, v = array_at(args[4] + skip, (size,), real), array_at(args[5] + skip, (size,), real)
    vmax = array_at(args[6] + skip, (size,), real)
    s = array_at(args[7], (8,), real)
    lr_decay, decay, keep1, beta2, keep2, eps, step_size, root = (
        s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7],
    )  # fmt: skip
    amsgrad, maximize = args[8], args[9]
    for i in range(size):
        d = -grad[i] if maximize else grad[i]
        x = param[i] * lr_decay
        d = d + decay * x if decay != 0 else d  # 0 * inf is not 0
        m[i] = m[i] + (d - m[i]) * keep1
        second = v[i] * beta2 + keep2 * d * d
        v[i] = second
        if amsgrad:
            second = np.maximum(vmax[i], second)  # NaN wins
            vmax[i] = second
        param[i] = x - step_size * (m[i] / (np.sqrt(second) / root + eps))


def _run(
    function: Any, arrays: list[np.ndarray], scalars: tuple[Any, ...], flags: tuple[bool, ...]
) -> None:
    param = arrays[0]
    # Scalars take the arrays' type, so that the loop computes in it (NumPy's rule for Python floats).
    numbers = np.array(scalars, param.dtype)
    args = (param.size, param.itemsize, *addresses([*arrays, numbers]), *flags)
    shares = pool.shares(param.size, len(arrays) * param.nbytes)
    pool.run(function.address(param.dtype.type), args, shares)


def sgd(
    param: np.ndarray,
    grad: np.ndarray,
    buf: np.ndarray | None,
    lr: Any,
    momentum: Any,
    dampening: Any,
    weight_decay: Any,
    nesterov: bool,
    maximize: bool,
    first: bool,
) -> None:
    """See `reference.sgd`."""
    arrays = [param, grad, param if buf is None else buf]
    if not all(a.flags.c_contiguous for a in arrays):
        reference.sgd(
            param, grad, buf, lr, momentum, dampening, weight_decay, nesterov, maximize, first
        )
        return
    scalars = (lr, momentum, 1 - dampening, weight_decay)
    _run(_sgd, arrays, scalars, (buf is not None, nesterov, maximize, first))


def adam(
    param: np.ndarray,
    grad: np.ndarray,
    exp_avg: np.ndarray,
    exp_avg_sq: np.ndarray,
    max_exp_avg_sq: np.ndarray | None,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    weight_decay: Any,
    step_size: Any,
    root_correction: Any,
    decoupled: bool,
    maximize: bool,
) -> None:
    """See `reference.adam`."""
    largest = exp_avg_sq if max_exp_avg_sq is None else max_exp_avg_sq
    arrays = [param, grad, exp_avg, exp_avg_sq, largest]
    if not all(a.flags.c_contiguous for a in arrays):
        reference.adam(
            param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, lr, beta1, beta2, eps, weight_decay,
            step_size, root_correction, decoupled, maximize,
        )  # fmt: skip
        return
    lr_decay, decay = (1 - lr * weight_decay, 0) if decoupled else (1, weight_decay)
    scalars = (lr_decay, decay, 1 - beta1, beta2, 1 - beta2, eps, step_size, root_correction)
    _run(_adam, arrays, scalars, (max_exp_avg_sq is not None, maximize))
