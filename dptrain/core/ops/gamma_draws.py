"""Draws from gamma distributions that are differentiable by their concentration."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import as_array, namespace_of, run_beside
from dptrain.core.op import Op
from dptrain.core.ops.rejection_draws import draw
from dptrain.core.ops.special_values import digamma
from dptrain.core.random import Generator
from dptrain.core.tensor import Tensor

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
#: Below, a power series; above, an integral.
_SMALL = 12.0


def draw_slope(concentration: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """How draws of a gamma distribution move with its concentration, their quantiles held: dx / da.

    -(dP/da) / p(x), of the distribution function P and the density p. Source: Figurnov, Mohamed & Mnih,
    "Implicit reparameterization gradients", NeurIPS 2018.
    """
    a, x = np.broadcast_arrays(concentration, np.maximum(draws, np.finfo(np.float64).tiny))
    with np.errstate(all="ignore"):  # nan and inf give nan
        found = namespace_of(x).empty(x.shape)
        small = x < _SMALL
        found[small] = _by_series(a[small], x[small])
        found[~small] = _by_quadrature(a[~small], x[~small])
    return found


def _by_series(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """P = p(x) (x / a) sum of x^n / ((a + 1) ... (a + n)), differentiated term by term."""
    term, harmonic = np.ones_like(x), np.zeros_like(x)
    total, by_a = term.copy(), harmonic.copy()
    for n in range(1, 400):
        term = term * x / (a + n)
        harmonic = harmonic + 1 / (a + n)
        total = total + term
        by_a = by_a - term * harmonic
        if not (term * (1 + harmonic) > total * 1e-17).any():
            break
    result: np.ndarray = -x / a * ((np.log(x) - digamma(a + 1)) * total + by_a)
    return result


def _by_quadrature(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """dP/da is the integral of p(t) (log t - digamma(a)) over t < x, which is minus that over t > x.

    Relative to p(x), from x away from the mode; Gauss and Legendre's rule as far as the density falls by e^-36.
    """
    side = np.where(x > a, 1.0, -1.0)

    def fall(y: Any) -> Any:
        return -side * y + (a - 1) * np.log1p(side * y / x)

    rate, curvature = np.abs(1 - (a - 1) / x), np.abs(a - 1) / x**2
    reach = 80 / (rate + np.sqrt(rate**2 + 80 * curvature))
    for _ in range(40):
        short = (side > 0) & (fall(reach) > -36)
        if not short.any():
            break
        reach = np.where(short, 1.3 * reach, reach)
    reach = np.where(side < 0, np.minimum(reach, x), reach)
    centre = digamma(a)
    total = np.zeros_like(x)
    for node, weight in zip((_NODES + 1) / 2, _WEIGHTS / 2, strict=True):
        y = reach * node
        total = total + weight * np.exp(fall(y)) * (np.log(x + side * y) - centre)
    result: np.ndarray = side * reach * total
    return result


class StandardGamma(Op):
    """Draws from the gamma distributions of rate 1 with these concentrations."""

    name = "standard_gamma"

    def forward(self, input: Any, draws: Any) -> Any:
        return draws.astype(input.dtype)

    def backward(self, grad: Any, input: Any, out: Any) -> Any:
        return grad * StandardGammaSlope.call(input, out)


class StandardGammaSlope(Op):
    """See `draw_slope`."""

    name = "standard_gamma_grad"

    def forward(self, input: Any, draws: Any) -> Any:
        values = draws.astype(np.float64)
        slope = run_beside(values, draw_slope, input.astype(np.float64), values)
        return as_array(slope).astype(input.dtype)

    def backward(self, grad: Any) -> Any:
        raise RuntimeError("the derivative for '_standard_gamma_grad' is not implemented.")


def standard_gamma(concentration: Tensor, generator: Generator | None = None) -> Tensor:
    """Draws of rate 1, in the shape and dtype of `concentration`, differentiable by it."""
    shapes = as_array(concentration._array).astype(np.float64)
    result: Tensor = StandardGamma.apply(concentration, draw("standard_gamma", generator, shapes))
    return result
