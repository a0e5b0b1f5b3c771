"""Values of the error function and of the gamma function's family on raw float64 arrays of any device.

Sources: erfc after W. J. Cody, as erf in `dptrain.core.kernels.erf`; erfinv starts from M. Giles,
"Approximating the erfinv function" (2010), and takes Newton steps; the gamma family uses Stirling's asymptotic series behind recurrence and
reflection (Abramowitz and Stegun 6.1.40, 6.3.18, 6.4.11).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dptrain.core.kernels.erf import erf, polynomial, scaled_erfc


def _exp_minus_square(y: Any) -> Any:
    """exp(-y^2) without the rounding error of y^2: y is split at 1/16."""
    coarse = np.trunc(y * 16) / 16
    return np.exp(-coarse * coarse) * np.exp(-(y - coarse) * (y + coarse))


def erfc(x: np.ndarray) -> np.ndarray:
    """1 - erf(x), exact where erf(x) is close to 1."""
    y = np.clip(np.abs(x), 0.46875, 30.0)
    tail = _exp_minus_square(y) * scaled_erfc(y)
    far = np.where(x > 0, tail, 2 - tail)
    return np.where(np.isnan(x), x, np.where(np.abs(x) <= 0.46875, 1 - erf(x), far))


_GILES_NEAR = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_GILES_FAR = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)


def erfinv(y: np.ndarray) -> np.ndarray:
    """The inverse of erf; infinite at -1 and 1, NaN beyond."""
    w = -np.log((1 - y) * (1 + y))
    x = y * np.where(
        w < 5, polynomial(_GILES_NEAR, w - 2.5), polynomial(_GILES_FAR, np.sqrt(w) - 3)
    )
    for _ in range(3):
        # The residual by erfc in the tails, where erf has lost its digits.
        tail = np.abs(y) > 0.5
        residual = np.where(tail, -np.sign(y) * (erfc(np.abs(x)) - (1 - np.abs(y))), erf(x) - y)
        x = x - residual * (math.sqrt(math.pi) / 2) * np.exp(x * x)
    return np.where(np.abs(y) == 1, np.copysign(np.inf, y), np.where(np.abs(y) < 1, x, np.nan))


LARGE = 12.0
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)


def lgamma(x: np.ndarray) -> np.ndarray:
    """log |Gamma(x)|; infinite at 0 and the negative integers."""
    flipped = x < 0.5
    z = np.where(flipped, 1 - x, x)
    product = np.ones_like(z)
    shifted = z.copy()
    for _ in range(int(LARGE)):
        low = shifted < LARGE
        product = np.where(low, product * shifted, product)
        shifted = np.where(low, shifted + 1, shifted)
    inverse = 1 / shifted
    series = inverse * polynomial(_STIRLING[::-1], inverse * inverse)
    value = (shifted - 0.5) * np.log(shifted) - shifted + 0.5 * math.log(2 * math.pi) + series
    value = np.where(np.isposinf(z), np.inf, value - np.log(product))
    sine = np.abs(np.sin(np.pi * (x - np.rint(x))))
    reflected = np.where(np.isneginf(x), np.inf, math.log(math.pi) - np.log(sine) - value)
    return np.where(flipped, reflected, value)


def digamma(x: np.ndarray) -> np.ndarray:
    """The derivative of log Gamma; NaN at the negative integers, -inf at +0, inf at -0."""
    flipped = x < 0
    z = np.where(flipped, 1 - x, x)
    total = np.zeros_like(z)
    for _ in range(int(LARGE)):
        low = z < LARGE
        total = np.where(low, total - 1 / z, total)
        z = np.where(low, z + 1, z)
    inverse = 1 / (z * z)
    terms = [b / (2 * k) for k, b in enumerate(BERNOULLI, 1)]
    value = total + np.log(z) - 0.5 / z - inverse * polynomial(terms[::-1], inverse)
    value = np.where(np.isposinf(x), np.inf, value)
    fraction = x - np.rint(x)
    reflected = np.where(fraction == 0, np.nan, value - math.pi / np.tan(np.pi * fraction))
    at_zero = np.copysign(np.inf, -x)
    return np.where(x == 0, at_zero, np.where(flipped, reflected, value))
