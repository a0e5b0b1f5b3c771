"""Exponentials and logarithms that loops can vectorise: no branch, no call.

exp is within 1.1 units in the last place of the exact value over the whole range in float32, within 1.5 in
float64, subnormal results within one of theirs. Where its argument is the sum of two numbers of which the
second is small, the rounding of the sum does not count.

Each function is made for both element types from the same lines, as a `numba` function to be inlined.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import factorial
from typing import Any, NamedTuple

import numpy as np

from dptrain.core.kernels.deferred import intrinsic, ir, njit, types

inlined: Any = njit(inline="always")


def _cast(source: str, target: str) -> Any:
    @intrinsic
    def cast(typing_context: Any, value: Any) -> Any:
        to = getattr(types, target)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.bitcast(values[0], context.get_value_type(to))

        return to(getattr(types, source)), generate

    return cast


class Bits(NamedTuple):
    """The bits of a number as an integer, and the number of given bits."""

    of: Any
    number: Any


BITS = {
    np.float32: Bits(_cast("float32", "int32"), _cast("int32", "float32")),
    np.float64: Bits(_cast("float64", "int64"), _cast("int64", "float64")),
}


def polynomial(coefficients: Sequence[float]) -> Any:
    """A function that gives the value of a polynomial, highest power first, in the type of its argument."""

    @intrinsic
    def value(typing_context: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            (at,) = values
            kind = at.type
            name = f"llvm.fmuladd.f{32 if kind == ir.FloatType() else 64}"
            held = builder.module.globals.get(name)
            step = held or ir.Function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
            total = ir.Constant(kind, coefficients[0])
            for c in coefficients[1:]:
                total = builder.call(step, [total, at, ir.Constant(kind, c)])
            return total

        return x(x), generate

    return value


class Exponentials(NamedTuple):
    """Functions of one element type.

    Attributes:
        exp: e to the power of x.
        exp_sum: e to the power of x + y, for y that is below 0.05 in size.
        expm1: exp(x) - 1 for x <= 0, exact near 0.
        log1p: log(1 + x) for x in [0, 1], exact near 0.
    """

    exp: Any
    exp_sum: Any
    expm1: Any
    log1p: Any


class _Facts(NamedTuple):
    low: float  # below, exp is 0
    high: float  # above, exp is infinity
    log2: tuple[float, float]  # of 2, in two parts; a product of the first and a power is exact
    terms: int  # of exp's series, whose argument is at most log(2) / 2 in size
    odd_terms: int  # of the series of log1p
    shift: float  # a sum with it has a whole number in its last bits, the exponent's bias added
    mantissa: int  # bits
    one: float  # expm1 is -1 below


FACTS = {
    np.float32: _Facts(
        -104, 89, (0.693145751953125, 1.42860682030941723e-6), 7, 7, 1.5 * 2**23 + 127, 23, -20
    ),
    np.float64: _Facts(
        -746, 710, (0.693147180369123816490, 1.90821492927058770e-10), 13, 16, 1.5 * 2**52 + 1023, 52, -40
    ),
}  # fmt: skip


def series(real: Any) -> list[float]:
    """Coefficients of (exp(r) - 1 - r) / r^2, highest power first."""
    return [1 / factorial(n) for n in range(FACTS[real].terms, 1, -1)]


@cache
def exponentials(real: Any) -> Exponentials:
    """Those of an element type.

    exp is 2^k times the polynomial of the rest, Taylor's. The power is put on in two steps, so that infinite
    and subnormal results come out. log1p is 2 artanh(x / (x + 2)), by its series.
    """
    facts, of_bits, bits_of = FACTS[real], BITS[real].number, BITS[real].of
    integer = np.int32 if real is np.float32 else np.int64
    low, high, one = real(facts.low), real(facts.high), real(facts.one)
    log2_high, log2_low = real(facts.log2[0]), real(facts.log2[1])
    shift, places = real(facts.shift), integer(facts.mantissa)
    rest = polynomial(series(real))
    odd = polynomial([2 / (2 * n + 1) for n in range(facts.odd_terms, 0, -1)])
    inverse, half, unit, two = real(1.4426950408889634), real(0.5), real(1), real(2)

    @inlined
    def power_of_two(k):
        # By a sum instead of a conversion, which vectors of AVX2 lack for 64 bits.
        return of_bits(bits_of(k + shift) << places)

    @inlined
    def exp_sum(x, more):
        y = x if x > low else low  # what is no number goes on as a number until the end
        y = y if y < high else high
        k = np.floor(y * inverse + half)
        r = ((y - k * log2_high) - k * log2_low) + more
        p = (rest(r) * r * r + r) + unit
        first = np.floor(k * half)
        p = p * power_of_two(first) * power_of_two(k - first)
        return p if x == x else x

    @inlined
    def exp(x):
        return exp_sum(x, real(-0.0))

    @inlined
    def expm1(x):
        y = x if x > one else one
        k = np.floor(y * inverse + half)
        r = (y - k * log2_high) - k * log2_low
        power = power_of_two(k)
        p = power * (rest(r) * r * r + r) + (power - unit)
        return p if x == x else x

    @inlined
    def log1p(x):
        s = x / (x + two)
        z = s * s
        return two * s + s * (z * odd(z))

    return Exponentials(exp, exp_sum, expm1, log1p)
