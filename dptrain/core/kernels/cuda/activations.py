"""Activations on the GPU and their gradients, one pass each. Twins of `reference`'s and `reference_activations`'.

The formulas are those of `curves`, the compiled ones of the host.
"""

from __future__ import annotations

from typing import Any

from dptrain.core.kernels.cuda.launch import Family
from dptrain.core.kernels.cuda.pointwise import OVER_PACKS, mapped, paired
from dptrain.core.kernels.reference_activations import activation as defined
from dptrain.core.kernels.reference_activations import activation_grad as defined_grad

_FUNCTIONS = r"""
__device__ inline A logistic(A x) {
    const A decay = exp(-fabs(x));  // in (0, 1] whatever the sign
    return (x < 0 ? decay : A(1)) / (1 + decay);
}
// The distribution function and the density of the normal distribution.
__device__ inline A normal(A x) { return A(0.5) * erfc(x * A(-0.70710678118654752)); }
__device__ inline A density(A x) { return A(0.3989422804014327) * exp(A(-0.5) * x * x); }
constexpr A CUBIC = A(0.044715), OUTER = A(1.5957691216057308);  // 2 sqrt(2 / pi)
__device__ inline A gelu_tanh_of(A x) { return x * logistic(x * (1 + CUBIC * x * x) * OUTER); }
__device__ inline A gelu_tanh_slope(A x) {
    const A square = x * x, s = logistic(x * (1 + CUBIC * square) * OUTER);
    return s + x * (s * (1 - s)) * ((1 + 3 * CUBIC * square) * OUTER);
}
__device__ inline A silu_slope(A x) {
    const A s = logistic(x);
    return s * (x * (1 - s) + 1);
}
__device__ inline A soft(A x) { return (x > 0 ? x : x != x ? x : A(0)) + log1p(exp(-fabs(x))); }
// tanh(log(1 + exp(x))) = n / (n + 2); from 20 on it is 1 to the last bit.
__device__ inline A mish_of(A x) {
    const A e = exp(x < 20 ? x : A(20)), n = e * (e + 2);
    return x * (n / (n + 2));
}
__device__ inline A mish_slope(A x) {
    const A e = exp(x < 20 ? x : A(20)), n = e * (e + 2), inverse = 1 / (n + 2);
    const A y = inverse * n + x * (4 * e * (1 + e) * inverse * inverse);
    return x < 20 ? y : x >= 20 ? A(1) : x;
}
__device__ inline A hardswish_of(A x) {
    const A y = x + 3;
    return x != x ? x : x * (y < 0 ? A(0) : y < 6 ? y : A(6)) / 6;
}
__device__ inline A hardswish_slope(A x) {
    return x > -3 && x < 3 ? x / 3 + A(0.5) : x >= 3 ? A(1) : x * 0;
}
"""

#: name: (its value, its slope); p and q are parameters. For the names of `curves.BY_RESULT` the slope is told from
#: the result, which is the x of its formula.
_CURVES = {
    "sigmoid": ("logistic(x)", "x * (1 - x)"),
    "tanh": ("tanh(x)", "1 - x * x"),
    "silu": ("x * logistic(x)", "silu_slope(x)"),
    "gelu": ("x * normal(x)", "normal(x) + x * density(x)"),
    "gelu_tanh": ("gelu_tanh_of(x)", "gelu_tanh_slope(x)"),
    "softplus": ("x * p > q ? x : soft(x * p) / p", "x * p > q ? A(1) : logistic(x * p)"),
    "logsigmoid": ("-soft(-x)", "logistic(-x)"),
    "mish": ("mish_of(x)", "mish_slope(x)"),
    "elu": ("x > 0 ? x * q : expm1(x) * (p * q)", "x > 0 ? q : exp(x) * (p * q)"),
    "leaky_relu": ("x > 0 ? x : x * p", "x > 0 ? A(1) : p"),
    "hardswish": ("hardswish_of(x)", "hardswish_slope(x)"),
}

_KERNELS = r"""
extern "C" __global__ void NAME_value(const T* x, T* out, long long count, A p, A q) {
    over(x, out, count, [=](A x) -> A { return VALUE; });
}
extern "C" __global__ void NAME_grad(
    const T* grad, const T* kept, T* out, long long count, A p, A q) {
    over(grad, kept, out, count, [=](A g, A x) -> A { return g * (SLOPE); });
}
"""


def _kernels(name: str, value: str, slope: str) -> str:
    return _KERNELS.replace("NAME", name).replace("VALUE", value).replace("SLOPE", slope)


_SOURCE = OVER_PACKS + _FUNCTIONS + "".join(_kernels(name, *both) for name, both in _CURVES.items())

FAMILY = Family("activations", _SOURCE)


def _serves(name: str, *arrays: Any) -> bool:
    kind = arrays[0].dtype
    return name in _CURVES and FAMILY.serves(kind) and all(a.dtype == kind for a in arrays)


def activation(name: str, x: Any, *parameters: float) -> Any:
    """See `reference_activations.activation`; also "tanh" and "gelu", and 16-bit types."""
    if not _serves(name, x):
        return defined(name, x, *parameters)
    return mapped(FAMILY, f"{name}_value", x, *(*parameters, 0, 0)[:2])


def activation_grad(name: str, grad: Any, kept: Any, *parameters: float) -> Any:
    """See `reference_activations.activation_grad`; also "gelu", and 16-bit types."""
    if not _serves(name, grad, kept) or grad.shape != kept.shape:
        return defined_grad(name, grad, kept, *parameters)
    return paired(FAMILY, f"{name}_grad", grad, kept, *(*parameters, 0, 0)[:2])


def gelu(x: Any) -> Any:
    """See `reference.gelu`."""
    return activation("gelu", x)


def gelu_grad(grad: Any, x: Any) -> Any:
    """See `reference.gelu_grad`."""
    return activation_grad("gelu", grad, x)
