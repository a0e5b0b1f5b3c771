"""Draws from Poisson distributions, from uniform numbers, on arrays of any device.

Source: W. Hoermann, "The transformed rejection method for generating Poisson random variables",
Insurance: Mathematics and Economics 12 (1993), algorithm PTRS, for rates from 10; below, the inverse of
the distribution function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.ops.special_values import lgamma

_LARGE = 10.0
#: Beyond so many, a rate below `_LARGE` has less probability left than a float64 in [0, 1) resolves.
_MOST = 64


def poisson(rate: Any, uniform: Callable[[], Any]) -> Any:
    """Draws as float64; NaN where the rate is.

    Args:
        rate: float64, not negative.
        uniform: gives new numbers in [0, 1), in the shape of `rate`.
    """
    small = ~(rate >= _LARGE)
    counts = _by_inversion(np.where(small, rate, 1.0), uniform())
    # The others go on until all are accepted.
    open_ = ~small & np.isfinite(rate)
    mean = np.where(open_, rate, _LARGE)
    while open_.any():
        accepted, found = _trial(mean, uniform(), uniform())
        counts = np.where(open_ & accepted, found, counts)
        open_ = open_ & ~accepted
    return np.where(np.isfinite(rate), counts, rate)


def _by_inversion(rate: Any, u: Any) -> Any:
    """How many values of the distribution function lie at or below u."""
    density = np.exp(-rate)
    below, counts = density, namespace_of(rate).zeros(rate.shape)
    for k in range(1, _MOST):
        counts = counts + (u >= below)
        density = density * rate / k
        below = below + density
    return counts


def _trial(rate: Any, u: Any, v: Any) -> tuple[Any, Any]:
    """Whether a trial is accepted, and its count."""
    b = 0.931 + 2.53 * np.sqrt(rate)
    a = -0.059 + 0.02483 * b
    u, v = u - 0.5, 1 - v  # (0, 1]: its logarithm is finite
    distance = 0.5 - np.abs(u)
    inside = np.maximum(distance, 1e-30)
    k = np.floor((2 * a / inside + b) * u + rate + 0.43)
    quick = (distance >= 0.07) & (v <= 0.9277 - 3.6224 / (b - 2))
    outside = (k < 0) | ((distance < 0.013) & (v > distance))
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    left = np.log(v * inverse_alpha / (a / (inside * inside) + b))
    right = k * np.log(rate) - rate - lgamma(np.maximum(k, 0.0) + 1)
    return quick | (~outside & (left <= right)), k
