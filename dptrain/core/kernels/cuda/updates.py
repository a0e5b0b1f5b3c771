"""The optimizer updates on the GPU: twins of `reference_optim`'s, and of SGD and Adam in `reference`.

One pass over flat arrays each, one thread for each element. What depends on the step alone comes
computed, in double precision, and takes the type that the loop computes in. The order of operations
is that of the NumPy twin, so that float32 and float64 round alike.
"""

from __future__ import annotations

from typing import Any

from dptrain.core.kernels.cuda.launch import Family, with_kept_numbers
from dptrain.core.kernels.cuda.numbers import kept_numbers

# Row and column means and norms: written over arrays of any library, CuPy's reductions among them.
from dptrain.core.kernels.reference_optim import adafactor_matrix, adafactor_vector

_SOURCE = r"""
__device__ A larger(A a, A b) { return b > a || b != b ? b : a; }  // NaN wins
__device__ A smaller(A a, A b) { return b < a || b != b ? b : a; }
__device__ A direction(A param, A grad, A weight_decay, int maximize) {
    A d = maximize ? -grad : grad;
    return weight_decay != 0 ? d + weight_decay * param : d;
}

extern "C" __global__ void sgd(
    T* param, const T* grad, T* buf, long long count, A lr, A momentum, A keep, A weight_decay,
    int nesterov, int maximize, int first) {
    EACH(i, count) {
        A x = param[i], d = direction(x, grad[i], weight_decay, maximize);
        if (buf) {
            A b = d;
            if (!first) { b = A(buf[i]) * momentum; b = b + keep * d; }
            buf[i] = T(b);
            d = nesterov ? d + momentum * b : b;
        }
        param[i] = T(x - lr * d);
    }
}

extern "C" __global__ void adam(
    T* param, const T* grad, T* exp_avg, T* exp_avg_sq, T* max_exp_avg_sq, long long count,
    A lr_decay, A weight_decay, A keep1, A beta2, A keep2, A eps, A step_size, A root_correction,
    int maximize) {
    EACH(i, count) {
        A x = A(param[i]) * lr_decay, d = direction(x, grad[i], weight_decay, maximize);
        A m = exp_avg[i];
        m = m + (d - m) * keep1;
        exp_avg[i] = T(m);
        A s = A(exp_avg_sq[i]) * beta2 + keep2 * d * d;
        exp_avg_sq[i] = T(s);
        if (max_exp_avg_sq) { s = larger(max_exp_avg_sq[i], s); max_exp_avg_sq[i] = T(s); }
        param[i] = T(x - step_size * (m / (sqrt(s) / root_correction + eps)));
    }
}

extern "C" __global__ void adamax(
    T* param, const T* grad, T* exp_avg, T* exp_inf, long long count, A step_size, A keep1,
    A beta2, A eps, A weight_decay, int maximize) {
    EACH(i, count) {
        A x = param[i], d = direction(x, grad[i], weight_decay, maximize);
        A m = exp_avg[i];
        m = m + (d - m) * keep1;
        exp_avg[i] = T(m);
        A u = larger(A(exp_inf[i]) * beta2, fabs(d) + eps);
        exp_inf[i] = T(u);
        param[i] = T(x - step_size * (m / u));
    }
}

extern "C" __global__ void nadam(
    T* param, const T* grad, T* exp_avg, T* exp_avg_sq, long long count, A keep1, A beta2,
    A keep2, A eps, A weight_decay, A keep, A grad_size, A step_size, A correction, int maximize) {
    EACH(i, count) {
        A x = A(param[i]) * keep, d = direction(x, grad[i], weight_decay, maximize);
        A m = exp_avg[i];
        m = m + (d - m) * keep1;
        exp_avg[i] = T(m);
        A s = A(exp_avg_sq[i]) * beta2 + keep2 * d * d;
        exp_avg_sq[i] = T(s);
        A root = sqrt(s / correction) + eps;
        x = x - grad_size * (d / root);
        param[i] = T(x - step_size * (m / root));
    }
}

extern "C" __global__ void radam(
    T* param, const T* grad, T* exp_avg, T* exp_avg_sq, long long count, A keep1, A beta2,
    A keep2, A eps, A weight_decay, A keep, A step_size, int rectified, int maximize) {
    EACH(i, count) {
        A x = A(param[i]) * keep, d = direction(x, grad[i], weight_decay, maximize);
        A m = exp_avg[i];
        m = m + (d - m) * keep1;
        exp_avg[i] = T(m);
        A s = A(exp_avg_sq[i]) * beta2 + keep2 * d * d;
        exp_avg_sq[i] = T(s);
        param[i] = T(x - step_size * (rectified ? m / (sqrt(s) + eps) : m));
    }
}

extern "C" __global__ void adagrad(
    T* param, const T* grad, T* total, long long count, A step_size, A eps, A weight_decay,
    int maximize) {
    EACH(i, count) {
        A x = param[i], d = direction(x, grad[i], weight_decay, maximize);
        A s = A(total[i]) + d * d;
        total[i] = T(s);
        param[i] = T(x - step_size * (d / (sqrt(s) + eps)));
    }
}

extern "C" __global__ void adadelta(
    T* param, const T* grad, T* square_avg, T* acc_delta, long long count, A lr, A rho, A keep,
    A eps, A weight_decay, int maximize) {
    EACH(i, count) {
        A x = param[i], d = direction(x, grad[i], weight_decay, maximize);
        A s = A(square_avg[i]) * rho + keep * d * d;
        square_avg[i] = T(s);
        A held = acc_delta[i];
        A delta = sqrt(held + eps) / sqrt(s + eps) * d;
        acc_delta[i] = T(held * rho + keep * delta * delta);
        param[i] = T(x - lr * delta);
    }
}

extern "C" __global__ void rmsprop(
    T* param, const T* grad, T* square_avg, T* momentum_buffer, T* grad_avg, long long count,
    A lr, A alpha, A keep, A eps, A weight_decay, A momentum, int maximize) {
    EACH(i, count) {
        A x = param[i], d = direction(x, grad[i], weight_decay, maximize);
        A s = A(square_avg[i]) * alpha + keep * d * d;
        square_avg[i] = T(s);
        if (grad_avg) {
            A g = grad_avg[i];
            g = g + (d - g) * keep;
            grad_avg[i] = T(g);
            s = s - g * g;
        }
        A update = d / (sqrt(s) + eps);
        if (momentum_buffer) {
            update = A(momentum_buffer[i]) * momentum + update;
            momentum_buffer[i] = T(update);
        }
        param[i] = T(x - lr * update);
    }
}

extern "C" __global__ void rprop(
    T* param, const T* grad, T* prev, T* step_size, long long count, A eta_minus, A eta_plus,
    A smallest, A largest, int maximize) {
    EACH(i, count) {
        A d = maximize ? -A(grad[i]) : A(grad[i]);
        A turn = d * A(prev[i]);
        A factor = turn > 0 ? eta_plus : turn < 0 ? eta_minus : turn + 1;  // NaN stays
        A step = smaller(larger(A(step_size[i]) * factor, smallest), largest);
        step_size[i] = T(step);
        d = turn < 0 ? A(0) : d;
        prev[i] = T(d);
        A sign = d > 0 ? A(1) : d < 0 ? A(-1) : d;
        param[i] = T(A(param[i]) - sign * step);
    }
}

extern "C" __global__ void asgd(
    T* param, const T* grad, T* ax, long long count, A eta, A keep, A mu, A weight_decay,
    int maximize) {
    EACH(i, count) {
        A x = param[i], d = direction(x, grad[i], weight_decay, maximize);
        x = x * keep;
        x = x - eta * d;
        param[i] = T(x);
        A a = ax[i];
        ax[i] = T(mu == 1 ? x : a + (x - a) * mu);
    }
}

extern "C" __global__ void muon_direction(
    const T* grad, T* buf, T* direction, long long count, A keep, int nesterov) {
    EACH(i, count) {
        A g = grad[i], b = buf[i];
        b = b + (g - b) * keep;
        buf[i] = T(b);
        direction[i] = T(nesterov ? b - (b - g) * keep : b);
    }
}

extern "C" __global__ void scaled_step(
    T* param, const T* step, long long count, A keep, A size) {
    EACH(i, count) param[i] = T(A(param[i]) * keep - size * A(step[i]));
}
"""

