"""The error function over arrays in plain NumPy, to the precision of float64.

Source: W. J. Cody, "Rational Chebyshev approximations for the error function", Math. Comp. 23
(1969), 631-637: one rational function for each of |x| <= 0.46875, up to 4, and beyond.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

_NEAR = (
    (
        1.85777706184603153e-1,
        3.16112374387056560e0,
        1.13864154151050156e2,
        3.77485237685302021e2,
        3.20937758913846947e3,
    ),
    (
        1.0,
        2.36012909523441209e1,
        2.44024637934444173e2,
        1.28261652607737228e3,
        2.84423683343917062e3,
    ),
)
_MIDDLE = (
    (
        2.15311535474403846e-8,
        5.64188496988670089e-1,
        8.88314979438837594e0,
        6.61191906371416295e1,
        2.98635138197400131e2,
        8.81952221241769090e2,
        1.71204761263407058e3,
        2.05107837782607147e3,
        1.23033935479799725e3,
    ),
    (
        1.0,
        1.57449261107098347e1,
        1.17693950891312499e2,
        5.37181101862009858e2,
        1.62138957456669019e3,
        3.29079923573345963e3,
        4.36261909014324716e3,
        3.43936767414372164e3,
        1.23033935480374942e3,
    ),
)
_FAR = (
    (
        1.63153871373020978e-2,
        3.05326634961232344e-1,
        3.60344899949804439e-1,
        1.25781726111229246e-1,
        1.60837851487422766e-2,
        6.58749161529837803e-4,
    ),
    (
        1.0,
        2.56852019228982242e0,
        1.87295284992346725e0,
        5.27905102951428412e-1,
        6.05183413124413191e-2,
        2.33520497626869185e-3,
    ),
)


def polynomial(coefficients: Iterable[float], x: Any) -> Any:
    """The value at `x`, highest power first, for arrays of any device."""
    value = x * 0
    for c in coefficients:
        value = value * x + c
    return value


def _ratio(tables: tuple[tuple[float, ...], tuple[float, ...]], x: np.ndarray) -> np.ndarray:
    return polynomial(tables[0], x) / polynomial(tables[1], x)


def scaled_erfc(y: np.ndarray) -> np.ndarray:
    """exp(y^2) erfc(y) for y >= 0.46875, in float64."""
    middle = _ratio(_MIDDLE, np.minimum(y, 4.0))
    outside = np.maximum(y, 4.0)
    inverse = 1 / (outside * outside)
    tail = (1 / np.sqrt(np.pi) - inverse * _ratio(_FAR, inverse)) / outside
    return np.where(y <= 4.0, middle, tail)


def erf(x: np.ndarray) -> np.ndarray:
    """erf(x) element by element, in the type of `x` (float32 or float64)."""
    wide = x.astype(np.float64, copy=False)
    size = np.abs(wide)
    near = wide * _ratio(_NEAR, np.minimum(size, 0.46875) ** 2)
    bounded = np.clip(size, 0.46875, 6.0)  # erf(6) is 1 to the last bit
    far = np.copysign(1 - np.exp(-bounded * bounded) * scaled_erfc(bounded), wide)
    out = np.where(size <= 0.46875, near, far)
    return np.where(np.isnan(wide), wide, out).astype(x.dtype, copy=False)
