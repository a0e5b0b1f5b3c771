"""Draws from Poisson, binomial and gamma distributions, made of uniform numbers where the parameters live.

Sources: W. Hoermann, "The transformed rejection method for generating Poisson random variables", Insurance:
Mathematics and Economics 12 (1993), algorithm PTRS, and "The generation of binomial random variates",
Journal of Statistical Computation and Simulation 46 (1993), algorithm BTRS, for means from 10, with the
probabilities by lgamma; below, the inverse of the distribution function. G. Marsaglia, W. W. Tsang, "A simple
method for generating gamma variables", ACM Transactions on Mathematical Software 26 (2000).

All take float64 parameters of one shape and `uniform`, which gives new numbers in [0, 1) of that shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of, on_gpu, run_beside, to_host
from dptrain.core.ops.special_values import lgamma
from dptrain.core.random import DRAWS, Generator, default_generator

_LARGE = 10.0
#: Beyond so many, a mean below `_LARGE` has less probability left than a float64 in [0, 1) resolves.
_MOST = 64

Uniform = Callable[[], Any]


def draw(name: str, generator: Generator | None, *parameters: Any) -> Any:
    """Draws by NumPy's method of a distribution; for parameters on a GPU there, by the function of that name."""
    first, source = parameters[0], generator or default_generator()
    if on_gpu(first):

        def uniform() -> Any:
            return source.uniform_beside(first, first.shape, DRAWS, np.float64)

        return run_beside(first, _DISTRIBUTIONS[name], *parameters, uniform)
    drawn = getattr(source.stream(), name)(*map(to_host, parameters))
    return namespace_of(first).asarray(drawn)


def poisson(rate: Any, uniform: Uniform) -> Any:
    """Counts of events, for rates that are not negative; NaN and infinity where the rate is."""
    small = ~(rate >= _LARGE)
    low = np.where(small, rate, 1.0)
    counts = _by_inversion(np.exp(-low), lambda k: low / k, uniform())
    open_ = ~small & np.isfinite(rate)
    mean = np.where(open_, rate, _LARGE)
    b = 0.931 + 2.53 * np.sqrt(mean)
    a = -0.059 + 0.02483 * b

    def weight(k: Any) -> Any:
        return k * np.log(mean) - mean - lgamma(k + 1)

    def trial() -> Any:
        factor = 1.1239 + 1.1328 / (b - 3.4)
        return _trial(a, b, mean + 0.43, 0.9277 - 3.6224 / (b - 2), factor, np.inf, weight, uniform)

    return np.where(np.isfinite(rate), _until_accepted(counts, open_, trial), rate)


def binomial(count: Any, chance: Any, uniform: Uniform) -> Any:
    """Successes among `count` trials, for counts from 0 and chances in [0, 1]."""
    turned = chance > 0.5
    p = np.where(turned, 1 - chance, chance)
    small = count * p < _LARGE
    n, q = np.where(small, count, 1.0), np.where(small, p, 0.1)
    odds = q / (1 - q)
    start = np.exp(n * np.log1p(-q))
    counts = _by_inversion(start, lambda k: np.maximum(n - k + 1, 0.0) / k * odds, uniform())
    n, q = np.where(small, 40.0, count), np.where(small, 0.5, p)
    deviation = np.sqrt(n * q * (1 - q))
    b = 1.15 + 2.53 * deviation
    a = -0.0873 + 0.0248 * b + 0.01 * q
    mode = np.floor((n + 1) * q)
    log_odds = np.log(q / (1 - q))
    top = lgamma(mode + 1) + lgamma(n - mode + 1)

    def weight(k: Any) -> Any:
        inside = np.minimum(k, n)
        return top - lgamma(inside + 1) - lgamma(n - inside + 1) + (inside - mode) * log_odds

    def trial() -> Any:
        factor = (2.83 + 5.1 / b) * deviation
        return _trial(a, b, n * q + 0.5, 0.92 - 4.2 / b, factor, n, weight, uniform)

    counts = _until_accepted(counts, ~small, trial)
    return np.where(turned, count - counts, counts)


def standard_gamma(shape: Any, uniform: Uniform) -> Any:
    """Draws of rate 1, for shapes that are not negative."""
    # Below 1: of shape + 1, times a power of a uniform number.
    raised = shape < 1
    d = np.where(raised, shape + 1, shape) - 1 / 3
    c = 1 / np.sqrt(9 * d)

    def trial() -> Any:
        x = np.sqrt(-2 * np.log(1 - uniform())) * np.cos(2 * math.pi * uniform())
        v = np.maximum(1 + c * x, 0.0) ** 3
        bound = 0.5 * x * x + d * (1 - v + np.log(v))
        return (v > 0) & (np.log(1 - uniform()) < bound), d * v

    known = np.isfinite(shape)
    draws = _until_accepted(shape, known, trial)
    return np.where(raised & known, draws * (1 - uniform()) ** (1 / shape), draws)


_DISTRIBUTIONS: dict[str, Callable[..., Any]] = {
    "binomial": binomial,
    "poisson": poisson,
    "standard_gamma": standard_gamma,
}


def _until_accepted(values: Any, open_: Any, trial: Callable[[], tuple[Any, Any]]) -> Any:
    """Where `open_`, the first accepted result of trials."""
    while open_.any():
        accepted, found = trial()
        values = np.where(open_ & accepted, found, values)
        open_ = open_ & ~accepted
    return values


def _by_inversion(start: Any, ratio: Callable[[int], Any], u: Any) -> Any:
    """How many values of a distribution function lie at or below u.

    Args:
        start: the probability of 0.
        ratio: of the probabilities of k and of k - 1.
        u: uniform numbers.
    """
    density = below = start
    counts = namespace_of(start).zeros(start.shape)
    for k in range(1, _MOST):
        counts = counts + (u >= below)
        density = density * ratio(k)
        below = below + density
    return counts


def _trial(
    a: Any, b: Any, centre: Any, quick: Any, factor: Any, most: Any, weight: Any, uniform: Uniform
) -> tuple[Any, Any]:
    """One trial of transformed rejection: whether it is accepted, and its count.

    Args:
        a, b, centre: of the hat's inverse distribution function, (2 a / (1/2 - |u|) + b) u + centre.
        quick: where the second number is at most that, and u not far out, no probability is asked for.
        factor: of the hat's density.
        most: the largest count.
        weight: the logarithm of a count's probability, up to what `factor` holds.
        uniform: gives numbers.
    """
    u, v = uniform() - 0.5, 1 - uniform()  # (0, 1]: its logarithm is finite
    distance = 0.5 - np.abs(u)
    inside = np.maximum(distance, 1e-30)
    k = np.floor((2 * a / inside + b) * u + centre)
    possible = (k >= 0) & (k <= most)
    kept = np.where(possible, k, 0.0)
    fits = np.log(v * factor / (a / (inside * inside) + b)) <= weight(kept)
    return possible & (((distance >= 0.07) & (v <= quick)) | fits), k