FAMILY = Family("updates", with_kept_numbers(_SOURCE))

__all__ = [
    "adadelta",
    "adafactor_matrix",
    "adafactor_vector",
    "adagrad",
    "adam",
    "adamax",
    "asgd",
    "muon_direction",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
    "scaled_step",
    "sgd",
]


def _run(kernel: str, arrays: tuple[Any, ...], *numbers: Any) -> None:
    """Start an update; the arrays are flat and of one length and type."""
    param, kept = arrays[0], kept_numbers()
    given: tuple[Any, ...] = numbers
    if kept is not None:
        table = kept.table(kernel, param, numbers)
        if table is None:
            return
        kernel, given = f"{kernel}_kept", (table,)
    FAMILY.launch(kernel, param.dtype, param.size, *arrays, param.size, *given)


def sgd(
    param: Any,
    grad: Any,
    buf: Any,
    lr: Any,
    momentum: Any,
    dampening: Any,
    weight_decay: Any,
    nesterov: bool,
    maximize: bool,
    first: bool,
) -> None:
    """See `reference.sgd`."""
    flags = (nesterov, maximize, first)
    _run("sgd", (param, grad, buf), lr, momentum, 1 - dampening, weight_decay, *flags)


def adam(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    max_exp_avg_sq: Any,
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
    lr_decay, decay = (1 - lr * weight_decay, 0) if decoupled else (1, weight_decay)
    rates = (lr_decay, decay, 1 - beta1, beta2, 1 - beta2, eps, step_size, root_correction)
    _run("adam", (param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq), *rates, maximize)


def adamax(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_inf: Any,
    step_size: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    weight_decay: Any,
    maximize: bool,
) -> None:
    """See `reference_optim.adamax`."""
    rates = (step_size, 1 - beta1, beta2, eps, weight_decay)
    _run("adamax", (param, grad, exp_avg, exp_inf), *rates, maximize)


def nadam(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
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
    rates = (1 - beta1, beta2, 1 - beta2, eps, weight_decay)
    sizes = (keep, grad_size, step_size, correction)
    _run("nadam", (param, grad, exp_avg, exp_avg_sq), *rates, *sizes, maximize)


def radam(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
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
    rates = (1 - beta1, beta2, 1 - beta2, eps, weight_decay, keep, step_size)
    _run("radam", (param, grad, exp_avg, exp_avg_sq), *rates, rectified, maximize)


def adagrad(
    param: Any,
    grad: Any,
    total: Any,
    step_size: Any,
    eps: Any,
    weight_decay: Any,
    maximize: bool,
) -> None:
    """See `reference_optim.adagrad`."""
    _run("adagrad", (param, grad, total), step_size, eps, weight_decay, maximize)


def adadelta(
    param: Any,
    grad: Any,
    square_avg: Any,
    acc_delta: Any,
    lr: Any,
    rho: Any,
    eps: Any,
    weight_decay: Any,
    maximize: bool,
) -> None:
    """See `reference_optim.adadelta`."""
    rates = (lr, rho, 1 - rho, eps, weight_decay)
    _run("adadelta", (param, grad, square_avg, acc_delta), *rates, maximize)


def rmsprop(
    param: Any,
    grad: Any,
    square_avg: Any,
    momentum_buffer: Any,
    grad_avg: Any,
    lr: Any,
    alpha: Any,
    eps: Any,
    weight_decay: Any,
    momentum: Any,
    maximize: bool,
) -> None:
    """See `reference_optim.rmsprop`."""
    rates = (lr, alpha, 1 - alpha, eps, weight_decay, momentum)
    _run("rmsprop", (param, grad, square_avg, momentum_buffer, grad_avg), *rates, maximize)


def rprop(
    param: Any,
    grad: Any,
    prev: Any,
    step_size: Any,
    eta_minus: Any,
    eta_plus: Any,
    smallest: Any,
    largest: Any,
    maximize: bool,
) -> None:
    """See `reference_optim.rprop`."""
    rates = (eta_minus, eta_plus, smallest, largest)
    _run("rprop", (param, grad, prev, step_size), *rates, maximize)


def asgd(
    param: Any,
    grad: Any,
    ax: Any,
    eta: Any,
    keep: Any,
    mu: Any,
    weight_decay: Any,
    maximize: bool,
) -> None:
    """See `reference_optim.asgd`."""
    _run("asgd", (param, grad, ax), eta, keep, mu, weight_decay, maximize)


def muon_direction(grad: Any, buf: Any, direction: Any, momentum: Any, nesterov: bool) -> None:
    """See `reference_optim.muon_direction`."""
    _run("muon_direction", (grad, buf, direction), 1 - momentum, nesterov)


def scaled_step(param: Any, step: Any, keep: Any, size: Any) -> None:
    """See `reference_optim.scaled_step`."""
    _run("scaled_step", (param, step), keep, size)
