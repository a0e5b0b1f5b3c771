"""Values of Bessel functions, normal probabilities, zeta and the incomplete gamma function, in float64.

Sources: Abramowitz and Stegun 9.6.10 and 9.7.1 (Bessel), 6.5.29 and 6.5.31 (incomplete gamma; the
continued fraction by Lentz's method), 26.2.23 (start of the quantile), Euler-Maclaurin (Hurwitz zeta).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dptrain.core.arrays import common_namespace, namespace_of
from dptrain.core.kernels.erf import erf, polynomial, scaled_erfc
from dptrain.core.ops.special_values import BERNOULLI, LARGE, erfc, lgamma

#: From here on the asymptotic series has more digits than float64.
_FAR = 30.0


def scaled_bessel_i(order: int, x: np.ndarray) -> np.ndarray:
    """exp(-|x|) I_order(x), for order 0 or 1."""
    size = np.abs(x)
    near = np.minimum(size, _FAR)
    quarter = near * near / 4
    term = (near / 2) ** order * np.ones_like(near)
    total = term.copy()
    for k in range(1, 90):
        term = term * quarter / (k * (k + order))
        total = total + term
    far = np.maximum(size, _FAR)
    part = np.ones_like(far)
    series = part.copy()
    for k in range(1, 26):
        part = -part * (4 * order * order - (2 * k - 1) ** 2) / (8 * k * far)
        series = series + part
    value = np.where(size <= _FAR, total * np.exp(-near), series / np.sqrt(2 * math.pi * far))
    value = np.where(np.isnan(x), x, value)
    return np.copysign(value, x) if order == 1 else value


def bessel_i(order: int, x: np.ndarray) -> np.ndarray:
    """I_order(x), for order 0 or 1."""
    scaled = scaled_bessel_i(order, x)
    half = np.exp(np.abs(x) / 2)  # the whole exponential overflows before the product does
    return np.where(np.isinf(x), x if order == 1 else np.inf, scaled * half * half)


def erfcx(x: np.ndarray) -> np.ndarray:
    """exp(x^2) erfc(x)."""
    tail = scaled_erfc(np.maximum(np.abs(x), 0.46875))
    inner = np.clip(x, -0.46875, 0.46875)
    near = np.exp(inner * inner) * (1 - erf(inner))
    negative = np.maximum(x, -30.0)  # beyond, exp(x^2) is infinite anyhow
    mirrored = np.where(x < -30, np.inf, 2 * np.exp(np.minimum(negative, 0.0) ** 2) - tail)
    value = np.where(np.abs(x) <= 0.46875, near, np.where(x > 0, tail, mirrored))
    return np.where(np.isnan(x), x, value)


def ndtr(x: np.ndarray) -> np.ndarray:
    """The probability that a standard normal variable is below x."""
    return 0.5 * erfc(-x / math.sqrt(2))


def log_ndtr(x: np.ndarray) -> np.ndarray:
    """log(ndtr(x)), exact in both tails."""
    z = x / math.sqrt(2)
    low = np.log(erfcx(-np.minimum(z, 0.0)) / 2) - z * z
    return np.where(x < -1, low, np.log1p(-erfc(np.maximum(z, -1.0)) / 2))


def ndtri(p: np.ndarray) -> np.ndarray:
    """The x with ndtr(x) = p: Newton's method on the logarithm, in the lower half."""
    inside = (p > 0) & (p < 1)
    small = np.where(inside, np.minimum(p, 1 - p), 0.5)
    t = np.sqrt(-2 * np.log(small))
    x = -(
        t
        - polynomial((0.010328, 0.802853, 2.515517), t)
        / polynomial((0.001308, 0.189269, 1.432788, 1.0), t)
    )
    for _ in range(5):
        log = log_ndtr(x)
        density = np.exp(-x * x / 2 - log) / math.sqrt(2 * math.pi)
        x = x - (log - np.log(small)) / density
    value = np.where(p > 0.5, -x, x)
    ends = np.where(p == 0, -np.inf, np.where(p == 1, np.inf, np.nan))
    return np.where(inside, np.where(p == 0.5, 0.0, value), ends)


