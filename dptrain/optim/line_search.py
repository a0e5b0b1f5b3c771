"""A line search that ends where the strong Wolfe conditions hold.

Source: Nocedal & Wright, "Numerical optimization", 2006, algorithms 3.5 and 3.6, in the form that
PyTorch has (from Lua Torch's lswolfe and polyinterp), so that both try the same points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(slots=True)
class _Point:
    """A point on the line: how far, the loss, the gradient, the slope along the line."""

    t: float
    f: float
    g: np.ndarray
    slope: float


def _cubic(a: _Point, b: _Point, bounds: tuple[float, float] | None = None) -> float:
    """The minimum of the cubic through both points with their slopes, kept within the bounds."""
    low, high = bounds or (min(a.t, b.t), max(a.t, b.t))
    with np.errstate(all="ignore"):
        d1 = a.slope + b.slope - 3 * (a.f - b.f) / (a.t - b.t)
        square = d1**2 - a.slope * b.slope
        if not square >= 0:
            return (low + high) / 2.0
        d2 = math.sqrt(square)
        left, right = (a, b) if a.t <= b.t else (b, a)
        ratio = np.divide(right.slope + d2 - d1, right.slope - left.slope + 2 * d2)
    return float(min(max(right.t - (right.t - left.t) * ratio, low), high))


def strong_wolfe(
    evaluate: Callable[[float], tuple[float, np.ndarray]],
    t: float,
    d: np.ndarray,
    f: float,
    g: np.ndarray,
    slope: float,
    tolerance_change: float = 1e-9,
    max_ls: int = 25,
    c1: float = 1e-4,
    c2: float = 0.9,
) -> tuple[float, np.ndarray, float, int]:
    """Find a step along `d` that lowers the loss enough and flattens its slope enough.

    Args:
        evaluate: the loss and the gradient at a step from the start.
        t: the first step to try.
        d: the direction.
        f: loss at the start.
        g: gradient at the start.
        slope: derivative of the loss along `d` at the start; negative.
        tolerance_change: end where the bracket, times the largest element of `d`, is smaller.
        max_ls: most points to try.
        c1: factor of the condition on the loss.
        c2: factor of the condition on the slope.

    Returns:
        Loss, gradient, step, number of evaluations.
    """

    def point(at: float) -> _Point:
        loss, grad = evaluate(at)
        return _Point(at, loss, grad, float(grad @ d))

    def too_high(p: _Point) -> bool:
        return p.f > f + c1 * p.t * slope

    start = previous = _Point(0.0, f, g.copy(), slope)
    new, evaluations, tries = point(t), 1, 0
    bracket: list[_Point] = []
    while tries < max_ls:
        if too_high(new) or (tries > 1 and new.f >= previous.f):
            bracket = [previous, new]
            break
        if abs(new.slope) <= -c2 * slope:
            return new.f, new.g, new.t, evaluations
        if new.slope >= 0:
            bracket = [previous, new]
            break
        bounds = new.t + 0.01 * (new.t - previous.t), new.t * 10
        at = _cubic(previous, new, bounds)
        previous, new = new, point(at)
        evaluations, tries = evaluations + 1, tries + 1
    bracket = bracket or [start, new]
    low = min(bracket, key=lambda p: p.f)
    found, tries, more = _zoom(
        bracket, low, point, too_high, -c2 * slope, abs(d).max() / tolerance_change, tries, max_ls
    )
    return found.f, found.g, found.t, evaluations + more


def _zoom(
    bracket: list[_Point],
    low: _Point,
    point: Callable[[float], _Point],
    too_high: Callable[[_Point], bool],
    flat: float,
    finest: Any,
    tries: int,
    max_ls: int,
) -> tuple[_Point, int, int]:
    """Shrink the bracket until a point in it fulfils the conditions."""
    more, insufficient = 0, False
    while tries < max_ls:
        a, b = bracket
        if abs(b.t - a.t) * finest < 1:
            break
        t = _cubic(a, b)
        left, right = min(a.t, b.t), max(a.t, b.t)
        margin = 0.1 * (right - left)
        if min(right - t, t - left) < margin:
            # Close to the edge, where the interpolation makes little progress: move inwards.
            if insufficient or t >= right or t <= left:
                t = right - margin if abs(t - right) < abs(t - left) else left + margin
                insufficient = False
            else:
                insufficient = True
        else:
            insufficient = False
        new = point(t)
        more, tries = more + 1, tries + 1
        high_at = 1 if bracket[0] is low else 0
        if too_high(new) or new.f >= low.f:
            bracket[high_at] = new
            low = bracket[0] if bracket[0].f <= bracket[1].f else bracket[1]
        else:
            done = abs(new.slope) <= flat
            if not done and new.slope * (bracket[high_at].t - low.t) >= 0:
                bracket[high_at] = low
            bracket[1 - high_at] = low = new
            if done:
                break
    return low, tries, more
