"""Matrices of the Cook-Toom algorithm in exact fractions: short convolutions by few products.

m results of a filter with r taps take a = m + r - 1 products:

    y = output @ ((taps @ g) * (image @ d))

for a filter g and an image d of a numbers, y[i] = sum over k of d[i + k] g[k]. The algorithm evaluates
polynomials at a - 1 points and at infinity; transposed, it is a correlation.
Source: Lavin & Gray, "Fast algorithms for convolutional neural networks", 2016; Blahut, "Fast algorithms
for signal processing", 2010, chapter 5.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from math import lcm, prod
from typing import NamedTuple

Matrix = tuple[tuple[Fraction, ...], ...]

#: In this order; small numbers with small inverses keep the rounding errors small.
POINTS = tuple(Fraction(p) for p in ("0", "1", "-1", "2", "-2", "1/2", "-1/2"))


class Transforms(NamedTuple):
    """The three matrices: (m, a), (a, r) and (a, a)."""

    output: Matrix
    taps: Matrix
    image: Matrix


def _times(p: list[Fraction], root: Fraction) -> list[Fraction]:
    """The polynomial p(x) (x - root), lowest coefficient first."""
    shifted = [Fraction(0), *p]
    return [s - root * c for s, c in zip(shifted, [*p, Fraction(0)], strict=True)]


@cache
def transforms(results: int, taps: int) -> Transforms:
    """The matrices for `results` results of a filter with `taps` taps."""
    size = results + taps - 1
    points = POINTS[: size - 1]
    output = [[p**k for p in points] + [Fraction(int(k == results - 1))] for k in range(results)]
    filters, image = [], []
    for p in points:
        others = [q for q in points if q != p]
        polynomial = [Fraction(1)]
        for q in others:
            polynomial = _times(polynomial, q)
        row = [*polynomial, Fraction(0)]
        # Denominators move into the filter's matrix, which is applied once per step.
        scale = lcm(*(c.denominator for c in row))
        image.append([c * scale for c in row])
        below = prod((p - q for q in others), start=Fraction(scale))
        filters.append([p**k / below for k in range(taps)])
    polynomial = [Fraction(1)]
    for q in points:
        polynomial = _times(polynomial, q)
    scale = lcm(*(c.denominator for c in polynomial))
    image.append([c * scale for c in polynomial])
    filters.append([Fraction(int(k == taps - 1), scale) for k in range(taps)])
    return Transforms(*(tuple(tuple(r) for r in m) for m in (output, filters, image)))