def zeta(s: Any, q: Any) -> np.ndarray:
    """Hurwitz's zeta, the sum over k >= 0 of (q + k)^-s; infinite at s = 1, NaN below."""
    xp = common_namespace((s, q))
    s, q = xp.broadcast_arrays(xp.asarray(s), xp.asarray(q))
    valid = (s > 1) & ~np.isnan(q)
    n = np.where(valid, s, 2.0) - 1
    limit = LARGE + np.minimum(n, 500)
    z, total = np.where(valid, q, 1.0), xp.zeros(s.shape)
    steps = math.ceil(float((limit - z).max())) if s.size else 0
    for _ in range(min(max(steps, 0), 10_000)):
        low = z < limit
        total = np.where(low, total + z ** -(n + 1), total)
        z = np.where(low, z + 1, z)
    # Euler-Maclaurin for the rest of the sum.
    rest = z**-n / n + 0.5 * z ** -(n + 1)
    factor = (n + 1) / 2
    for k, b in enumerate(BERNOULLI, 1):
        rest = rest + b * factor * z ** -(n + 2 * k)
        factor = factor * (n + 2 * k) * (n + 2 * k + 1) / ((2 * k + 1) * (2 * k + 2))
    value = np.where((q < 0) & (s != np.floor(s)), np.nan, total + rest)
    value = np.where((q <= 0) & (q == np.floor(q)), np.inf, value)  # a pole, whatever s
    return np.where(valid, value, np.where(s == 1, np.inf, np.nan))


def polygamma(n: int, x: np.ndarray) -> np.ndarray:
    """The n-th derivative of digamma, n >= 1: (-1)^(n+1) n! zeta(n + 1, x)."""
    return (-1.0) ** (n + 1) * math.factorial(n) * zeta(n + 1, x)


_TINY = 1e-300


def gamma_ratio(a: Any, x: Any, upper: bool) -> np.ndarray:
    """The regularised incomplete gamma function, Q(a, x) if `upper` else P(a, x) = 1 - Q(a, x)."""
    xp = common_namespace((a, x))
    a, x = xp.broadcast_arrays(xp.asarray(a), xp.asarray(x))
    regular = (a > 0) & (x > 0) & np.isfinite(a) & np.isfinite(x)
    b, y = np.where(regular, a, 1.0), np.where(regular, x, 1.0)
    scale = np.exp(b * np.log(y) - y - lgamma(b))
    by_series = y < b + 1
    lower = np.where(by_series, scale * _lower_series(b, np.minimum(y, b + 1)), 0.0)
    above = np.where(by_series, 0.0, scale * _upper_fraction(b, np.maximum(y, b + 1)))
    value = (
        np.where(by_series, 1 - lower, above) if upper else np.where(by_series, lower, 1 - above)
    )
    # Edges: P(0, x) = 1, P(a, 0) = 0, P(a, inf) = 1, P(inf, x) = 0.
    p = np.where((a == 0) | np.isposinf(x), 1.0, 0.0)
    bad = (a < 0) | (x < 0) | np.isnan(a) | np.isnan(x) | ((a == 0) & (x == 0))
    bad |= np.isposinf(a) & np.isposinf(x)
    return np.where(regular, value, np.where(bad, np.nan, 1 - p if upper else p))


def _lower_series(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    term = 1 / a
    total = term.copy()
    for n in range(1, 4000):
        term = term * x / (a + n)
        total = total + term
        if not (np.abs(term) > np.abs(total) * 1e-17).any():
            break
    return total


def _upper_fraction(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    b = x + 1 - a
    c = namespace_of(x).full(x.shape, 1 / _TINY)
    d = 1 / b
    value = d.copy()
    for n in range(1, 4000):
        factor = -n * (n - a)
        b = b + 2
        d = 1 / _away_from_zero(factor * d + b)
        c = _away_from_zero(b + factor / c)
        change = c * d
        value = value * change
        if not (np.abs(change - 1) > 1e-16).any():
            break
    return value


def _away_from_zero(value: np.ndarray) -> np.ndarray:
    return np.where(np.abs(value) < _TINY, _TINY, value)
