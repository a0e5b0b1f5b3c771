"""Activations of one number and their slopes, for loops that are vectorised.

`curve(name, real)` gives the function (x, p, q) -> y, `slope(name, real)` (kept, p, q) -> dy/dx, where `kept`
is y for the names of `BY_RESULT` and x for all others; p and q are the activation's parameters, if it has any.
Bounds: curves are within 4 units in the last place, GELU within 8, but for its tanh approximation, whose tail
magnifies the rounding of a cubic, and softplus with a factor. Slopes err by 4 eps of 1 + |slope| + |x|.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from dptrain.core.kernels.exponential import BITS, exponentials, inlined, polynomial

#: Activations whose slope is told from the result.
BY_RESULT = frozenset({"sigmoid", "tanh"})

_CUBIC, _OUTER = 0.044715, 0.7978845608028654  # of GELU's tanh approximation; sqrt(2 / pi)


class _Tail:
    """What `normal` needs: Chebyshev fits of ours.

    exp(t^2 / 2) times the distribution function of the normal distribution at -t, times t + `centre`, is a
    polynomial of (t - centre) / (t + centre) to 1.3e-8, to 1e-17 in float64, up to `end`, where exp is 0.
    """

    def __init__(
        self, centre: float, end: float, cut: int, coefficients: tuple[float, ...]
    ) -> None:
        self.centre, self.end, self.cut, self.coefficients = centre, end, cut, coefficients


_TAILS = {
    np.float32: _Tail(4, 14.5, ~0xFFF, (
        -0.000122983157005, 0.000194801851142, 0.00156931364509, -0.00352357405635, -0.00752721291168,
        0.0604064697483, -0.186523005897, 0.387136679795, -0.607896606074, 0.75528513851,
    )),
    np.float64: _Tail(5, 39, ~0x7FFFFFF, (
        -1.5877468827473365e-10, 1.753048401408232e-09, 7.66307180076004e-09, -9.31356099432606e-09,
        -6.594221662477223e-08, 4.2274993740065346e-08, 4.331410356862585e-07, -3.366153681012471e-07,
        -2.76926709599743e-06, 3.9809021578680414e-06, 1.6681213742042063e-05, -4.97628142705858e-05,
        -5.937572800991586e-05, 0.0005448990647731298, -0.0007978693984660701, -0.0029933767705085422,
        0.020795066799883178, -0.06911863870631016, 0.1650203661703847, -0.31353315667130455,
        0.4953056159699764, -0.6653825028900567, 0.769193049750063,
    )),
}  # fmt: skip


@cache
def _normal(real: Any) -> Any:
    """x -> (the normal distribution's function, exp(-x^2 / 2))."""
    tail = _TAILS[real]
    integer = np.int32 if real is np.float32 else np.int64
    centre, end, cut = real(tail.centre), real(tail.end), integer(tail.cut)
    value, exp_sum, bits = polynomial(tail.coefficients), exponentials(real).exp_sum, BITS[real]
    of_bits, bits_of = bits.number, bits.of
    half, one = real(0.5), real(1)

    @inlined
    def normal(x):
        t = abs(x)
        t = t if t < end else end
        # The square of the leading digits is exact; what it lacks is small.
        digits = of_bits(bits_of(t) & cut)
        density = exp_sum(-half * digits * digits, -half * ((t - digits) * (t + digits)))
        inverse = one / (t + centre)
        below = density * (value((t - centre) * inverse) * inverse)
        return (below if x < real(0) else one - below), density

    return normal


@cache
def _curves(real: Any) -> dict[str, tuple[Any, Any]]:
    """name: (curve, slope)."""
    exp, _, expm1, log1p = exponentials(real)
    normal = _normal(real)
    zero, one, two, three, four, six = (real(n) for n in (0, 1, 2, 3, 4, 6))
    cubic, twice_outer, root = real(_CUBIC), real(2 * _OUTER), real(0.3989422804014327)
    far, half = real(20), real(0.5)

    @inlined
    def sigmoid(x, p, q):
        decay = exp(-abs(x))  # in (0, 1] whatever the sign
        return (decay if x < zero else one) / (one + decay)

    @inlined
    def sigmoid_slope(y, p, q):
        return y * (one - y)

    @inlined
    def tanh_slope(y, p, q):
        return one - y * y

    @inlined
    def silu(x, p, q):
        return x * sigmoid(x, p, q)

    @inlined
    def silu_slope(x, p, q):
        s = sigmoid(x, p, q)
        return s * (x * (one - s) + one)

    @inlined
    def gelu(x, p, q):
        return x * normal(x)[0]

    @inlined
    def gelu_slope(x, p, q):
        below, density = normal(x)
        return below + x * (root * density)

    @inlined
    def gelu_tanh(x, p, q):
        return x * sigmoid(x * (one + cubic * x * x) * twice_outer, p, q)

    @inlined
    def gelu_tanh_slope(x, p, q):
        square = x * x
        s = sigmoid(x * (one + cubic * square) * twice_outer, p, q)
        return s + x * (s * (one - s)) * ((one + three * cubic * square) * twice_outer)

    @inlined
    def softplus(x, beta, threshold):
        scaled = x * beta
        top = scaled if scaled > zero else zero
        soft = (top + log1p(exp(-abs(scaled)))) / beta
        return x if scaled > threshold or x != x else soft

    @inlined
    def softplus_slope(x, beta, threshold):
        scaled = x * beta
        return one if scaled > threshold else sigmoid(scaled, beta, threshold)

    @inlined
    def logsigmoid(x, p, q):
        low = x if x < zero else zero
        y = low - log1p(exp(-abs(x)))
        return y if x == x else x

    @inlined
    def logsigmoid_slope(x, p, q):
        return sigmoid(-x, p, q)

    @inlined
    def mish(x, p, q):
        # tanh(log(1 + e)) = n / (n + 2); from 20 on it is 1 to the last bit.
        e = exp(x if x < far else far)
        n = e * (e + two)
        return x * (n / (n + two))

    @inlined
    def mish_slope(x, p, q):
        e = exp(x if x < far else far)
        n = e * (e + two)
        inverse = one / (n + two)
        y = inverse * n + x * (four * e * (one + e) * inverse * inverse)
        return y if x < far else (one if x >= far else x)

    @inlined
    def elu(x, alpha, scale):
        return x * scale if x > zero else expm1(x) * (alpha * scale)

    @inlined
    def elu_slope(x, alpha, scale):
        return scale if x > zero else exp(x) * (alpha * scale)

    @inlined
    def leaky_relu(x, slope, q):
        return x if x > zero else x * slope

    @inlined
    def leaky_relu_slope(x, slope, q):
        return one if x > zero else slope

    @inlined
    def hardswish(x, p, q):
        y = x + three
        y = y if y > zero else zero
        y = x * (y if y < six else six) / six
        return y if x == x else x

    @inlined
    def hardswish_slope(x, p, q):
        inside = x / three + half
        return inside if -three < x < three else (one if x >= three else x * zero)

    return {
        "sigmoid": (sigmoid, sigmoid_slope),
        "tanh": (None, tanh_slope),  # NumPy's is vectorised
        "silu": (silu, silu_slope),
        "gelu": (gelu, gelu_slope),
        "gelu_tanh": (gelu_tanh, gelu_tanh_slope),
        "softplus": (softplus, softplus_slope),
        "logsigmoid": (logsigmoid, logsigmoid_slope),
        "mish": (mish, mish_slope),
        "elu": (elu, elu_slope),
        "leaky_relu": (leaky_relu, leaky_relu_slope),
        "hardswish": (hardswish, hardswish_slope),
    }


def curve(name: str, real: Any) -> Any:
    """The function of an activation."""
    return _curves(real)[name][0]


def slope(name: str, real: Any) -> Any:
    """Its derivative."""
    return _curves(real)[name][1]
